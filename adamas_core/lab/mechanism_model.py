"""Mechanisms on the queries, keys and values of a real model that has read a text.

Letters: H query heads, H_kv KV heads, L queries, S tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..codes import encode
from ..ops import attend, hadamard, quantize_query, score
from ..reference.estimate import estimate
from ..select import select_topk
from . import indexer_fit, lolcats_fit
from .drop_ins import BUDGET, BUILDERS, WINDOW, DropIn, Sizes
from .mechanism_catalog import ROWS
from .mechanisms import dsa_indexer, lolcats
from .mechanisms.softmax_attention import parallel
from .mechanisms.tokens import Array, causal, scores, softmax
from .selectors import Exact

POSITIONS = 16  # last tokens, at which outputs are compared
FITTED = 256  # queries that a fit sees: the last of the first half of the text
HELD_OUT = 128  # queries that it is judged on: the last of the text

Layer = tuple[Array, Array, Array]  # q (H, S, D), k and v (H_kv, S, D)


def output_errors(layers: Iterable[Layer], move: Callable[[str], object]) -> dict[str, float]:
    """The error of each mechanism that can take the place of full attention untrained.

    It is the L2 distance from full attention's output in units of its norm, and a mean over the
    layers, heads, and last positions. ``move(name)`` is called before each mechanism.
    """
    names = [name for name, row in ROWS.items() if row.replaces]
    errors: dict[str, list[float]] = {name: [] for name in names}
    for q, k, v in layers:
        s = Sizes(len(q), len(k), q.shape[-1], q.shape[1])
        for name in names:
            move(name)
            errors[name].append(output_error(BUILDERS[name](s), q, k, v))
    return {name: float(np.mean(each)) for name, each in errors.items()}


def output_error(drop_in: DropIn, q: Array, k: Array, v: Array) -> float:
    """The mean error of the last POSITIONS tokens, each a step after a prefill."""
    n = q.shape[1] - POSITIONS
    state = drop_in.start(q[:, :n], k[:, :n], v[:, :n])
    steps = range(n, q.shape[1])
    out = np.stack([drop_in.step(state, q[:, t], k[:, t], v[:, t]) for t in steps], axis=1)
    return _error(out, attend(q[:, n:], k, v, None))


def _error(out: Array, full: Array) -> float:
    """The mean over rows of the distance (..., D), in units of the norm of full attention's."""
    return float((np.linalg.norm(out - full, axis=-1) / np.linalg.norm(full, axis=-1)).mean())


def halves(layer: Layer) -> tuple[Layer, Layer]:
    """What a fit sees, and what it is judged on: queries, and all keys up to the last of them."""
    q, k, v = layer
    half = q.shape[1] // 2
    seen = q[:, max(half - FITTED, 0) : half], k[:, :half], v[:, :half]
    return seen, (q[:, -HELD_OUT:], k, v)


def estimated_logits(q: Array, k: Array, bits: int) -> Array:
    """The logits (H, L, S) that codes of 2 or 3 bits stand for, of the last L of S tokens.

    Those of tokens that a query does not see have no meaning.
    """
    codes = encode(k, bits=bits)
    x = hadamard(q)
    query = quantize_query(x)
    distances = score(query, codes.planes, codes.tokens)
    found = estimate(x[None], query[None], distances[None], codes.record, fine=bits == 3)
    logits: Array = found[0] * np.float32(q.shape[-1] ** -0.5)  # (H, L, S)
    return logits


