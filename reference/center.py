"""Codes of keys relative to the mean of their tile, with a scale a token, the specification.

Neighbouring keys share a part that takes up the range of their codes. Without it two bits order the
tokens of a diffuse head far better, for 5 bytes more a token at head_dim 128.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .hadamard import hadamard
from .quantize import TILE, quantize
from .rerank import lane_sums

# A scale is a byte: the upper bits of a float32 from 2^-8 to 2^8, four of them of its mantissa.
SCALE_SHIFT = 19
SCALE_LEAST = 119 << 4  # the exponent of 2^-8, where those four bits begin


class Centers(NamedTuple):
    """What centered codes need beside their planes."""

    means: NDArray[np.float16]  # (B, H_kv, T, Dt): what a tile's codes are relative to
    scales: NDArray[np.uint8]  # (B, H_kv, T, 64): of each token, see `scale_of`
    tail: NDArray[np.float32]  # (B, H_kv, 64, Dt): transformed keys of the tile not yet full


def encode_centered(
    k: NDArray[Any],
    thresholds: NDArray[np.float32],
    planes: NDArray[np.uint64],
    centers: Centers,
    start: int | NDArray[np.integer] = 0,
    count: int | NDArray[np.integer] | None = None,
) -> NDArray[np.uint64]:
    """Make keys k (B, H_kv, S, D) the tokens start, start + 1, ... of planes and centers, in place.

    Of a sequence the first `count` keys are taken, all if it is not given; start and count are
    ints or (B,). Tokens come in order: those before `start` are there. Returns planes.

    The tokens of a tile are coded relative to the mean of the tile before, 0 in the first one; as
    soon as all 64 are there, all are coded once more relative to their own mean. A coordinate's
    thresholds are `thresholds` (3,) or (H_kv, 3) times the root mean square of what is left of its
    token.
    """
    y = hadamard(k)
    B, H_kv, S, _ = k.shape
    P = planes.shape[5]
    starts, counts = (np.broadcast_to(x, (B,)) for x in (start, S if count is None else count))
    thresholds = np.broadcast_to(thresholds, (H_kv, 3))
    for b, h in np.ndindex(B, H_kv):
        means, scales, tail = centers.means[b, h], centers.scales[b, h], centers.tail[b, h]
        done = 0
        while done < counts[b]:
            tile, slot = divmod(int(starts[b]) + done, TILE)
            n = min(TILE - slot, int(counts[b]) - done)
            if slot == 0:
                means[tile] = means[tile - 1] if tile > 0 else 0
            tail[slot : slot + n] = y[b, h, done : done + n]
            done += n
            if slot + n == TILE:
                means[tile] = mean_of(tail)
                slot, n = 0, TILE
            codes, scales[tile, slot : slot + n] = code(
                tail[slot : slot + n] - means[tile].astype(np.float32), thresholds[h]
            )
            for i, row in enumerate(codes, slot):
                planes[:, b, h, tile, i // 8, :, i % 8] = row.reshape(2, P)
    return planes


def mean_of(tail: NDArray[np.float32]) -> NDArray[np.float16]:
    """Of 64 rows (64, Dt): added up in turn in float32, rounded to float16; 0 if not finite."""
    total = np.zeros(tail.shape[1], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for row in tail:
            total += row
        mean = (total * np.float32(1 / TILE)).astype(np.float16)
    return np.where(np.isfinite(mean), mean, np.float16(0))


def code(
    rest: NDArray[np.float32], thresholds: NDArray[np.float32]
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Codes (n, 2P) of rest (n, Dt), and the scale s of each as a byte.

    With u = code - 1.5 the token is read back as s u. It is s = |rest|^2 / (rest.u), with which the
    inner product of the token with itself is right.
    """
    Dt = rest.shape[1]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        square = lane_sums(rest * rest)
        own = thresholds * np.sqrt(square / np.float32(Dt))[:, None]  # (n, 3)
        number = (own[:, :, None] < rest[:, None]).sum(axis=1)  # (n, Dt), from 0 to 3
        scale = square / lane_sums(rest * (number.astype(np.float32) - np.float32(1.5)))
    # The same code by fixed thresholds between the numbers, which `quantize` packs.
    between = np.array([0.5, 1.5, 2.5], np.float32)
    return quantize(number.astype(np.float32), between), scale_byte(scale)


def scale_byte(scale: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest of the scales that a byte stands for; the least for what is no positive number.

    At most 1/32 off between 2^-8 and 2^8 - 2^3.
    """
    bits = np.where(scale > 0, scale, np.float32(0)).view(np.uint32).astype(np.int64)
    rounded = (bits + (1 << (SCALE_SHIFT - 1))) >> SCALE_SHIFT
    byte: NDArray[np.uint8] = np.clip(rounded - SCALE_LEAST, 0, 255).astype(np.uint8)
    return byte


def scale_of(byte: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The scale that a byte stands for, from 2^-8 in steps of a sixteenth of its power of two."""
    return ((byte.astype(np.uint32) + SCALE_LEAST) << SCALE_SHIFT).view(np.float32)
