"""Attention to all tokens in three tiers, so that none is dropped, the specification.

The best tokens count exactly. The next best count by their codes: estimated logits, and values that
are read back from two bits. All others count by the sum of their estimated weights, at the mean of
the values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .center import FINE_NOISE, NOISE, scale_of
from .estimate import estimate, rank
from .hadamard import hadamard
from .layout import Codes, Selection, Softmax, Values
from .quantize import quantize_query
from .rerank import rerank
from .score import score, visible_tokens
from .select import attend_topk, select_topk
from .softmax import capped, factor, sink_of
from .topk import topk
from .values import read_values

NOT_TAKEN = np.iinfo(np.uint32).max  # the rank of a token that topk never takes


def attend_tail(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    codes: Codes,
    values: Values,
    budget: int,
    selection: Selection,
    softmax: Softmax | None = None,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Attention of q (B, H, L, D) to all visible tokens of k and v: out (B, H, L, D_v) and lse.

    k is (B, H_kv, S, D) and v (B, H_kv, S, D_v). Each token i that a query sees has a logit a_i and
    a row r_i (D_v,):

    | tier | tokens | a_i | r_i |
    | --- | --- | --- | --- |
    | exact | `budget` ones, see `tiers` | cap(scale q.k_i) | v_i |
    | coded | the next `selection.tail` ones | from three bits | v_i from its code |
    | rest | all others | from two bits | the mean of all values that the query sees |

    lse = log(exp(s) + sum over i of exp(a_i)), and out = sum over i of exp(a_i - lse) r_i. The
    scale, the cap and the sink's logit s are those of `softmax`, as in `attend`.

    From codes, a_i = cap(scale e_i - n_i / 2), where e_i is the estimate of q.k_i. It has noise, so
    exp(scale e_i) is too large on average: by exp(n_i / 2), where n_i is the variance of the noise.
    n_i = scale^2 |q|^2 s_i^2 NOISE, for a q that points anywhere with equal chance. s_i is the
    scale of the token's code. With three bits the noise is FINE_NOISE.

    The sum of the values that a query sees is `values.total` minus the values of later tokens. All
    sums are float64; out is rounded to q's dtype and lse to float32 (B, H, L). A query that sees no
    token has out = 0 and lse = s. With `selection.tail` 0 the result is that of `attend_topk`.
    """
    if selection.tail == 0:
        return attend_topk(q, k, v, codes, budget, selection, softmax)
    B, H, L, D = q.shape
    G = H // k.shape[1]
    scale = factor(softmax, D)
    square = np.square(hadamard(q), dtype=np.float64).sum(axis=-1)[..., None]  # (B, H, L, 1)
    logits = []  # from two bits, and from three: (B, H, L, S)
    for fine, noise, held in ((False, NOISE, codes.centers), (True, FINE_NOISE, codes.fine)):
        estimates = estimated(q, codes, selection, fine)[0]
        S = estimates.shape[-1]
        s = scale_of(held.scales).reshape(B, H // G, 1, -1)[..., :S]  # type: ignore[union-attr]
        variance = scale**2 * square * np.square(np.repeat(s, G, axis=1), dtype=np.float64) * noise
        logits.append(capped(scale * estimates.astype(np.float64) - variance / 2, softmax))
    exact, coded = tiers(q, codes, budget, selection, k)
    read = read_values(values, S)  # (B, H_kv, S, D_v)
    lengths = np.broadcast_to(codes.length, (B,))
    seen = visible_tokens(lengths, L)  # (B, L)
    out = np.zeros((B, H, L, v.shape[3]))
    lse = np.full((B, H, L), -np.inf)
    for b, h, l in np.ndindex(B, H, L):
        n, kv, sink = seen[b, l], h // G, sink_of(softmax, h)
        if n == 0:
            lse[b, h, l] = sink
            continue
        first, second = (tier[b, h, l][tier[b, h, l] >= 0] for tier in (exact, coded))
        a = logits[0][b, h, l, :n]
        a[second] = logits[1][b, h, l, second]
        products = k[b, kv, first].astype(np.float64) @ q[b, h, l].astype(np.float64)
        a[first] = capped(scale * products, softmax)
        later = v[b, kv, n : lengths[b]].astype(np.float64)
        mean = (values.total[b, kv].astype(np.float64) - later.sum(axis=0)) / n
        rows = np.tile(mean, (int(n), 1))  # (n, D_v)
        rows[first] = v[b, kv, first].astype(np.float64)
        rows[second] = read[b, kv, second]
        largest = np.maximum(a.max(), sink)
        p = np.exp(a - largest)
        whole = p.sum() + np.exp(sink - largest)
        out[b, h, l] = p @ rows / whole
        lse[b, h, l] = largest + np.log(whole)
    return out.astype(q.dtype), lse.astype(np.float32)


def tiers(
    q: NDArray[Any],
    codes: Codes,
    budget: int,
    selection: Selection,
    k: NDArray[Any] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Indices of the exact tier (B, H, L, budget) and of the coded tier (B, H, L, M), ascending.

    Two bits find the candidates: the choice of `select_topk` for a budget of budget + tail, or of
    refine * budget where that is more. Three bits rank them. The exact tier has the `budget` best
    of them. With `selection.refine` it has those with the largest inner products of the best
    refine * budget. The coded tier has the `selection.tail` best of the others. Among equals the
    most recent token wins. `sinks` and `recent` are in the exact tier. M is the tail, or S where
    that is less. Where fewer tokens are left, the last places hold -1.
    """
    estimates, distances = estimated(q, codes, selection, fine=True)
    S = distances.shape[-1]
    refined = min(selection.refine * budget, S)
    sought = max(min(budget + selection.tail, S), refined)
    candidates = select_topk(q, codes, sought, replace(selection, refine=0))
    fine = rank(estimates, distances)
    ranks = np.full_like(fine, NOT_TAKEN)
    for row in np.ndindex(ranks.shape[:-1]):
        own = candidates[row][candidates[row] >= 0]
        ranks[row][own] = fine[row][own]
    if selection.refine and k is not None:
        exact = rerank(q, k, topk(ranks, refined, selection), budget, selection)
    else:
        exact = topk(ranks, budget, selection)
    for row in np.ndindex(ranks.shape[:-1]):
        ranks[row][exact[row][exact[row] >= 0]] = NOT_TAKEN
    return exact, topk(ranks, min(selection.tail, S), replace(selection, sinks=0, recent=0))


def estimated(
    q: NDArray[Any], codes: Codes, selection: Selection, fine: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Estimates of q.k from two bits, or with `fine` from three, and distances (B, H, L, S)."""
    x = hadamard(q)
    query = quantize_query(x, selection.query_bits)
    distances = score(query, codes.planes, codes.length)
    return estimate(x, query, distances, codes, fine), distances
