"""One choice for all query heads of a KV head, the specification.

The estimates of each head become the attention that the head would give to every token. The group
takes the tokens that get the most attention from all its heads together. The weights in between are
integers, so that their sum over tokens does not depend on the order of the tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS = 4  # levels per factor of 2 in attention
# round(2 ** (16 - i / STEPS)) for i = 0 .. STEPS - 1; smaller weights are these, shifted right.
WEIGHTS = np.array([65536, 55109, 46341, 38968], np.int64)


def pool(
    estimates: NDArray[np.float32], seen: NDArray[np.bool_], G: int, scale: float
) -> NDArray[np.float32]:
    """Attention (B, H_kv, L, S) of groups of G heads, from estimates (B, H, L, S) of q.k.

    `seen` (B, H, L, S) marks the tokens that a query sees. A logit is scale q.k.
    """
    return attention(levels(estimates, scale), seen, G)


def levels(estimates: NDArray[np.float32], scale: float) -> NDArray[np.int64]:
    """Logits in units of ln 2 / STEPS, rounded down and clipped to int16; NaN is the lowest."""
    unit = np.float32(STEPS / np.log(2) * scale)
    with np.errstate(over="ignore", invalid="ignore"):
        level = np.floor(estimates * unit)
    level = np.clip(np.where(np.isnan(level), -np.inf, level), -(2.0**15), 2.0**15 - 1)
    return level.astype(np.int64)


def attention(level: NDArray[np.int64], seen: NDArray[np.bool_], G: int) -> NDArray[np.float32]:
    """Attention (B, H_kv, L, S) that each token gets from a group, from levels (B, H, L, S).

    A head gives a token the share weight / (sum of the head's weights). The weight of the head's
    best token is 2^16. It halves whenever the logit falls by ln 2, in four steps, and is 0 after 17
    halvings. A share is the float32 product of the weight and the float32 inverse of the sum. The
    shares of the heads are added in the order of the heads.
    """
    level = np.where(seen, level, -(2**31))
    i = np.clip(level.max(axis=-1, keepdims=True, initial=-(2**31)) - level, 0, 32 * STEPS - 1)
    weight = np.where(seen, WEIGHTS[i % STEPS] >> (i // STEPS), 0)
    total = np.maximum(weight.sum(axis=-1, keepdims=True), 1)
    share = weight.astype(np.float32) * (np.float32(1) / total.astype(np.float32))
    B, H, L, S = level.shape
    together = np.zeros((B, H // G, L, S), np.float32)
    for g in range(G):
        together += share[:, g::G]
    return together