def indexer_rows(layer: Layer) -> list[dict[str, Any]]:
    """The DSA indexer untrained and fitted, and codes, which need no fit, on held-out queries.

    Returns
    -------
    list of dict
        `name`; `kl`, in nats, from the mean of the heads' attention; `mass`, the share of the
        softmax at BUDGET tokens in units of that of each head's exact choice; and `shared`,
        whether all heads have the same tokens.
    """
    (q, k, _), (q_held, k_held, _) = halves(layer)
    p = indexer_fit.mean_attention(q_held, k_held)  # (L, S)
    seen = causal(*p.shape)
    best = _mass(q_held, k_held, Exact()(q_held, k_held, BUDGET))
    rows = []

    def add(name: str, kl: float, mass: float, shared: bool) -> None:
        rows.append({"name": name, "kl": kl, "mass": mass / best, "shared": shared})

    def add_mask(name: str, kl: float, I: Array) -> None:
        mask = dsa_indexer.chosen(I, BUDGET)  # (L, S)
        weights = softmax(scores(q_held, k_held), seen)  # (H, L, S)
        add(name, kl, float((weights * mask).sum(axis=-1).mean()), True)

    indexers = {
        "DSA indexer, untrained": indexer_fit.untrained(len(q), len(k), q.shape[-1]),
        "DSA indexer, fitted": indexer_fit.fit(q, k),
    }
    for name, indexer in indexers.items():
        I = dsa_indexer.index(*indexer.inputs(q_held, k_held))  # (L, S)
        add_mask(name, indexer_fit.kl(indexer, q_held, k_held), I)
    for bits in (2, 3):
        estimates = softmax(estimated_logits(q_held, k_held, bits), seen).mean(axis=0)  # (L, S)
        logs = np.log(np.maximum(estimates, np.finfo(np.float64).tiny))
        kl = indexer_fit.divergence(p, logs, seen)[0]
        add_mask(f"codes of {bits} bits, their mean over heads", kl, estimates)
        if bits == 2:
            indices = select_topk(q_held, encode(k_held), BUDGET)
            add("codes of 2 bits, each head its own", kl, _mass(q_held, k_held, indices), False)
    add_mask("the mean attention itself", 0.0, p)
    return rows


def _mass(q: Array, k: Array, indices: Array) -> float:
    """The mean share of the softmax that chosen tokens have."""
    whole = attend(q, k, k, None, return_lse=True)[1]
    return float(np.exp(attend(q, k, k, indices, return_lse=True)[1] - whole).mean())


def lolcats_rows(layer: Layer) -> list[dict[str, Any]]:
    """LoLCATs before and after its fit, and codes beside it, on held-out queries.

    Only the first query head of each KV head is fitted, because a fit takes seconds per head.

    Returns
    -------
    list of dict
        `name`; `kl`, in nats, from each head's attention, None for a window alone; and `error`,
        that of the output.
    """
    (q, k, v), (q_held, k_held, v_held) = halves(layer)
    G = len(q) // len(k)
    q, q_held = q[::G], q_held[::G]  # (H_kv, L, D) each
    full = parallel(q_held, k_held, v_held)  # (H, L, D)
    seen = causal(q_held.shape[1], k_held.shape[1])  # (L, S)
    rows = []

    def add(name: str, kl: float | None, p: Array) -> None:
        rows.append({"name": name, "kl": kl, "error": _error(p @ v_held, full)})

    maps = {
        "LoLCATs, before the fit": lolcats_fit.begin(len(q), q.shape[-1]),
        "LoLCATs, fitted": lolcats_fit.fit(q, k, v, WINDOW),
    }
    for name, own in maps.items():
        a = lolcats.weights(q_held, k_held, own, WINDOW)  # (H, L, S)
        kl = lolcats_fit.kl(own, q_held, k_held, WINDOW)
        add(name, kl, a / a.sum(axis=-1, keepdims=True))
    logits = scores(q_held, k_held)  # (H, L, S)
    back = np.arange(seen.shape[1] - len(seen), seen.shape[1])[:, None] - np.arange(seen.shape[1])
    near = seen & (back < WINDOW)  # (L, S)
    add(f"the window of {WINDOW} alone", None, softmax(logits, near))
    p = softmax(logits, seen)  # (H, L, S)
    for bits in (2, 3):
        estimates = softmax(estimated_logits(q_held, k_held, bits), seen)  # (H, L, S)
        logs = np.log(np.maximum(estimates, np.finfo(np.float64).tiny))
        kl = float(
            np.mean([indexer_fit.divergence(*x, seen)[0] for x in zip(p, logs, strict=True)])
        )
        add(f"codes of {bits} bits, all tokens", kl, estimates)
    return rows
