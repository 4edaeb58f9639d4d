"""Codes of values, each relative to a base of its head, with a scale per token, the specification.

A token's code never changes. Its base is known when it comes: the first value for the first 64
tokens, and the mean of these 64 for all others. So values with a large part in common keep their
precision, and no value of a later token has a part in a code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .center import CENTERED_THRESHOLDS, code, scale_byte, scale_of
from .hadamard import hadamard
from .layout import TILE, Values, padded
from .quantize import pack_bits, unpack_bits


def encode_values(
    v: NDArray[Any],
    codes: NDArray[np.uint64],
    scales: NDArray[np.uint8],
    bases: NDArray[np.float32],
    start: int | NDArray[np.integer] = 0,
    count: int | NDArray[np.integer] | None = None,
) -> NDArray[np.uint64]:
    """Code values v (B, H_kv, S, D_v) as tokens start, start + 1, ... of codes and scales.

    They are written in place. Each sequence takes its first `count` values, or all if
    count is not given. start and count are ints or (B,). `bases` (B, H_kv, 2, D_v) are those of the
    sequence with its new tokens. Returns codes.

    The rest of a token is its value minus its base, in float32, transformed. It is cut at
    CENTERED_THRESHOLDS times its own root mean square, as the rest of a centered key.
    """
    B, H_kv, S, _ = v.shape
    starts, counts = (np.broadcast_to(x, (B,)) for x in (start, S if count is None else count))
    for b, h in np.ndindex(B, H_kv):
        for i in range(counts[b]):
            token = int(starts[b]) + i
            tile, slot = divmod(token, TILE)
            with np.errstate(over="ignore", invalid="ignore"):
                rest = v[b, h, i].astype(np.float32) - bases[b, h, int(tile > 0)]
            number, scale = code(hadamard(rest[None]), CENTERED_THRESHOLDS)
            codes[b, h, tile, slot] = pack_bits(np.stack([number[0] >= 2, number[0] % 2 == 1]))
            scales[b, h, tile, slot] = scale_byte(scale)[0]
    return codes


def read_values(values: Values, tokens: int) -> NDArray[np.float32]:
    """The values (B, H_kv, tokens, D_v) that the codes of the first tokens stand for.

    They are the inverse transform of s u, plus the base, with u = code - 1.5 and s the scale. The
    scale of the byte 0 is 0 here, so that a value equal to its base is read back as it is.
    """
    B, H_kv, T, _, _, P = values.codes.shape
    D = values.bases.shape[-1]
    bits = unpack_bits(values.codes).reshape(B, H_kv, T * TILE, 2, 64 * P)[:, :, :tokens]
    u = (2 * bits[..., 0, :] + bits[..., 1, :]).astype(np.float32) - np.float32(1.5)
    s = np.where(values.scales == 0, np.float32(0), scale_of(values.scales))
    s = s.reshape(B, H_kv, -1, 1)[:, :, :tokens]
    Dt = padded(D)
    rows = np.repeat(values.bases, [TILE, max(tokens - TILE, 0)], axis=2)[:, :, :tokens]
    return hadamard(s * u[..., :Dt])[..., :D] + rows


def bases_of(v: NDArray[Any], length: int | NDArray[np.integer]) -> NDArray[np.float32]:
    """The bases (B, H_kv, 2, D_v) of the first `length` values of each sequence, float32.

    The first value, and the mean of the first 64, added one by one; 0 where there are fewer values,
    and where it is not finite.
    """
    B, H_kv, _, D = v.shape
    bases = np.zeros((B, H_kv, 2, D), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for b, n in enumerate(np.broadcast_to(length, (B,))):
            if n >= 1:
                bases[b, :, 0] = v[b, :, 0]
            if n >= TILE:
                for i in range(TILE):
                    bases[b, :, 1] += v[b, :, i].astype(np.float32)
                bases[b, :, 1] *= np.float32(1 / TILE)
    bases[~np.isfinite(bases)] = 0
    return bases


def total_of(v: NDArray[Any], length: int | NDArray[np.integer]) -> NDArray[np.float32]:
    """The sum (B, H_kv, D_v) of the first `length` values of each sequence of v (B, H_kv, S, D_v).

    float32. The values of a tile of 64 tokens are added up one by one, then the tiles one by one.
    So a sum that grows with each token has the same bits as one of all tokens at once.
    """
    B, H_kv, _, D = v.shape
    total = np.zeros((B, H_kv, D), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for b, n in enumerate(np.broadcast_to(length, (B,))):
            for first in range(0, n, TILE):
                tile = np.zeros((H_kv, D), np.float32)
                for i in range(first, min(first + TILE, n)):
                    tile += v[b, :, i].astype(np.float32)
                total[b] += tile
    return total
