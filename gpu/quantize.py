"""Codes of keys and bit planes of queries, in their packed layouts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from adamas_core.reference.layout import TILE, Codes, Selection, padded, tiles, words

from . import _launch
from ._arrays import element, four_axes, head_thresholds, key_planes, strides
from ._kernels import ENCODE, QUANTIZE, QUANTIZE_QUERY
from ._launch import Argument, Array
from ._warps import THREADS, blocks, hadamard_scale, per_lane


def quantize(x: Array, thresholds: Array) -> Array:
    """Bucketize transformed x (..., Dt) into packed 2-bit codes, rows (..., 2P)."""
    device = _launch.device()
    codes = device.xp.empty((*x.shape[:-1], 2 * words(x.shape[-1])), np.uint64)
    if codes.size:
        arguments = {**_transformed(x), **head_thresholds(thresholds), "codes": codes}
        device.launch(QUANTIZE, (per_lane(x.shape[-1]),), _blocks(x), THREADS, arguments)
    return codes


def quantize_query(x: Array, bits: int = 4) -> Array:
    """Split transformed queries x (..., Dt) into packed bit planes (..., bits * P)."""
    device = _launch.device()
    query = device.xp.empty((*x.shape[:-1], bits * words(x.shape[-1])), np.uint64)
    if query.size:
        arguments = {**_transformed(x), "bits": bits, "query": query}
        device.launch(QUANTIZE_QUERY, (per_lane(x.shape[-1]),), _blocks(x), THREADS, arguments)
    return query


def _transformed(x: Array) -> dict[str, Argument]:
    """The arguments for transformed rows x (..., Dt)."""
    rows, Dt = math.prod(x.shape[:-1]), x.shape[-1]
    x = four_axes(x)
    sizes = {"heads": x.shape[1], "tokens": x.shape[2], "rows": rows, "Dt": Dt}
    return {**strides("x", x), **sizes}


def _blocks(x: Array) -> tuple[int]:
    return blocks(math.prod(x.shape[:-1]))


def encode(
    k: Array, thresholds: Array, planes: Array | None = None, start: int | Array = 0
) -> Array:
    """Key planes (2, B, H_kv, T, 8, P, 8) of keys k (B, H_kv, S, D).

    If `planes` is given, the keys become its tokens start, start + 1, ..., in place; start is an
    int or (B,). A start of dtype int32 on the device is read there, when the kernel runs. Tokens
    that do not fit into `planes` are not written.
    """
    B, H_kv, S, D = k.shape
    if planes is None:
        shape = (2, B, H_kv, tiles(S), 8, words(D), 8)
        planes = _launch.device().xp.zeros(shape, np.uint64)
        start = 0
    _encode(k, thresholds, _keys(k, planes, start))
    return planes


def query_parts(selection: Selection) -> int:
    """Bit planes of a query."""
    return 2 if selection.metric == "manhattan" else int(selection.query_bits)


class CodedQuery(NamedTuple):
    """Queries as a selection reads them."""

    planes: Array  # (B, H, L, R), uint64; see `score`
    x: Array | None = None  # (B, H, L, Dt), float32: transformed; None for plain codes


def empty_coded_query(shape: tuple[int, ...], selection: Selection, codes: Codes) -> CodedQuery:
    """Room for queries of a shape (B, H, L, D) that select from `codes`."""
    x = None
    if codes.centers is not None:
        x = _launch.device().xp.empty((*shape[:-1], padded(shape[-1])), np.float32)
    return CodedQuery(_empty_query(shape, selection), x)


def _empty_query(shape: tuple[int, ...], selection: Selection) -> Array:
    """Room for the planes of queries of a shape (B, H, L, D)."""
    width = query_parts(selection) * words(shape[-1])
    return _launch.device().xp.empty((*shape[:-1], width), np.uint64)


def encode_query(q: Array, thresholds: Array, H_kv: int, selection: Selection) -> Array:
    """The query for `score` of raw queries q (B, H, L, D): transform and quantize in one launch.

    Planes (B, H, L, bits * P) or, with the metric "manhattan", codes (B, H, L, 2P). Codes are cut
    at the thresholds (H_kv, 3) or (3,) of the KV heads.
    """
    query = CodedQuery(_empty_query(q.shape, selection))
    code_query(q, thresholds, H_kv, selection, query)
    return query.planes


def code_query(
    q: Array, thresholds: Array, H_kv: int, selection: Selection, query: CodedQuery
) -> None:
    """Do `encode_query` into the planes of `query`, and the transform into its x."""
    room = {"query": query.planes, "x": query.x}
    _encode(q, thresholds, {**_queries(q, selection), **room, "H_kv": H_kv})


def query_bits(selection: Selection) -> int:
    """The kernels' bits of a coordinate of the query; 0 means codes."""
    return 0 if selection.metric == "manhattan" else int(selection.query_bits)


def _queries(q: Array, selection: Selection) -> dict[str, Argument]:
    """The arguments of the kernel `encode` for queries."""
    B, H, L, _ = q.shape
    sizes = {"H": H, "L": L, "q_rows": B * H * L, "bits": query_bits(selection)}
    return {**strides("q", q), **sizes}


def _keys(k: Array, planes: Array, start: int | Array) -> dict[str, Argument]:
    """The arguments of the kernel `encode` for keys."""
    B, H_kv, S, _ = k.shape
    sizes = {"H_kv": H_kv, "S": S, "k_rows": B * H_kv * S, "capacity": TILE * planes.shape[3]}
    first: dict[str, Any]
    if np.ndim(start) == 0:
        first = {"first": int(start)}
    else:
        first = {"start": _launch.device().xp.asarray(start, np.int32, order="C")}
    return {**strides("k", k), **key_planes(planes), **sizes, **first}


def _encode(x: Array, thresholds: Array, arguments: dict[str, Argument]) -> None:
    """Launch `encode` for queries and keys of x's dtype and head_dim."""
    rows, D = arguments.get("q_rows", 0) + arguments.get("k_rows", 0), x.shape[-1]
    if rows:
        _launch.device().launch(
            ENCODE,
            (element(x), per_lane(D)),
            blocks(rows),
            THREADS,
            {
                **arguments,
                **head_thresholds(thresholds),
                "D": D,
                "Dt": padded(D),
                "hadamard_scale": hadamard_scale(D),
            },
        )
