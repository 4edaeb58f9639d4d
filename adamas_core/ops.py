"""The operations that people call: check once, pick the backend, hand the result back.

Arrays on a CUDA device are computed there, on CuPy's current stream, and have to lie on one device;
`dispatch` says how streams are ordered.

Shapes: B batch (may be absent), H query heads, H_kv key/value heads, G = H / H_kv, L query tokens,
S cached tokens, D head_dim, Dt = D rounded up to a power of two, P = ceil(Dt / 64) words a bit
plane, T = ceil(S / 64) tiles, K budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import array_api_compat as api
import numpy as np

from . import checks
from .dispatch import Array, backend_of, int_or_view, load, on_host, returner, views

if TYPE_CHECKING:
    from .codes import KeyCodes


def hadamard(x: Array) -> Array:
    """Walsh-Hadamard transform along the last axis, orthonormal.

    Inner products stay what they were, and a channel that stands out is spread over all
    coordinates. A head_dim that is no power of two is padded with zeros.

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
        x is no array or has another dtype.
    ValueError
        x has no axis, a last axis out of range or not contiguous, or lies on another device.

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
    """Codes of transformed vectors: 2 bits a coordinate, packed, a row a token.

    Parameters
    ----------
    x : array (..., Dt), float32
        Transformed keys, or under the paper's metric queries: what `hadamard` returns.
    thresholds : array (3,) or (heads, 3), float32
        Ascending; one triple for all, or one a head for x (..., heads, tokens, Dt).

    Returns
    -------
    array (..., 2P), uint64
        The P words of the high bits, then those of the low bits; coordinate i is bit i % 64 of
        word i // 64. A code is the number of thresholds below the coordinate; NaN has code 0.

    Raises
    ------
    TypeError
        x or thresholds have another dtype.
    ValueError
        Dt is no power of two, or thresholds have another shape or are not ascending.
    """
    (a,) = views(x=x)
    checks.floats("quantize", "x", a)
    checks.dtype("quantize", "x", a, "float32")
    checks.transformed("quantize", a)
    t = thresholds_array(thresholds)
    checks.thresholds("quantize", t, a.shape[-3] if a.ndim >= 3 else None)
    return returner(x)(load(backend_of(a)).quantize(a, t))


def quantize_query(x: Array, bits: int = 4) -> Array:
    """Bit planes of transformed queries for the weighted metric.

    Parameters
    ----------
    x : array (..., Dt), float32
        Transformed queries: what `hadamard` returns.
    bits : int
        A sign and `bits` - 1 bits of weight a coordinate, 2 to 8.

    Returns
    -------
    array (..., bits * P), uint64
        The sign plane, 1 where x > 0, then the weights' planes from the most significant:
        w = rint(|x| / max |x| * (2 ** (bits - 1) - 1)), all 0 for an all-zero query. The maximum
        leaves NaN out, and a coordinate whose quotient is not a number weighs 0.

    Raises
    ------
    TypeError
        x has another dtype, or bits is no integer.
    ValueError
        Dt is no power of two, or bits is out of range or too many for uint16 distances.
    """
    (a,) = views(x=x)
    checks.floats("quantize_query", "x", a)
    checks.dtype("quantize_query", "x", a, "float32")
    checks.transformed("quantize_query", a)
    checks.query_bits("quantize_query", "bits", bits, a.shape[-1])
    return returner(x)(load(backend_of(a)).quantize_query(a, int(bits)))


