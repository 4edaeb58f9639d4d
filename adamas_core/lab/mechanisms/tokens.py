"""What mechanisms share: rows of tokens, mask, softmax, and the loops of steps and of chunks.

Letters: H query heads, H_kv KV heads, L query tokens, S cached tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float64 or float32


class Rows:
    """A row per token and KV head, with room for more: a cache of keys, or of values."""

    def __init__(self, rows: Array) -> None:
        self.data = self._with_room(rows)  # (H_kv, room, D)
        self.tokens = rows.shape[1]

    @property
    def all(self) -> Array:
        """The rows (H_kv, S, D) of all tokens so far."""
        return self.data[:, : self.tokens]

    def append(self, row: Array) -> Array:
        """Append a token's row (H_kv, D), and return all rows (H_kv, S, D)."""
        _, room, _ = self.data.shape
        if self.tokens == room:
            self.data = self._with_room(self.data)
        self.data[:, self.tokens] = row
        self.tokens += 1
        return self.all

    @staticmethod
    def _with_room(rows: Array) -> Array:
        """A copy of rows (H_kv, S, D) with room for S / 8 + 8 more."""
        H_kv, S, D = rows.shape
        more = np.zeros_like(rows, shape=(H_kv, S // 8 + 8, D))  # (H_kv, S / 8 + 8, D)
        return np.concatenate([rows, more], axis=1)  # (H_kv, S + S / 8 + 8, D)

    @property
    def size(self) -> int:
        """Numbers that are kept; the free room is not counted."""
        return self.tokens * self.data.shape[0] * self.data.shape[2]


def recurrent(step: Callable[..., Array], state: Any, *inputs: Array) -> Array:
    """The outputs (H, L, D) of L steps; the tokens of all inputs are on the second axis."""
    steps = range(inputs[0].shape[1])
    return np.stack([step(state, *(x[:, t] for x in inputs)) for t in steps], axis=1)


def in_chunks(
    block: Callable[..., Array], state: Any, inputs: tuple[Array, ...], chunk: int
) -> Array:
    """The outputs (H, L, D) of blocks of `chunk` tokens, each of which moves the state on."""
    firsts = range(0, inputs[0].shape[1], chunk)
    outs = [block(state, *(x[:, t : t + chunk] for x in inputs)) for t in firsts]  # (H, C, D)
    return np.concatenate(outs, axis=1)  # (H, L, D)


def causal(L: int, S: int) -> NDArray[np.bool_]:
    """The mask (L, S) of the last L of S tokens: each sees the tokens up to itself."""
    return np.arange(S - L, S)[:, None] >= np.arange(S)  # (L, S)


def scores(q: Array, k: Array, scale: float | None = None) -> Array:
    """scale q.k (H, L, S) of q (H, L, D) and k (H_kv, S, D); scale is D ** -0.5 if not given."""
    H, L, D = q.shape
    grouped = q.reshape(len(k), H // len(k) * L, D)  # (H_kv, G L, D)
    logits = grouped @ k.swapaxes(1, 2)  # (H_kv, G L, S)
    return (D**-0.5 if scale is None else scale) * logits.reshape(H, L, k.shape[1])  # (H, L, S)


def softmax(logits: Array, mask: NDArray[np.bool_]) -> Array:
    """Weights (H, L, S) over the tokens that the mask (..., L, S) shows; 0 where it shows none."""
    shown = np.where(mask, logits, -np.inf)  # (H, L, S)
    top = shown.max(axis=-1, keepdims=True, initial=-np.inf)  # (H, L, 1)
    weights = np.exp(shown - np.where(np.isfinite(top), top, 0))  # (H, L, S)
    total = weights.sum(axis=-1, keepdims=True)  # (H, L, 1)
    return weights / np.where(total == 0, 1, total)  # (H, L, S)


def mixed(weights: Array, v: Array) -> Array:
    """The sums (H, L, D) of the values v (H_kv, S, D), with weights (H, L, S)."""
    H, L, S = weights.shape
    grouped = weights.reshape(len(v), H // len(v) * L, S)  # (H_kv, G L, S)
    return (grouped @ v).reshape(H, L, v.shape[2])  # (H, L, D)


def rms_norm(x: Array, eps: float = 1e-5) -> Array:
    """x (..., D), divided by the root of the mean square of each row."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)  # (..., D)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), of any shape."""
    return (1 + np.tanh(x / 2)) / 2
