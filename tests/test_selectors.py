"""Every selector against a form written another way: one query, one token, one page at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import exp, floor, log
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import hadamard as sylvester
from strategies import seeds

from adamas_core import PAPER, encode, select_topk
from adamas_core.reference.selectors import (
    H2O,
    SELECTORS,
    Adamas,
    AdaptiveBudgets,
    DoubleSparsity,
    Exact,
    Full,
    Loki,
    Quest,
    SignHash,
    SlidingWindow,
    SparQ,
    StreamingLLM,
)

Array = NDArray[Any]

# One of each, and the options that no entry of SELECTORS has.
ALL = {
    **SELECTORS,
    "one bit": Adamas(bits=1),
    "three bits": Adamas(bits=3, sinks=2, recent=3),
    "octiles": Adamas(bits=3, thresholds="quartiles"),
    "three bits, l1, each token's rms": Adamas(metric="l1", bits=3, thresholds="token"),
    "l2, own": Adamas(metric="l2", own_thresholds=True, thresholds="token", prefilter=2),
    "untransformed": Adamas(transform=False),
    "untransformed, l1": Adamas(metric="l1", transform=False),
    "float query": Adamas(query_bits=None),
    "means before": Adamas(thresholds="token", scale=True, block=8),
    "means, prefilter, refine": Adamas(
        thresholds="token", scale=True, block=8, recode=True, prefilter=3, refine=2
    ),
    "integers": Adamas(group="integers", sinks=1, recent=2),
    "nearest of l1": Adamas(metric="l1", group="nearest"),
    "group, refine": Adamas(bits=1, group="softmax", refine=3),
    "adaptive, means": AdaptiveBudgets(inner=Adamas(block=8, scale=True), least=0.5, most=2.0),
}
SINGLE_STEPS = [name for name in ALL if name != "h2o"]  # whose sums a single step does not have


class Case:
    """Queries (H, L, D) of the last of S tokens, keys (H_kv, S, D), and the prefix before them."""

    def __init__(self, q: Array, k: Array, L: int) -> None:
        self.k, self.L = k, L
        self.q, self.q0 = q[:, k.shape[1] - L :], q[:, : k.shape[1] - L]
        self.k0 = k[:, : k.shape[1] - L]
        self.H, self.S, self.D = len(q), k.shape[1], k.shape[2]
        self.G = self.H // len(k)

    def own(self, l: int) -> int:
        return self.S - self.L + l


@st.composite
def drawn(
    draw: st.DrawFn, integers: bool = True, dims: tuple[int, ...] = (4, 16), longest: int = 60
) -> Case:
    """Small cases. Integers make ties, and products and transforms of 4 or 16 coordinates exact."""
    H_kv, G = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3]))
    S = draw(st.integers(2, longest))
    L = draw(st.integers(1, min(S - 1, 9)))
    D = draw(st.sampled_from(dims))
    rng = np.random.default_rng(draw(seeds))
    q, k = rng.standard_normal((H_kv * G, S, D)), rng.standard_normal((H_kv, S, D))
    if integers:
        q, k = np.rint(2 * q), np.rint(2 * k)
    else:
        k += rng.standard_normal((H_kv, 1, D))  # a mean, which block means are for
    return Case(q.astype(np.float32), k.astype(np.float32), L)


budgets = st.integers(1, 80)


def normal(seed: int, H: int, H_kv: int, S: int, L: int, D: int) -> Case:
    """A fixed case whose scores have no ties."""
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((H_kv, S, D)) + rng.standard_normal((H_kv, 1, D))
    return Case(rng.standard_normal((H, S, D)).astype(np.float32), k.astype(np.float32), L)


def best(scores: list[float], K: int) -> list[int]:
    """The K largest scores, the later of equal ones first, in ascending order of index."""
    order = sorted(range(len(scores)), key=lambda j: (scores[j], j), reverse=True)
    return sorted(order[:K])


def padded(chosen: list[int], K: int) -> list[int]:
    return chosen + [-1] * (K - len(chosen))


def expect(
    case: Case, got: Array, budget: int, choose: Callable[[int, int, int], list[int]]
) -> None:
    """``choose(h, l, K)`` for every head and query, behind which -1 stands."""
    K = min(budget, case.S)
    assert (got.dtype, got.shape) == (np.int32, (case.H, case.L, K))
    for h in range(case.H):
        for l in range(case.L):
            assert got[h, l].tolist() == padded(choose(h, l, K), K), (h, l)


def expect_scores(
    case: Case, got: Array, budget: int, score: Callable[[int, int, int], float]
) -> None:
    """The tokens j of the largest ``score(h, l, j)`` among those up to the query's own."""

    def choose(h: int, l: int, K: int) -> list[int]:
        return best([score(h, l, j) for j in range(case.own(l) + 1)], K)

    expect(case, got, budget, choose)


