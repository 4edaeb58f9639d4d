"""From raw queries to token indices, with no distances in global memory, except for a group."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adamas_core.reference.layout import TILE, Codes, Selection, Softmax, tiles
from adamas_core.reference.softmax import factor

from . import _launch
from ._arrays import head_centers, key_planes, longest, sequence_lengths
from ._kernels import SELECT_CENTERED, SELECT_CHUNKS
from ._launch import Argument, Array
from .attend import attend
from .estimate import levels
from .group import pool
from .hadamard import hadamard
from .quantize import CodedQuery, code_query, empty_coded_query, quantize_query, query_parts
from .rerank import rerank_below
from .score import THREADS, QueryGroups, query_groups, score
from .topk import Candidates, empty_candidates, merge_candidates, taken, topk

# Bytes of distances (plain codes, 16 bits) or ranks (centered codes, 32 bits) that a block keeps in
# shared memory, for all its queries together. With them four blocks fit on a multiprocessor.
SHARED_DISTANCES, SHARED_RANKS = 32 * 1024, 40 * 1024
PAD = 16  # bytes between two queries, so that the stores of a warp meet no bank twice
MAX_CHUNK, MIN_CHUNK = 8192, 1024  # tokens per chunk; smaller chunks are not faster
BLOCKS = 4  # per multiprocessor; more blocks would wait for the first ones to end


class Plan(NamedTuple):
    """The chunks of a selection, and the memory that it needs."""

    groups: QueryGroups
    chunks: int
    stride: int  # from one query to the next, in distances or ranks in shared memory
    shared: int  # bytes of dynamic shared memory per block
    candidates: Candidates


def make_plan(
    selection: Selection, codes: Codes, rows: int, capacity: int, K: int, one: bool = False
) -> Plan:
    """For `rows` queries per KV head of `codes`, with up to `capacity` tokens.

    There are candidates even of one chunk if `one` is true.
    """
    _, B, H_kv, _, _, P, _ = codes.planes.shape
    centered = codes.centers is not None
    groups = query_groups(selection.metric, query_parts(selection), P, rows)
    queries = min(groups.variant[2], rows)
    dtype = np.dtype(np.uint32 if centered else np.uint16)
    room = SHARED_RANKS if centered else SHARED_DISTANCES
    teams = 1 << (queries - 1).bit_length()  # of threads, which select at the same time
    most = min(room // dtype.itemsize // teams // TILE * TILE, MAX_CHUNK)
    fill = BLOCKS * _launch.device().multiprocessors() // (B * H_kv * groups.groups)
    chunks = max(-(-capacity // most), min(fill, capacity // MIN_CHUNK), 1)
    size = -(-tiles(capacity) // chunks) * TILE
    stride = size + PAD // dtype.itemsize
    shared = queries * stride * dtype.itemsize
    if codes.centers is not None:
        Dt = codes.centers.means.shape[-1]
        shared += queries * (Dt + size // TILE) * np.dtype(np.float32).itemsize + size
    candidates = empty_candidates(B * H_kv * rows, chunks, K, size, dtype, one)
    return Plan(groups, chunks, stride, shared, candidates)


def select_coded(
    query: CodedQuery,
    codes: Codes,
    lengths: dict[str, Argument],
    plan: Plan,
    indices: Array,
    selection: Selection,
) -> None:
    """Select for coded queries (B, H, L) into indices (B, H, L, K). Nothing is allocated.

    The queries are the last L tokens. `lengths` are the kernel's arguments `lengths` and `length`;
    the length of `codes` is not read.
    """
    K = indices.shape[-1]
    select_chunks(query, codes, lengths, plan, taken(K, selection) | {"indices": indices})
    if plan.chunks > 1:
        merge_candidates(plan.candidates, indices, K, selection)


def select_chunks(
    query: CodedQuery,
    codes: Codes,
    lengths: dict[str, Argument],
    plan: Plan,
    more: dict[str, Argument],
) -> None:
    """The first launch of `select_coded`; `more` are the other arguments of the kernel."""
    _, H, L, _ = query.planes.shape
    _, B, H_kv, *_ = codes.planes.shape
    kernel = SELECT_CHUNKS
    centers: dict[str, Argument] = {}
    if codes.centers is not None:
        kernel = SELECT_CENTERED
        centers = {
            "x": query.x,
            "Dt": codes.centers.means.shape[-1],
            **head_centers(codes.centers),
        }
    _launch.device().launch(
        kernel,
        plan.groups.variant,
        (plan.chunks, plan.groups.groups, B * H_kv),
        THREADS,
        {
            "query": query.planes,
            "parts": plan.groups.parts,
            **key_planes(codes.planes),
            **centers,
            **lengths,
            "H_kv": H_kv,
            "G": H // H_kv,
            "L": L,
            "stride": plan.stride,
            **plan.candidates.arguments(),
            **more,
        },
        shared=plan.shared,
    )


def select_topk(
    q: Array,
    codes: Codes,
    budget: int,
    selection: Selection,
    k: Array | None = None,
    softmax: Softmax | None = None,
) -> Array:
    """Indices (B, H, L, budget) of the tokens nearest to the raw queries q (B, H, L, D)."""
    if selection.group:
        return _select_together(q, codes, budget, selection, factor(softmax, q.shape[-1]))
    if selection.refine and k is not None:
        nearest = min(selection.refine * budget, longest(codes.length))
        chosen = _select(q, codes, nearest, selection)
        return rerank_below(q, k, chosen, budget, selection)
    return _select(q, codes, budget, selection)


def _select(q: Array, codes: Codes, K: int, selection: Selection) -> Array:
    """Select K tokens for each query by their codes alone."""
    B, H, L, _ = q.shape
    H_kv = codes.planes.shape[2]
    indices = _launch.device().xp.empty((B, H, L, K), np.int32)
    if indices.size:
        query = empty_coded_query(q.shape, selection, codes)
        code_query(q, codes.thresholds, H_kv, selection, query)
        lengths = sequence_lengths(codes.length)
        plan = make_plan(selection, codes, H // H_kv * L, lengths["length"], K)
        select_coded(query, codes, lengths, plan, indices, selection)
    return indices


def _select_together(q: Array, codes: Codes, K: int, selection: Selection, scale: float) -> Array:
    """Select K tokens for all query heads of a KV head together."""
    G = q.shape[1] // codes.planes.shape[2]
    x = hadamard(q)
    query = quantize_query(x, selection.query_bits)
    distances = score(query, codes.planes, codes.length)
    attention = pool(*levels(x, query, distances, codes, scale), codes.length, G)
    return _launch.device().xp.repeat(topk(attention, K, selection), G, axis=1)


def attend_topk(
    q: Array,
    k: Array,
    v: Array,
    codes: Codes,
    budget: int,
    selection: Selection,
    softmax: Softmax | None = None,
) -> tuple[Array, Array]:
    """Attention to the tokens that select_topk takes of k, v (B, H_kv, S, D): out and lse."""
    return attend(q, k, v, select_topk(q, codes, budget, selection, k, softmax), softmax, True)
