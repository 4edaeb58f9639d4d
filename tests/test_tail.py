"""attend_tail: against float64, within stated tolerances, and its tiers to the bit."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_attention, assert_same_bits, exact_attention, exact_tail, noise
from strategies import UNIT, VALUES, Case, cases, coded_values, selections, softmaxes

from adamas_core import Selection, Softmax, attend_tail, encode, encode_values, merge, reference
from adamas_core.reference.center import (
    CENTERED_THRESHOLDS,
    FINE_NOISE,
    NOISE,
    code,
    refine,
    scale_byte,
    scale_of,
)
from adamas_core.reference.estimate import rank
from adamas_core.reference.layout import Codes, Values
from adamas_core.reference.score import visible_tokens
from adamas_core.reference.tail import estimated, tiers
from adamas_core.reference.values import total_of


@st.composite
def tails(draw: st.DrawFn, S: int) -> tuple[int, Selection]:
    """A budget, and a selection with a tail: below the tokens that are left, or above them."""
    options = {"refine": draw(st.sampled_from([0, 0, 2])), "query_bits": draw(st.integers(2, 6))}
    return draw(selections(S, tail=draw(st.integers(1, S + 20)), **options))


def assert_lse(got: NDArray[Any], exact: NDArray[np.float64], error: NDArray[np.float64]) -> None:
    assert (got.shape, got.dtype) == (exact.shape, np.dtype(np.float32))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(exact))
    seen = np.isfinite(exact)
    bound = 4e-6 + 2e-6 * np.abs(exact[seen]) + error[seen]
    assert (np.abs(got[seen] - exact[seen]) <= bound).all()


def assert_within(
    backend: ModuleType, case: Case, budget: int, selection: Selection, softmax: Softmax
) -> None:
    """attend_tail gives float64's results, within the error of float32."""
    values = coded_values(case.v, case.length)
    out, lse = backend.attend_tail(*case[:3], case.codes, values, budget, selection, softmax)
    known = tiers(case.q, case.codes, budget, selection, case.k)
    both = tuple(estimated(case.q, case.codes, selection, fine)[0] for fine in (False, True))
    expected, expected_lse, error = exact_tail(case, values, known, both, softmax)
    largest = np.abs(case.v.astype(np.float64)).max(initial=1)
    assert_attention(out, expected, case.q.dtype, largest * error[..., None])
    assert_lse(lse, expected_lse, error)


@given(case=cases(UNIT, centered=True), data=st.data())
def test_within_tolerance(every: ModuleType, case: Case, data: st.DataObject) -> None:
    budget, selection = data.draw(tails(case.tokens))
    softmax = Softmax(data.draw(st.sampled_from([None, 0.05, 1.0 / case.q.shape[-1]])))
    assert_within(every, case, budget, selection, softmax)


@given(case=cases(UNIT, centered=True, own_values=True), data=st.data())
def test_caps_sinks_and_values_of_another_head_dim(
    backend: ModuleType, case: Case, data: st.DataObject
) -> None:
    budget, selection = data.draw(tails(case.tokens))
    assert_within(backend, case, budget, selection, data.draw(softmaxes(case.q.shape[1])))


@given(case=cases(VALUES, centered=True), data=st.data())
def test_tiers_by_sorting(case: Case, data: st.DataObject) -> None:
    """Two bits choose the tokens of both tiers, three bits their order; no token is in both."""
    budget, selection = data.draw(tails(case.tokens))
    exact, coded = tiers(case.q, case.codes, budget, selection, case.k)
    assert coded.shape == (*case.q.shape[:3], min(selection.tail, case.tokens))
    by_two = rank(*estimated(case.q, case.codes, selection))
    estimates, distances = estimated(case.q, case.codes, selection, fine=True)
    by_three = rank(estimates, distances)
    seen = visible_tokens(np.broadcast_to(case.length, len(case.q)), case.q.shape[2])
    sinks, recent = selection.sinks, selection.recent
    for b, h, l in np.ndindex(coded.shape[:3]):
        n = int(seen[b, l])
        forced = set(range(min(sinks, n))) | set(range(max(n - recent, 0), n))
        sought = max(budget + selection.tail, selection.refine * budget)

        def best(tokens: Any, ranks: Any, count: int, row: Any = (b, h, l)) -> list[int]:
            nearest = sorted(tokens, key=lambda i: (i not in forced, ranks[row][i], -i))  # noqa: B023
            return sorted(nearest[:count])

        candidates = best(range(n), by_two, sought)
        first, second = (x[b, h, l][x[b, h, l] >= 0].tolist() for x in (exact, coded))
        if selection.refine == 0:
            assert first == best(candidates, by_three, budget)
        else:
            assert set(first) <= set(best(candidates, by_three, selection.refine * budget))
        forced = set()
        assert second == best(set(candidates) - set(first), by_three, selection.tail)
        assert (coded[b, h, l, len(second) :] == -1).all()


