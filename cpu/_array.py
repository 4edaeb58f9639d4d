"""Arrays as kernels see them: addresses, dtype codes, strides in bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from ._address import address_of as address_of
except ImportError:  # a source tree whose compiled module was never built

    def address_of(array: NDArray[Any]) -> int:
        """Address of the first element, of a read-only array too. The caller keeps it alive."""
        return array.__array_interface__["data"][0]


FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2  # dtype codes
LINE = 64  # bytes per cache line

_NAMES = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}
_codes: dict[np.dtype[Any], int] = {}

# Fields of records, and the functions that fill them.
Q_FIELDS = ("q", "q_dtype", "q_b", "q_h", "q_l", "B", "H", "L", "D")  # q (B, H, L, D)
K_FIELDS = ("k", "kv_dtype", "k_b", "k_h", "k_s", "S")  # k (B, H_kv, S, D)
V_FIELDS = ("v", "v_b", "v_h", "v_s", "Dv")  # v (B, H_kv, S, Dv), of k's dtype


def dtype_code(array: NDArray[Any]) -> int:
    """FLOAT32, FLOAT16 or BFLOAT16; KeyError for any other dtype."""
    code = _codes.get(array.dtype)
    if code is None:  # by name, so that nothing here imports ml_dtypes
        code = _codes[array.dtype] = _NAMES[array.dtype.name]
    return code


def q_fields(q: NDArray[Any]) -> dict[str, int]:
    q_b, q_h, q_l, _ = q.strides
    B, H, L, D = q.shape
    return {
        "q": address_of(q),
        "q_dtype": dtype_code(q),
        "q_b": q_b,
        "q_h": q_h,
        "q_l": q_l,
        "B": B,
        "H": H,
        "L": L,
        "D": D,
    }


def k_fields(k: NDArray[Any]) -> dict[str, int]:
    k_b, k_h, k_s, _ = k.strides
    return {
        "k": address_of(k),
        "kv_dtype": dtype_code(k),
        "k_b": k_b,
        "k_h": k_h,
        "k_s": k_s,
        "S": k.shape[2],
    }


def head_fields(**arrays: NDArray[Any]) -> dict[str, int]:
    """Address and strides, by batch and by head, of arrays (B, H_kv, ...), under their names."""
    fields: dict[str, int] = {}
    for name, x in arrays.items():
        fields[name] = address_of(x)
        fields[name + "_b"], fields[name + "_h"] = x.strides[:2]
    return fields


def v_fields(v: NDArray[Any]) -> dict[str, int]:
    v_b, v_h, v_s, _ = v.strides
    return {"v": address_of(v), "v_b": v_b, "v_h": v_h, "v_s": v_s, "Dv": v.shape[3]}


def with_four_axes(array: NDArray[Any]) -> NDArray[Any]:
    """(..., n) as (B, H, L, n); a view if there are at most four axes."""
    missing = 4 - array.ndim
    if missing >= 0:
        return array[(None,) * missing]
    return array.reshape(-1, *array.shape[-3:])
