"""Ranking selected tokens again, by their exact inner products."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.np.numpy_support import carray

from .._array import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    LINE,
)
from .._records import Rerank
from ._float_rows import LANES, item_bytes, load_first_lanes, load_lanes, whole_lanes, widen_row
from ._jit import inlined, invoke, opaque, outlined
from ._memory import loop_at, reader
from ._simd import (
    AVX512,
    I32,
    I64,
    call,
    constant,
    count_bits,
    load,
    load_float32,
    load_int32,
    load_uint32,
    mask_bits,
    operation,
    pointer,
    prefetch,
    splat,
    store,
    store_int32,
    store_scalar_float32,
    sum_of,
    to_all,
)
from ._visible import forced_tokens

MASK_RANKS = 64  # ranks per mask
AHEAD = 8  # rows of keys asked for before they are multiplied
LAST_RANK = 0xFFFFFFFF

rerank_at = reader(Rerank)


@operation(types.uint64, types.int64, types.int64)
def mask_ranks_at_most(builder: Any, address: Any, bound: Any) -> Any:
    """Which of the 64 uint32 at address are <= bound (0 <= bound < 2^32)."""
    vector = ir.VectorType(I32, MASK_RANKS)
    bounds = splat(builder, vector, builder.trunc(bound, I32))
    return mask_bits(builder, builder.icmp_unsigned("<=", load(builder, address, vector), bounds))


@operation(types.int64, types.int64, types.int64)
def _largest_of_mask(builder: Any, address: Any, bound: Any) -> Any:
    """The largest of the 64 uint32 at address that is <= bound (0 <= bound < 2^32), or 0."""
    vector = ir.VectorType(I32, MASK_RANKS)
    ranks = load(builder, address, vector)
    bounds = splat(builder, vector, builder.trunc(bound, I32))
    low = builder.select(builder.icmp_unsigned("<=", ranks, bounds), ranks, constant(vector, 0))
    return builder.zext(call(builder, "llvm.vector.reduce.umax.v64i32", I32, low), I64)


@inlined
def rerank_scratch(D, n):
    """Bytes for n tokens: a query in float32, then one rank per token, in whole masks."""
    return 4 * (whole_lanes(D) + n + MASK_RANKS) + LINE


@opaque
def rank_by_products(q, q_dtype, D, k, k_s, k_dtype, tokens, n, scratch):
    """Ranks (uint32) of n tokens (int32) in the order of the largest q.k; 0 is the nearest.

    Returns their address in scratch. A constant dtype makes each call a function of its own.
    """
    if k_dtype == FLOAT32:
        return _rank_by_products(q, q_dtype, D, k, k_s, FLOAT32, tokens, n, scratch)
    if k_dtype == FLOAT16:
        return _rank_by_products(q, q_dtype, D, k, k_s, FLOAT16, tokens, n, scratch)
    return _rank_by_products(q, q_dtype, D, k, k_s, BFLOAT16, tokens, n, scratch)


@inlined
def _rank_by_products(q, q_dtype, D, k, k_s, k_dtype, tokens, n, query):
    """Products are rounded and added lane by lane, as in the reference: no fused multiply-add."""
    size = item_bytes(k_dtype)
    whole = D - D % LANES
    ranks = query + 4 * whole_lanes(D)
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
            x = np.uint32(0xFF800000)  # NaN counts as minus infinity
        if x == np.uint32(0x80000000):
            x = np.uint32(0)  # -0 counts as 0
        # The bits of a negative float rise as it falls, those of a positive one as it rises.
        bits[i] = x if x >> np.uint32(31) else x ^ np.uint32(0x7FFFFFFF)
    return ranks


@inlined
def keep_best(tokens, ranks, n, places):
    """Reduce n tokens, the most recent first, to those with the smallest ranks.

    Returns how many are left and the largest of their ranks, or LAST_RANK if all are left.
    """
    if n <= places:
        return n, LAST_RANK
    own = carray(pointer(ranks), n, np.uint32)
    low = kth_rank(ranks, n, places)
    bound = np.uint32(low)
    ties = places - (_count_at_most(ranks, n, low - 1) if low > 0 else 0)
    count = start = 0
    if AVX512 and _count_at_most(ranks, n, low) == places:
        start = n // LANES * LANES
        for i in range(0, start, LANES):
            count += move_at_most(tokens + 4 * i, ranks + 4 * i, low, tokens, ranks, count)
    for i in range(start, n):
        rank = own[i]
        store_int32(tokens + 4 * count, load_int32(tokens + 4 * i))
        own[count] = rank  # no branch decides whether it stays
        tie = (rank == bound) & (ties > 0)
        ties -= tie
        count += (rank < bound) | tie
    return count, low


@operation(types.int64, *[types.int64] * 6)
def move_at_most(builder: Any, *arguments: Any) -> Any:
    """Append those of sixteen tokens whose rank is at most a bound to a list; returns how many.

    The arguments are the addresses of the tokens and their ranks, the bound of the ranks, the
    addresses of the list's tokens and ranks, and their number. The list has room for sixteen
    more. It may be the memory that the tokens come from.
    """
    tokens, ranks, bound, to_tokens, to_ranks, count = arguments
    vector = ir.VectorType(I32, LANES)
    given = load(builder, tokens, vector), load(builder, ranks, vector)
    bounds = splat(builder, vector, builder.trunc(bound, I32))
    mask = builder.icmp_unsigned("<=", given[1], bounds)
    at, rest = builder.mul(count, I64(4)), constant(vector, 0)
    name = "llvm.x86.avx512.mask.compress.v16i32"
    for x, to in zip(given, (to_tokens, to_ranks), strict=True):
        store(builder, builder.add(to, at), call(builder, name, vector, x, rest, mask))
    return count_bits(builder, mask_bits(builder, mask))


@outlined
def kth_rank(ranks, n, k):
    """The smallest bound for which at least k of n ranks are <= bound."""
    low, high = 0, LAST_RANK
    while low < high:
        middle = (low + high) // 2
        count = _count_at_most(ranks, n, middle)
        if count == k:
            return _largest_at_most(ranks, n, middle)
        if count > k:
            high = middle
        else:
            low = middle + 1
    return low


@inlined
def _largest_at_most(ranks, n, bound):
    """The largest of n ranks that is <= bound, or 0 if none is."""
    largest, whole = np.int64(0), n // MASK_RANKS * MASK_RANKS
    for i in range(0, whole, MASK_RANKS):
        largest = max(largest, _largest_of_mask(ranks + 4 * i, bound))
    for i in range(whole, n):
        rank = np.int64(load_uint32(ranks + 4 * i))
        largest = max(largest, rank if rank <= bound else np.int64(0))
    return largest


@inlined
def _count_at_most(ranks, n, bound):
    """How many of n ranks are <= bound. They stand in memory of whole masks."""
    count = 0
    for i in range(0, n, MASK_RANKS):
        mask = mask_ranks_at_most(ranks + 4 * i, bound)
        if i + MASK_RANKS > n:
            mask &= (np.uint64(1) << np.uint64(n - i)) - np.uint64(1)
        count += count_bits(mask)
    return count


@opaque
def plan_rerank(at):
    loop = loop_at(at)
    record = rerank_at(loop.record)
    loop.items = record.B * record.H * record.L
    loop.scratch = 4 * record.M + LINE + rerank_scratch(record.D, record.M)
    return 0


@opaque
def rerank_row(at, row, near):
    """The indices of one row. `near` has room for the tokens and for their ranks."""
    record = rerank_at(at)
    budget, M = record.budget, record.M
    scratch = near + (4 * M + LINE - 1) // LINE * LINE
    head, l = divmod(row, record.L)
    b, h = divmod(head, record.H)
    given = carray(pointer(record.indices + 4 * M * row), M, np.int32)
    out = carray(pointer(record.chosen + 4 * budget * row), budget, np.int32)
    n = 0
    while n < M and given[n] >= 0:
        n += 1
    start, sinks_taken, end, recent_taken = forced_tokens(n, budget, record)
    middle = end - start
    for j in range(middle):  # the most recent first
        store_int32(near + 4 * j, given[end - 1 - j])
    ranks = invoke(
        record.rank_by_products,
        (
            record.q + b * record.q_b + h * record.q_h + l * record.q_l, record.q_dtype, record.D,
            record.k + b * record.k_b + h * record.H_kv // record.H * record.k_h, record.k_s,
            record.kv_dtype, near, middle, scratch,
        ),
    )  # fmt: skip
    best, _ = keep_best(near, ranks, middle, budget - sinks_taken - recent_taken)
    count = 0
    for j in range(start - sinks_taken, start):
        out[count] = given[j]
        count += 1
    for j in range(best):
        out[count] = load_int32(near + 4 * (best - 1 - j))
        count += 1
    for j in range(n - recent_taken, n):
        out[count] = given[j]
        count += 1
    while count < budget:
        out[count] = -1
        count += 1
    return 0
