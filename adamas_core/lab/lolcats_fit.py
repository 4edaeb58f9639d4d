"""LoLCATs' stage 1 after the fact: learn feature maps from the queries and keys of a model.

The loss is the mean square of the difference between the outputs of LoLCATs and of softmax
attention, per head, divided by that of softmax attention's outputs. All heads are learned at once;
they do not depend on each other. The gradient is written out, and SciPy minimizes.

Letters: H heads, L queries, S keys, D head_dim, F features.
"""

from __future__ import annotations

import numpy as np

from .indexer_fit import divergence, minimizer, parts
from .mechanisms import softmax_attention
from .mechanisms.lolcats import Maps, phi, weights
from .mechanisms.tokens import Array, causal, scores, softmax

STEPS = 40  # of L-BFGS


def begin(H: int, D: int) -> Maps:
    """Maps before the fit: phi of x itself, scaled as attention's logits are, and gamma 1."""
    eye = np.repeat(np.eye(D)[None], H, axis=0) * D**-0.25  # (H, D, D)
    return Maps(eye, eye.copy(), np.ones(H))


def fit(q: Array, k: Array, v: Array, window: int, steps: int = STEPS) -> Maps:
    """Maps for q (H, L, D), the last L tokens of k and v (H, S, D).

    Raises
    ------
    ImportError
        SciPy is missing.
    """
    minimize = minimizer()
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    target = softmax_attention.parallel(q, k, v)  # (H, L, D)
    size = (target**2).mean(axis=(1, 2))  # (H,)
    first = begin(len(q), q.shape[-1])
    first = first._replace(gamma=np.log(first.gamma))  # gamma = exp of what is learned

    def objective(numbers: Array) -> tuple[float, Array]:
        w_q, w_k, log_gamma = parts(numbers, first)
        maps = Maps(w_q, w_k, np.exp(log_gamma))
        value, gradient = loss(maps, (q, k, v), target / size[:, None, None] ** 0.5, size, window)
        gradient = gradient._replace(gamma=gradient.gamma * maps.gamma)
        return value, np.concatenate([part.ravel() for part in gradient])

    start = np.concatenate([part.ravel() for part in first])
    options = {"maxiter": steps}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    w_q, w_k, log_gamma = parts(found, first)
    learned = Maps(w_q, w_k, np.exp(log_gamma))
    return Maps(*(part.astype(np.float32) for part in learned))


def loss(
    maps: Maps, given: tuple[Array, Array, Array], target: Array, size: Array, window: int
) -> tuple[float, Maps]:
    """The loss for q (H, L, D), k and v (H, S, D), and its gradient.

    target (H, L, D) is softmax attention's output, divided by the root of its mean square size
    (H,).
    """
    q, k, v = given
    L, S = q.shape[1], k.shape[1]
    a = weights(q, k, maps, window)  # (H, L, S)
    total = a.sum(axis=-1, keepdims=True)  # (H, L, 1)
    p = a / total  # (H, L, S)
    values = v / size[:, None, None] ** 0.5  # (H, S, D)
    difference = p @ values - target  # (H, L, D)
    dp = (2 / target[0].size / len(q) * difference) @ values.swapaxes(1, 2)  # (H, L, S)
    da = (dp - (dp * p).sum(axis=-1, keepdims=True)) / total  # (H, L, S)
    back = np.arange(S - L, S)[:, None] - np.arange(S)  # (L, S)
    near = np.where((back >= 0) & (back < window), da * a, 0).sum(axis=(1, 2)) / maps.gamma  # (H,)
    far = np.where(back >= window, da, 0)  # (H, L, S)
    fq, fk = phi(q, maps.w_q), phi(k, maps.w_k)  # (H, L, F), (H, S, F)
    dq = _backward(far @ fk, fq, q)  # (H, D, F / 2)
    dk = _backward(far.swapaxes(1, 2) @ fq, fk, k)  # (H, D, F / 2)
    return float((difference**2).mean()), Maps(dq, dk, near)


def _backward(df: Array, f: Array, x: Array) -> Array:
    """The gradient by W (H, D, F / 2), from that by the features f (H, L, F) of x (H, L, D)."""
    sides = []
    for own, by in zip(np.split(f, 2, axis=-1), np.split(df, 2, axis=-1), strict=True):
        sides.append(own * (by - (by * own).sum(axis=-1, keepdims=True)))
    gradient: Array = x.swapaxes(1, 2) @ (sides[0] - sides[1])  # (H, D, F / 2)
    return gradient


def kl(maps: Maps, q: Array, k: Array, window: int) -> float:
    """The mean KL divergence, in nats, from each head's attention to that of LoLCATs."""
    seen = causal(q.shape[1], k.shape[1])  # (L, S)
    a = weights(q, k, maps, window)  # (H, L, S)
    p = softmax(scores(q, k), seen)  # (H, L, S)
    logs = np.log(np.maximum(a, np.finfo(a.dtype).tiny))  # (H, L, S)
    return float(np.mean([divergence(p[h], logs[h], seen)[0] for h in range(len(p))]))
