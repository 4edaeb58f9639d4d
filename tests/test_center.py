"""encode_centered: the reference against plain arithmetic, and every backend to the bit."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_same_bits
from strategies import DTYPES, FINITE, VALUES, head_dims, laid_out, layouts, seeds, values

from adamas_core import reference
from adamas_core.reference.center import CENTERED_THRESHOLDS as T3
from adamas_core.reference.center import scale_byte, scale_of
from adamas_core.reference.layout import Centers, Fine, padded, tiles, words
from adamas_core.reference.quantize import from_planes, unpack_bits


def third(B: int, H_kv: int, S: int, D: int) -> Fine:
    """Room for third bits of S tokens, filled with other numbers."""
    bits = np.full((B, H_kv, tiles(S), 64, words(D)), 7, np.uint64)
    return Fine(bits, np.full((B, H_kv, tiles(S), 64), 7, np.uint8))


def empty(B: int, H_kv: int, S: int, D: int) -> tuple[NDArray[np.uint64], Centers]:
    """Planes and centers with room for S tokens, filled with other numbers."""
    Dt, T = padded(D), tiles(S)
    planes = np.full((2, B, H_kv, T, 8, words(D), 8), 7, np.uint64)
    means = np.full((B, H_kv, T, Dt), 7, np.float16)
    scales = np.full((B, H_kv, T, 64), 7, np.uint8)
    return planes, Centers(means, scales, np.full((B, H_kv, 64, Dt), 7, np.float32))


@st.composite
def appends(
    draw: st.DrawFn,
) -> list[tuple[NDArray[Any], int | NDArray[np.int64], int | NDArray[np.int64]]]:
    """The arguments of several calls in order: keys (B, H_kv, S, D), start, count."""
    B, H_kv, D = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(head_dims)
    kind, dtype, ragged = (
        draw(st.sampled_from(VALUES)),
        draw(st.sampled_from(DTYPES)),
        draw(st.booleans()),
    )
    calls, start = [], np.zeros(B, np.int64)
    for S in draw(st.lists(st.sampled_from([0, 1, 2, 5, 63, 64, 65, 150]), min_size=1, max_size=4)):
        k = laid_out(values(kind, (B, H_kv, S, D), dtype, draw(seeds)), draw(layouts))
        if ragged:
            count = np.array(draw(st.lists(st.integers(0, S), min_size=B, max_size=B)))
            calls.append((k, start.copy(), count))
            start += count
        else:
            calls.append((k, int(start[0]), S))
            start += S
    return calls


@settings(max_examples=100)
@given(calls=appends(), fine=st.booleans())
def test_bits(kernels: ModuleType, calls: list[Any], fine: bool) -> None:
    """Planes, centers and third bits, and nothing else is written."""
    B, H_kv, _, D = calls[0][0].shape
    room = sum(k.shape[2] for k, _, _ in calls) + 70
    mine, expected = empty(B, H_kv, room, D), empty(B, H_kv, room, D)
    bits, wanted_bits = third(B, H_kv, room, D), third(B, H_kv, room, D)
    for k, start, count in calls:
        kernels.encode_centered(k, T3, *mine, start, count, bits if fine else None)
        reference.encode_centered(k, T3, *expected, start, count, wanted_bits if fine else None)
    assert_same_bits(mine[0], expected[0])
    for got, wanted in zip((*mine[1], *bits), (*expected[1], *wanted_bits), strict=True):
        assert_same_bits(got, wanted)


@settings(max_examples=100)
@given(calls=appends())
def test_however_they_come(backend: ModuleType, calls: list[Any]) -> None:
    """One call and many calls give the same codes, relative to the same means."""
    B, H_kv, _, D = calls[0][0].shape
    counts = sum(np.broadcast_to(count, B) for _, _, count in calls)
    S = int(counts.max())
    parts, whole = empty(B, H_kv, S, D), empty(B, H_kv, S, D)
    k = np.zeros((B, H_kv, S, D), calls[0][0].dtype)
    for x, start, count in calls:
        backend.encode_centered(x, T3, *parts, start, count)
        for b in range(B):
            first, n = np.broadcast_to(start, B)[b], np.broadcast_to(count, B)[b]
            k[b, :, first : first + n] = x[b, :, :n]
    backend.encode_centered(k, T3, *whole, 0, counts)
    for b in range(B):
        T, rest = -(-int(counts[b]) // 64), int(counts[b]) % 64
        assert_same_bits(parts[0][:, b, :, :T], whole[0][:, b, :, :T])
        assert_same_bits(parts[1].means[b, :, :T], whole[1].means[b, :, :T])
        assert_same_bits(parts[1].scales[b, :, :T], whole[1].scales[b, :, :T])
        assert_same_bits(parts[1].open_tile[b, :, :rest], whole[1].open_tile[b, :, :rest])


@given(
    kind=st.sampled_from([k for k in FINITE if k not in ("subnormal", "wide")]),
    S=st.sampled_from([1, 63, 64, 65, 128, 200]),
    D=head_dims,
    seed=seeds,
)
def test_the_reference(kind: str, S: int, D: int, seed: int) -> None:
    """Means, codes and scales as float64 gives them."""
    k = values(kind, (1, 1, S, D), DTYPES[2], seed) + np.float32(2)
    planes, centers = empty(1, 1, S, D)
    reference.encode_centered(k, T3, planes, centers)
    y = reference.hadamard(k)[0, 0].astype(np.float64)  # (S, Dt)
    tile = np.arange(S) // 64
    mean = np.zeros((tile[-1] + 1, y.shape[1]))
    for t in range(len(mean)):
        mean[t] = (
            y[64 * t : 64 * t + 64].mean(axis=0) if 64 * t + 64 <= S else mean[t - 1] if t else 0
        )
    np.testing.assert_allclose(centers.means[0, 0], mean, rtol=1e-3, atol=1e-5)
    rest = y - centers.means[0, 0][tile].astype(np.float64)
    rms = np.sqrt((rest**2).mean(axis=1, keepdims=True))
    high, low = np.split(unpack_bits(from_planes(planes))[0, 0, :S], 2, axis=-1)
    c = (2 * high + low)[:, : y.shape[1]].astype(np.float64)
    # A coordinate that float32 cannot tell from a threshold may have either code.
    limits = rms[:, :, None] * T3.astype(np.float64)
    clear = (abs(rest[:, :, None] - limits) > 1e-5 * (rms + abs(y))[:, :, None]).all(axis=-1)
    expected = (limits < rest[:, :, None]).sum(axis=-1)
    np.testing.assert_array_equal(c[clear], expected[clear])
    along = (rest * (c - 1.5)).sum(axis=1)
    some = (rms[:, 0] > 2.0**-14) & (rms[:, 0] < 2.0**14)
    scale = (rest**2).sum(axis=1)[some] / along[some]
    got = scale_of(centers.scales[0, 0].reshape(-1)[:S])[some]
    np.testing.assert_allclose(got, scale, rtol=1 / 16 + 1e-5)


def test_scales() -> None:
    """Each byte has a scale of its own, and the nearest byte to that scale is the same byte."""
    every = np.arange(256, dtype=np.uint8)
    scales = scale_of(every)
    assert (np.diff(scales) > 0).all()
    assert (scales[0], scales[128], scales[255]) == (2.0**-16, 1, 61440)
    np.testing.assert_array_equal(scale_byte(scales), every)
    between = (scales[:-1] + scales[1:]) / 2
    np.testing.assert_array_equal(scale_byte(np.nextafter(between, np.float32(0))), every[:-1])
    odd = np.array([np.nan, -np.inf, -1, -0.0, 0.0, 1e-40, np.inf, 3e38], np.float32)
    assert scale_byte(odd).tolist() == [0, 0, 0, 0, 0, 0, 255, 255]


def test_golden(every: ModuleType) -> None:
    """64 tokens of head_dim 1: 63 times 1 and one of 65, so that the mean is 2."""
    k = np.ones((1, 1, 66, 1), np.float32)
    k[0, 0, 7] = 65
    k[0, 0, 65] = np.nan
    planes, centers = empty(1, 1, 66, 1)
    every.encode_centered(k, T3, planes, centers)
    assert centers.means[0, 0].tolist() == [[2], [2]]
    high, low = planes[:, 0, 0].reshape(2, -1)[:, :66]
    assert high.tolist() == [0] * 7 + [1] + [0] * 58
    # A token of one coordinate lies beyond its own threshold: -1 is the code 0, u = -1.5.
    assert low.tolist() == [0] * 7 + [1] + [0] * 58
    scales = scale_of(centers.scales.reshape(-1)[:66])
    np.testing.assert_allclose(scales[:7], 1 / 1.5, rtol=1 / 16)
    np.testing.assert_allclose(scales[7], 63 / 1.5, rtol=1 / 16)
    assert scales[65] == 2.0**-16  # of NaN


def test_a_mean_that_is_no_number_is_0(every: ModuleType) -> None:
    """float16 cannot hold 65520 or more either."""
    for values_, mean in ([65519], 65504), ([65520], 0), ([1, -np.inf], 0), ([np.nan, 1], 0):
        k = np.ones((1, 1, 64, 1), np.float32) * np.float32(values_[-1])
        k[0, 0, 3] = values_[0]
        planes, centers = empty(1, 1, 64, 1)
        every.encode_centered(k, T3, planes, centers)
        assert centers.means[0, 0].tolist() == [[mean]]