def score(query: Array, planes: Array, length: int | Array, metric: str = "weighted") -> Array:
    """Distances between queries and coded keys: the smaller, the better the match.

    distance = sum over coordinates of w |c - e|, with c the key's code. Under "manhattan" e is
    the query's own code and w = 1. Under "weighted" e is the corner that the query points to
    and w its integer weight, which ranks the keys as the inner product with their dequantized
    codes does.

    Parameters
    ----------
    query : array (B, H, L, R), uint64
        R = bits * P words from `quantize_query`, or with metric="manhattan" 2P from `quantize`.
    planes : array (2, B, H_kv, T, 8, P, 8), uint64
        Key planes, as `encode(k).planes`.
    length : int or array (B,) of integers
        Tokens in the planes, the last L of which are the queries' own.
    metric : {"weighted", "manhattan"}

    Returns
    -------
    array (B, H, L, S), uint16
        S = max(length). A token that a query does not see, because it comes later or is behind
        the length of its sequence, has 65535; a true distance is below that.

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
            f"score: {checks.shown('query', q)} against P={P} words a plane; expected "
            f"{parts[0] if metric == 'manhattan' else '2 to 8'} times P words for "
            f"metric={metric!r}"
        )
    if metric == "weighted":
        checks.query_bits("score", "query_bits", width // P, 64 * P)
    n = checks.length("score", n, q4.shape[0], 64 * p7.shape[3])
    result = load(backend_of(q)).score(q4, p7, n, metric)
    return returner(query)(result.reshape(*q.shape[:-1], result.shape[-1]))


def topk(distances: Array, budget: int, sinks: int = 0, recent: int = 0) -> Array:
    """Indices of the nearest tokens, exact, in ascending order.

    Parameters
    ----------
    distances : array (..., S), uint16
        From `score`; 65535 marks tokens that are not visible and are never taken.
    budget : int
        K, 1 to S tokens a query.
    sinks, recent : int
        The first and the last visible tokens to take whatever their distance. They count
        towards the budget.

    Returns
    -------
    array (..., K), int32
        The K smallest distances; among equals the most recent token, the highest index, wins.
        -1 stands behind the last index where fewer than K tokens are visible.

    Raises
    ------
    TypeError
        distances have another dtype, or a number is no integer.
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
    checks.budget("topk", budget, d.shape[-1], d.shape, sinks, recent)
    return returner(distances)(load(backend_of(d)).topk(d, int(budget), int(sinks), int(recent)))


