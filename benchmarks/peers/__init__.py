"""Libraries that users run today. Each has a file of its own.

A dense peer has a function ``forms(q, k, v, threads)``. It returns a dict from the names of forms
to callables without arguments. A callable computes decode attention of q (B, H, 1, D) over k and v
(B, H_kv, S, D). Its result has the elements of (B, H, 1, D), in any shape. The arrays are NumPy's.
A form reads them in place, unless its name says otherwise. Conversions before the call are not
timed. If a peer cannot take these arrays, it raises `Unavailable` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Name of the peer, its file in this folder, its distribution on PyPI.
DENSE = (
    ("PyTorch", "torch_cpu", "torch"),
    ("ONNX Runtime", "onnx_runtime", "onnxruntime"),
    ("llama.cpp", "llama_cpp", "llama-cpp-python"),
    ("NumPy", "numpy_dense", "numpy"),
)
# Pause after a peer whose threads spin for long after a call. NumPy has the threads of OpenBLAS.
REST_SECONDS = {"NumPy": 0.25}
COPY_BYTES = 3 << 30  # a form that needs larger rearranged copies of K or V is left out


class Unavailable(Exception):
    """A peer or a form cannot run. The text is the reason."""


def dense_forms(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], threads: int, names: list[str]
) -> tuple[dict[tuple[str, str], Callable[[], Any]], dict[str, str]]:
    """Every form of the named peers by (peer, form), and the reasons of the missing peers."""
    forms: dict[tuple[str, str], Callable[[], Any]] = {}
    missing = {}
    for peer, module, _ in DENSE:
        if peer not in names:
            continue
        try:
            found = import_module(f"peers.{module}").forms(q, k, v, threads)
        except ImportError as error:
            missing[peer] = f"not installed: {error}"
        except Unavailable as error:
            missing[peer] = str(error)
        else:
            forms |= {(peer, name): form for name, form in found.items()}
    return forms, missing


def float32(out: Any) -> NDArray[np.float32]:
    """The result of a form as a NumPy array of float32."""
    return out.float().numpy() if hasattr(out, "float") else np.asarray(out).astype(np.float32)


def versions() -> dict[str, str]:
    found = {}
    for distribution in [name for _, _, name in DENSE] + ["faiss-cpu"]:
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found
