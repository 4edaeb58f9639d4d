"""Attention to all tokens in three tiers: exact, by codes, and the rest together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adamas_core.reference.center import FINE_NOISE, NOISE
from adamas_core.reference.layout import Codes, Selection, Softmax, Values, padded

from . import _launch
from ._arrays import (
    element,
    elements_per_load,
    head_values,
    key_planes,
    longest,
    sequence_lengths,
    strides,
    third_bits,
)
from ._kernels import ATTEND_TAIL, CHOOSE_TIERS, DIVIDE
from ._launch import Argument, Array
from ._softmax import plain_scale
from ._warps import hadamard_scale
from .attend import BLOCKS, empty_splits
from .attend import THREADS as ATTEND_THREADS
from .quantize import CodedQuery, code_query, empty_coded_query
from .rerank import rerank_below
from .select import Plan, attend_topk, make_plan, select_chunks
from .topk import MERGE_SHARED, MERGE_THREADS, taken

MIN_CODED = 128  # coded tokens per block; fewer would leave warps idle


class TailRoom(NamedTuple):
    """Memory of a tail, and its sizes. Nothing else is allocated for it."""

    budget: int
    plan: Plan  # of the chunks; its candidates are those of both tiers
    facts: Array  # (rows, 3), float32
    products: Array  # (rows, T), float32: of queries and means
    rests: Array  # (rows, chunks, 2), float32
    list_tokens: Array  # (rows, sought), int32
    list_ranks: Array  # (rows, sought), uint32
    list_logits: Array  # (rows, sought), float32
    listed: Array  # (rows,), int32
    indices: Array  # (B, H, L, budget), int32
    coded: Array  # (rows, M), int32
    logits: Array  # (rows, M), float32
    rest: Array  # (rows, 2), float32
    exact_splits: int
    partial: Array  # (rows, splits, DT + 3), float32
    finished: Array  # (rows,), uint32, 0 between launches


def make_room(
    selection: Selection, codes: Codes, shape: tuple[int, ...], capacity: int, budget: int
) -> TailRoom:
    """For queries of a shape (B, H, L, D) and up to `capacity` tokens."""
    xp = _launch.device().xp
    B, H, L, D = shape
    _, _, H_kv, T, *_ = codes.planes.shape
    rows = B * H * L
    tail = max(min(selection.tail, capacity - budget), 1)  # no more tokens can be left
    refined = min(selection.refine * budget, capacity)
    sought = max(min(budget + selection.tail, capacity), refined)
    plan = make_plan(selection, codes, H // H_kv * L, capacity, sought, one=True)
    exact = empty_splits(rows, budget, D).number
    fill = -(-BLOCKS * _launch.device().multiprocessors() // rows)
    splits = exact + max(min(fill, tail // MIN_CODED), 1)
    return TailRoom(
        budget,
        plan,
        facts=xp.empty((rows, 3), np.float32),
        products=xp.empty((rows, T), np.float32),
        rests=xp.empty((rows, plan.chunks, 2), np.float32),
        list_tokens=xp.empty((rows, sought), np.int32),
        list_ranks=xp.empty((rows, sought), np.uint32),
        list_logits=xp.empty((rows, sought), np.float32),
        listed=xp.empty((rows,), np.int32),
        indices=xp.empty((B, H, L, budget), np.int32),
        coded=xp.empty((rows, tail), np.int32),
        logits=xp.empty((rows, tail), np.float32),
        rest=xp.empty((rows, 2), np.float32),
        exact_splits=exact,
        partial=xp.empty((rows, splits, max(padded(D), 32) + 3), np.float32),
        finished=xp.zeros((rows,), np.uint32),
    )


def choose_tiers(
    query: CodedQuery,
    codes: Codes,
    lengths: dict[str, Argument],
    room: TailRoom,
    selection: Selection,
    scale: float,
    nearest: Array | None = None,
) -> None:
    """Choose the tokens of both tiers, and add up the weights of the rest, into `room`.

    With nearest (B, H, L, refine * budget) these are the best tokens by three bits. Then `divide`
    must follow, with the exact tier in room.indices.
    """
    _, H, L, width = query.planes.shape
    H_kv, P = codes.planes.shape[2], codes.planes.shape[5]
    rows, sought = room.list_tokens.shape
    candidates = room.plan.candidates
    n = room.plan.chunks * candidates.slots
    in_shared = n if 4 * n <= MERGE_SHARED else 0
    weights = {
        "scale": scale,
        "noise": 0.5 * NOISE * scale**2,
        "facts": room.facts,
        "products": room.products,
        "T": room.products.shape[1],
        "rests": room.rests,
    }
    select_chunks(query, codes, lengths, room.plan, taken(sought, selection) | weights)
    _launch.device().launch(
        CHOOSE_TIERS,
        (),
        (rows,),
        MERGE_THREADS,
        {
            "candidate_distances": candidates.distances,
            "candidate_tokens": candidates.tokens,
            "n": n,
            "in_shared": in_shared,
            "chunks": room.plan.chunks,
            "sought": sought,
            "refined": 0 if nearest is None else nearest.shape[-1],
            **taken(room.budget, selection),
            "query": query.planes,
            "parts": width // P,
            **key_planes(codes.planes),
            **_scales(codes),
            **third_bits(codes.fine),
            "H": H,
            "H_kv": H_kv,
            "L": L,
            "P": P,
            **weights,
            "fine_noise": 0.5 * FINE_NOISE * scale**2,
            **_tiers(room),
            "nearest": nearest,
        },
        shared=4 * in_shared,
    )


def divide(codes: Codes, room: TailRoom, scale: float) -> None:
    """Choose the coded tier, where room.indices have the exact tier."""
    _, H, L, K = room.indices.shape
    finer = {name: x for name, x in third_bits(codes.fine).items() if name.startswith("finer")}
    _launch.device().launch(
        DIVIDE,
        (),
        room.listed.shape,
        MERGE_THREADS,
        {
            **_tiers(room),
            "sought": room.list_tokens.shape[1],
            "K": K,
            **finer,
            "H": H,
            "H_kv": codes.planes.shape[2],
            "L": L,
            "scale": scale,
            "fine_noise": 0.5 * FINE_NOISE * scale**2,
            "facts": room.facts,
        },
    )


def _scales(codes: Codes) -> dict[str, Argument]:
    """The scales of two bits with their strides."""
    assert codes.centers is not None
    return strides("scales", codes.centers.scales, ("batch", "head"))


def _tiers(room: TailRoom) -> dict[str, Argument]:
    """The arguments of `choose_tiers` and `divide` that they share."""
    return {
        "list_tokens": room.list_tokens,
        "list_ranks": room.list_ranks,
        "list_logits": room.list_logits,
        "listed": room.listed,
        "M": room.coded.shape[1],
        "indices": room.indices,
        "coded": room.coded,
        "logits": room.logits,
        "rest": room.rest,
    }


def attend_tiers(
    q: Array,
    k: Array,
    v: Array,
    values: Values,
    lengths: dict[str, Argument],
    room: TailRoom,
    scale: float,
    out: Array,
    lse: Array,
) -> None:
    """Attention of q to the tiers in `room`, into out (B, H, L, D) and lse (B, H, L).

    q has the dtype of k or float32, and out has that of q. Nothing is allocated.
    """
    _, H, L, D = q.shape
    H_kv, S = k.shape[1:3]
    DT = max(padded(D), 32)
    vector = elements_per_load(k, v) if q.dtype == k.dtype and DT <= 256 else 1
    rows, splits, _ = room.partial.shape
    _launch.device().launch(
        ATTEND_TAIL,
        (element(q), element(k), DT, vector),
        (rows, splits),
        ATTEND_THREADS,
        {
            **strides("q", q),
            **strides("k", k),
            **strides("v", v),
            "indices": room.indices,
            "coded": room.coded,
            "logits": room.logits,
            "rest": room.rest,
            **head_values(*values[:3], ("v_codes", "v_scales", "bases")),
            "total": values.total,
            **lengths,
            "H": H,
            "H_kv": H_kv,
            "L": L,
            "S": S,
            "K": room.indices.shape[-1],
            "M": room.coded.shape[1],
            "exact_splits": room.exact_splits,
            "D": D,
            "Dt": padded(D),
            "scale": scale,
            "hadamard_scale": hadamard_scale(D),
            "out": out,
            "lse": lse,
            "partial": room.partial,
            "finished": room.finished,
        },
    )


def attend_tail(
    q: Array,
    k: Array,
    v: Array,
    codes: Codes,
    values: Values,
    budget: int,
    selection: Selection,
    softmax: Softmax | None = None,
) -> tuple[Array, Array]:
    """Attention of q (B, H, L, D) to all visible tokens of k, v (B, H_kv, S, D): out and lse."""
    if selection.tail == 0:
        return attend_topk(q, k, v, codes, budget, selection, softmax)
    xp = _launch.device().xp
    scale = plain_scale(softmax, k, v)
    wide = q if q.dtype == k.dtype else xp.asarray(q, np.float32)
    out = xp.empty(q.shape, wide.dtype)
    lse = xp.empty(q.shape[:3], np.float32)
    S = longest(codes.length)
    if S == 0:
        return xp.zeros(q.shape, q.dtype), xp.full(q.shape[:3], -np.inf, np.float32)
    if out.size:
        query = empty_coded_query(q.shape, selection, codes)
        code_query(q, codes.thresholds, k.shape[1], selection, query)
        lengths = sequence_lengths(codes.length)
        room = make_room(selection, codes, q.shape, S, budget)
        if selection.refine:
            refined = min(selection.refine * budget, S)
            nearest = xp.empty((*q.shape[:3], refined), np.int32)
            choose_tiers(query, codes, lengths, room, selection, scale, nearest)
            best = rerank_below(q, k, nearest, budget, selection)
            room = room._replace(indices=best)
            divide(codes, room, scale)
        else:
            choose_tiers(query, codes, lengths, room, selection, scale)
        total = xp.ascontiguousarray(values.total)
        held = values._replace(total=total)
        attend_tiers(wide, k, v, held, lengths, room, scale, out, lse)
    return out.astype(q.dtype, copy=False), lse
