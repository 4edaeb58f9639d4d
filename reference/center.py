"""Codes of keys relative to the mean of their tile, with a scale per token, the specification.

Neighbouring keys have a large part in common, and that part uses up the range of two bits. Codes of
the rest order the tokens far better. They cost 5 bytes more per token at head_dim 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import erfc, exp, pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .hadamard import hadamard
from .layout import TILE, Centers, Fine
from .quantize import pack_bits
from .rerank import lane_sums

# The outer thresholds in units of the keys' rms. The least mean squared error for a normal variable
# in four levels is at 0.9816 (Max 1960); 0.996 was measured best on real keys.
RMS_SHARE = 0.996

# The thresholds of centered codes, in units of a token's own rms.
CENTERED_THRESHOLDS = np.array([-RMS_SHARE, 0, RMS_SHARE], np.float32)
CENTERED_THRESHOLDS.setflags(write=False)

# The noise of a coordinate in units of s^2: the mean of (s u - x)^2 / s^2. Here x is normal with
# variance 1, u is its code, and s is 1 / (mean of x u), as in `code` for many coordinates. That is
# the mean of u^2, minus the square of the mean of x u. With t a threshold, |x| > t has the
# probability erfc(t / sqrt 2), and the density at t is exp(-t^2 / 2) / sqrt(2 pi).


def _noise(thresholds: Sequence[float], levels: Sequence[float]) -> tuple[float, float]:
    """The noise of a code whose |u| rises to the next of `levels` at each threshold; and s."""
    square, along = levels[0] ** 2, levels[0] * 2 / sqrt(2 * pi)
    for t, low, high in zip(thresholds, levels, levels[1:], strict=False):
        square += (high**2 - low**2) * erfc(t / sqrt(2))
        along += (high - low) * 2 * exp(-(t**2) / 2) / sqrt(2 * pi)
    return square - along**2, 1 / along


NOISE, _S = _noise([RMS_SHARE], [0.5, 1.5])
# The same for three bits. The third one tells on which side of s u the coordinate lies.
FINE_NOISE, _ = _noise([0.5 * _S, RMS_SHARE, 1.5 * _S], [0.25, 0.75, 1.25, 1.75])

# A scale is one byte: bits 20 to 27 of a float32 from 2^-16 to 2^16, of which three are mantissa.
SCALE_SHIFT = 20
SCALE_LEAST = 111 << 3  # the bits of 2^-16, shifted right by SCALE_SHIFT


def encode_centered(
    k: NDArray[Any],
    thresholds: NDArray[np.float32],
    planes: NDArray[np.uint64],
    centers: Centers,
    start: int | NDArray[np.integer] = 0,
    count: int | NDArray[np.integer] | None = None,
    fine: Fine | None = None,
) -> NDArray[np.uint64]:
    """Code keys k (B, H_kv, S, D) as tokens start, start + 1, ... of planes and centers, in place.

    Each sequence takes its first `count` keys, or all if count is not given. start and count are
    ints or (B,). All tokens before `start` have been coded already. Returns planes.

    While a tile is open, its tokens are coded relative to the mean of the tile before it; in the
    first tile that mean is 0. When the tile is full, all its 64 tokens are coded again, relative to
    their own mean. The rest of a token is its transformed key minus the mean. It is cut at
    `thresholds` (3,) or (H_kv, 3) times its own root mean square. With `fine`, its third bits and
    their scales are written too.
    """
    y = hadamard(k)
    B, H_kv, S, _ = k.shape
    starts, counts = (np.broadcast_to(x, (B,)) for x in (start, S if count is None else count))
    thresholds = np.broadcast_to(thresholds, (H_kv, 3))
    for b, h in np.ndindex(B, H_kv):
        means, scales = centers.means[b, h], centers.scales[b, h]  # (T, Dt), (T, 64)
        keys = centers.open_tile[b, h]  # (64, Dt)
        done = 0
        while done < counts[b]:
            tile, slot = divmod(int(starts[b]) + done, TILE)
            n = min(TILE - slot, int(counts[b]) - done)
            if slot == 0:
                means[tile] = means[tile - 1] if tile > 0 else 0
            keys[slot : slot + n] = y[b, h, done : done + n]
            done += n
            if slot + n == TILE:
                means[tile] = mean_of(keys)
                slot, n = 0, TILE
            new = slice(slot, slot + n)
            rest = keys[new] - means[tile].astype(np.float32)
            number, scale = code(rest, thresholds[h])
            scales[tile, new] = scale_byte(scale)
            if fine is not None:
                third, scale = refine(rest, number, scale)
                fine.bits[b, h, tile, new] = pack_bits(third)
                fine.scales[b, h, tile, new] = scale_byte(scale)
            rows = np.stack([pack_bits(number >= 2), pack_bits(number % 2 == 1)])  # (2, n, P)
            for i in range(n):
                group, lane = divmod(slot + i, 8)
                planes[:, b, h, tile, group, :, lane] = rows[:, i]
    return planes


def mean_of(keys: NDArray[np.float32]) -> NDArray[np.float16]:
    """Mean (Dt,) of keys (64, Dt), added one by one in float32; 0 where it is not finite."""
    total = np.zeros(keys.shape[1], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for row in keys:
            total += row
        mean = (total * np.float32(1 / TILE)).astype(np.float16)
    return np.where(np.isfinite(mean), mean, np.float16(0))


def code(
    rest: NDArray[np.float32], thresholds: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes (n, Dt) of rest (n, Dt), from 0 to 3, and the scale s (n,) of each row.

    With u = code - 1.5, the codes stand for s u. The scale is s = |rest|^2 / (rest.u), so that the
    inner product of s u and the rest itself is exact.
    """
    Dt = rest.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        square = lane_sums(rest * rest)
        own = thresholds * np.sqrt(square / np.float32(Dt))[:, None]  # (n, 3)
        number: NDArray[np.int64] = (own[:, :, None] < rest[:, None]).sum(axis=1)
    return number, _scale(rest, number.astype(np.float32) - np.float32(1.5))


def refine(
    rest: NDArray[np.float32], number: NDArray[np.int64], scale: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """A third bit (n, Dt) of rest (n, Dt), given its codes and scales, and the new scales (n,).

    The bit is 1 where the rest is larger than s u. Then the code stands for u + 1/4, else for
    u - 1/4, times the new scale.
    """
    u = number.astype(np.float32) - np.float32(1.5)
    with np.errstate(over="ignore", invalid="ignore"):
        third: NDArray[np.bool_] = rest > scale[:, None] * u
    return third, _scale(rest, u + np.where(third, np.float32(0.25), np.float32(-0.25)))


def _scale(rest: NDArray[np.float32], u: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scale: NDArray[np.float32] = lane_sums(rest * rest) / lane_sums(rest * u)
    return scale


def scale_byte(scale: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The byte of the nearest scale; 0 for a scale that is not positive, or NaN.

    The relative error is at most 1/16 between 2^-16 and 2^16 - 2^12.
    """
    bits = np.where(scale > 0, scale, np.float32(0)).view(np.uint32).astype(np.int64)
    rounded = (bits + (1 << (SCALE_SHIFT - 1))) >> SCALE_SHIFT
    byte: NDArray[np.uint8] = np.clip(rounded - SCALE_LEAST, 0, 255).astype(np.uint8)
    return byte


def scale_of(byte: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The scale of a byte: from 2^-16 up, in steps of 1/8 of the power of two below it."""
    return ((byte.astype(np.uint32) + SCALE_LEAST) << SCALE_SHIFT).view(np.float32)
