"""llama.cpp's attention alone: ggml's operators on the CPU, from llama-cpp-python's libraries.

"flash attention" is ggml_flash_attn_ext, which a decode runs with ``flash_attn=True``. It reads
keys and values in place. Without that option a decode runs "matmuls". For these llama.cpp stores
the values transposed, and so does this form. Queries are float32, as always in llama.cpp. Both
forms have the new token in the cache, and no mask.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import COPY_BYTES, Unavailable

_TYPES = {"float32": 0, "float16": 1, "bfloat16": 30}
_F32 = _TYPES["float32"]
_Pointer = ctypes.c_void_p
_int64 = ctypes.c_int64


class _Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h, up to its data."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", _Pointer),
        ("ne", _int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", _Pointer * 10),
        ("view_src", _Pointer),
        ("view_offs", ctypes.c_size_t),
        ("data", _Pointer),
    ]


class _InitParams(ctypes.Structure):
    _fields_ = [
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", _Pointer),
        ("no_alloc", ctypes.c_bool),
    ]


class _Plan(ctypes.Structure):
    """struct ggml_cplan of ggml-cpu.h."""

    _fields_ = [
        ("work_size", ctypes.c_size_t),
        ("work_data", _Pointer),
        ("n_threads", ctypes.c_int),
        ("threadpool", _Pointer),
        ("abort_callback", _Pointer),
        ("abort_callback_data", _Pointer),
        ("use_ref", ctypes.c_bool),
    ]


_tensor = ctypes.POINTER(_Tensor)
_floats = [ctypes.c_float]
_SIGNATURES = {
    "ggml_init": (_Pointer, [_InitParams]),
    "ggml_new_tensor_4d": (_tensor, [_Pointer, ctypes.c_int] + [_int64] * 4),
    "ggml_flash_attn_ext": (_tensor, [_Pointer] + [_tensor] * 4 + _floats * 3),
    "ggml_mul_mat": (_tensor, [_Pointer, _tensor, _tensor]),
    "ggml_soft_max_ext": (_tensor, [_Pointer, _tensor, _tensor] + _floats * 2),
    "ggml_new_graph": (_Pointer, [_Pointer]),
    "ggml_build_forward_expand": (None, [_Pointer, _tensor]),
    "ggml_cpu_init": (None, []),
    "ggml_graph_plan": (_Plan, [_Pointer, ctypes.c_int, _Pointer]),
    "ggml_graph_compute": (ctypes.c_int, [_Pointer, ctypes.POINTER(_Plan)]),
}


def _library() -> dict[str, Any]:
    """The functions of ggml by name."""
    package = find_spec("llama_cpp")
    if package is None or package.origin is None:
        raise ImportError("no module named 'llama_cpp'")
    folder = Path(package.origin).parent / "lib"
    libraries = [
        ctypes.CDLL(str(folder / f"lib{name}.so"), ctypes.RTLD_GLOBAL)
        for name in ("ggml-base", "ggml-cpu")
    ]
    functions = {}
    for name, (result, arguments) in _SIGNATURES.items():
        function = next(getattr(lib, name) for lib in libraries if hasattr(lib, name))
        function.restype, function.argtypes = result, arguments
        functions[name] = function
    return functions


def forms(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], threads: int
) -> dict[str, Callable[[], NDArray[Any]]]:
    if k.dtype.name not in _TYPES:
        raise Unavailable(f"does not support {k.dtype.name}")
    found = {"flash attention": _Graph(_flash, q, k, v, threads)}
    if v.nbytes <= COPY_BYTES:
        transposed = np.ascontiguousarray(v.swapaxes(-1, -2))
        found["matmuls, values stored transposed"] = _Graph(_matmuls, q, k, transposed, threads)
    return found


class _Graph:
    """A graph that is built once and computed at every call."""

    def __init__(
        self,
        build: Callable[..., list[Any]],
        q: NDArray[Any],
        k: NDArray[Any],
        v: NDArray[Any],
        threads: int,
    ) -> None:
        ggml = _library()
        ggml["ggml_cpu_init"]()
        context = ggml["ggml_init"](_InitParams(1 << 20, None, True))
        self._arrays = [q.astype(np.float32), k, v]  # a reference, so that the memory stays
        nodes = build(ggml, context, *self._arrays, scale=k.shape[-1] ** -0.5)
        for node in nodes:
            shape = tuple(node.contents.ne)[::-1]
            self._arrays.append(np.empty(shape, np.float32))
            node.contents.data = self._arrays[-1].ctypes.data
        self._graph = ggml["ggml_new_graph"](context)
        ggml["ggml_build_forward_expand"](self._graph, nodes[-1])
        self._plan = ggml["ggml_graph_plan"](self._graph, threads, None)
        work = np.empty(self._plan.work_size, np.uint8)
        self._arrays.append(work)
        self._plan.work_data = work.ctypes.data
        self._compute = ggml["ggml_graph_compute"]
        self._out = self._arrays[2 + len(nodes)]

    def __call__(self) -> NDArray[Any]:
        if self._compute(self._graph, ctypes.byref(self._plan)) != 0:
            raise RuntimeError("ggml_graph_compute failed")
        return self._out


def _flash(
    ggml: dict[str, Any],
    context: int,
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    scale: float,
) -> list[Any]:
    tensors = [_view(ggml, context, x) for x in (q, k, v)]
    return [ggml["ggml_flash_attn_ext"](context, *tensors, None, scale, 0, 0)]


def _matmuls(
    ggml: dict[str, Any],
    context: int,
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    scale: float,
) -> list[Any]:
    """A group of query heads becomes G queries of one KV head. v is (B, H_kv, D, S)."""
    B, H, _, D = q.shape
    grouped = q.reshape(B, k.shape[1], H // k.shape[1], D)
    q, k, v = (_view(ggml, context, x) for x in (grouped, k, v))
    logits = ggml["ggml_mul_mat"](context, k, q)
    p = ggml["ggml_soft_max_ext"](context, logits, None, scale, 0)
    return [logits, p, ggml["ggml_mul_mat"](context, v, p)]


def _view(ggml: dict[str, Any], context: int, x: NDArray[Any]) -> Any:
    """A tensor over the memory of x (B, heads, n, D)."""
    tensor = ggml["ggml_new_tensor_4d"](context, _TYPES[x.dtype.name], *x.shape[::-1])
    tensor.contents.nb[:] = x.strides[::-1]
    tensor.contents.data = x.ctypes.data
    return tensor
