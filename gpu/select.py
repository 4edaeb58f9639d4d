"""From raw queries to token indices. Plain codes need no distances in global memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adamas_core.reference.layout import TILE, Codes, Selection, tiles

from . import _launch
from ._arrays import key_planes, longest, sequence_lengths
from ._kernels import SELECT_CHUNKS
from ._launch import Argument, Array
from .attend import attend
from .estimate import levels, ranks
from .group import pool
from .hadamard import hadamard
from .quantize import encode_query, quantize_query, query_parts
from .rerank import rerank
from .score import THREADS, QueryGroups, query_groups, score
from .topk import Candidates, empty_candidates, merge_candidates, taken, topk

# Distances that a block keeps in shared memory, for all its queries together: 32 KB.
SHARED_DISTANCES = 16384
PAD = 8  # distances between two queries, so that the stores of a warp meet no bank twice
MAX_CHUNK, MIN_CHUNK = 8192, 1024  # tokens per chunk; smaller chunks are not faster
BLOCKS = 4  # per multiprocessor; chunks that make more blocks are not faster


class Plan(NamedTuple):
    """The chunks of a selection, and the memory that it needs."""

    groups: QueryGroups
    chunks: int
    stride: int  # from one query to the next, in distances in shared memory
    queries: int  # per block
    candidates: Candidates


def make_plan(
    selection: Selection, P: int, B: int, H_kv: int, rows: int, capacity: int, K: int
) -> Plan:
    """For `rows` queries of each of B H_kv heads, with up to `capacity` tokens of P words."""
    groups = query_groups(selection.metric, query_parts(selection), P, rows)
    queries = min(groups.variant[2], rows)
    most = min(SHARED_DISTANCES // queries, MAX_CHUNK)
    fill = -(-BLOCKS * _launch.device().multiprocessors() // (B * H_kv * groups.groups))
    chunks = max(-(-capacity // most), min(fill, capacity // MIN_CHUNK), 1)
    size = -(-tiles(capacity) // chunks) * TILE
    candidates = empty_candidates(B * H_kv * rows, chunks, K, size)
    return Plan(groups, chunks, size + PAD, queries, candidates)


def select_coded(
    query: Array,
    planes: Array,
    lengths: dict[str, Argument],
    plan: Plan,
    indices: Array,
    selection: Selection,
) -> None:
    """Select for coded queries (B, H, L, R) into indices (B, H, L, K). Nothing is allocated.

    The queries are the last L tokens. `lengths` are the kernel's arguments `lengths` and `length`.
    """
    _, H, L, _ = query.shape
    B, H_kv = planes.shape[1:3]
    K = indices.shape[-1]
    _launch.device().launch(
        SELECT_CHUNKS,
        plan.groups.variant,
        (plan.chunks, plan.groups.groups, B * H_kv),
        THREADS,
        {
            "query": query,
            "parts": plan.groups.parts,
            **key_planes(planes),
            **lengths,
            "H_kv": H_kv,
            "G": H // H_kv,
            "L": L,
            "stride": plan.stride,
            **taken(K, selection),
            **plan.candidates.arguments(),
            "indices": indices,
        },
        shared=2 * plan.queries * plan.stride,
    )
    if plan.chunks > 1:
        merge_candidates(plan.candidates, indices, K, selection)


def select_topk(
    q: Array,
    codes: Codes,
    budget: int,
    selection: Selection,
    k: Array | None = None,
    scale: float | None = None,
) -> Array:
    """Indices (B, H, L, budget) of the tokens nearest to the raw queries q (B, H, L, D)."""
    if selection.group:
        scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
        return _select_together(q, codes, budget, selection, scale)
    if selection.refine and k is not None:
        nearest = min(selection.refine * budget, longest(codes.length))
        return rerank(q, k, _select(q, codes, nearest, selection), budget, selection)
    return _select(q, codes, budget, selection)


def _select(q: Array, codes: Codes, K: int, selection: Selection) -> Array:
    """Select K tokens for each query by their codes alone."""
    planes, length = codes.planes, codes.length
    if codes.centers is not None:
        x = hadamard(q)
        query = quantize_query(x, selection.query_bits)
        distances = score(query, planes, length, selection.metric)
        return topk(ranks(x, query, distances, codes), K, selection)
    B, H, L, _ = q.shape
    H_kv, P = planes.shape[2], planes.shape[5]
    indices = _launch.device().xp.empty((B, H, L, K), np.int32)
    if indices.size:
        query = encode_query(q, codes.thresholds, H_kv, selection)
        lengths = sequence_lengths(length)
        plan = make_plan(selection, P, B, H_kv, H // H_kv * L, lengths["length"], K)
        select_coded(query, planes, lengths, plan, indices, selection)
    return indices


def _select_together(q: Array, codes: Codes, K: int, selection: Selection, scale: float) -> Array:
    """Select K tokens for all query heads of a KV head together."""
    G = q.shape[1] // codes.planes.shape[2]
    x = hadamard(q)
    query = quantize_query(x, selection.query_bits)
    distances = score(query, codes.planes, codes.length)
    attention = pool(levels(x, query, distances, codes, scale), codes.length, G)
    return _launch.device().xp.repeat(topk(attention, K, selection), G, axis=1)


def attend_topk(
    q: Array,
    k: Array,
    v: Array,
    codes: Codes,
    budget: int,
    selection: Selection,
    scale: float | None = None,
) -> tuple[Array, Array]:
    """Attention to the tokens that select_topk takes of k, v (B, H_kv, S, D): out and lse."""
    return attend(q, k, v, select_topk(q, codes, budget, selection, k, scale), scale, True)
