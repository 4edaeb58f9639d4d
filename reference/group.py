"""One choice for the query heads of a KV head, the specification.

Each head's estimates become the attention that it would give to every token, and a group takes the
tokens that get most from all of its heads together. Between the estimates and the heads' shares all
is integers, so that sums over tokens do not depend on their order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS = 4  # a factor of 2 in attention
# 2 ** (16 - i / STEPS), rounded, for i = 0 .. STEPS - 1; further ones are these, shifted.
WEIGHTS = np.array([65536, 55109, 46341, 38968], np.int64)


def pool(
    estimates: NDArray[np.float32], seen: NDArray[np.bool_], G: int, D: int
) -> NDArray[np.float32]:
    """Attention (B, H_kv, L, S) of groups of G heads from estimates (B, H, L, S) of q.k.

    `seen` (B, H, L, S) are the tokens that a query sees.
    """
    return attention(levels(estimates, D), seen, G)


def levels(estimates: NDArray[np.float32], D: int) -> NDArray[np.int64]:
    """Logits in units of ln 2 / STEPS, rounded down, as int16 holds them; NaN is the least."""
    unit = np.float32(STEPS / np.log(2) * D**-0.5)
    with np.errstate(over="ignore", invalid="ignore"):
        level = np.floor(estimates * unit)
    level = np.clip(np.where(np.isnan(level), -np.inf, level), -(2.0**15), 2.0**15 - 1)
    return level.astype(np.int64)


def attention(level: NDArray[np.int64], seen: NDArray[np.bool_], G: int) -> NDArray[np.float32]:
    """What each token gets from groups of G heads, from levels (B, H, L, S).

    A head's attention to a token is its weight over the sum of the head's weights. The weight of
    its best token is 2^16 and halves with every ln 2 that the logit falls, in four steps; after 17
    halvings it is 0. The heads' shares, each a float32 product with the float32 inverse of the
    sum, are added in their order.
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
