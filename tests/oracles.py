"""Results computed another way, and the comparisons: equal bits, or a bound of a float64 result."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard
from scipy.special import expit, logsumexp
from scipy.special import softmax as shares
from scipy.stats import norm

from adamas_core import KVCache, Selection, Softmax, reference
from adamas_core.reference.layout import Values
from adamas_core.reference.quantize import unpack_bits
from adamas_core.reference.score import visible_tokens

PLAIN = Softmax()

# The error of attend against float64, on inputs of unit scale: the error of its sums, and half a
# unit in the last place of the dtype of out.
ATTEND = 2e-6
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Half the distance of float16's subnormals.
SMALLEST = {"float32": 0.0, "float16": 2.0**-25, "bfloat16": 0.0}


def assert_same_bits(got: NDArray[Any], expected: NDArray[Any]) -> None:
    """Same shape, dtype and bits; any NaN equals any other."""
    assert type(got) is np.ndarray
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    if expected.dtype.kind == "f":
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(got), nan)
        got, expected = (np.where(nan, 0, x).astype(x.dtype) for x in (got, expected))
        words = f"u{expected.itemsize}"
        got, expected = np.ascontiguousarray(got).view(words), expected.view(words)
    np.testing.assert_array_equal(got, expected)


def assert_attention(
    got: NDArray[Any],
    exact: NDArray[np.float64],
    dtype: np.dtype[Any],
    more: NDArray[np.float64] | float = 0,
) -> None:
    """`got` is `exact` within ATTEND, the rounding of its dtype, and `more`."""
    assert (got.shape, got.dtype) == (exact.shape, dtype)
    wide = got.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(wide), np.isnan(exact))
    bound = ATTEND + more + ROUNDING[dtype.name] * np.abs(exact) + SMALLEST[dtype.name]
    wrong = ~(np.abs(wide - exact) <= bound) & ~np.isnan(exact) & ~(wide == exact)
    assert not wrong.any(), f"off by {np.abs(wide - exact)[wrong].max()}"


def exact_attention(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    indices: NDArray[np.int32] | None,
    softmax: Softmax = PLAIN,
    window: int | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Attention and lse by scipy's softmax and logsumexp, in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    B, H, L, D = q.shape
    G, S = H // k.shape[1], k.shape[2]
    out, lse = np.zeros((B, H, L, v.shape[3])), np.full((B, H, L), -np.inf)
    for b, h, l in np.ndindex(B, H, L):
        chosen = np.arange(S - L + l + 1) if indices is None else indices[b, h, l]
        chosen = chosen[chosen >= 0]
        if window is not None:
            chosen = chosen[-window:]
        if chosen.size:
            with np.errstate(invalid="ignore"):
                logits = logits_of(k[b, h // G, chosen] @ q[b, h, l], softmax, D)
                summed(logits, v[b, h // G, chosen], softmax, (b, h, l), (out, lse))
        elif softmax.sink_logits is not None:
            lse[b, h, l] = softmax.sink_logits[h]
    return out, lse


def logits_of(products: NDArray[np.float64], softmax: Softmax, D: int) -> NDArray[np.float64]:
    """The logits of products q.k, with the cap as a logistic function."""
    return bounded(products * (D**-0.5 if softmax.scale is None else softmax.scale), softmax)


def bounded(logits: NDArray[np.float64], softmax: Softmax) -> NDArray[np.float64]:
    c = softmax.soft_cap
    return logits if c is None else c * (2 * expit(2 * logits / c) - 1)


def summed(
    logits: NDArray[np.float64],
    rows: NDArray[np.float64],
    softmax: Softmax,
    place: tuple[int, int, int],
    results: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    """Put the out and lse of a query in their places. A sink is one more row, of zeros."""
    if softmax.sink_logits is not None:
        logits = np.append(logits, softmax.sink_logits[place[1]])
        rows = np.concatenate([rows, np.zeros_like(rows[:1])])
    out, lse = results
    out[place], lse[place] = shares(logits) @ rows, logsumexp(logits)


def scale_numbers(scales: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The numbers of scale bytes: five bits of exponent and three of mantissa."""
    byte = scales.astype(float)
    return (1 + byte % 8 / 8) * 2 ** (byte // 8 - 16)


def decoded(values: Values) -> NDArray[np.float64]:
    """The values (B, H_kv, 64 T, D) that codes stand for, in float64."""
    B, H_kv, T, slots, _, P = values.codes.shape
    D = values.bases.shape[-1]
    Dt = 1 << (D - 1).bit_length()
    words = values.codes.reshape(B, H_kv, T * slots, 2 * P)
    u = coordinates(words, 2)[..., :Dt] - 1.5
    s = scale_numbers(values.scales) * (values.scales > 0)  # of values the byte 0 stands for 0
    s = s.reshape(B, H_kv, T * slots, 1)
    base = values.bases.astype(np.float64)
    later = np.arange(T * slots)[:, None] >= 64
    first, mean = base[:, :, :1], base[:, :, 1:]
    return s * u @ hadamard(Dt)[:, :D] / np.sqrt(Dt) + np.where(later, mean, first)


def exact_tail(
    case: Any,
    values: Values,
    tiers: tuple[NDArray[np.int32], NDArray[np.int32]],
    estimates: tuple[NDArray[np.float32], NDArray[np.float32]],
    softmax: Softmax = PLAIN,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Attention in three tiers of known tokens, in float64: out, lse, and the error of float32.

    The estimates are those of two bits and of three. The error (B, H, L) is that of a logit of
    float32, four roundings of its two terms, and that of the weights of the rest: the chosen tokens
    are taken out of a sum over all, whose weights have relative errors of up to 2^-18.
    """
    q, k, v = (x.astype(np.float64) for x in case[:3])
    B, H, L, D = q.shape
    G = H // k.shape[1]
    scale = D**-0.5 if softmax.scale is None else softmax.scale
    out, lse, error = (
        np.zeros((B, H, L, v.shape[3])),
        np.full((B, H, L), -np.inf),
        np.zeros((B, H, L)),
    )
    read = decoded(values)
    for b, h, l in np.ndindex(B, H, L):
        n, g = int(np.broadcast_to(case.length, (B,))[b]) - (L - 1 - l), h // G
        if n <= 0:
            lse[b, h, l] = -np.inf if softmax.sink_logits is None else softmax.sink_logits[h]
            continue
        own, variance = np.empty((2, n)), np.empty((2, n))
        for i, held in enumerate((case.codes.centers, case.codes.fine)):
            s = scale_numbers(held.scales[b, g]).reshape(-1)[:n]
            variance[i] = scale**2 * (q[b, h, l] @ q[b, h, l]) * s**2 * noise(2 + i)
            own[i] = scale * estimates[i][b, h, l, :n].astype(np.float64)
        exact = scale * (k[b, g, :n] @ q[b, h, l])
        first, second = (np.isin(np.arange(n), tier[b, h, l]) for tier in tiers)
        coded = bounded(own - variance / 2, softmax)
        logits = np.where(first, bounded(exact, softmax), np.where(second, coded[1], coded[0]))
        rows = np.where(second[:, None], read[b, g, :n], v[b, g, :n].mean(axis=0))
        rows = np.where(first[:, None], v[b, g, :n], rows)
        summed(logits, rows, softmax, (b, h, l), (out, lse))
        error[b, h, l] = 2.0**-22 * max(np.abs(exact).max(), (np.abs(own) + variance).max())
        chosen = np.where(first | second, coded[0], -np.inf)
        error[b, h, l] += 2.0**-17 * np.exp(min(logsumexp(chosen) - lse[b, h, l], 9))
    return out, lse, error


@cache
def noise(bits: int) -> float:
    """The mean of (u - x / s)^2 for a normal x in levels u, and s its scale, by integration."""
    t = float(np.float32(0.996))
    cuts, levels = [0, t, np.inf], [0.5, 1.5]
    s = _scale(cuts, levels)
    if bits == 3:  # each level u becomes u - 1/4 and u + 1/4, on both sides of s u
        cuts, levels = [0, s / 2, t, 1.5 * s, np.inf], [0.25, 0.75, 1.25, 1.75]
        s = _scale(cuts, levels)
    return 2 * sum(
        float(norm.expect(lambda x, u=u: (u - x / s) ** 2, lb=lb, ub=ub))
        for lb, ub, u in zip(cuts, cuts[1:], levels, strict=False)
    )


def _scale(cuts: list[float], levels: list[float]) -> float:
    """1 / (mean of x u), for a normal x with the level u between two cuts."""
    parts = zip(cuts, cuts[1:], levels, strict=False)
    return 1 / (2 * sum(u * float(norm.expect(lambda x: x, lb=lb, ub=ub)) for lb, ub, u in parts))


def decode_by_reference(
    q: NDArray[Any], cache: KVCache, budget: int | None, layer: int = 0
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """decode_attention by the reference's select_topk and attend, over a cache of NumPy arrays."""
    held = cache[layer]
    B, H, L, _ = q.shape
    if budget is None or held.codes is None or budget >= held.tokens:
        seen = visible_tokens(np.broadcast_to(held.length, (B,)), L)[:, None, :, None]
        token = np.arange(held.tokens, dtype=np.int32)
        every = np.where(token < seen, token, np.int32(-1))  # (B, 1, L, S)
        indices = np.broadcast_to(every, (B, H, L, held.tokens))
    else:
        indices = reference.select_topk(q, held.codes.record, budget, cache.selection, held.k)
    return reference.attend(q, held.k, held.v, indices, None, True)  # type: ignore[return-value]


def coordinates(words: NDArray[np.uint64], parts: int) -> NDArray[np.int64]:
    """Packed rows (..., parts * P) as numbers (..., 64 P), the first part most significant."""
    bits = np.stack(np.split(unpack_bits(words), parts, axis=-1)).astype(np.int64)
    weights = 2 ** np.arange(parts)[::-1]
    return np.tensordot(weights, bits, axes=1)


def query_planes(case: Any, selection: Selection) -> NDArray[np.uint64]:
    """The queries of a case as `score` takes them."""
    x = reference.hadamard(case.q)
    if selection.metric == "weighted":
        return reference.quantize_query(x, selection.query_bits)
    G = case.q.shape[1] // case.k.shape[1]
    return reference.quantize(x, np.repeat(case.codes.thresholds, G, axis=0))
