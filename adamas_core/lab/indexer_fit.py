"""Learn a DSA indexer after the fact: from the queries, keys and attention of a model.

The indexer's inputs are linear in the layer's queries and keys, after RoPE: with x_t the queries of
all heads, and y_s the keys of all KV heads,

    qI_tj = x_t A_j,  kI_s = y_s B,  w_t = x_t C + c

The loss is that of DeepSeek-V3.2's warm-up: the mean over queries of KL(p_t || softmax(I_t)), where
p_t is the mean of the heads' attention. The gradient is written out, and SciPy minimizes.

Letters: H query heads, H_kv KV heads, L queries, S keys, D head_dim, H_I heads of the indexer, D_I
their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .mechanisms.dsa_indexer import index
from .mechanisms.tokens import Array, causal, scores, softmax

H_I, D_I = 4, 32
STEPS = 40  # of L-BFGS


class Indexer(NamedTuple):
    """The learned numbers."""

    A: Array  # (H_I, H D, D_I)
    B: Array  # (H_kv D, D_I)
    C: Array  # (H D, H_I)
    c: Array  # (H_I,)

    def inputs(self, q: Array, k: Array) -> tuple[Array, Array, Array]:
        """qI (H_I, L, D_I), kI (1, S, D_I) and w (H_I, L) of q (H, L, D) and k (H_kv, S, D)."""
        x, y = flat(q), flat(k)  # (L, H D), (S, H_kv D)
        return x @ self.A, (y @ self.B)[None], (x @ self.C + self.c).T


def flat(x: Array) -> Array:
    """The rows of all heads side by side: (heads, L, D) as (L, heads D)."""
    return np.concatenate(list(x), axis=-1)  # (L, heads D)


def untrained(H: int, H_kv: int, D: int) -> Indexer:
    """One random projection of keys, and the same one of the mean query of each group."""
    rng = np.random.default_rng(D)
    R = rng.standard_normal((H_kv * D, D_I)).astype(np.float32) / np.float32(D_I**0.5)
    return _projecting(R, H, H_kv, 1.0)


def _projecting(B: Array, H: int, H_kv: int, gain: float) -> Indexer:
    """The indexer with keys y B, whose heads all have the queries that belong to them."""
    G, rows = H // H_kv, B.reshape(H_kv, -1, B.shape[1])  # (H_kv, D, D_I)
    each = np.repeat(rows, G, axis=0).reshape(-1, B.shape[1]) * (gain / G)  # (H D, D_I)
    c = np.full(H_I, 1 / H_I, B.dtype)  # (H_I,)
    return Indexer(np.stack([each] * H_I), B, np.zeros((len(each), H_I), B.dtype), c)


def mean_attention(q: Array, k: Array) -> Array:
    """p (L, S): the mean of the heads' attention of the last L of S tokens."""
    each = softmax(scores(q, k), causal(q.shape[1], k.shape[1]))  # (H, L, S)
    mean: Array = each.mean(axis=0)  # (L, S)
    return mean


def divergence(p: Array, I: Array, seen: NDArray[np.bool_]) -> tuple[float, Array]:
    """The mean over rows of KL(p || softmax(I)) over seen tokens (L, S), and its gradient by I."""
    shown = np.where(seen, I, -np.inf)  # (L, S)
    top = shown.max(axis=-1, keepdims=True)  # (L, 1)
    lse = top + np.log(np.exp(shown - top).sum(axis=-1, keepdims=True))  # (L, 1)
    held = p > 0  # (L, S)
    terms = p * (np.log(np.where(held, p, 1)) - np.where(seen, I - lse, 0))  # (L, S)
    gradient = (np.where(seen, np.exp(shown - lse), 0) - p) / len(p)  # (L, S)
    return float(np.where(held, terms, 0).sum() / len(p)), gradient


def loss(indexer: Indexer, x: Array, y: Array, p: Array) -> tuple[float, Indexer]:
    """The loss for inputs x (L, H D) and y (S, H_kv D), and its gradient."""
    kI, w = y @ indexer.B, x @ indexer.C + indexer.c  # (S, D_I), (L, H_I)
    qI = x @ indexer.A  # (H_I, L, D_I)
    z = qI @ kI.T  # (H_I, L, S)
    I = (w.T[..., None] * np.maximum(z, 0)).sum(axis=0)  # (L, S)
    value, dI = divergence(p, I, causal(*I.shape))
    dz = np.where(z > 0, w.T[..., None] * dI, 0)  # (H_I, L, S)
    dw = (np.maximum(z, 0) * dI).sum(axis=-1).T  # (L, H_I)
    dA = x.T @ (dz @ kI)  # (H_I, H D, D_I)
    dB = y.T @ (dz.swapaxes(1, 2) @ qI).sum(axis=0)  # (H_kv D, D_I)
    return value, Indexer(dA, dB, x.T @ dw, dw.sum(axis=0))


def fit(q: Array, k: Array, steps: int = STEPS) -> Indexer:
    """An indexer for the attention of q (H, L, D) to k (H_kv, S, D), the last L of S tokens.

    It begins as a projection to the D_I directions in which the keys vary most.

    Raises
    ------
    ImportError
        SciPy is missing.
    """
    minimize = minimizer()
    x, y, p = flat(q).astype(np.float64), flat(k).astype(np.float64), mean_attention(q, k)
    _, _, directions = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)
    begin = _projecting(directions[:D_I].T, len(q), len(k), q.shape[-1] ** -0.5)
    rng = np.random.default_rng(0)  # the heads must differ, or they would stay equal
    noise = 0.3 * np.abs(begin.A).mean() * rng.standard_normal(begin.A.shape)
    begin = begin._replace(A=begin.A + noise)

    def objective(flat_numbers: Array) -> tuple[float, Array]:
        value, gradient = loss(Indexer(*parts(flat_numbers, begin)), x, y, p)
        return value, np.concatenate([part.ravel() for part in gradient])

    first = np.concatenate([part.ravel() for part in begin])
    options = {"maxiter": steps}
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options=options).x
    return Indexer(*(part.astype(np.float32) for part in parts(found, begin)))


def minimizer() -> Callable[..., Any]:
    """scipy.optimize.minimize."""
    try:
        optimize = import_module("scipy.optimize")
    except ImportError:
        raise ImportError('SciPy is missing: pip install "adamas-core[compare]"') from None
    found: Callable[..., Any] = optimize.minimize
    return found


def parts(numbers: Array, like: Sequence[Array]) -> list[Array]:
    """The numbers of a flat array in the shapes of `like`."""
    ends = np.cumsum([part.size for part in like])
    pieces = np.split(numbers, ends[:-1])
    return [piece.reshape(part.shape) for piece, part in zip(pieces, like, strict=True)]


def kl(indexer: Indexer, q: Array, k: Array) -> float:
    """The mean KL divergence, in nats, from the mean attention to the indexer's distribution."""
    I = index(*indexer.inputs(q, k))  # (L, S)
    return divergence(mean_attention(q, k), I, causal(*I.shape))[0]
