"""DecodeStep gives the result of the reference, and a call allocates nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_attention, assert_same_bits, exact_attention
from strategies import dtypes, seeds

from adamas_core import Selection, encode, encode_values, gpu, reference
from adamas_core.dispatch import on_host
from adamas_core.gpu.decode_step import DecodeStep, DeviceCache, device_cache, fill
from adamas_core.reference.layout import Centers, Codes, Values
from adamas_core.reference.quantize import from_planes

SELECTIONS = [
    Selection(metric=metric, query_bits=bits, sinks=1, recent=2)
    for metric, bits in [("weighted", 4), ("weighted", 3), ("manhattan", 4)]
]


@given(
    seed=seeds,
    dtype=dtypes,
    heads=st.sampled_from([(1, 1), (1, 4), (2, 3)]),
    D=st.sampled_from([32, 80, 128]),
    L=st.sampled_from([1, 1, 3]),
    selection=st.sampled_from(SELECTIONS),
    centered=st.booleans(),
)
@settings(max_examples=25)
def test_steps_of_a_growing_cache(
    device: Any,
    seed: int,
    dtype: np.dtype[Any],
    heads: tuple[int, int],
    D: int,
    L: int,
    selection: Selection,
    centered: bool,
) -> None:
    """One step serves lengths of each sequence from 0 to the end of the cache, and beyond it."""
    rng = np.random.default_rng(seed)
    (H_kv, G), B, capacity, budget = heads, 2, 300, 20
    t = None if centered else np.array([-1, 0, 1], np.float32)
    if centered:
        selection = replace(selection, metric="weighted")
    k, v = (rng.standard_normal((B, H_kv, capacity + L, D)).astype(dtype) for _ in "kv")
    cache = device_cache(B, H_kv, D, dtype, capacity, t)
    step = DecodeStep(H_kv * G, L, cache, budget, selection)
    for base in (0, 63, 61, int(rng.integers(0, capacity - L)), capacity - L):
        lengths = np.array([base, int(rng.integers(0, capacity - L + 1))])
        cache.lengths[:] = device.asarray(lengths, np.int32)
        for b, n in enumerate(lengths):
            cache.k[b, :, :n] = device.asarray(k[b, :, :n])
            cache.v[b, :, :n] = device.asarray(v[b, :, :n])
            encode_into(cache, b, int(n))
        q = rng.standard_normal((B, H_kv * G, L, D)).astype(dtype)
        new = [
            device.asarray(np.stack([x[b, :, n : n + L] for b, n in enumerate(lengths)]))
            for x in (k, v)
        ]
        given_q = device.asarray(q)
        with patch.multiple(device, empty=no_memory, zeros=no_memory):
            out = step(given_q, *new, cache)
        np.testing.assert_array_equal(on_host(cache.lengths), lengths + L)
        for b, n in enumerate(lengths):
            rows = k[b : b + 1, :, : n + L], v[b : b + 1, :, : n + L]
            codes = encode(rows[0], t, backend="reference", centered=centered).record
            assert_codes_of(cache, b, codes)
            indices = reference.select_topk(q[b : b + 1], codes, budget, selection)
            expected, _ = exact_attention(q[b : b + 1], *rows, indices)
            assert_attention(on_host(out)[b : b + 1], expected, dtype)
    step(given_q, *new, cache)  # after the end: nothing is written or read out of bounds


def encode_into(cache: DeviceCache, b: int, n: int) -> None:
    """Code the first n keys of sequence b, as a prompt is coded."""
    k, planes = cache.k[b : b + 1, :, :n], cache.planes[:, b : b + 1]
    if cache.centers is None:
        gpu.encode(k, cache.thresholds, planes, 0)
    else:
        own = Centers(*(x[b : b + 1] for x in cache.centers))
        gpu.encode_centered(k, cache.thresholds, planes, own)


def assert_codes_of(cache: DeviceCache, b: int, expected: Codes) -> None:
    """Sequence b has the codes and centers of the reference, to the bit."""
    S, T = int(expected.length), expected.planes.shape[3]
    planes = on_host(cache.planes)[:, b : b + 1, :, :T]
    got, wanted = (from_planes(x)[:, :, :S] for x in (planes, expected.planes))
    assert_same_bits(got, wanted)
    assert (cache.centers is None) == (expected.centers is None)
    if cache.centers is None or expected.centers is None:
        return
    means, scales, open_tile = (on_host(x)[b : b + 1] for x in cache.centers)
    assert_same_bits(means[:, :, :T], expected.centers.means)
    rows = scales.reshape(*scales.shape[:2], -1)[:, :, :S]
    assert_same_bits(rows, expected.centers.scales.reshape(*scales.shape[:2], -1)[:, :, :S])
    assert_same_bits(open_tile[:, :, : S % 64], expected.centers.open_tile[:, :, : S % 64])


@pytest.mark.parametrize("centered", [False, True])
def test_a_cache_that_grows_by_steps_alone(device: Any, centered: bool) -> None:
    """Several tiles become full, with one and with more than a tile of tokens per step."""
    rng = np.random.default_rng(0)
    for L, capacity, steps in [(1, 140, 135), (70, 300, 4)]:
        k, v, q = (rng.standard_normal((2, H, 300, 32)).astype(np.float32) for H in (2, 2, 4))
        t = None if centered else np.array([-1, 0, 1], np.float32)
        cache = device_cache(2, 2, 32, k.dtype, capacity, t)
        step = DecodeStep(4, L, cache, 9, Selection())
        for i in range(steps):
            new = (x[:, :, i * L : (i + 1) * L] for x in (q, k, v))
            step(*map(device.asarray, new), cache)
        n = steps * L
        assert on_host(cache.lengths).tolist() == [n, n]
        k, v, q = k[:, :, :n], v[:, :, :n], q[:, :, n - L : n]
        codes = encode(k, t, backend="reference", centered=centered).record
        for b in range(2):
            own = encode(k[b : b + 1], t, backend="reference", centered=centered).record
            assert_codes_of(cache, b, own)
        indices = reference.select_topk(q, codes, 9, Selection())
        expected, _ = exact_attention(q, k, v, indices)
        assert_attention(on_host(step.out), expected, k.dtype)


def test_four_launches(device: Any) -> None:
    """With several chunks; also the one that brings the last token of a tile."""
    from adamas_core.gpu import _launch

    plain = np.array([-1, 0, 1], np.float32)
    for t, tail, names in (
        (None, 0, ["begin_step", "select_centered", "merge_candidates", "attend"]),
        (plain, 0, ["begin_step", "select_chunks", "merge_candidates", "attend"]),
        (None, 30, ["begin_step", "select_centered", "choose_tiers", "attend_tail"]),
    ):
        cache = device_cache(1, 1, 32, np.dtype(np.float32), 300, t, tail > 0)
        cache.lengths[:] = 63
        step = DecodeStep(1, 1, cache, 9, Selection(tail=tail))
        x = device.zeros((1, 1, 1, 32), np.float32)
        with patch.object(_launch.device(), "launch") as launch:
            step(x, x, x, cache)
        assert [call.args[0].name for call in launch.call_args_list] == names


@pytest.mark.parametrize("centered", [False, True])
def test_a_prompt(device: Any, centered: bool) -> None:
    """It replaces what the cache held, and each sequence takes its own number of tokens."""
    rng = np.random.default_rng(0)
    k, v = (rng.standard_normal((2, 2, 150, 32)).astype(np.float32) for _ in "kv")
    t = None if centered else np.array([-1, 0, 1], np.float32)
    cache = device_cache(2, 2, 32, k.dtype, 200, t)
    for rows, n in (((v, k), 150), ((k, v), np.array([130, 20]))):
        fill(cache, *map(device.asarray, rows), n)
        assert on_host(cache.lengths).tolist() == np.broadcast_to(n, 2).tolist()
    for b, n in enumerate((130, 20)):
        np.testing.assert_array_equal(on_host(cache.v)[b, :, :n], v[b, :, :n])
        own = encode(k[b : b + 1, :, :n], t, backend="reference", centered=centered).record
        assert_codes_of(cache, b, own)


# ---- with a tail --------------------------------------------------------------------------------


def test_steps_with_a_tail(device: Any) -> None:
    """A cache that is filled and then grows: codes and sums to the bit, and the attention."""
    rng = np.random.default_rng(0)
    selection = Selection(sinks=1, tail=40)
    for L, capacity, prompt, steps in [(1, 200, [62, 125], 4), (70, 300, [3, 0], 3)]:
        n = np.array(prompt)
        k, v = (rng.standard_normal((2, 2, 300, 48)).astype(np.float16) for _ in "kv")
        cache = device_cache(2, 2, 48, k.dtype, capacity, tail=True)
        S = max(prompt)
        fill(cache, device.asarray(k[:, :, :S]), device.asarray(v[:, :, :S]), n)
        step = DecodeStep(4, L, cache, 9, selection)
        for _ in range(steps):
            q = rng.standard_normal((2, 4, L, 48)).astype(np.float16)
            new = [
                device.asarray(np.stack([x[b, :, i : i + L] for b, i in enumerate(n)]))
                for x in (k, v)
            ]
            given_q = device.asarray(q)
            with patch.multiple(device, empty=no_memory, zeros=no_memory):
                step(given_q, *new, cache)
            n = n + L
            assert on_host(cache.lengths).tolist() == n.tolist()
        for b, end in enumerate(map(int, n)):
            rows = k[b : b + 1, :, :end], v[b : b + 1, :, :end]
            codes = encode(rows[0], backend="reference", bits=3).record
            values = encode_values(rows[1], backend="reference").record
            assert_codes_of(cache, b, codes)
            assert_tail_of(cache, b, codes, values)
            expected, lse = reference.attend_tail(
                q[b : b + 1].astype(np.float32), *rows, codes, values, 9, selection
            )
            got = on_host(step.out)[b : b + 1]
            assert_attention(got, expected.astype(np.float64), k.dtype, 4e-6)
            np.testing.assert_allclose(on_host(step.lse)[b : b + 1], lse, rtol=4e-6, atol=8e-6)


def assert_tail_of(cache: DeviceCache, b: int, codes: Codes, values: Values) -> None:
    """Sequence b has these third bits, codes of values and sums, to the bit."""
    assert cache.fine is not None
    assert cache.values is not None
    assert codes.fine is not None
    S = int(codes.length)
    for got, wanted in zip(cache.fine, codes.fine, strict=True):
        tokens = (1, codes.fine.bits.shape[1], -1, *wanted.shape[4:])
        own = on_host(got)[b : b + 1].reshape(tokens)
        assert_same_bits(own[:, :, :S], wanted.reshape(tokens)[:, :, :S])
    for got, wanted in zip(cache.values[:2], values[:2], strict=True):
        rows = (1, wanted.shape[1], -1, *wanted.shape[4:])
        own = on_host(got)[b : b + 1].reshape(rows)
        assert_same_bits(own[:, :, :S], wanted.reshape(rows)[:, :, :S])
    for got, wanted in zip(cache.values[2:], values[2:], strict=True):
        assert_same_bits(on_host(got)[b : b + 1], wanted)


def test_a_tail_needs_a_cache_with_room_for_it(device: Any) -> None:
    cache = device_cache(1, 1, 32, np.dtype(np.float32), 64)
    with pytest.raises(
        ValueError, match=r"DecodeStep: selection has tail=9 and the cache has no c"
    ):
        DecodeStep(2, 1, cache, 8, Selection(tail=9))
    with pytest.raises(ValueError, match=r"device_cache: tail=True with thresholds; expected no"):
        device_cache(1, 1, 32, np.dtype(np.float32), 64, np.array([-1, 0, 1], np.float32), True)


@pytest.mark.parametrize("selection", [Selection(refine=2), Selection(group=True)])
def test_unsupported_options_are_refused(device: Any, selection: Selection) -> None:
    cache = device_cache(1, 1, 32, np.dtype(np.float32), 64, np.array([-1, 0, 1], np.float32))
    with pytest.raises(ValueError, match=r"DecodeStep: .* expected refine=0 and group=False"):
        DecodeStep(2, 1, cache, 8, selection)


def test_manhattan_needs_plain_codes(device: Any) -> None:
    cache = device_cache(1, 1, 32, np.dtype(np.float32), 64)
    with pytest.raises(ValueError, match=r"DecodeStep: .* expected metric='weighted', or a cache"):
        DecodeStep(2, 1, cache, 8, Selection(metric="manhattan"))


def no_memory(*_: Any, **__: Any) -> None:
    raise AssertionError("a step must not allocate")