def attend(
    q: Array,
    k: Array,
    v: Array,
    indices: Array | None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Array:
    """Softmax attention over the chosen tokens' original keys and values.

    Parameters
    ----------
    q : array (B, H, L, D)
        float16, bfloat16 or float32.
    k, v : array (B, H_kv, S, D)
        One dtype of the three, which may differ from q's. Any leading strides.
    indices : array (B, H, L, K), int32, or None
        Rows of k and v a query; negative ones are skipped. None is dense attention: the queries
        are the last L of the S tokens and each sees the tokens up to itself.
    scale : float, optional
        Of the inner products; D ** -0.5 if not given.
    return_lse : bool
        Also return the log-sum-exp, which `merge` needs.

    Returns
    -------
    out : array (B, H, L, D), q's dtype
        0 where a query has no token at all.
    lse : array (B, H, L), float32
        Natural log of the softmax's denominator, -inf where there is no token; only with
        `return_lse`.

    Raises
    ------
    TypeError
        An array has another dtype.
    ValueError
        Shapes do not fit each other.
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
    checks.same_head_dim("attend", a, "k", b.shape[-1])
    if i is not None:
        checks.dtype("attend", "indices", i, "int32")
        if i.shape[:-1] != a.shape[:-1]:
            raise ValueError(
                f"attend: {checks.shown('indices', i)}; expected {(*a.shape[:-1], 'K')}, as q has"
            )
        checks.contiguous("attend", "indices", i)
        i = i[None] if a.ndim == 3 else i
    elif a.shape[-2] > b.shape[-2]:
        raise ValueError(
            f"attend: {checks.shown('q', a)} has {a.shape[-2]} tokens and k {b.shape[-2]}; "
            "expected the queries among the keys where indices is None"
        )
    out, lse = load(backend_of(a)).attend(q4, k4, v4, i, scale, True)
    give = returner(q)
    out = give(out.reshape(a.shape))
    return (out, give(lse.reshape(a.shape[:-1]))) if return_lse else out


def select_topk(
    q: Array,
    codes: KeyCodes,
    budget: int,
    metric: str = "weighted",
    query_bits: int = 4,
    sinks: int = 0,
    recent: int = 0,
    prefilter: int = 0,
    refine: int = 0,
    group: bool = False,
    k: Array | None = None,
) -> Array:
    """Indices of the tokens that matter to raw queries: the fused step, no distances in memory.

    Equal to the bit to `topk` of `score` of the quantized `hadamard` of q, where codes are not
    centered and no option changes the order.

    Parameters
    ----------
    q : array (B, H, L, D)
        float16, bfloat16 or float32, as the model computes it (after RoPE). The queries are the
        last L of the coded tokens and each sees the tokens up to itself.
    codes : KeyCodes
        What `encode(k)` returns.
    budget : int
        K, 1 to codes' tokens.
    metric : {"weighted", "manhattan"}
        "manhattan" with codes of thresholds=PAPER is the paper's.
    query_bits : int
        Of the weighted metric, 2 to 8: a sign and the bits of the weights.
    sinks, recent : int
        The first and last visible tokens to take whatever their distance, within the budget.
    prefilter : int
        Rank all tokens by the high plane of their codes alone, the sign of each coordinate, and
        only the prefilter * K nearest by both planes: about half the bytes, and a few tokens
        missed. 8 is a good value; 0, the default, reads both planes of all.
    refine : int
        Take the refine * K nearest by their codes, and of these the K whose inner product with the
        query is largest. Reads refine * K rows of k a query; 2 or 4 find nearly what exact
        top-k does. 0, the default, ends with the codes.
    group : bool
        One choice for all query heads of a KV head, so that a row of k and v is read once for
        them: the tokens that get most of the heads' attention, which is estimated from the codes.
        At the same budget each head loses some tokens; at as many rows read all gain. Not together
        with prefilter or refine.
    k : array (B, H_kv, S, D), optional
        The coded keys themselves, which `refine` needs: float16, bfloat16 or float32, S the codes'
        tokens or more.

    Returns
    -------
    array (B, H, L, K), int32
        Ascending; -1 behind the last one where fewer than K tokens are visible.

    Raises
    ------
    TypeError
        codes is no KeyCodes, q has another dtype, or a number is no integer.
    ValueError
        Shapes do not fit, codes are empty, prefilter or refine is negative, k is missing where it
        is to refine, the budget is below 1 or above codes' tokens, or options do not go together:
        centered codes and group need metric="weighted".

    Examples
    --------
    >>> import numpy as np
    >>> from adamas_core import encode, select_topk
    >>> rng = np.random.default_rng(0)
    >>> k = rng.standard_normal((2, 1000, 64), dtype=np.float32)
    >>> select_topk(8 * k[:, 417:418], encode(k), budget=1)[:, 0, 0]
    array([417, 417], dtype=int32)
    """
    from .codes import KeyCodes

    if not isinstance(codes, KeyCodes):
        raise TypeError(
            f"select_topk: codes is a {type(codes).__qualname__}; expected the KeyCodes that "
            "encode(k) returns"
        )
    (a,) = views(q=q)
    checks.floats("select_topk", "q", a, (3, 4))
    q4 = a[None] if a.ndim == 3 else a
    checks.heads("select_topk", "q and codes", q4.shape, codes.shape)
    checks.same_head_dim("select_topk", a, "codes", codes.head_dim)
    checks.lies_on("select_topk", "q", a, codes.device)
    checks.metric("select_topk", metric)
    checks.query_bits("select_topk", "query_bits", query_bits, codes.head_dim)
    if codes.tokens == 0:
        raise ValueError(f"select_topk: codes of shape {codes.shape} are empty; append keys first")
    checks.budget("select_topk", budget, codes.tokens, codes.shape, sinks, recent)
    checks.at_least("select_topk", "prefilter", prefilter, 0)
    keys = None
    if checks.at_least("select_topk", "refine", refine, 0):
        keys = _keys_of(codes, k, refine)
    checks.together("select_topk", metric, codes.centers is not None, group, prefilter, refine)
    options = metric, int(query_bits), int(sinks), int(recent), int(prefilter), int(refine)
    found = load(codes.backend).select_topk
    indices = found(q4, codes, int(budget), *options, bool(group), keys)
    return returner(q)(indices.reshape(*a.shape[:-1], int(budget)))


def _keys_of(codes: KeyCodes, k: Array | None, refine: int) -> Array:
    """The keys (B, H_kv, S, D) that were coded."""
    if k is None:
        raise ValueError(
            f"select_topk: refine={refine} without k; expected the keys of codes {codes.shape}"
        )
    (a,) = views(k=k)
    checks.floats("select_topk", "k", a, (3, 4))
    a4 = a[None] if a.ndim == 3 else a
    checks.lies_on("select_topk", "k", a, codes.device)
    B, H_kv, S, D = codes.shape
    if a4.shape[:2] != (B, H_kv) or a4.shape[2] < S or a4.shape[3] != D:
        raise ValueError(
            f"select_topk: {checks.shown('k', a)} and codes of shape {codes.shape}; expected the "
            "keys that were coded, or more tokens of them"
        )
    return a4


def merge(outs: Sequence[Array], lses: Sequence[Array]) -> tuple[Array, Array]:
    """Attention over a set of tokens from the attention over its disjoint parts.

    Parameters
    ----------
    outs : sequence of arrays (..., D)
        What `attend` returned for each part, all of one shape and dtype.
    lses : sequence of arrays (...), float32
        Their log-sum-exps.

    Returns
    -------
    out : array (..., D), the dtype of the parts
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
            f"merge: {len(outs)} outs and {len(lses)} lses; expected as many, at least one"
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


def thresholds_array(thresholds: Any) -> np.ndarray[Any, Any]:
    """Thresholds on the host: plain numbers become float32, an array keeps its dtype."""
    if isinstance(thresholds, (list, tuple)):
        return np.asarray(thresholds, np.float32)
    return on_host(views(thresholds=thresholds)[0])