@given(case=cases(UNIT, centered=True), data=st.data())
def test_no_tail_is_pure_selection(every: ModuleType, case: Case, data: st.DataObject) -> None:
    budget, selection = data.draw(selections(case.tokens, tail=0))
    values = coded_values(case.v, case.length)
    got = every.attend_tail(*case[:3], case.codes, values, budget, selection)
    expected = every.attend_topk(*case[:3], case.codes, budget, selection)
    for x, y in zip(got, expected, strict=True):
        assert_same_bits(x, y)


def made(S: int, length: Any = None, L: int = 1, seed: int = 0) -> tuple[Case, Values]:
    """Two sequences of unit scale, 4 query heads on 2 KV heads, head_dim 48."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((2, 4, L, 48)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, 2, S, 48)).astype(np.float32)
    length = S if length is None else length
    codes = encode(k, length=length, backend="reference", bits=3).record
    return Case(q, k, v, codes, length), coded_values(v, length)


def test_a_budget_for_all_is_dense(every: ModuleType) -> None:
    case, values = made(100, L=3)
    out, lse = every.attend_tail(*case[:4], values, 100, Selection(tail=5))
    expected, expected_lse = exact_attention(*case[:3], None)
    assert_attention(out, expected, np.dtype(np.float32))
    np.testing.assert_allclose(lse, expected_lse, rtol=2e-6, atol=4e-6)


def test_a_tail_for_all_needs_no_mean(every: ModuleType) -> None:
    """With no token left for the last tier, the sum of values changes nothing."""
    case, values = made(200)
    selection = Selection(tail=190)
    other = values._replace(total=values.total + np.float32(1e6))
    got = every.attend_tail(*case[:4], values, 10, selection)
    expected = every.attend_tail(*case[:4], other, 10, selection)
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-6)
    short = every.attend_tail(*case[:4], other, 10, replace(selection, tail=189))
    assert np.abs(short[0] - got[0]).max() > 0.01


def test_a_tail_may_be_longer_than_any_cache(every: ModuleType) -> None:
    case, values = made(200)
    got = every.attend_tail(*case[:4], values, 10, Selection(tail=2**40))
    expected = every.attend_tail(*case[:4], values, 10, Selection(tail=190))
    for x, y in zip(got, expected, strict=True):
        assert_same_bits(x, y)


def test_closer_to_full_attention_than_selection(every: ModuleType) -> None:
    case, values = made(1000)
    full, full_lse = exact_attention(*case[:3], None)

    def error(tail: int) -> tuple[float, float]:
        out, lse = every.attend_tail(*case[:4], values, 32, Selection(tail=tail))
        return float(np.linalg.norm(out - full)), float(np.abs(lse - full_lse).max())

    (nothing, no_mass), (few, mass), (many, _) = map(error, (0, 1, 500))
    assert many < few < nothing / 4
    assert mass < no_mass / 10


def test_a_block_is_single_steps(every: ModuleType) -> None:
    """Each query sees the tokens up to itself, in a tile that does not become full."""
    case, _ = made(125, L=5)
    selection = Selection(tail=40)
    values = coded_values(case.v, 125)
    out, lse = every.attend_tail(*case[:4], values, 16, selection)
    for l in range(5):
        n = 121 + l
        codes = encode(case.k[:, :, :n], backend="reference", bits=3).record
        step = (case.q[:, :, l : l + 1], case.k[:, :, :n], case.v[:, :, :n], codes)
        own = coded_values(case.v[:, :, :n], n)
        expected, expected_lse = every.attend_tail(*step, own, 16, selection)
        np.testing.assert_allclose(out[:, :, l : l + 1], expected, atol=4e-6)
        np.testing.assert_allclose(lse[:, :, l : l + 1], expected_lse, rtol=2e-6, atol=4e-6)


def test_empty_sequences_and_one_token(every: ModuleType) -> None:
    length = np.array([0, 1])
    case, values = made(70, length, L=2)
    out, lse = every.attend_tail(*case[:4], values, 3, Selection(tail=2))
    assert not out[0].any()
    assert (lse[0] == -np.inf).all()
    assert (lse[1, :, 0] == -np.inf).all()
    np.testing.assert_allclose(out[1, :, 1], np.repeat(case.v[1, :, 0], 2, axis=0), atol=2e-6)


def shard(
    case: Case, values: Values, part: slice
) -> tuple[Codes, Values, NDArray[Any], NDArray[Any]]:
    """Whole tiles of a case and of its coded values, which keep the bases of the whole."""
    k, v = case.k[:, :, part], case.v[:, :, part]
    tile = slice((part.start or 0) // 64, part.stop // 64)
    bases = values.bases.copy()
    if part.start:
        bases[:, :, 0] = bases[:, :, 1]
    held = values.codes[:, :, tile], values.scales[:, :, tile]
    own = Values(*held, bases, total_of(v, v.shape[2]))
    return encode(k, backend="reference", bits=3).record, own, k, v


def test_shards_merge(every: ModuleType) -> None:
    """Two shards, cut between tiles, of which each has the whole's tokens in each tier.

    The second half repeats the values of the first, so the means of all values are equal.
    """
    whole, _ = made(256)
    v = whole.v.copy()
    v[:, :, 128:] = v[:, :, :128]
    case = whole._replace(v=v)
    budget, selection = 24, Selection(tail=50)
    known = tiers(case.q, case.codes, budget, selection)
    for b, h in np.ndindex(2, 4):
        one = (slice(b, b + 1), slice(h // 2, h // 2 + 1))
        q, own = case.q[b : b + 1, h : h + 1], case._replace(k=case.k[one], v=case.v[one])
        values = coded_values(own.v, 256)
        parts = []
        for part in slice(128), slice(128, 256):
            inside = [((t >= part.start) if part.start else (t >= 0) & (t < 128)) for t in known]
            first, second = (int(i[b, h, 0].sum()) for i in inside)
            assert min(first, second) > 0
            codes, coded, k, v = shard(own, values, part)
            of_part = replace(selection, tail=second)
            parts.append(every.attend_tail(q, k, v, codes, coded, first, of_part))
        out, lse = merge(*zip(*parts, strict=True))
        codes, coded, k, v = shard(own, values, slice(256))
        expected, expected_lse = every.attend_tail(q, k, v, codes, coded, budget, selection)
        np.testing.assert_allclose(out, expected, atol=4e-6)
        np.testing.assert_allclose(lse, expected_lse, rtol=2e-6, atol=4e-6)


# ---- the noise of estimates, and the sum of values ----------------------------------------------


def test_the_noise_by_integration() -> None:
    assert pytest.approx(noise(2), rel=1e-6) == NOISE
    assert pytest.approx(noise(3), rel=1e-6) == FINE_NOISE


def test_the_noise_of_real_codes() -> None:
    """In many coordinates the codes of normal numbers have this noise."""
    x = np.random.default_rng(0).standard_normal((200, 2048)).astype(np.float32)
    number, scale = code(x, CENTERED_THRESHOLDS)
    third, finer = refine(x, number, scale)
    two = number - 1.5
    for u, s, expected in ((two, scale, NOISE), (two + third / 2 - 0.25, finer, FINE_NOISE)):
        np.testing.assert_allclose(s, (x * x).sum(axis=1) / (x * u).sum(axis=1), rtol=1e-5)
        share = np.square(u * s[:, None] - x).sum(axis=1) / (2048 * s**2)
        assert pytest.approx(share.mean(), rel=0.01) == expected
        np.testing.assert_allclose(scale_of(scale_byte(s)), s, rtol=1 / 16)


def test_estimates_without_bias() -> None:
    """The mean of exp(estimate - variance / 2) over random directions is that of exp(logit)."""
    rng = np.random.default_rng(1)
    q = rng.standard_normal((1, 1, 1, 128)).astype(np.float32) * np.float32(2)
    k = rng.standard_normal((1, 1, 20000, 128)).astype(np.float32)
    v = np.zeros_like(k)
    codes = encode(k, backend="reference", bits=3).record
    _, lse = reference.attend_tail(q, k, v, codes, coded_values(v, 20000), 1, Selection(tail=1))
    _, full = exact_attention(q, k, v, None)
    uncorrected = np.log(np.exp(estimated(q, codes, Selection())[0] * 128**-0.5).sum())
    assert abs(float(lse[0, 0, 0] - full[0, 0, 0])) < 0.05
    assert float(uncorrected - full[0, 0, 0]) > 0.15


@settings(max_examples=100)
@given(case=cases(UNIT))
def test_the_sum_of_values(case: Case) -> None:
    total = total_of(case.v, case.length)
    assert (total.shape, total.dtype) == ((*case.v.shape[:2], case.v.shape[3]), np.float32)
    for b, n in enumerate(np.broadcast_to(case.length, len(case.v))):
        own = case.v[b, :, :n].astype(np.float64)
        error = 2.0**-24 * (64 + n / 64) * np.abs(own).sum(axis=1)
        assert (np.abs(total[b] - own.sum(axis=1)) <= error).all()


def test_the_order_of_the_sum() -> None:
    """In a tile token by token, then tile by tile."""
    v = np.random.default_rng(2).standard_normal((1, 1, 150, 3)).astype(np.float32)
    expected = np.zeros(3, np.float32)
    for first in (0, 64, 128):
        tile = np.zeros(3, np.float32)
        for row in v[0, 0, first : first + 64]:
            tile = tile + row
        expected = expected + tile
    assert_same_bits(total_of(v, 150)[0, 0], expected)


# ---- the public function ------------------------------------------------------------------------


def test_the_public_function_is_the_backends() -> None:
    case, values = made(200, L=2)
    codes = encode(case.k, backend="reference", bits=3)
    own = encode_values(case.v, backend="reference")
    selection = Selection(sinks=2, tail=30)
    out, lse = attend_tail(*case[:3], codes, own, 12, selection, Softmax(0.1), return_lse=True)
    expected, expected_lse = reference.attend_tail(*case[:4], values, 12, selection, Softmax(0.1))
    assert_same_bits(out, expected)
    assert_same_bits(lse, expected_lse)
    by_keywords = attend_tail(*case[:3], codes, own, 12, scale=0.1, sinks=2, tail=30)
    assert_same_bits(by_keywords, expected)


def test_without_a_batch_axis_and_with_room_after_the_tokens() -> None:
    case, _ = made(200)
    q, k, v = (x[0] for x in case[:3])
    codes = encode(k[:, :150], backend="reference", bits=3)
    values = encode_values(v[:, :150], backend="reference")
    got = attend_tail(q, k, v, codes, values, 12, tail=30)
    expected = attend_tail(q, k[:, :150], v[:, :150], codes, values, 12, tail=30)
    assert got.shape == q.shape
    assert_same_bits(got, expected)


@pytest.mark.peers
def test_arrays_of_torch() -> None:
    torch = pytest.importorskip("torch")
    case, _ = made(200)
    q, k, v = (torch.from_numpy(x).to(torch.bfloat16) for x in case[:3])
    codes = encode(k, backend="reference", bits=3)
    values = encode_values(v, backend="reference")
    out, lse = attend_tail(q, k, v, codes, values, 12, return_lse=True, tail=30)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    q, k, v = (x.float().numpy() for x in (q, k, v))
    codes = encode(k, backend="reference", bits=3)
    values = encode_values(v, backend="reference")
    expected = attend_tail(q, k, v, codes, values, 12, tail=30)
    np.testing.assert_allclose(out.float().numpy(), expected, atol=0.02)
