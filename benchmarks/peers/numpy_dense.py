"""NumPy: matmul-softmax-matmul through its BLAS, which supports only float32 and float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from . import Unavailable


def forms(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], threads: int
) -> dict[str, Callable[[], NDArray[Any]]]:
    if k.dtype != np.float32:
        raise Unavailable(f"NumPy's BLAS does not support {k.dtype.name}")
    threadpool_limits(threads, user_api="blas")
    B, H, _, D = q.shape
    H_kv = k.shape[1]
    grouped = q.reshape(B, H_kv, H // H_kv, D) * np.float32(D**-0.5)

    def matmuls() -> NDArray[Any]:
        p = grouped @ k.swapaxes(-1, -2)
        p -= p.max(axis=-1, keepdims=True)
        np.exp(p, out=p)
        out = p @ v
        out /= p.sum(axis=-1, keepdims=True)
        return out

    return {"matmuls, grouped": matmuls}
