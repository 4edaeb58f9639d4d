"""The numbers by which tokens were chosen, and the choice among the candidates of several shards.

The scores of the K chosen tokens are computed again from their codes, on the host: integers by
population counts, and float32 in the order of operations of reference.estimate. So they have the
same bits for every backend. It reads K tokens per query, and a GPU is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import checks
from .dispatch import Array, array_module, backend_of, on_host, returner, views
from .reference.center import scale_of
from .reference.layout import INVISIBLE, TILE, Codes, Selection
from .reference.rerank import lane_sums

NDArray = np.ndarray[Any, Any]


def chosen_scores(
    home: Any, q: Any, codes: Codes, indices: Any, selection: Selection, k: Any | None
) -> Any:
    """Scores (B, H, L, K) of the tokens `indices` that select_topk took for checked q (B, H, L, D).

    With `selection.refine` they are the products of q and k. Else they are the distances of plain
    codes, or the estimates of centered ones.
    """
    H, H_kv = q.shape[1], codes.planes.shape[2]
    chosen = on_host(indices)
    xp = array_module(backend_of(q))
    token = xp.maximum(indices, 0)
    b = xp.arange(len(chosen))[:, None, None, None]
    head = (xp.arange(H) // (H // H_kv))[:, None, None]
    if selection.refine and k is not None:
        rows = on_host(k[b, head, token])  # (B, H, L, K, D)
        own = on_host(q).astype(np.float32)[:, :, :, None]
        with np.errstate(over="ignore", invalid="ignore"):
            found = _row_sums(own * rows.astype(np.float32))
        return xp.asarray(_empty_places(found, chosen))
    tile, slot = token // TILE, token % TILE
    words = codes.planes.transpose(1, 2, 3, 4, 6, 0, 5)[b, head, tile, slot // 8, slot % 8]
    x = home.hadamard(q)
    if selection.metric == "manhattan":
        t = xp.repeat(codes.thresholds, H // H_kv, axis=0)
        distances = _manhattan(on_host(home.quantize(x, t)), on_host(words))
        return xp.asarray(_empty_places(distances, chosen))
    query = on_host(home.quantize_query(x, selection.query_bits))
    distances, total = _weighted(query, on_host(words))
    if codes.centers is None:
        return xp.asarray(_empty_places(distances, chosen))
    s = scale_of(on_host(codes.centers.scales[b, head, tile, slot]))  # (B, H, L, K)
    means = on_host(codes.centers.means[b, head, tile])  # (B, H, L, K, Dt)
    rows = on_host(x)
    unit = _unit(rows, selection.query_bits)
    with np.errstate(over="ignore", invalid="ignore"):
        n = 3 * total[..., None] - 2 * distances.astype(np.int64)
        estimates = n.astype(np.float32) * s * unit
        estimates += _row_sums(rows[:, :, :, None] * means.astype(np.float32))
    return xp.asarray(_empty_places(estimates, chosen))


def _weighted(query: NDArray, words: NDArray) -> tuple[NDArray, NDArray]:
    """Distances (B, H, L, K) of words (B, H, L, K, 2, P), and the sum of the query's weights.

    For a code c of a high bit h and a low bit l, and a sign bit s, |c - 3 s| is 2 (h ^ s) +
    (l ^ s).
    """
    P = words.shape[-1]
    sign, *weights = np.split(query[:, :, :, None], query.shape[-1] // P, axis=-1)  # (..., 1, P)
    high, low = words[..., 0, :] ^ sign, words[..., 1, :] ^ sign
    distance, total = np.zeros(words.shape[:4], np.int64), np.zeros(query.shape[:3], np.int64)
    for plane in weights:  # the most significant first
        distance = 2 * distance + 2 * _ones(high & plane) + _ones(low & plane)
        total = 2 * total + _ones(plane)[..., 0]
    return distance.astype(np.uint16), total


def _manhattan(query: NDArray, words: NDArray) -> NDArray:
    """Distances (B, H, L, K): in how many of c >= 1, c >= 2 and c >= 3 query and key differ."""
    P = words.shape[-1]
    own = query[:, :, :, None].reshape(*query.shape[:3], 1, 2, P)
    distance = np.zeros(words.shape[:4], np.int64)
    for step in (np.bitwise_or, lambda high, low: high, np.bitwise_and):
        mine, theirs = (step(x[..., 0, :], x[..., 1, :]) for x in (own, words))
        distance += _ones(mine ^ theirs)
    return distance.astype(np.uint16)


def _ones(words: NDArray) -> NDArray:
    """How many bits of the last axis are 1."""
    count: NDArray = np.bitwise_count(words).sum(axis=-1, dtype=np.int64)
    return count


def _unit(x: NDArray, bits: int) -> NDArray:
    """m / (2 wmax) of transformed queries x, as reference.estimate has it: (B, H, L, 1)."""
    top = np.fmax.reduce(np.abs(x), axis=-1, keepdims=True, initial=0)
    unit: NDArray = np.divide(top, 2 * (2 ** (bits - 1) - 1), dtype=np.float32)
    return unit


def _row_sums(x: NDArray) -> NDArray:
    """The `lane_sums` of the last axis."""
    return lane_sums(x.reshape(-1, x.shape[-1])).reshape(x.shape[:-1])


def _empty_places(scores: NDArray, indices: NDArray) -> NDArray:
    """Scores, with the worst one where there is no token, and for NaN. No score is -0."""
    if scores.dtype == np.uint16:
        return np.where(indices < 0, np.uint16(INVISIBLE), scores)
    known = (indices >= 0) & ~np.isnan(scores)
    return np.where(known, scores, np.float32(-np.inf))


def merge_topk(
    indices: Sequence[Array], scores: Sequence[Array], budget: int
) -> tuple[Array, Array]:
    """The choice over all tokens, from the choices over disjoint parts of them.

    Each shard of a long sequence, or each rank of MPI, selects its own `budget` tokens by
    ``select_topk(..., return_scores=True)``, without sinks, recent tokens and refine. Only these
    candidates travel. The result is that of one selection over the codes of all parts, to the bit.
    Then each part attends to those of its tokens that were chosen, and `merge` puts the results
    together.

    Parameters
    ----------
    indices : sequence of arrays (..., K_j), int32
        Candidates, in numbers of the whole: the first token of the part is added to those that are
        not negative. Negative ones are no candidates.
    scores : sequence of arrays (..., K_j), all uint16 or all float32
        Their distances, of which smaller ones are better; or estimates, of which larger ones are.
    budget : int
        K, at least 1.

    Returns
    -------
    indices : array (..., K), int32
        Ascending. Among equal scores the most recent token, the highest index, wins. Where there
        are fewer than K candidates, the last places hold -1.
    scores : array (..., K)
        Theirs; 65535 or -inf where there is none.

    Raises
    ------
    TypeError
        An array has another dtype, or budget is not an integer.
    ValueError
        There is no part, shapes differ, or budget is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas_core import encode, merge_topk, select_topk
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 1024, 64), dtype=np.float32)
    >>> q = q[:, -1:]
    >>> found = []
    >>> for first in (0, 512):
    ...     codes = encode(k[:, first : first + 512])
    ...     idx, scores = select_topk(q, codes, 8, positions="all", return_scores=True)
    ...     found.append((idx + np.int32(first), scores))
    >>> idx, _ = merge_topk(*zip(*found), budget=8)
    >>> bool((idx == select_topk(q, encode(k), 8)).all())
    True
    """
    where = "merge_topk"
    K = checks.at_least(where, "budget", budget, 1)
    if len(indices) == 0 or len(indices) != len(scores):
        raise ValueError(
            f"{where}: {len(indices)} indices and {len(scores)} scores; expected equal numbers, at "
            "least one"
        )
    parts = [views(indices=i, scores=s) for i, s in zip(indices, scores, strict=True)]
    kind = parts[0][1].dtype.name
    if kind not in ("uint16", "float32"):
        raise TypeError(f"{where}: {checks.shown('scores', parts[0][1])}; expected uint16, float32")
    for i, s in parts:
        checks.dtype(where, "indices", i, "int32")
        checks.dtype(where, "scores", s, kind)
        if i.ndim == 0 or i.shape != s.shape or i.shape[:-1] != parts[0][0].shape[:-1]:
            raise ValueError(
                f"{where}: {checks.shown('indices', i)} with {checks.shown('scores', s)}; expected "
                f"one shape, ({', '.join(map(str, parts[0][0].shape[:-1]))}, K)"
            )
    token, score = (
        np.concatenate([on_host(x) for x in part], axis=-1) for part in zip(*parts, strict=True)
    )
    chosen, of_chosen = _best(token, score, K)
    xp = array_module(backend_of(parts[0][0]))
    give = returner(indices[0])
    return give(xp.asarray(chosen)), give(xp.asarray(of_chosen))


def _best(token: NDArray, score: NDArray, K: int) -> tuple[NDArray, NDArray]:
    """The K best of candidates (..., N), ascending, and their scores."""
    worst = np.uint16(INVISIBLE) if score.dtype == np.uint16 else np.float32(-np.inf)
    if token.shape[-1] < K:
        more = [(0, 0)] * (token.ndim - 1) + [(0, K - token.shape[-1])]
        token = np.pad(token, more, constant_values=-1)
        score = np.pad(score, more, constant_values=worst)
    token = np.where(token < 0, np.int32(-1), token)
    rank = score.astype(np.float64) if score.dtype == np.uint16 else -score.astype(np.float64)
    order = np.lexsort((-token, rank, token < 0), axis=-1)[..., :K]
    token, score = (np.take_along_axis(x, order, axis=-1) for x in (token, score))
    order = np.lexsort((token, token < 0), axis=-1)
    token, score = (np.take_along_axis(x, order, axis=-1) for x in (token, score))
    return token, np.where(token < 0, worst, score)
