"""The tail at positions: each query gets what a cache of the tokens that it sees gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adamas_core import (
    Centers,
    Codes,
    KeyCodes,
    KVCache,
    Selection,
    Softmax,
    attend,
    attend_tail,
    decode_attention,
    encode,
    encode_values,
    reference,
    select_topk,
)
from adamas_core.dispatch import on_host

Place = Callable[[NDArray[Any]], Any]
# Two sums of the same float32 numbers, in different orders.
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def alone(
    q: Any, k: Any, v: Any, codes: Any, values: Any, seen: NDArray[Any], K: int, softmax: Softmax
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The reference, query by query, with codes whose length is what the query sees."""
    B, H, L, _ = q.shape
    out, lse = np.zeros((B, H, L, v.shape[3]), np.float32), np.zeros((B, H, L), np.float32)
    for b, l in np.ndindex(B, L):
        n, one = int(seen[b, l]), slice(b, b + 1)
        own = codes._replace(
            planes=codes.planes[:, one],
            length=n,
            centers=type(codes.centers)(*(x[one] for x in codes.centers)),
            fine=type(codes.fine)(*(x[one] for x in codes.fine)),
        )
        total = v[one, :, :n].astype(np.float64).sum(axis=2).astype(np.float32)
        held = values._replace(
            codes=values.codes[one], scales=values.scales[one], bases=values.bases[one], total=total
        )
        rows = q[one, :, l : l + 1], k[one], v[one, :, :n]
        found = reference.attend_tail(*rows, own, held, K, Selection(tail=40), softmax)
        out[b, :, l], lse[b, :, l] = found[0][0, :, 0], found[1][0, :, 0]
    return out, lse


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@settings(max_examples=60)
@given(
    S=st.integers(1, 300),
    L=st.integers(1, 5),
    shape=st.sampled_from(["all", "rising", "alike", "any"]),
    ragged=st.booleans(),
    sinks=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_query_attends_as_it_would_alone(
    backend: str, S: int, L: int, shape: str, ragged: bool, sinks: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = (
        normal(2, h, n, 32, seed=seed + i) for i, (h, n) in enumerate([(4, L), (2, S), (2, S)])
    )
    lengths = rng.integers(0, S + 1, 2) if ragged else np.full(2, S)
    if lengths.max() == 0:
        return
    last = rng.integers(0, lengths + 1)[:, None]
    seen = {
        "all": np.repeat(lengths[:, None], L, axis=1),
        "rising": np.maximum(last - np.arange(L)[::-1], 0),
        "alike": np.repeat(last, L, axis=1),
        "any": rng.integers(0, lengths[:, None] + 1, (2, L)),
    }[shape]
    codes = encode(k, length=lengths, bits=3, backend=backend)
    values = encode_values(v, length=lengths, backend=backend)
    softmax = Softmax(scale=0.4, sink_logits=[-1, 0, 1, -np.inf] if sinks else None)
    K = min(9, codes.tokens)
    at = "all" if shape == "all" else seen - 1
    args = (q, k, v, codes, values, K, Selection(tail=40), softmax, True, at)
    out, lse = attend_tail(*args)
    expected = alone(q, k, v, codes.record, values.record, seen, K, softmax)
    np.testing.assert_allclose(out, expected[0], **CLOSE)
    np.testing.assert_allclose(lse, expected[1], **CLOSE)


@pytest.mark.parametrize("at", ["all", [40, -1, 150, 151], [196, 197, 198, 199]])
def test_on_each_device(place: Place, at: Any) -> None:
    q, k, v = normal(2, 4, 4, 32), normal(2, 2, 200, 32, seed=1), normal(2, 2, 200, 32, seed=2)
    cache, here = (KVCache(selection=Selection(tail=40)) for _ in range(2))
    cache.append(place(k), place(v))
    here.append(k, v)
    seen = np.full((2, 4), 200) if at == "all" else np.broadcast_to(np.array(at) + 1, (2, 4))
    codes, values = encode(k, bits=3), encode_values(v)
    expected, expected_lse = alone(q, k, v, codes.record, values.record, seen, 9, Softmax())
    out, lse = decode_attention(place(q), cache, 9, return_lse=True, positions=at)
    np.testing.assert_allclose(on_host(out), expected, **CLOSE)
    np.testing.assert_allclose(on_host(lse), expected_lse, **CLOSE)
    there = [place(x) for x in (q, k, v)]
    own = encode(there[1], bits=3), encode_values(there[2])
    out = on_host(attend_tail(*there, *own, 9, tail=40, positions=at))
    np.testing.assert_allclose(out, expected, **CLOSE)


def test_a_position_far_back_reads_a_mark_and_few_values() -> None:
    """The mean of the rest is that of the tokens before the position, as in a cut cache."""
    q, k, v = normal(2, 1, 16), normal(2, 9000, 16, seed=1), normal(2, 9000, 16, seed=2)
    v += np.arange(9000, dtype=np.float32)[:, None] / 1000
    cache = KVCache(selection=Selection(tail=8), backend="reference")
    cache.append(k, v)
    got = decode_attention(q, cache, 4, positions=[4999])
    codes, values = encode(k, bits=3), encode_values(v)
    seen = np.array([[5000]])
    rows = (x[None] for x in (q, k, v))
    expected, _ = alone(*rows, codes.record, values.record, seen, 4, Softmax())
    exact = attend(q, k, v, None, positions=[4999])
    np.testing.assert_allclose(got, exact, atol=0.2)
    assert np.abs(got - expected[0]).max() < 0.1  # `alone` has a tail of 40
    assert np.abs(attend(q, k, v, None) - exact).max() > 0.5


@pytest.mark.parametrize("kind", ["group", "refine", "plain"])
@pytest.mark.parametrize("scale", [None, 0.01, 2.0])
def test_a_step_selects_by_the_scale_that_it_is_given(place: Place, kind: str, scale: Any) -> None:
    """A group's shares depend on the scale, in select_topk, decode_attention and KVCache alike."""
    q, k, v = normal(1, 4, 1, 32), normal(1, 2, 200, 32, seed=1), normal(1, 2, 200, 32, seed=2)
    options: dict[str, Any] = {"group": {"group": True}, "refine": {"refine": 2}, "plain": {}}[kind]
    selection = Selection(tail=0, **options)
    there = [place(x) for x in (q, k, v)]
    thresholds = [-1, 0, 1] if kind == "plain" else None
    cache = KVCache(selection=selection, thresholds=thresholds)
    cache.append(*there[1:])
    got = decode_attention(there[0], cache, 12, scale=scale)
    codes = cache[0].codes.record
    own = Codes(
        on_host(codes.planes),
        codes.length,
        on_host(codes.thresholds),
        codes.centers and Centers(*map(on_host, codes.centers)),
    )
    softmax = Softmax(scale=scale)
    indices = reference.select_topk(q, own, 12, selection, k, softmax)
    expected = reference.attend(q, k, v, indices, softmax)
    np.testing.assert_allclose(on_host(got), expected, atol=2e-6)
    shorter = KVCache(selection=selection, thresholds=thresholds)
    shorter.append(*(x[:, :, :-1] for x in there[1:]))
    stepped = shorter.attention(12, scale=scale)(0, there[0], *(x[:, :, -1:] for x in there[1:]))
    np.testing.assert_allclose(on_host(stepped), on_host(got), atol=2e-6)


@pytest.mark.parametrize("group", [False, True])
def test_queries_that_see_the_same_tokens_choose_for_themselves(place: Place, group: bool) -> None:
    q, k, v = normal(1, 4, 3, 32), normal(1, 2, 200, 32, seed=1), normal(1, 2, 200, 32, seed=2)
    cache = KVCache(selection=Selection(tail=0, group=group))
    cache.append(place(k), place(v))
    got = on_host(decode_attention(place(q), cache, 9, positions="all"))
    for l in range(3):
        one = place(np.ascontiguousarray(q[:, :, l : l + 1]))
        expected = on_host(decode_attention(one, cache, 9))
        np.testing.assert_allclose(got[:, :, l : l + 1], expected, atol=2e-6)


def test_the_scale_changes_the_choice_of_a_group() -> None:
    q, k = normal(2, 8, 1, 64), normal(2, 2, 400, 64, seed=1)
    q[:, 1:] *= 3
    codes = encode(k)
    chosen = [select_topk(q, codes, 12, group=True, scale=s) for s in (0.001, 0.125, 2.0)]
    assert (chosen[0] != chosen[1]).any()
    assert (chosen[1] != chosen[2]).any()
    assert isinstance(codes, KeyCodes)
