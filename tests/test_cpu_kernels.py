"""What only the CPU kernels have: their vectors, their selection, their specialised loops."""

from __future__ import annotations

from types import SimpleNamespace

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamas_core import cpu, reference
from adamas_core.cpu import _jit, _simd
from adamas_core.cpu._array import address
from adamas_core.cpu.score import manhattan_tiles, score_tiles, weighted_tiles
from adamas_core.cpu.select import CHUNK, ROWS
from adamas_core.cpu.topk import INVISIBLE, STEP, append_topk, keep_nearest
from adamas_core.reference.quantize import from_planes, to_planes

# ---- vectors -----------------------------------------------------------------------------------


@numba.njit
def _exp(x, y, n):
    for i in range(0, n, 16):
        _simd.store_float32(y + 4 * i, _simd.exp(_simd.load_float32(x + 4 * i)))


def test_exp_is_within_an_ulp_of_float64():
    x = -np.geomspace(1e-30, 120, 1 << 16).astype(np.float32)
    x[:4] = 0, -0.0, -np.inf, np.nan
    y = np.empty_like(x)
    _exp(address(x), address(y), len(x))
    exact = np.exp(x.astype(np.float64))
    ulp = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert np.isnan(y[3])
    assert_array_equal(y[:3], [1, 1, 0])
    assert (np.abs(y[4:] - exact[4:]) <= 1.01 * ulp[4:]).all()


@numba.njit
def _masks(x, bound, n):
    count = 0
    for i in range(0, n, 64):
        count += _simd.count_bits(_simd.mask_at_most(x + 2 * i, bound))
    return count, _simd.lowest_bit(_simd.mask_at_most(x, bound))


@pytest.mark.parametrize("bound", [0, 1, 32767, 32768, 65534, 65535])
def test_masks_compare_unsigned(bound):
    x = np.random.default_rng(0).integers(0, 65536, 640).astype(np.uint16)
    x[0] = 65535
    count, first = _masks(address(x), bound, len(x))
    assert count == (x <= bound).sum()
    assert first == (np.flatnonzero(x[:64] <= bound)[0] if (x[:64] <= bound).any() else 64)


@numba.njit
def _narrow(x, half, bfloat):
    value = _simd.load_float32(x)
    _simd.store_first_float16(half, value, 16)
    _simd.store_first_bfloat16(bfloat, value, 15)


def test_results_are_rounded_to_nearest_even():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 3.4e38, -0.0], np.float32)
    x = np.concatenate([x, np.float32([np.inf, -np.inf, np.nan, 1e-7, 65519.0, 6e-8])])
    x = np.concatenate([x, np.float32([1e-40, -1.5, 70000.0, 9.0])])
    half, bfloat = np.empty(16, np.float16), np.full(16, 7, ml_dtypes.bfloat16)
    _narrow(address(x), address(half), address(bfloat))
    with np.errstate(over="ignore"):
        assert_array_equal(half, x.astype(np.float16))
    expected = x.astype(ml_dtypes.bfloat16)
    assert_array_equal(bfloat[:15].astype(np.float32), expected[:15].astype(np.float32))
    assert bfloat[15] == 7  # the lane behind the count was not written


# ---- specialised loops against the generic ones ------------------------------------------------


@numba.njit
def _generic(high, low, query, P, weights, tiles, distances):
    if weights == 0:
        manhattan_tiles(high, low, query, P, tiles, distances)
    else:
        weighted_tiles(high, low, query, P, weights, tiles, distances)


