"""From a raw query to token indices, where only distances decide without any in global memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adamas_core.reference.quantize import TILE

from . import _launch
from ._kernels import SELECT_CHUNKS
from ._launch import Array
from .attend import attend
from .estimate import levels, ranks
from .group import pool
from .hadamard import hadamard
from .quantize import encode_query, quantize_query
from .rerank import rerank
from .score import THREADS, Scan, codes_arguments, device_lengths, longest, scan, score
from .topk import Candidates, merge_candidates, no_candidates, topk

if TYPE_CHECKING:
    from adamas_core.codes import KeyCodes

HELD = 16384  # distances that a block keeps in shared memory, of all its queries: 32 KB
PAD = 8  # between two queries' distances, so that a warp's stores for several meet no bank twice
MOST, LEAST = 8192, 1024  # tokens a chunk; smaller ones do not pay for their selection
BLOCKS = 4  # a multiprocessor; more chunks than fill them so do not pay


class Plan(NamedTuple):
    """How a selection is cut into chunks, and the memory that it needs."""

    scan: Scan
    chunks: int
    stride: int  # of a query's distances in shared memory
    queries: int  # that stand there
    candidates: Candidates


def plan(
    metric: str, width: int, P: int, B: int, H_kv: int, rows: int, capacity: int, K: int
) -> Plan:
    """For `rows` queries, of `width` words, of each of B H_kv heads and up to `capacity` tokens."""
    form = scan(metric, width, P, rows)
    queries = min(form.variant[2], rows)
    most = min(HELD // queries, MOST)
    fill = -(-BLOCKS * _launch.multiprocessors() // (B * H_kv * form.groups))
    chunks = max(-(-capacity // most), min(fill, capacity // LEAST), 1)
    tiles = -(-capacity // TILE)
    size = -(-tiles // chunks) * TILE
    candidates = no_candidates(B * H_kv * rows, chunks, K, size)
    return Plan(form, chunks, size + PAD, queries, candidates)


def select_coded(
    query: Array,
    planes: Array,
    lengths: Array | None,
    length: int,
    cut: Plan,
    indices: Array,
    sinks: int,
    recent: int,
) -> None:
    """Select for coded queries (B, H, L, R) into indices (B, H, L, K); nothing is allocated.

    The queries are the last L of lengths (B,) tokens, of which there are at most `length`, or of
    `length` where lengths is None.
    """
    _, H, L, _ = query.shape
    B, H_kv = planes.shape[1:3]
    K = indices.shape[-1]
    _launch.device().launch(
        SELECT_CHUNKS,
        cut.scan.variant,
        (cut.chunks, cut.scan.groups, B * H_kv),
        THREADS,
        (
            query,
            cut.scan.parts,
            *codes_arguments(planes, lengths, length),
            *(H_kv, H // H_kv, L, cut.stride, K, sinks, recent),
            *cut.candidates,
            indices,
        ),
        shared=2 * cut.queries * cut.stride,
    )
    if cut.chunks > 1:
        merge_candidates(cut.candidates, indices, K, sinks, recent)


def select_topk(
    q: Array,
    codes: KeyCodes,
    budget: int,
    metric: str = "weighted",
    query_bits: int = 4,
    sinks: int = 0,
    recent: int = 0,
    prefilter: int = 0,
    refine: int = 0,
    group: bool = False,
    k: Array | None = None,
) -> Array:
    """Indices (B, H, L, budget) of the tokens nearest to the raw queries q (B, H, L, D)."""
    if group:
        return _select_together(q, codes, budget, query_bits, sinks, recent)
    options = metric, query_bits, sinks, recent
    if k is not None and refine:
        K = min(refine * budget, longest(codes.length))
        near = _select(q, codes, K, prefilter * budget, *options)
        return rerank(q, k, near, budget, sinks, recent)
    return _select(q, codes, budget, prefilter * budget, *options)


def _select(
    q: Array,
    codes: KeyCodes,
    K: int,
    kept: int,
    metric: str,
    query_bits: int,
    sinks: int,
    recent: int,
) -> Array:
    """Select K tokens by their codes, out of the `kept` nearest by the high plane if kept > 0."""
    xp = _launch.device().xp
    B, H, L, _ = q.shape
    planes = codes.planes
    H_kv, P = planes.shape[2], planes.shape[5]
    indices = xp.empty((B, H, L, K), np.int32)
    if not indices.size:
        return indices
    if codes.centers is not None:
        x = hadamard(q)
        query = quantize_query(x, query_bits)

        def distances_by(planes: Array) -> Array:
            return ranks(x, query, score(query, planes, codes.length, metric), codes)

        return _select_by(distances_by, planes, K, kept, sinks, recent)
    query = encode_query(q, codes.thresholds, H_kv, metric, query_bits)
    if kept:
        return _select_by(
            lambda planes: score(query, planes, codes.length, metric),
            *(planes, K, kept, sinks, recent),
        )
    lengths, S = device_lengths(codes.length)
    cut = plan(metric, query.shape[-1], P, B, H_kv, H // H_kv * L, S, K)
    select_coded(query, planes, lengths, S, cut, indices, sinks, recent)
    return indices


def _select_by(
    distances_by: Callable[[Array], Array],
    planes: Array,
    K: int,
    kept: int,
    sinks: int,
    recent: int,
) -> Array:
    """Select by what `distances_by` makes of planes, all of it in memory.

    If kept > 0, out of the `kept` nearest by the high plane.
    """
    if not kept:
        return topk(distances_by(planes), K, sinks, recent)
    xp = _launch.device().xp
    # The high plane in the low one's place: codes of 0 and 3 alone, which is what it tells apart.
    coarse = distances_by(xp.broadcast_to(planes[:1], planes.shape))
    S = coarse.shape[-1]
    near = topk(coarse, min(kept, S), sinks, recent)
    # The places behind the last token are written one column further.
    among = xp.zeros((*coarse.shape[:-1], S + 1), bool)
    xp.put_along_axis(among, xp.where(near < 0, S, near), True, axis=-1)
    distances = distances_by(planes)
    invisible = distances.dtype.type(np.iinfo(distances.dtype).max)
    return topk(xp.where(among[..., :S], distances, invisible), K, sinks, recent)


def _select_together(
    q: Array, codes: KeyCodes, K: int, query_bits: int, sinks: int, recent: int
) -> Array:
    """Select K tokens for all query heads of a KV head, with all distances in memory."""
    G = q.shape[1] // codes.planes.shape[2]
    x = hadamard(q)
    query = quantize_query(x, query_bits)
    distances = score(query, codes.planes, codes.length)
    attention = pool(levels(x, query, distances, codes, q.shape[-1]), codes.length, G)
    return _launch.device().xp.repeat(topk(attention, K, sinks, recent), G, axis=1)


def attend_topk(
    q: Array,
    k: Array,
    v: Array,
    codes: KeyCodes,
    budget: int,
    metric: str = "weighted",
    query_bits: int = 4,
    sinks: int = 0,
    recent: int = 0,
    prefilter: int = 0,
    refine: int = 0,
    group: bool = False,
    scale: float | None = None,
) -> tuple[Array, Array]:
    """Attention over what select_topk takes of k, v (B, H_kv, S, D): out (B, H, L, D) and lse."""
    options = metric, query_bits, sinks, recent, prefilter, refine, group, k
    return attend(q, k, v, select_topk(q, codes, budget, *options), scale, True)
