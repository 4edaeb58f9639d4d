"""Distances between the codes of queries and keys, by matrix products."""

from __future__ import annotations

import numpy as np

from .largest import Array

METRICS = ("l1", "l2", "xor")


def code_distance(metric: str, e: Array, c: Array, bits: int) -> Array:
    """Distances (..., S) between codes e (..., D) of queries and c (S, D) of keys.

    "l1": the sum over coordinates of |c - e|, the paper's Manhattan distance. "l2": the sum of
    (c - e)^2. "xor": the number of bits in which the codes differ, as the paper's CUDA kernel
    counts. That kernel is meant to count the high bits twice, but in C++ ``a + b << 1`` doubles
    the whole sum. So codes 1 and 2 are 2 apart, like 0 and 3; codes 0 and 2 are 1 apart, like 0
    and 1. All sums are integers below 2^24, which float32 holds exactly.
    """
    if metric == "l2":
        squares: Array = (e * e).sum(axis=-1, keepdims=True) + (c * c).sum(axis=-1)
        return squares - 2 * (e @ c.T)
    a, b = _bits(metric, e, bits), _bits(metric, c, bits)  # (..., D * n) and (S, D * n)
    differing: Array = a.sum(axis=-1, keepdims=True) + b.sum(axis=-1) - 2 * (a @ b.T)
    return differing


def _bits(metric: str, codes: Array, bits: int) -> Array:
    """Zeros and ones whose Hamming distance is the metric.

    For "l1" there is one per threshold, 1 if the code is above it, so |c - e| of them differ. For
    "xor" they are the binary digits.
    """
    if metric == "l1":
        planes = [codes > threshold for threshold in range(2**bits - 1)]
    else:
        planes = [(codes // 2**digit) % 2 == 1 for digit in range(bits)]
    return np.concatenate(planes, axis=-1).astype(np.float32)
