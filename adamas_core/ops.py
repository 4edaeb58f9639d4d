"""The single operations: check the arguments, pick the backend, hand the result back.

Arrays on a CUDA device are computed there, on CuPy's current stream. All arrays of a call must lie
on one device. `dispatch` says how streams are ordered.

Shapes: B batch (may be absent), H query heads, H_kv key/value heads, G = H / H_kv, L query tokens,
S cached tokens, D head_dim of queries and keys, D_v head_dim of values, Dt = D rounded up to a
power of two, P = ceil(Dt / 64) words per bit plane, T = ceil(S / 64) tiles, K budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat as api

from . import checks
from .dispatch import Array, backend_of, int_or_view, load, on_host_thresholds, returner, views
from .options import softmax_with
from .positions import Positions, dense, tokens_seen
from .reference.layout import TILE
from .selection import DEFAULT, Selection
from .softmax import PLAIN, Softmax


def hadamard(x: Array) -> Array:
    """Walsh-Hadamard transform along the last axis, orthonormal.

    Inner products do not change. A channel that stands out is spread over all coordinates. A
    head_dim that is not a power of two is padded with zeros.

    Parameters
    ----------
    x : array (..., D)
        float16, bfloat16 or float32, D from 1 to 2048.

    Returns
    -------
    array (..., Dt), float32
        The same bits from every backend: butterflies of strides 1, 2, 4, ... in float32, then
        one multiplication by Dt ** -0.5.

    Raises
    ------
    TypeError
        x is not an array or has another dtype.
    ValueError
        x has no axis, its last axis is out of range or not contiguous, or it is on a device that
        no backend supports.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas_core import hadamard
    >>> hadamard(np.array([1, 0, 0, 0], np.float32))
    array([0.5, 0.5, 0.5, 0.5], dtype=float32)
    """
    (a,) = views(x=x)
    checks.floats("hadamard", "x", a)
    return returner(x)(load(backend_of(a)).hadamard(a))


def quantize(x: Array, thresholds: Array | Sequence[float]) -> Array:
    """Codes of transformed vectors: 2 bits per coordinate, packed, one row per token.

    Parameters
    ----------
    x : array (..., Dt), float32
        Transformed keys, from `hadamard`; or queries, for the paper's metric.
    thresholds : array (3,) or (heads, 3), or three numbers
        Finite and ascending: three for all heads, or three per head for x (..., heads, tokens, Dt).
        They are converted to float32.

    Returns
    -------
    array (..., 2P), uint64
        The P words of the high bits, then the P words of the low bits. Coordinate i is bit i % 64
        of word i // 64. A code is the number of thresholds below the coordinate; NaN has code 0.

    Raises
    ------
    TypeError
        x has another dtype, or thresholds are not real numbers.
    ValueError
        Dt is not a power of two. The thresholds have another shape, are not finite or do not
        ascend.
    """
    (a,) = views(x=x)
    checks.floats("quantize", "x", a)
    checks.dtype("quantize", "x", a, "float32")
    checks.transformed("quantize", a)
    t = on_host_thresholds("quantize", thresholds)
    checks.thresholds("quantize", t, a.shape[-3] if a.ndim >= 3 else None)
    return returner(x)(load(backend_of(a)).quantize(a, t))


def quantize_query(x: Array, bits: int = 4) -> Array:
    """Bit planes of transformed queries for the weighted metric.

    Parameters
    ----------
    x : array (..., Dt), float32
        Transformed queries, from `hadamard`.
    bits : int
        Bits per coordinate, 2 to 8: a sign, and `bits` - 1 bits of weight.

    Returns
    -------
    array (..., bits * P), uint64
        The sign plane, 1 where x > 0. Then the planes of the weights, most significant first:
        w = rint(|x| / max |x| * (2 ** (bits - 1) - 1)). The maximum leaves NaN out. Where the
        quotient is NaN, and for an all-zero query, the weight is 0.

    Raises
    ------
    TypeError
        x has another dtype, or bits is not an integer.
    ValueError
        Dt is not a power of two, bits is out of range, or the distances would not fit uint16.
    """
    (a,) = views(x=x)
    checks.floats("quantize_query", "x", a)
    checks.dtype("quantize_query", "x", a, "float32")
    checks.transformed("quantize_query", a)
    checks.query_bits("quantize_query", "bits", bits)
    checks.distances_fit("quantize_query", "bits", bits, a.shape[-1])
    return returner(x)(load(backend_of(a)).quantize_query(a, int(bits)))


def score(query: Array, planes: Array, length: int | Array, metric: str = "weighted") -> Array:
    """Distances between queries and coded keys: a smaller distance is a better match.

    distance = sum over coordinates of w |c - e|, where c is the key's code. Under "manhattan" e is
    the query's own code and w = 1. Under "weighted" e is 3 where the query is positive and else 0,
    and w is its integer weight. This ranks the keys exactly as the inner product of the query and
    the dequantized codes does.

    Parameters
    ----------
    query : array (B, H, L, R), uint64
        R = bits * P words from `quantize_query`; for metric="manhattan" 2P words from `quantize`.
    planes : array (2, B, H_kv, T, 8, P, 8), uint64
        Key planes: `encode(k, thresholds).planes`, of plain codes.
    length : int or array (B,) of integers
        Tokens in the planes. The last L of them are the tokens of the queries.
    metric : {"weighted", "manhattan"}

    Returns
    -------
    array (B, H, L, S), uint16
        S = max(length). A query sees the tokens of its sequence up to itself. All others have
        65535; a true distance is smaller.

    Raises
    ------
    TypeError
        An array has another dtype.
    ValueError
        Shapes do not fit each other, length is out of range, or metric is unknown.
    """
    q, p = views(query=query, planes=planes)
    n = int_or_view("length", length)
    checks.metric("score", metric)
    checks.dtype("score", "query", q, "uint64")
    if q.ndim not in (3, 4):
        raise ValueError(f"score: {checks.shown('query', q)}; expected (B, H, L, R), or without B")
    checks.contiguous("score", "query", q)
    q4 = q[None] if q.ndim == 3 else q
    p7 = p[:, None] if p.ndim == 6 else p
    checks.planes("score", p7)
    checks.heads("score", "query and planes[0]", q4.shape, p7.shape[1:])
    P = p7.shape[5]
    width, parts = q.shape[-1], (2,) if metric == "manhattan" else range(2, 9)
    if width % P or width // P not in parts:
        raise ValueError(
            f"score: {checks.shown('query', q)} against P={P} words per plane; expected "
            f"{parts[0] if metric == 'manhattan' else '2 to 8'} times P words for "
            f"metric={metric!r}"
        )
    if metric == "weighted":
        checks.distances_fit("score", "query_bits", width // P, 64 * P)
    n = checks.length("score", "length", n, q4.shape[0], TILE * p7.shape[3], "planes")
    result = load(backend_of(q)).score(q4, p7, n, metric)
    return returner(query)(result.reshape(*q.shape[:-1], result.shape[-1]))


def topk(distances: Array, budget: int, selection: Selection = DEFAULT) -> Array:
    """Indices of the nearest tokens, exact, in ascending order.

    Parameters
    ----------
    distances : array (..., S), uint16
        From `score`; 65535 marks invisible tokens, which are never taken.
    budget : int
        K, 1 to S tokens per query.
    selection : Selection
        Its first `sinks` and last `recent` visible tokens are always taken. They count towards the
        budget. Its other options are about distances and are not used here.

    Returns
    -------
    array (..., K), int32
        The tokens of the K smallest distances. Among equal distances the most recent token, the
        highest index, wins. Where fewer than K tokens are visible, the last places hold -1.

    Raises
    ------
    TypeError
        distances have another dtype, the budget is not an integer, or selection is not a
        Selection.
    ValueError
        The budget is below 1, above S, or below sinks + recent.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas_core import topk
    >>> topk(np.array([5, 1, 7, 1, 1], np.uint16), budget=2)
    array([3, 4], dtype=int32)
    """
    (d,) = views(distances=distances)
    checks.dtype("topk", "distances", d, "uint16")
    if d.ndim == 0:
        raise ValueError(f"topk: {checks.shown('distances', d)}; expected (..., S)")
    checks.contiguous("topk", "distances", d)
    checks.instance("topk", "selection", selection, Selection, "a Selection")
    checks.budget("topk", budget, d.shape[-1], d.shape)
    checks.forced("topk", budget, selection)
    return returner(distances)(load(backend_of(d)).topk(d, int(budget), selection))


def attend(
    q: Array,
    k: Array,
    v: Array,
    indices: Array | None,
    softmax: Softmax = PLAIN,
    return_lse: bool = False,
    window: int | None = None,
    positions: Positions = None,
    **options: Any,
) -> Array:
    """Softmax attention to chosen tokens, over their original keys and values.

    Parameters
    ----------
    q : array (B, H, L, D)
        float16, bfloat16 or float32.
    k : array (B, H_kv, S, D)
        One of the three dtypes, which may differ from q's. The leading strides are free.
    v : array (B, H_kv, S, D_v)
        The dtype of k. D_v is any number from 1 to 2048, as MLA's values need it.
    indices : array (B, H, L, K), int32, or None
        The rows of k and v that each query attends to; negative ones are skipped. None is dense
        attention. Unless `positions` say otherwise, the queries are then the last L of the S
        tokens, and each sees the tokens up to itself.
    softmax : Softmax
        How inner products become weights: the scale, a soft cap, and sinks.
    return_lse : bool
        Also return the log-sum-exp, which `merge` needs.
    window : int, optional
        Each query sees only the last `window` tokens up to itself, itself included. It needs
        indices=None. All tokens up to itself if not given.
    positions : "all", or (L,) or (B, L) integers, optional
        The last token that each query sees in dense attention, as in `select_topk`. "all" is the
        last one of k for every query, as in cross attention.
    **options
        Fields of `softmax` to change for this call, as in
        ``attend(q, k, v, indices, scale=0.1, soft_cap=50)``.

    Returns
    -------
    out : array (B, H, L, D_v), q's dtype
        0 where a query attends to no token.
    lse : array (B, H, L), float32
        Natural log of the denominator of the softmax. Where there is no token it is the logit of
        the head's sink, or -inf without sinks. Only with `return_lse`.

    Raises
    ------
    TypeError
        An array has another dtype, window is not an integer, return_lse is not a bool, or there is
        no such option.
    ValueError
        Shapes do not fit each other, there are not H sinks, an option is out of range, window is
        below 1, or it is given together with indices.
    IndexError
        An index is S or above.
    """
    if indices is None:
        a, b, c = views(q=q, k=k, v=v)
        i = None
    else:
        a, b, c, i = views(q=q, k=k, v=v, indices=indices)
    checks.floats("attend", "q", a, (3, 4))
    checks.keys_values("attend", b, c, (a.ndim,))
    q4, k4, v4 = (x[None] if a.ndim == 3 else x for x in (a, b, c))
    checks.heads("attend", "q and k", q4.shape, k4.shape)
    softmax = softmax_with("attend", softmax, options)
    checks.query_heads("attend", softmax.sink_logits, q4.shape)
    checks.true_or_false("attend", "return_lse", return_lse)
    checks.same_head_dim("attend", a, "k", b.shape[-1])
    if window is not None:
        window = checks.at_least("attend", "window", window, 1)
    home, seen = load(backend_of(a)), None
    if i is None:
        S = b.shape[-2]
        seen = tokens_seen("attend", positions, q4.shape, S)
        if seen is None and a.shape[-2] > S:
            raise ValueError(
                f"attend: {checks.shown('q', a)} has {a.shape[-2]} tokens and k {S}; expected at "
                "most as many queries as keys where indices and positions are None"
            )
    else:
        _check_indices(i, a, window, positions)
        i = i[None] if a.ndim == 3 else i
    if seen is None:
        out, lse = home.attend(q4, k4, v4, i, softmax, True, window)
    else:
        out, lse = dense(home, (q4, k4, v4), seen, softmax, window)
    give = returner(q)
    out = give(out.reshape(*a.shape[:-1], c.shape[-1]))
    return (out, give(lse.reshape(a.shape[:-1]))) if return_lse else out


def _check_indices(indices: Any, q: Any, window: object, positions: object) -> None:
    """Reject indices that do not fit the queries, or a rule about tokens beside them."""
    checks.dtype("attend", "indices", indices, "int32")
    for name, rule in (("window", window), ("positions", positions)):
        if rule is not None:
            raise ValueError(
                f"attend: {checks.stated(name, rule)} with indices; expected {name}=None, because "
                "indices say which tokens each query attends to"
            )
    if indices.shape[:-1] != q.shape[:-1]:
        raise ValueError(
            f"attend: {checks.shown('indices', indices)}; expected "
            f"({', '.join(map(str, q.shape[:-1]))}, K), as q has"
        )
    checks.contiguous("attend", "indices", indices)


def merge(outs: Sequence[Array], lses: Sequence[Array]) -> tuple[Array, Array]:
    """Attention to a set of tokens, from the attention to its disjoint parts.

    Parameters
    ----------
    outs : sequence of arrays (..., D_v)
        Results of `attend`, one per part, all of one shape and dtype. If there are sinks, give them
        to one part alone, because a sink counts in each result that it is given to.
    lses : sequence of arrays (...), float32
        Their log-sum-exps.

    Returns
    -------
    out : array (..., D_v), the dtype of the parts
    lse : array (...), float32

    Raises
    ------
    ValueError
        There is no part, or shapes differ.

    Notes
    -----
    out = sum_j exp(lse_j - lse) out_j with lse = log sum_j exp(lse_j), in float32.
    """
    if len(outs) == 0 or len(outs) != len(lses):
        raise ValueError(
            f"merge: {len(outs)} outs and {len(lses)} lses; expected equal numbers, at least one"
        )
    outs, lses = (
        [x if api.is_array_api_obj(x) else views(**{name: x})[0] for x in given]
        for name, given in (("outs", outs), ("lses", lses))
    )
    for out, part in zip(outs, lses, strict=True):
        if tuple(out.shape) != tuple(outs[0].shape) or tuple(out.shape[:-1]) != tuple(part.shape):
            raise ValueError(
                f"merge: out {tuple(out.shape)} with lse {tuple(part.shape)}; expected "
                f"{tuple(outs[0].shape)} with {tuple(outs[0].shape[:-1])}"
            )
    xp = api.array_namespace(*outs, *lses)
    part = xp.stack(list(lses))  # (parts, ...)
    top = xp.max(part, axis=0)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))  # all -inf: no token at all
    weight = xp.exp(part - top)
    total = xp.sum(weight, axis=0)
    none = total == 0
    total = xp.where(none, xp.ones_like(total), total)
    share = weight / total
    stacked = xp.stack([xp.astype(out, xp.float32) for out in outs])
    merged = xp.sum(share[..., None] * stacked, axis=0)
    lse = xp.where(none, xp.full_like(total, -xp.inf), top + xp.log(total))
    return xp.astype(merged, outs[0].dtype), lse