def transform(x: Array) -> Array:
    """The Walsh-Hadamard transform as a matrix product, in float64."""
    D = x.shape[-1]
    out: Array = x.astype(np.float64) @ sylvester(D) / D**0.5
    return out


def level_codes(x: Array, edges: Array) -> list[int]:
    return [sum(bool(edge < value) for edge in edges) for value in x]


# What all of them promise.


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=20)
@given(case=drawn(integers=False), budget=budgets)
def test_indices_are_visible_ascending_and_as_many_as_asked(
    name: str, case: Case, budget: int
) -> None:
    got = ALL[name].fit(case.q0, case.k0)(case.q, case.k, budget)
    assert got.dtype == np.int32
    assert got.shape[:2] == (case.H, case.L)
    adaptive = name.startswith("ada") and isinstance(ALL[name], AdaptiveBudgets)
    if name != "full" and not adaptive:
        assert got.shape[2] == min(budget, case.S)
    for h, l in np.ndindex(case.H, case.L):
        chosen = got[h, l][got[h, l] >= 0]
        assert (got[h, l, len(chosen) :] == -1).all()
        assert (np.diff(chosen) > 0).all()
        assert chosen.size and chosen[-1] <= case.own(l)
        if name == "full":
            assert len(chosen) == case.own(l) + 1
        elif not adaptive:
            assert len(chosen) == min(budget, case.own(l) + 1)


@pytest.mark.parametrize("name", SINGLE_STEPS)
@settings(max_examples=20)
@given(case=drawn(integers=False), budget=budgets)
def test_a_block_gives_what_single_steps_give(name: str, case: Case, budget: int) -> None:
    fitted = ALL[name].fit(case.q0, case.k0)
    block = fitted(case.q, case.k, budget)
    for l in range(case.L):
        step = fitted(case.q[:, l : l + 1], case.k[:, : case.own(l) + 1], budget)[:, 0]
        for h in range(case.H):
            assert [j for j in block[h, l] if j >= 0] == [j for j in step[h] if j >= 0], (h, l)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=20)
@given(case=drawn(integers=False), budget=budgets)
def test_later_tokens_change_nothing(name: str, case: Case, budget: int) -> None:
    fitted = ALL[name].fit(case.q0, case.k0)
    before = fitted(case.q, case.k, budget)
    l = case.L // 2
    q, k = case.q.copy(), case.k.copy()
    q[:, l + 1 :] *= -3
    k[:, case.own(l) + 1 :] = 7 - k[:, case.own(l) + 1 :]
    after = fitted(q, k, budget)
    for h, i in np.ndindex(case.H, l + 1):
        assert [j for j in before[h, i] if j >= 0] == [j for j in after[h, i] if j >= 0]


@pytest.mark.parametrize("name", ALL)
def test_one_token(name: str) -> None:
    q, k = np.ones((2, 2, 4), np.float32), np.ones((1, 2, 4), np.float32)
    selector = ALL[name] if name == "h2o" else ALL[name].fit(q[:, :1], k[:, :1])
    got = selector(q[:, :1], k[:, :1], 5)
    np.testing.assert_array_equal(got[..., :1], np.zeros((2, 1, 1)))
    assert (got[..., 1:] == -1).all()


@pytest.mark.parametrize("name", ALL)
def test_wrong_arguments(name: str) -> None:
    case = normal(0, 4, 2, 20, 3, 16)
    selector = ALL[name].fit(case.q0, case.k0)
    with pytest.raises(ValueError, match=r"\(4, 3, 16\).*\(2, 2, 16\).*1 to 2 queries"):
        selector(case.q, case.k[:, :2], 4)
    with pytest.raises(ValueError, match="multiple of the KV heads"):
        selector(case.q[:3], case.k, 4)
    with pytest.raises(ValueError, match="head_dim 16"):
        selector(case.q[..., :8].copy(), case.k, 4)
    with pytest.raises(ValueError, match="budget=0; expected at least 1"):
        selector(case.q, case.k, 0)
    with pytest.raises(TypeError, match="k is float64"):
        selector(case.q, case.k.astype(np.float64), 4)


