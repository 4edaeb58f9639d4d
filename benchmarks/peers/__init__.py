"""What users run today, each in a file of its own.

A dense peer offers ``forms(q, k, v, threads)``: a dict from a form's name to a callable without
arguments that computes decode attention of q (B, H, 1, D) over k, v (B, H_kv, S, D) and returns
(B, H, 1, D) in any shape. The arrays are NumPy's and a form reads them where they lie, unless its
name says otherwise; what a form converts beforehand is not timed. `Unavailable` gives the reason
where a peer cannot take these arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The peer's name, its file here, its distribution.
DENSE = (
    ("PyTorch", "torch_cpu", "torch"),
    ("ONNX Runtime", "onnx_runtime", "onnxruntime"),
    ("llama.cpp", "llama_cpp", "llama-cpp-python"),
    ("NumPy", "numpy_dense", "numpy"),
)
# How long a peer's threads spin behind a call, where that is long: those of OpenBLAS.
REST_SECONDS = {"NumPy": 0.25}
COPY_BYTES = 3 << 30  # a form that needs rearranged copies of K or V larger than this is left out


class Unavailable(Exception):
    """A peer or a form cannot be had, and why."""


def dense_forms(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], threads: int, names: list[str]
) -> tuple[dict[tuple[str, str], Callable[[], Any]], dict[str, str]]:
    """Every form of the named peers by (peer, form), and the reasons of those not to be had."""
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
    """A form's result as NumPy's float32."""
    return out.float().numpy() if hasattr(out, "float") else np.asarray(out).astype(np.float32)


def versions() -> dict[str, str]:
    found = {}
    for distribution in [name for _, _, name in DENSE] + ["faiss-cpu"]:
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found