@pytest.mark.parametrize("P", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("weights", [0, 1, 2, 3, 7])
def test_specialised_scores_are_the_generic_ones(P, weights):
    rng = np.random.default_rng(P)
    tiles = 3
    planes = rng.integers(0, 2**64, (2, tiles, 8, P, 8), dtype=np.uint64)
    query = rng.integers(0, 2**64, max(weights + 1, 2) * P, dtype=np.uint64)
    fast, generic = np.zeros((2, 64 * tiles), np.uint16)
    at = address(planes[0]), address(planes[1]), address(query), P, weights, tiles
    numba.njit(lambda *args: score_tiles(*args))(*at, address(fast))
    _generic(*at, address(generic))
    assert fast.any()
    assert_array_equal(fast, generic)


# ---- selection ---------------------------------------------------------------------------------

N = 3 * CHUNK + 77
ORDERS = {
    "all equal": np.zeros(N, int),
    "ascending": np.arange(N) // 2,
    "descending": np.arange(N)[::-1] // 2,
    "staircase": np.arange(N) // 500,
    "staircase down": np.arange(N)[::-1] // 500,
    "two values": np.arange(N) % 2,
    "one good token in a chunk": np.where(np.arange(N) % CHUNK == 5, 0, 9),
    "near the largest": 65534 - np.arange(N) % 3,
    "random": np.random.default_rng(0).integers(0, 300, N),
}


@numba.njit
def _by_chunks(distances, n, chunk, k, indices, ranks):
    """What the fused step does: the k nearest of each chunk, merged with those so far."""
    count, bound = 0, INVISIBLE - 1
    for first in range(0, n, chunk):
        at = distances + 2 * first
        size = min(chunk, n - first)
        count += append_topk(at, size, k, bound, first, indices + 4 * count, ranks + 2 * count)
        if count >= k:
            bound = keep_nearest(indices, ranks, count, k, bound)
            count = k
    return count


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("k", [1, 63, 64, 128, 1000, N - 1, N])
@pytest.mark.parametrize("chunk", [64, CHUNK])
def test_running_selection_is_exact(order, k, chunk):
    distances = ORDERS[order].astype(np.uint16)
    indices = np.empty(k + chunk + STEP, np.int32)
    ranks = np.empty(k + chunk + STEP, np.uint16)
    count = _by_chunks(address(distances), N, chunk, k, address(indices), address(ranks))
    expected = reference.topk(distances, k)
    assert_array_equal(indices[:count], expected)
    assert_array_equal(ranks[:count], distances[expected])
    assert_array_equal(cpu.topk(distances, k), expected)


def _planes_with_distances(distances, H_kv=1):
    """Codes at D = 32 whose Manhattan distance to a query of zeros (code 0) is as wanted, <= 32."""
    S = len(distances)
    low = np.array([(1 << int(d)) - 1 for d in distances], np.uint64)
    codes = np.stack([np.zeros(S, np.uint64), low], axis=-1)
    return np.repeat(to_planes(codes)[:, None, None], H_kv, axis=2)


@pytest.mark.parametrize("order", ["all equal", "ascending", "descending", "two values"])
@pytest.mark.parametrize("S", [CHUNK - 1, CHUNK, CHUNK + 1, 64 * 512 - 1, 64 * 512, 64 * 512 + 1])
def test_fused_selection_at_chunk_boundaries(order, S):
    distances = np.sort(np.random.default_rng(S).integers(0, 33, S))
    distances = {
        "all equal": np.full(S, 7),
        "ascending": distances,
        "descending": distances[::-1],
        "two values": np.arange(S) % 2,
    }[order]
    planes = _planes_with_distances(distances)
    thresholds = np.ones((1, 3), np.float32)  # a query of zeros has code 0
    codes = SimpleNamespace(planes=planes, length=S, thresholds=thresholds)
    q = np.zeros((1, 1, 1, 32), np.float32)
    for k in 1, 100:
        expected = reference.topk(distances.astype(np.uint16), k)
        assert_array_equal(cpu.select_topk(q, codes, k, "manhattan")[0, 0, 0], expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("H_kv, G, L", [(1, 1, 1), (1, 3, 2), (3, 2, 1), (1, ROWS, 3)])
def test_fused_selection_split_over_threads(threads, H_kv, G, L):
    rng = np.random.default_rng(7)
    S = 2 * CHUNK + 100
    planes = rng.integers(0, 2**64, (2, 1, H_kv, -(-S // 64), 8, 1, 8), dtype=np.uint64)
    thresholds = np.tile(np.float32([-1, 0, 1]), (H_kv, 1))
    codes = SimpleNamespace(planes=planes, length=S, thresholds=thresholds)
    q = rng.standard_normal((1, H_kv * G, L, 64)).astype(np.float32)
    query = cpu.quantize_query(cpu.hadamard(q))
    expected = reference.topk(cpu.score(query, planes, S), 50, 3, 4)
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(min(threads, before))
        assert_array_equal(cpu.select_topk(q, codes, 50, sinks=3, recent=4), expected)
    finally:
        numba.set_num_threads(before)


# ---- encode ------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1, 7, 60, 64, 100])
@pytest.mark.parametrize("S", [1, 5, 64, 90])
def test_encode_in_place_leaves_its_neighbours(start, S):
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2**64, (2, 2, 3, 4, 8, 2, 8), dtype=np.uint64)
    k = rng.standard_normal((2, 3, S, 128)).astype(np.float32)
    thresholds = np.tile(np.float32([-1, 0, 1]), (3, 1))
    planes = before.copy()
    assert cpu.encode(k, thresholds, planes, start) is planes
    rows, old = from_planes(planes), from_planes(before)
    written = slice(start, start + S)
    assert_array_equal(np.delete(rows, written, axis=-2), np.delete(old, written, axis=-2))
    expected = reference.quantize(reference.hadamard(k), thresholds)
    assert_array_equal(rows[..., written, :], expected)


# ---- kernels see addresses, not layouts --------------------------------------------------------


def test_no_layout_compiles_anew():
    rng = np.random.default_rng(0)
    from adamas_core.cpu.attend import _attend

    q = rng.standard_normal((1, 2, 1, 32)).astype(np.float32)
    k = rng.standard_normal((1, 40, 2, 32)).astype(np.float32)
    indices = np.zeros((1, 2, 1, 4), np.int32)
    for dtype in np.float32, np.float16:
        view = k.astype(dtype).swapaxes(1, 2)
        frozen = view.copy()
        frozen.flags.writeable = False
        out = [cpu.attend(q.astype(dtype), x, x, indices) for x in (view, frozen, frozen[:, :, 3:])]
        assert_array_equal(out[0], out[1])
    assert len(_attend.overloads) == 1


def test_index_out_of_range_names_it():
    x = np.zeros((1, 1, 5, 8), np.float32)
    with pytest.raises(IndexError, match=r"index 5 .* 5 tokens"):
        cpu.attend(x[:, :, :1], x, x, np.int32([[[[0, 5]]]]))


def test_compilation_is_announced_for_this_package_alone(capfd):
    from numba.core import event

    notice = _jit._Notice()
    event.register("numba:compile", notice)
    numba.njit(lambda x: x + 1)(1)
    assert "adamas" not in capfd.readouterr().err
    event.unregister("numba:compile", notice)
