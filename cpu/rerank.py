"""Ranking selected tokens once more, by the exact inner product."""

from __future__ import annotations

import numpy as np
from numba import prange
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from ._array import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    LANES,
    LINE,
    address,
    dtype_code,
    item_bytes,
    load_first_lanes,
    load_lanes,
    widen_row,
)
from ._jit import inlined, invoke, kernel, opaque
from ._simd import (
    count_bits,
    load_float32,
    load_int32,
    mask_ranks_at_most,
    pointer,
    prefetch,
    store_int32,
    store_scalar_float32,
    sum_of,
    to_all,
)

AT_ONCE = 64  # ranks that are compared at once
AHEAD = 8  # rows of keys asked for before they are multiplied


def rerank(
    q: NDArray,
    k: NDArray,
    indices: NDArray[np.int32],
    budget: int,
    sinks: int = 0,
    recent: int = 0,
) -> NDArray[np.int32]:
    """Of each query's tokens `indices` (B, H, L, M) the `budget` of the largest q.k, ascending."""
    B, H, L, D = q.shape
    chosen = np.empty((B, H, L, budget), np.int32)
    if chosen.size:
        indices = np.ascontiguousarray(indices, np.int32)
        last, S = indices.max(initial=-1), k.shape[2]
        if last >= S:
            raise IndexError(f"index {last} is out of range: k holds {S} tokens")
        _rerank(
            *(address(q), dtype_code(q), *q.strides[:3], address(k), dtype_code(k), *k.strides[:3]),
            *(B, H, k.shape[1], L, D, address(indices), indices.shape[3], budget, sinks, recent),
            *(address(chosen), rank_by_products.address),
        )
    return chosen


@inlined
def rerank_scratch(D, n):
    """Bytes for n tokens: a query in float32, then a rank a token, and room for `keep_best`."""
    return 4 * ((D + LANES - 1) // LANES * LANES + n + AT_ONCE) + LINE


@opaque
def rank_by_products(q, q_dtype, D, k, k_s, k_dtype, tokens, n, scratch):
    """How far each of n tokens (int32) is in the order of the largest q.k: uint32, 0 the nearest.

    Where in scratch they stand is what this returns. Constant dtypes make functions of their own.
    """
    if k_dtype == FLOAT32:
        return _rank_by_products(q, q_dtype, D, k, k_s, FLOAT32, tokens, n, scratch)
    if k_dtype == FLOAT16:
        return _rank_by_products(q, q_dtype, D, k, k_s, FLOAT16, tokens, n, scratch)
    return _rank_by_products(q, q_dtype, D, k, k_s, BFLOAT16, tokens, n, scratch)


@inlined
def _rank_by_products(q, q_dtype, D, k, k_s, k_dtype, tokens, n, query):
    """Products are rounded and added lane by lane, as the reference does: no fused multiply-add."""
    size = item_bytes(k_dtype)
    whole = D - D % LANES
    ranks = query + 4 * ((D + LANES - 1) // LANES * LANES)
    widen_row(q, q_dtype, D, query)
    for i in range(n):
        ahead = k + k_s * load_int32(tokens + 4 * min(i + AHEAD, n - 1))
        for offset in range(0, size * D, LINE):
            prefetch(ahead + offset)
        row = k + k_s * load_int32(tokens + 4 * i)
        sums = to_all(np.float32(0))
        for d in range(0, whole, LANES):
            sums += load_float32(query + 4 * d) * load_lanes(row + size * d, k_dtype)
        if whole < D:
            rest = load_first_lanes(row + size * whole, k_dtype, D - whole)
            sums += load_float32(query + 4 * whole) * rest
        store_scalar_float32(ranks + 4 * i, sum_of(sums))
    bits = carray(pointer(ranks), n, np.uint32)
    for i in range(n):
        x = bits[i]
        if x & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
            x = np.uint32(0xFF800000)  # NaN is minus infinity
        if x == np.uint32(0x80000000):
            x = np.uint32(0)  # as -0 is 0
        # A negative float's bits ascend as it falls, a positive one's as it rises.
        bits[i] = x if x >> np.uint32(31) else x ^ np.uint32(0x7FFFFFFF)
    return ranks


@inlined
def keep_best(tokens, ranks, n, places):
    """Reduce n tokens, the most recent first, and their ranks to the smallest ranks.

    Returns how many are left and the largest of these ranks, or 2^32 - 1 where all are.
    """
    if n <= places:
        return n, 0xFFFFFFFF
    own = carray(pointer(ranks), n, np.uint32)
    low, high = 0, 0xFFFFFFFF
    while low < high:
        middle = (low + high) // 2
        if _count_at_most(ranks, n, middle) >= places:
            high = middle
        else:
            low = middle + 1
    bound = np.uint32(low)
    ties = places - (_count_at_most(ranks, n, low - 1) if low > 0 else 0)
    kept = 0
    for i in range(n):
        tie = own[i] == bound and ties > 0
        if own[i] < bound or tie:
            store_int32(tokens + 4 * kept, load_int32(tokens + 4 * i))
            own[kept] = own[i]
            ties -= tie
            kept += 1
    return kept, low


@inlined
def _count_at_most(ranks, n, bound):
    """Of n ranks, with room for whole vectors of 64 behind them."""
    count = 0
    for i in range(0, n, AT_ONCE):
        mask = mask_ranks_at_most(ranks + 4 * i, bound)
        if i + AT_ONCE > n:
            mask &= (np.uint64(1) << np.uint64(n - i)) - np.uint64(1)
        count += count_bits(mask)
    return count


@kernel
def _rerank(
    q, q_dtype, q_b, q_h, q_l, k, k_dtype, k_b, k_h, k_s,
    B, H, H_kv, L, D, indices, M, budget, sinks, recent, chosen, rank_at,
):  # fmt: skip
    for i in prange(B * H * L):
        row = np.int64(i)  # prange counts in uint64; mixed with int64 that would become float64
        head, l = divmod(row, L)
        b, h = divmod(head, H)
        given = carray(pointer(indices + 4 * M * row), M, np.int32)
        out = carray(pointer(chosen + 4 * budget * row), budget, np.int32)
        n = 0
        while n < M and given[n] >= 0:
            n += 1
        first, last = min(sinks, n), min(recent, n - min(sinks, n))
        middle = n - first - last
        near = np.empty(max(middle, 1), np.int32)
        for j in range(middle):
            near[j] = given[n - last - 1 - j]  # the most recent first
        scratch = np.empty(rerank_scratch(D, middle), np.uint8)
        places = max(budget - first - last, 0)
        ranks = invoke(
            rank_at,
            (
                q + q_b * b + q_h * h + q_l * l, q_dtype, D,
                k + k_b * b + k_h * (h * H_kv // H), k_s, k_dtype,
                near.ctypes.data, middle, scratch.ctypes.data,
            ),
        )  # fmt: skip
        kept, _ = keep_best(near.ctypes.data, ranks, middle, places)
        scratch[0] = 0  # it is freed after its last use by name
        count = 0
        for j in range(first):
            out[count] = given[j]
            count += 1
        for j in range(kept):
            out[count] = near[kept - 1 - j]
            count += 1
        for j in range(n - last, n):
            out[count] = given[j]
            count += 1
        while count < budget:
            out[count] = -1
            count += 1