@pytest.mark.parametrize(
    "selector", [DoubleSparsity(), Loki(), Adamas(), Adamas(bits=3), AdaptiveBudgets()]
)
def test_what_is_not_fitted_says_so(selector: Any) -> None:
    case = normal(0, 2, 1, 20, 3, 16)
    with pytest.raises(ValueError, match="fit it to a prefix first"):
        selector(case.q, case.k, 4)


# One by one.


@settings(max_examples=50)
@given(case=drawn(), budget=budgets)
def test_full(case: Case, budget: int) -> None:
    got = Full()(case.q, case.k, budget)
    for l in range(case.L):
        assert got[0, l].tolist() == padded(list(range(case.own(l) + 1)), case.S)
    np.testing.assert_array_equal(got, np.broadcast_to(got[:1], got.shape))


@settings(max_examples=50)
@given(case=drawn(), budget=budgets)
def test_exact(case: Case, budget: int) -> None:
    def score(h: int, l: int, j: int) -> float:
        return float(sum(a * b for a, b in zip(case.q[h, l], case.k[h // case.G, j], strict=True)))

    expect_scores(case, Exact()(case.q, case.k, budget), budget, score)


@settings(max_examples=50)
@given(case=drawn(), budget=budgets)
def test_windows(case: Case, budget: int) -> None:
    def last(h: int, l: int, K: int) -> list[int]:
        return list(range(case.own(l) + 1))[-K:]

    def sinks_and_last(h: int, l: int, K: int) -> list[int]:
        visible = list(range(case.own(l) + 1))
        sinks = visible[: min(4, K - 1)]
        rest = [j for j in visible if j not in sinks]
        return sinks + rest[max(len(rest) - (K - len(sinks)), 0) :]

    expect(case, SlidingWindow()(case.q, case.k, budget), budget, last)
    expect(case, StreamingLLM()(case.q, case.k, budget), budget, sinks_and_last)


@settings(max_examples=50)
@given(case=drawn(), budget=budgets, page=st.sampled_from([1, 3, 16]))
def test_quest(case: Case, budget: int, page: int) -> None:
    def score(h: int, l: int, j: int) -> float:
        start = j // page * page
        keys = case.k[h // case.G, start : min(start + page, case.own(l) + 1)]
        bounds = [
            max(q * low, q * high)
            for q, low, high in zip(case.q[h, l], keys.min(axis=0), keys.max(axis=0), strict=True)
        ]
        return float(sum(bounds))

    expect_scores(case, Quest(page=page)(case.q, case.k, budget), budget, score)


def test_quest_bounds_what_is_in_a_page() -> None:
    case = normal(1, 4, 2, 50, 8, 16)
    first = Quest()(case.q, case.k, 16)
    for h, l in np.ndindex(4, 8):
        pages = set(first[h, l] // 16)
        assert len(pages) <= 2  # one page, or the visible part of the last one and another


@settings(max_examples=50)
@given(case=drawn(), budget=budgets)
def test_h2o(case: Case, budget: int) -> None:
    fitted = H2O().fit(case.q0, case.k0)
    got = fitted(case.q, case.k, budget)
    K = min(budget, case.S)
    scale = case.D**-0.5

    def attention(h: int, query: Array, tokens: list[int]) -> dict[int, float]:
        z = {j: float(query @ case.k[h // case.G, j]) * scale for j in tokens}
        top = max(z.values())
        total = sum(exp(value - top) for value in z.values())
        return {j: exp(value - top) / total for j, value in z.items()}

    for h in range(case.H):
        sums = dict.fromkeys(range(case.S), 0.0)
        S0 = case.S - case.L
        for t in range(S0):
            for j, share in attention(h, case.q0[h, t], list(range(t + 1))).items():
                sums[j] += share
        assert fitted.accumulated is not None
        np.testing.assert_allclose(fitted.accumulated[h], [sums[j] for j in range(S0)], rtol=1e-4)
        # From here with the selector's own sums: equal ones must not differ in their last digit.
        sums |= {j: float(value) for j, value in enumerate(fitted.accumulated[h])}
        recent = K - K // 2
        kept = list(range(max(S0 - recent, 0), S0))
        older = sorted(range(max(S0 - recent, 0)), key=lambda j: (sums[j], j), reverse=True)
        kept = sorted(kept + older[: K // 2])
        for l in range(case.L):
            own = case.own(l)
            if len(kept) == K:
                behind = [j for j in kept if j <= own - recent]
                margin = sorted(sums[j] for j in behind)
                if len(margin) > 1 and 0 < margin[1] - margin[0] < 1e-5:
                    return  # float32 and float64 may evict different ones
                kept.remove(min(behind, key=lambda j: (sums[j], j)))
            kept.append(own)
            assert got[h, l].tolist() == padded(kept, K)
            for j, share in attention(h, case.q[h, l], kept).items():
                sums[j] += share


def test_h2o_goes_on_from_its_prefix() -> None:
    case = normal(2, 2, 1, 30, 6, 16)
    fitted = H2O().fit(case.q0, case.k0)
    with pytest.raises(ValueError, match=r"24 tokens, but q is float32 \(2, 6, 16\).* of 29"):
        fitted(case.q, case.k[:, 1:], 8)
    # Two blocks are not one, since sums are not handed on, but a block is its own beginning.
    np.testing.assert_array_equal(
        fitted(case.q[:, :3], case.k[:, :27], 8), fitted(case.q, case.k, 8)[:, :3]
    )


@settings(max_examples=50)
@given(case=drawn(), budget=budgets)
def test_sparq(case: Case, budget: int) -> None:
    recent = min(budget, case.S) // 4

    def score(h: int, l: int, j: int) -> float:
        if j > case.own(l) - recent:
            return float("inf")
        group = case.q[h // case.G * case.G : (h // case.G + 1) * case.G, l]
        size = [float(abs(group[:, i]).sum()) for i in range(case.D)]
        components = sorted(range(case.D), key=lambda i: (-size[i], i))[: case.D // 4]
        return float(sum(case.q[h, l, i] * case.k[h // case.G, j, i] for i in components))

    expect_scores(case, SparQ()(case.q, case.k, budget), budget, score)


@settings(max_examples=50)
@given(case=drawn(dims=(16, 64)), budget=budgets, share=st.sampled_from([4, 16]))
def test_double_sparsity(case: Case, budget: int, share: int) -> None:
    selector = DoubleSparsity(share=share).fit(case.q0, case.k0)
    channels = []
    for g in range(len(case.k)):
        heads = range(g * case.G, (g + 1) * case.G)
        weight = [
            sum(float(abs(case.q0[h, :, i] * case.k0[g, :, i]).sum()) for h in heads)
            for i in range(case.D)
        ]
        channels.append(sorted(range(case.D), key=lambda i: (-weight[i], i))[: case.D // share])
    assert selector.channels is not None
    np.testing.assert_array_equal(selector.channels, channels)

    # Labels are checked where their rounding is; scores then use them as they are.
    labels = [selector._labels(case.k[g][:, channels[g]]) for g in range(len(case.k))]
    for g, label in enumerate(labels):
        kept = case.k[g][:, channels[g]]
        span = kept.max(axis=1, keepdims=True) - kept.min(axis=1, keepdims=True)
        assert (abs(label - kept) <= span / 30 + 1e-5).all()
        for row, low, width in zip(label, kept.min(axis=1), span[:, 0], strict=True):
            steps = (row - low) / (width / 15 if width else 1)
            np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)

    got = selector(case.q, case.k, budget)
    for h, l in np.ndindex(case.H, case.L):
        g = h // case.G
        scores = labels[g][: case.own(l) + 1].astype(np.float64) @ case.q[h, l, channels[g]]
        chosen = got[h, l][got[h, l] >= 0]
        left = np.delete(scores, chosen)
        assert len(chosen) == min(budget, case.own(l) + 1)
        assert not left.size or scores[chosen].min() >= left.max() - 1e-4


def test_loki() -> None:
    case = normal(3, 6, 2, 200, 20, 16)
    got = Loki().fit(case.q0, case.k0)(case.q, case.k, 30)
    for h, l in np.ndindex(case.H, case.L):
        keys = case.k0[h // case.G].astype(np.float64)
        directions = np.linalg.svd(keys - keys.mean(axis=0))[2][:4]  # of the largest variance
        visible = case.k[h // case.G, : case.own(l) + 1]
        scores = visible @ directions.T @ (directions @ case.q[h, l])
        assert got[h, l].tolist() == best(scores.tolist(), 30)


@settings(max_examples=50)
@given(case=drawn(), budget=budgets)
def test_sign_hash(case: Case, budget: int) -> None:
    x, y = transform(case.q), transform(case.k)

    def score(h: int, l: int, j: int) -> float:
        return -sum(
            int((a > 0) != (b > 0)) for a, b in zip(x[h, l], y[h // case.G, j], strict=True)
        )

    expect_scores(case, SignHash()(case.q, case.k, budget), budget, score)


# Adamas.


@given(case=drawn(integers=False, dims=(4, 16, 20)), budget=budgets, data=st.data())
def test_adamas_is_the_library(case: Case, budget: int, data: st.DataObject) -> None:
    K = min(budget, case.S)
    metric, name = data.draw(st.sampled_from([("weighted", "weighted"), ("l1", "manhattan")]))
    options = {
        "query_bits": data.draw(st.integers(2, 8)),
        "sinks": data.draw(st.integers(0, K)),
        "prefilter": data.draw(st.sampled_from([0, 2, 5])),
    }
    options["recent"] = data.draw(st.integers(0, K - options["sinks"]))
    rule = data.draw(st.sampled_from(["rms", "quartiles", "published"]))
    selector = Adamas(metric=metric, thresholds=rule, **options).fit(case.q0, case.k0)
    assert selector.fitted is not None
    if rule == "published":
        assert (selector.fitted.thresholds == PAPER).all()
    codes = encode(case.k, selector.fitted.thresholds, backend="reference")
    expected = select_topk(case.q, codes, K, name, **options)
    # The same thresholds for what is computed in the selector's file.
    coder = replace(selector.fitted.coder, edges=selector.fitted.thresholds)
    query_edges = np.repeat(selector.fitted.thresholds, case.G, axis=0)
    here = replace(selector, fitted=replace(selector.fitted, coder=coder, query_edges=query_edges))
    np.testing.assert_array_equal(here._by_estimates(case.q, case.k, K), expected)
    np.testing.assert_array_equal(selector(case.q, case.k, budget), expected)


def test_adamas_computes_in_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    case = normal(4, 4, 2, 64, 5, 16)
    monkeypatch.setattr(Adamas, "_by_estimates", None)
    for options in [{}, {"metric": "l1"}, {"refine": 3, "sinks": 2}, {"thresholds": "published"}]:
        selector = Adamas(**options).fit(case.q0, case.k0)  # type: ignore[arg-type]
        assert selector(case.q, case.k, 9).shape == (4, 5, 9)


DISTANCES: dict[str, Callable[[int, int], int]] = {
    "l1": lambda c, e: abs(c - e),
    "l2": lambda c, e: (c - e) ** 2,
    "xor": lambda c, e: bin(c ^ e).count("1"),
}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("metric", DISTANCES)
@settings(max_examples=15)
@given(case=drawn(longest=40), budget=budgets)
def test_distances(metric: str, bits: int, own: bool, case: Case, budget: int) -> None:
    selector = Adamas(metric=metric, bits=bits, thresholds="quartiles", own_thresholds=own)
    selector = selector.fit(case.q0, case.k0)
    x, y, x0, y0 = (transform(a) for a in (case.q, case.k, case.q0, case.k0))
    share = np.arange(1, 2**bits) / 2**bits
    c = []
    for keys, sample in zip(y, y0, strict=True):
        edges = np.quantile(sample.astype(np.float32), share).astype(np.float32)
        c.append([level_codes(key, edges) for key in keys])
    e = []
    for h in range(case.H):
        sample = x0[h] if own else y0[h // case.G]
        edges = np.quantile(sample.astype(np.float32), share).astype(np.float32)
        e.append([level_codes(query, edges) for query in x[h]])

    def score(h: int, l: int, j: int) -> float:
        pairs = zip(c[h // case.G][j], e[h][l], strict=True)
        return -sum(DISTANCES[metric](a, b) for a, b in pairs)

    expect_scores(case, selector._by_estimates(case.q, case.k, min(budget, case.S)), budget, score)


def test_the_kernel_of_the_paper_confuses_the_middle() -> None:
    # Codes 1 and 2 are neighbours, but differ in both bits.
    k = np.array([[[-5, 0, 0, 0], [5, 0, 0, 0], [-15, 0, 0, 0]]], np.float32)
    q = np.array([[[5, 0, 0, 0]]], np.float32)
    options = {"transform": False, "thresholds": "published"}
    xor = Adamas(metric="xor", **options).fit(q, k)  # type: ignore[arg-type]
    l1 = Adamas(metric="l1", **options).fit(q, k)  # type: ignore[arg-type]
    own = np.array([2])
    np.testing.assert_array_equal(xor.estimates(0, q, k[0], own)[0, 0], [-2, 0, -1])
    np.testing.assert_array_equal(l1.estimates(0, q, k[0], own)[0, 0], [-1, 0, -2])


def approximation(
    x: Array, edges: Array, step: float, per_token: bool, scale: bool
) -> tuple[Array, Array]:
    """A key x (D,) as its codes stand for it, and the centred codes."""
    size = float(np.sqrt((x**2).mean())) if per_token else 1.0
    n = len(edges) + 1
    u = np.array([sum(edge * size < value for edge in edges) for value in x]) - (n - 1) / 2
    if scale:
        along = float(x @ u)
        ratio = float(x @ x) / along if along > 0 else 0.0
        step = 2.0 ** (min(max(round(16 * log(ratio, 2)), -128), 127) / 16) if ratio else 2.0**-8
    return u * step, u


@pytest.mark.parametrize("transformed", [True, False])
@pytest.mark.parametrize(
    ("rule", "bits", "scale", "block", "recode", "query_bits"),
    [
        ("rms", 1, False, 0, False, None),
        ("rms", 3, False, 0, False, 8),
        ("token", 2, False, 0, False, 4),
        ("token", 2, True, 0, False, None),
        ("token", 3, True, 8, False, 4),
        ("token", 2, True, 8, True, None),
        ("quartiles", 3, False, 8, True, 3),
        ("published", 2, True, 4, True, 8),
    ],
)
def test_estimated_logits(
    transformed: bool,
    rule: str,
    bits: int,
    scale: bool,
    block: int,
    recode: bool,
    query_bits: int | None,
) -> None:
    case = normal(5, 4, 2, 60, 11, 16)
    selector = Adamas(
        bits=bits,
        thresholds=rule,
        scale=scale,
        block=block,
        recode=recode,
        query_bits=query_bits,
        transform=transformed,
    ).fit(case.q0, case.k0)
    assert selector.fitted is not None
    turn = transform if transformed else (lambda a: a.astype(np.float64))
    x, y = turn(case.q), turn(case.k)
    wrong = []
    for g in range(2):
        edges = selector.fitted.coder.edges[g].astype(np.float64)
        step = float(selector.fitted.step[g])
        heads = slice(g * case.G, (g + 1) * case.G)
        own = np.arange(case.S - case.L, case.S)
        got = selector.estimates(g, case.q[heads], case.k[g], own)
        for i, l in np.ndindex(case.G, case.L):
            n = case.own(l) + 1
            assert (got[i, l, n:] == -np.inf).all()
            expected = np.zeros(n)
            query = x[g * case.G + i, l]
            weights = query
            if query_bits is not None:
                unit = abs(query).max() / (2 ** (query_bits - 1) - 1)
                weights = np.rint(query / unit) * unit
            for j in range(n):
                mean = np.zeros(case.D)
                if block:
                    full = (j // block + 1) * block <= n
                    first = j // block * block - (0 if recode and full else block)
                    if first >= 0:
                        mean = y[g, first : first + block].mean(axis=0).astype(np.float16)
                coded, _ = approximation(y[g, j] - mean, edges, step, rule == "token", scale)
                expected[j] = (weights @ coded + query @ mean) / case.D**0.5
            wrong.append(~np.isclose(got[i, l, :n], expected, rtol=1e-4, atol=2e-3))
    # float32 may round a coordinate, a mean or a scale to the other side, though rarely.
    assert np.concatenate(wrong).mean() <= 0.002


def test_thresholds_and_steps() -> None:
    rng = np.random.default_rng(6)
    k = 3 * rng.standard_normal((1, 1000, 64), dtype=np.float32)
    q = rng.standard_normal((1, 1000, 64), dtype=np.float32)
    size = float(np.sqrt((k.astype(np.float64) ** 2).mean()))

    def edges(**options: Any) -> Array:
        fitted = Adamas(**options).fit(q, k).fitted
        assert fitted is not None
        return fitted.coder.edges[0]

    np.testing.assert_allclose(edges(), [-0.996 * size, 0, 0.996 * size], rtol=1e-5)
    np.testing.assert_allclose(edges(stretch=1.5), [-1.494 * size, 0, 1.494 * size], rtol=1e-5)
    np.testing.assert_allclose(edges(bits=1), [0])
    np.testing.assert_allclose(
        edges(bits=3), np.array([-3, -2, -1, 0, 1, 2, 3]) * 0.586 * size, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(edges(thresholds="token"), [-0.996, 0, 0.996], rtol=1e-6)
    np.testing.assert_allclose(edges(thresholds="published"), [-10, 0, 10])
    np.testing.assert_allclose(
        edges(thresholds="quartiles"), np.array([-0.6745, 0, 0.6745]) * size, atol=0.03
    )
    # Of normal coordinates the best step of these quantizers is the distance of their edges.
    for bits, step in ((1, 1.5957), (2, 0.996), (3, 0.586)):
        fitted = Adamas(bits=bits).fit(q, k).fitted
        assert fitted is not None
        assert float(fitted.step[0]) == pytest.approx(step * size, rel=0.01)


@settings(max_examples=50)
@given(case=drawn(integers=False), budget=st.integers(1, 30), times=st.integers(1, 4))
def test_refine(case: Case, budget: int, times: int) -> None:
    plain = Adamas(bits=1).fit(case.q0, case.k0)
    candidates = plain(case.q, case.k, times * min(budget, case.S))

    def choose(h: int, l: int, K: int) -> list[int]:
        tokens = [int(j) for j in candidates[h, l] if j >= 0]
        exact = {j: float(case.q[h, l] @ case.k[h // case.G, j]) for j in tokens}
        return sorted(sorted(tokens, key=lambda j: exact[j], reverse=True)[:K])

    refined = Adamas(bits=1, refine=times).fit(case.q0, case.k0)
    expect(case, refined(case.q, case.k, budget), budget, choose)


def test_refining_all_is_exact() -> None:
    case = normal(7, 6, 2, 100, 8, 16)
    refined = Adamas(refine=10).fit(case.q0, case.k0)(case.q, case.k, 10)
    np.testing.assert_array_equal(refined, Exact()(case.q, case.k, 10))


@pytest.mark.parametrize("group", ["softmax", "integers", "nearest"])
def test_group(group: str) -> None:
    case = normal(8, 6, 2, 80, 7, 16)
    case.q *= 8  # logits down to where weights end
    selector = Adamas(group=group).fit(case.q0, case.k0)
    got = selector(case.q, case.k, 12)
    for g in range(2):
        heads = slice(3 * g, 3 * g + 3)
        own = np.arange(73, 80)
        logits = selector.estimates(g, case.q[heads], case.k[g], own)
        for l in range(7):
            z = logits[:, l, : case.own(l) + 1].astype(np.float64)
            scores = []
            for j in range(z.shape[1]):
                if group == "nearest":
                    scores.append(max(z[:, j]))
                elif group == "softmax":
                    scores.append(sum(1 / sum(exp(v - row[j]) for v in row) for row in z))
                else:
                    total = np.float32(0)
                    for row in z:
                        levels = [floor(np.float32(v) * np.float32(4 / log(2))) for v in row]
                        down = [max(levels) - level for level in levels]
                        weights = [round(2 ** (16 - i % 4 / 4)) >> i // 4 for i in down]
                        total += np.float32(weights[j]) * (1 / np.float32(sum(weights)))
                    scores.append(total)
            expected = best(scores, 12)
            for h in range(heads.start, heads.stop):
                assert got[h, l].tolist() == expected


@settings(max_examples=50)
@given(case=drawn(integers=False, longest=40), budget=st.integers(1, 20))
def test_adaptive_budgets(case: Case, budget: int) -> None:
    selector = AdaptiveBudgets(least=0.5, most=2.0).fit(case.q0, case.k0)
    got = selector(case.q, case.k, budget)
    K = min(budget, case.S)
    for l in range(case.L):
        n = case.own(l) + 1
        need: list[tuple[float, int]] = []
        ranked = []
        for h in range(case.H):
            g = h // case.G
            heads = slice(g * case.G, (g + 1) * case.G)
            own = np.array([case.own(l)])
            z = selector.inner.estimates(g, case.q[heads, l : l + 1], case.k[g], own)
            logits = z[h - heads.start, 0, :n].astype(np.float64)
            p = np.exp(logits - logits.max())
            p /= p.sum()
            ranked.append(sorted(range(n), key=lambda j: (logits[j], j), reverse=True))
            # First what every head has, then by weight, up to twice the budget.
            for place, j in enumerate(ranked[h][: 2 * K]):
                need.append((2.0 if place < max(K // 2, 1) else float(p[j]), h))
        need.sort(key=lambda item: (-item[0], item[1]))
        margin = [w for w, _ in need[case.H * K - 1 : case.H * K + 1]]
        if len(margin) == 2 and margin[0] - margin[1] < 1e-6:
            continue  # a tie, or one in float32
        for h in range(case.H):
            share = sum(1 for _, head in need[: case.H * K] if head == h)
            assert [j for j in got[h, l] if j >= 0] == sorted(ranked[h][:share]), (h, l)


def test_adaptive_budgets_have_an_equal_total() -> None:
    case = normal(9, 6, 2, 300, 5, 16)
    got = AdaptiveBudgets().fit(case.q0, 4 * case.k0)(case.q, 4 * case.k, 16)
    taken = (got >= 0).sum(axis=-1)
    np.testing.assert_array_equal(taken.sum(axis=0), 6 * 16)
    assert taken.min() >= 4 and taken.max() <= 64 and len(set(taken.ravel())) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "cosine"}, "metric='cosine'; expected one of"),
        ({"bits": 4}, "bits=4"),
        ({"thresholds": "mean"}, "thresholds='mean'"),
        ({"group": "sum"}, "group='sum'"),
        ({"refine": -1}, "refine=-1; expected at least 0"),
        ({"metric": "l1", "block": 64}, "need estimated logits, and metric='l1'"),
        ({"metric": "xor", "group": "integers"}, "group='integers' need estimated logits"),
        ({"own_thresholds": True}, "own_thresholds cut queries"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adamas(**options)


def test_wrong_options_of_adaptive_budgets() -> None:
    with pytest.raises(ValueError, match=r"least=0 and most=4\.0"):
        AdaptiveBudgets(least=0)
    with pytest.raises(ValueError, match="expected metric='weighted' without group"):
        AdaptiveBudgets(inner=Adamas(refine=2))


# Bytes at D = 128: kept a token, and read a step over 1000 tokens with a budget of 100.
BYTES: dict[str, tuple[float, float]] = {
    "full": (0, 0),
    "exact": (0, 256_000),
    "sliding-window": (0, 0),
    "streaming-llm": (0, 0),
    "h2o": (2, 200),
    "quest": (32, 32_000),
    "sparq": (256, 64_000),
    "double-sparsity": (8, 8_000),
    "double-sparsity-quarter": (20, 20_000),
    "loki": (0, 64_000),
    "sign-hash": (16, 16_000),
    "paper": (32, 32_000),
    "paper-xor": (32, 32_000),
    "paper-quartiles": (32, 32_000),
    "paper-own-quartiles": (32, 32_000),
    "adamas": (32, 32_000),
    "adamas-prefilter": (32, 16_000 + 800 * 16),
    "adamas-refine-2": (32, 32_000 + 100 * 256),
    "adamas-refine-4": (32, 32_000 + 300 * 256),
    "adamas-high-refine-4": (16, 16_000 + 300 * 256),
    "adamas-mean": (32 + 1 + 4, 37_000),
    "adamas-group": (32, 32_000),
    "adamas-adaptive": (32, 32_000),
}


def test_bytes() -> None:
    assert set(BYTES) == set(SELECTORS)
    for name, selector in SELECTORS.items():
        kept, read = selector.bytes_kept(128), selector.bytes_read(128, 1000, 100)
        assert (kept, read) == BYTES[name], name
        assert isinstance(selector.name, str)
    # No more tokens than there are: neither passed on nor ranked again.
    assert Adamas(prefilter=8).bytes_read(128, 500, 100) == 500 * 32
    assert Adamas(refine=4).bytes_read(128, 300, 100) == 300 * 32 + 200 * 256


def test_names_differ() -> None:
    names = [selector.name for selector in SELECTORS.values()]
    assert len(set(names)) == len(names)
