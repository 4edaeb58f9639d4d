"""Codes of keys and bit planes of queries, in their packed layouts."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from adamas_core.reference.quantize import TILE

from . import _launch
from ._kernels import ENCODE, QUANTIZE, QUANTIZE_QUERY
from ._launch import Argument, Array
from ._rows import (
    THREADS,
    blocks,
    element,
    leading_strides,
    limits,
    padded,
    per_lane,
    scale,
    with_four_axes,
    words,
)


def quantize(x: Array, thresholds: Array) -> Array:
    """Bucketize transformed x (..., Dt) into packed 2-bit codes, rows (..., 2P)."""
    device = _launch.device()
    Dt = x.shape[-1]
    codes = device.xp.empty((*x.shape[:-1], 2 * words(Dt)), np.uint64)
    rows = math.prod(x.shape[:-1])
    if rows:
        x = with_four_axes(x)
        arguments = (x, *leading_strides(x), *x.shape[1:3], rows, Dt, *limits(thresholds), codes)
        device.launch(QUANTIZE, (per_lane(Dt),), blocks(rows), THREADS, arguments)
    return codes


def quantize_query(x: Array, bits: int = 4) -> Array:
    """Split transformed queries x (..., Dt) into packed bit planes (..., bits * P)."""
    device = _launch.device()
    Dt = x.shape[-1]
    planes = device.xp.empty((*x.shape[:-1], bits * words(Dt)), np.uint64)
    rows = math.prod(x.shape[:-1])
    if rows:
        x = with_four_axes(x)
        arguments = (x, *leading_strides(x), *x.shape[1:3], rows, Dt, bits, planes)
        device.launch(QUANTIZE_QUERY, (per_lane(Dt),), blocks(rows), THREADS, arguments)
    return planes


def encode(
    k: Array, thresholds: Array, planes: Array | None = None, start: int | Array = 0
) -> Array:
    """Key planes (2, B, H_kv, T, 8, P, 8) of k (B, H_kv, S, D), or k's tokens put into `planes`.

    A start of dtype int32 on the device is read there, when the kernel runs; tokens that it puts
    outside `planes` are not written.
    """
    B, H_kv, S, D = k.shape
    if planes is None:
        shape = (2, B, H_kv, -(-S // TILE), 8, words(D), 8)
        planes = _launch.device().xp.zeros(shape, np.uint64)
        start = 0
    _encode(_no_queries(H_kv), _keys(k, planes, start), thresholds, k)
    return planes


def encode_query(
    q: Array,
    thresholds: Array,
    H_kv: int,
    metric: str = "weighted",
    bits: int = 4,
    out: Array | None = None,
) -> Array:
    """What `score` takes, of raw queries q (B, H, L, D): transformed and quantized in one launch.

    Planes (B, H, L, bits * P), or with metric "manhattan" codes (B, H, L, 2P) by the thresholds
    (H_kv, 3) or (3,) of the KV heads. They are written to `out` where it is given.
    """
    out = _query_planes(q, metric, bits) if out is None else out
    _encode(_queries(q, out, metric, bits), _no_keys(H_kv), thresholds, q)
    return out


def encode_step(
    q: Array,
    k: Array,
    thresholds: Array,
    planes: Array,
    start: int | Array,
    metric: str = "weighted",
    bits: int = 4,
    out: Array | None = None,
) -> Array:
    """A decode step's `encode_query` of q and in-place `encode` of the new keys k, in one launch.

    Nothing is allocated where `out` is given and the thresholds and an array `start` lie on the
    device as float32 and int32. Queries and keys of different dtypes take a launch each.
    """
    out = _query_planes(q, metric, bits) if out is None else out
    queries, keys = _queries(q, out, metric, bits), _keys(k, planes, start)
    if q.dtype == k.dtype:
        _encode(queries, keys, thresholds, q)
    else:
        _encode(queries, _no_keys(k.shape[1]), thresholds, q)
        _encode(_no_queries(k.shape[1]), keys, thresholds, k)
    return out


class _Part(NamedTuple):
    """One of the two parts of a launch of the kernel `encode`."""

    rows: int
    arguments: tuple[Argument, ...]


def _query_planes(q: Array, metric: str, bits: int) -> Array:
    parts = 2 if metric == "manhattan" else bits
    shape = (*q.shape[:-1], parts * words(q.shape[-1]))
    return _launch.device().xp.empty(shape, np.uint64)


def _queries(q: Array, out: Array, metric: str, bits: int) -> _Part:
    B, H, L, _ = q.shape
    rows = B * H * L
    return _Part(
        rows,
        (q, *leading_strides(q), H, L, rows, 0 if metric == "manhattan" else bits, out),
    )


def _no_queries(H_kv: int) -> _Part:
    return _Part(0, (None, 0, 0, 0, H_kv, 1, 0, 0, None))


def _keys(k: Array, planes: Array, start: int | Array) -> _Part:
    B, H_kv, S, _ = k.shape
    rows = B * H_kv * S
    xp = _launch.device().xp
    if np.ndim(start) == 0:
        first, starts = int(start), None
    else:
        first, starts = 0, xp.asarray(start, np.int32, order="C")
    arguments = (k, *leading_strides(k), H_kv, S, rows)
    room = (planes, *leading_strides(planes)[:3], TILE * planes.shape[3])
    return _Part(rows, (*arguments, *room, starts, first))


def _no_keys(H_kv: int) -> _Part:
    return _Part(0, (None, 0, 0, 0, H_kv, 1, 0, None, 0, 0, 0, 0, None, 0))


def _encode(queries: _Part, keys: _Part, thresholds: Array, like: Array) -> None:
    rows, D = queries.rows + keys.rows, like.shape[-1]
    if rows:
        _launch.device().launch(
            ENCODE,
            (element(like), per_lane(D)),
            blocks(rows),
            THREADS,
            (
                *queries.arguments,
                *keys.arguments,
                *limits(thresholds),
                D,
                padded(D),
                scale(D),
            ),
        )
