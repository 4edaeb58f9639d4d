"""Codes of values, each relative to a base of its head, with a scale per token."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from adamas_core.reference.center import CENTERED_THRESHOLDS
from adamas_core.reference.layout import TILE, padded, words

from ._array import FLOAT32, LINE, address_of, aligned, dtype_code, head_fields
from ._float_rows import LANES, load_first_lanes, widen_row
from ._jit import kernel, outlined
from ._record import Record
from ._simd import load_float32, load_int64, store_float32, store_uint8, sum_of, to_all
from ._threads import allow_threads, threads_allowed
from .center import TOKENS_PER_THREAD, code_rest, scale_byte
from .hadamard import scratch_floats, transform

# v is (B, H_kv, S, D). `span` is an address: for each sequence its first new token, and how many
# are new. The codes of a token are 2 P words.
EncodeValues = Record(
    *("v", "dtype", "v_b", "v_h", "v_s", "B", "H_kv", "S", "D", "Dt", "P", "thresholds", "span"),
    *("codes", "codes_b", "codes_h", "scales", "scales_b", "scales_h"),
    *("bases", "bases_b", "bases_h"),
)
encode_values_at = EncodeValues.reader()


def encode_values(
    v: NDArray,
    codes: NDArray[np.uint64],
    scales: NDArray[np.uint8],
    bases: NDArray[np.float32],
    start: int | NDArray[np.integer] = 0,
    count: int | NDArray[np.integer] | None = None,
) -> NDArray[np.uint64]:
    """Make values v (B, H_kv, S, D) the tokens start, start + 1, ... of codes and scales."""
    B, H_kv, S, D = v.shape
    if v.size:
        span = np.empty((B, 2), np.int64)
        span[:, 0] = start
        span[:, 1] = S if count is None else count
        v_b, v_h, v_s, _ = v.strides
        record = EncodeValues(
            head_fields(codes=codes, scales=scales, bases=bases),
            v=address_of(v), dtype=dtype_code(v), v_b=v_b, v_h=v_h, v_s=v_s,
            B=B, H_kv=H_kv, S=S, D=D, Dt=padded(D), P=words(D),
            thresholds=address_of(CENTERED_THRESHOLDS), span=address_of(span),
        )  # fmt: skip
        _encode_values(record)
    return codes


@kernel
def _encode_values(records):
    record = records[0]
    at = records.ctypes.data
    blocks = (record.S + TILE - 1) // TILE
    items = record.B * record.H_kv * blocks
    row_bytes = 4 * scratch_floats(record.Dt)
    allowed = threads_allowed()
    if record.B * record.H_kv * record.S < 2 * TOKENS_PER_THREAD:
        allow_threads(1)
    for i in prange(items):
        rows = np.empty(2 * row_bytes + LINE, np.uint8)
        _encode_block(at, np.int64(i), blocks, rows)
    allow_threads(allowed)


@outlined
def _encode_block(at, item, blocks, scratch):
    """Code up to 64 new values of a head."""
    record = encode_values_at(at)
    head, block = divmod(item, blocks)
    b, h = divmod(head, record.H_kv)
    start = load_int64(record.span + 16 * b)
    count = load_int64(record.span + 16 * b + 8)
    v = record.v + b * record.v_b + h * record.v_h
    codes = record.codes + b * record.codes_b + h * record.codes_h
    scales = record.scales + b * record.scales_b + h * record.scales_h
    bases = record.bases + b * record.bases_b + h * record.bases_h
    D, Dt, P = record.D, record.Dt, record.P
    row = aligned(scratch)
    rest = row + 4 * scratch_floats(Dt)
    for i in range(TILE * block, min(TILE * (block + 1), count)):
        token = start + i
        widen_row(v + record.v_s * i, record.dtype, D, row)
        base = bases if token < TILE else bases + 4 * D
        for d in range(0, D, LANES):
            x = load_float32(row + 4 * d) - load_first_lanes(base + 4 * d, FLOAT32, D - d)
            store_float32(row + 4 * d, x)
        transform(row, FLOAT32, D, Dt, rest)
        squares = to_all(np.float32(0))
        for d in range(0, Dt, LANES):
            x = load_float32(rest + 4 * d)
            squares += x * x
        high = codes + 16 * P * token
        own = high, high + 8 * P, 8
        scale = code_rest(rest, sum_of(squares), Dt, record.thresholds, row, own)
        store_uint8(scales + token, scale_byte(scale))
