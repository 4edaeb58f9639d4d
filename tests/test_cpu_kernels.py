"""What only the CPU kernels have: their vectors, their selection, their specialised loops."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamas_core import cpu, encode, reference
from adamas_core.cpu import _jit, _simd, group
from adamas_core.cpu._array import address
from adamas_core.cpu._jit import invoke
from adamas_core.cpu._rows import CHUNK, FACTS, ROWS
from adamas_core.cpu.score import (
    add_tables,
    manhattan_tile,
    query_bytes,
    score_tile,
    signs_tile,
    table_bytes,
    weighted_tile,
)
from adamas_core.cpu.select import SAMPLE
from adamas_core.cpu.topk import INVISIBLE, STEP, append_newest, keep_nearest
from adamas_core.reference import group as reference_group
from adamas_core.reference.center import Centers
from adamas_core.reference.estimate import rank
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
def _generic(high, low, query, P, weights, planes, distances):
    """By popcounts in loops over P and weights that nothing knows in advance."""
    if planes == 1:
        signs_tile(high, query, P, weights, distances)
    elif weights == 0:
        manhattan_tile(high, low, query, P, distances)
    else:
        weighted_tile(high, low, query, P, weights, distances)


@numba.njit
def _score_tile(at, arguments):
    return invoke(at, arguments)


@numba.njit
def _add_tables(query, P, weights):
    add_tables(query, P, weights)


def _on_a_line(size):
    """Zeroed bytes that begin on a cache line, as kernels' scratch does."""
    room = np.zeros(size + 64, np.uint8)
    return room[-address(room) % 64 :][:size]


@pytest.mark.parametrize("extremes", [False, True])
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("P", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("weights", [0, 1, 2, 3, 7])
def test_specialised_scores_are_the_generic_ones(P, weights, planes, extremes):
    rng = np.random.default_rng(P)
    rows, width = 3, max(weights + 1, 2) * P
    keys = rng.integers(0, 2**64, (2, 8, P, 8), dtype=np.uint64)
    queries = rng.integers(0, 2**64, (rows, width), dtype=np.uint64)
    if extremes:  # the largest sums: all weights at their maximum, every bit the other sign's
        keys[...] = 2**64 - 1
        queries[...] = 2**64 - 1
        queries[:, :P] = 0
    step = query_bytes.py_func(P, weights)
    prepared = _on_a_line(rows * step).reshape(rows, step)
    for words, own in zip(queries, prepared, strict=True):
        own[table_bytes.py_func(P, weights) :][: 8 * width] = words.view(np.uint8)
        _add_tables(address(own), P, weights)
    fast, generic = np.zeros((2, rows, 100), np.uint16)
    at = address(keys[0]), address(keys[1]), address(prepared), rows, P, weights, planes
    _score_tile(score_tile.address, (*at, address(fast), 200))
    for words, distances in zip(queries, generic, strict=True):
        _generic(*at[:2], address(words), P, weights, planes, address(distances))
    assert generic[:, :64].any()
    assert_array_equal(fast, generic)


# ---- selection ---------------------------------------------------------------------------------

N = 12 * 1024 + 77
ORDERS = {
    "all equal": np.zeros(N, int),
    "ascending": np.arange(N) // 2,
    "descending": np.arange(N)[::-1] // 2,
    "staircase": np.arange(N) // 500,
    "staircase down": np.arange(N)[::-1] // 500,
    "two values": np.arange(N) % 2,
    "a good token now and then": np.where(np.arange(N) % 4096 == 5, 0, 9),
    "near the largest": 65534 - np.arange(N) % 3,
    "random": np.random.default_rng(0).integers(0, 300, N),
}


@numba.njit
def _newest_first(distances, n, chunk, k, room, indices, ranks):
    """What the fused step does: chunks from the newest on, each under the bound of those before."""
    count, bound = 0, INVISIBLE - 1
    for first in range((n - 1) // chunk * chunk, -1, -chunk):
        end = min(first + chunk, n)
        at = distances + 2 * first
        count, bound = append_newest(at, first, end, bound, first, indices, ranks, count, room, k)
    if count > k:
        keep_nearest(indices, ranks, count, k, INVISIBLE - 1)
        count = k
    return count


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("k", [1, 63, 64, 128, 1000, N - 1, N])
@pytest.mark.parametrize("chunk", [64, 4096])
def test_running_selection_is_exact(order, k, chunk):
    distances = ORDERS[order].astype(np.uint16)
    padded = np.zeros(-(-N // STEP) * STEP, np.uint16)  # what lies behind the end is not read
    padded[:N] = distances
    room = -(-(k + 448) // STEP) * STEP
    indices, ranks = np.empty(room, np.int32), np.empty(room, np.uint16)
    at = address(padded), N, chunk, k, room, address(indices), address(ranks)
    count = _newest_first(*at)
    expected = reference.topk(distances, k)
    assert_array_equal(indices[:count], expected[::-1])
    assert_array_equal(ranks[:count], distances[expected][::-1])
    assert_array_equal(cpu.topk(distances, k), expected)


def _planes_with_distances(distances, H_kv=1):
    """Codes at D = 32 whose Manhattan distance to a query of zeros (code 0) is as wanted, <= 32."""
    S = len(distances)
    low = np.array([(1 << int(d)) - 1 for d in distances], np.uint64)
    codes = np.stack([np.zeros(S, np.uint64), low], axis=-1)
    return np.repeat(to_planes(codes)[:, None, None], H_kv, axis=2)


SIZES = [
    64,
    4 * SAMPLE - 1,
    4 * SAMPLE,
    4 * SAMPLE + 65,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    3 * CHUNK + 9,
]


@pytest.mark.parametrize("order", ["all equal", "ascending", "descending", "two values"])
@pytest.mark.parametrize("S", SIZES)
def test_fused_selection_at_the_sizes_where_it_changes(order, S):
    """Where a sample begins to pay, and where chunks end."""
    distances = np.sort(np.random.default_rng(S).integers(0, 33, S))
    distances = {
        "all equal": np.full(S, 7),
        "ascending": distances,
        "descending": distances[::-1],
        "two values": np.arange(S) % 2,
    }[order]
    planes = _planes_with_distances(distances)
    thresholds = np.ones((1, 3), np.float32)  # a query of zeros has code 0
    codes = SimpleNamespace(planes=planes, length=S, thresholds=thresholds, centers=None)
    q = np.zeros((1, 1, 1, 32), np.float32)
    for k in 1, 64, S // 2, S - 1, S:
        expected = reference.topk(distances.astype(np.uint16), k)
        assert_array_equal(cpu.select_topk(q, codes, k, "manhattan")[0, 0, 0], expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "B, H_kv, G, L, P",
    [(1, 1, 1, 1, 1), (1, 1, 3, 2, 2), (1, 3, 2, 1, 3), (2, 1, ROWS + 1, 3, 1), (3, 1, 4, 1, 2)],
)
@pytest.mark.parametrize(
    "prefilter, centered, group",
    [(0, False, False), (2, False, False), (0, True, False), (2, True, False), (0, True, True)],
)
def test_fused_selection_split_over_threads(threads, B, H_kv, G, L, P, prefilter, centered, group):
    """Parts of heads, merged; heads that no number of threads divides; ragged lengths."""
    rng = np.random.default_rng(7)
    S = 2 * CHUNK + 100
    planes = rng.integers(0, 2**64, (2, B, H_kv, -(-S // 64), 8, P, 8), dtype=np.uint64)
    if P == 3:  # the words of a head_dim of 192 lie in a transform of 256, which has four
        planes = np.concatenate([planes, np.zeros_like(planes[..., :1, :])], axis=-2)
    thresholds = np.tile(np.float32([-1, 0, 1]), (H_kv, 1))
    length = S if B == 1 else np.array([S, 5, CHUNK + 1][:B])
    T, P = planes.shape[3], planes.shape[5]
    centers = Centers(
        rng.standard_normal((B, H_kv, T, 64 * P)).astype(np.float16),
        rng.integers(100, 150, (B, H_kv, T, 64), dtype=np.uint8),
        np.zeros((B, H_kv, 64, 64 * P), np.float32),
    )
    codes = SimpleNamespace(
        planes=planes, length=length, thresholds=thresholds, centers=centers if centered else None
    )
    q = rng.standard_normal((B, H_kv * G, L, 64 * P)).astype(np.float32)
    arguments = q, codes, 50, "weighted", 4, 3, 4, prefilter, 0, group
    expected = reference.select_topk(*arguments)
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(min(threads, before))
        assert_array_equal(cpu.select_topk(*arguments), expected)
        assert numba.get_num_threads() == min(threads, before)
    finally:
        numba.set_num_threads(before)


@numba.njit
def _pooled(levels, gap, facts, heads, visible, ranks):
    for g in range(heads):
        group._add_up(levels + gap * g, visible, facts + FACTS * g)
    for tile in range(0, visible, 64):
        group._rank_tile(levels + 2 * tile, gap, facts, heads, ranks + 4 * tile)


@pytest.mark.parametrize("spread", [0, 3, 40, 60_000])
@pytest.mark.parametrize("visible", [1, 63, 64, 65, 200])
def test_attention_of_a_group_to_the_bit(spread, visible):
    """Selections seldom show a wrong sum, or heads that are added in another order."""
    rng = np.random.default_rng(spread + visible)
    levels = rng.integers(-spread // 2, spread // 2 + 1, (1, 5, 1, 256)).astype(np.int16)
    facts, ranks = np.zeros((5, FACTS), np.uint8), np.zeros(256, np.uint32)
    _pooled(address(levels), 2 * 256, address(facts), 5, visible, address(ranks))
    seen = np.broadcast_to(np.arange(256) < visible, levels.shape)
    attention = reference_group.attention(levels.astype(np.int64), seen, 5)
    nothing = np.zeros(attention.shape, np.uint16)
    assert_array_equal(ranks[:visible], rank(attention, nothing)[0, 0, 0, :visible])


def test_several_python_threads_at_once():
    """Calls of different sizes from four threads give what each gives alone."""
    rng = np.random.default_rng(3)
    cases = []
    for S, H_kv in (300, 2), (20_000, 1), (5_000, 3), (70_000, 1):
        k = rng.standard_normal((1, H_kv, S, 64)).astype(np.float32)
        q = rng.standard_normal((1, 4 * H_kv, 1, 64)).astype(np.float32)
        codes = encode(k)
        cases.append((q, k, k, codes, reference.select_topk(q, codes, 70)))

    def work(case):
        q, k, v, codes, expected = case
        alone = cpu.attend(q, k, v, expected, None, True)
        for _ in range(30):
            assert_array_equal(cpu.select_topk(q, codes, 70), expected)
            for x, y in zip(cpu.attend_topk(q, k, v, codes, 70), alone, strict=True):
                assert_array_equal(x, y)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, cases))


@_jit.kernel
def _threads_in_a_kernel(seen):
    for i in numba.prange(1):
        seen[i] = _simd.threads_allowed()


def test_limits_of_threadpoolctl_and_numba_hold():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    if numba.threading_layer() != "omp":
        pytest.skip("threadpoolctl limits OpenMP, and Numba runs on another threading layer here")
    before = numba.get_num_threads()
    seen = np.zeros(1, np.int64)
    _threads_in_a_kernel(seen)
    assert seen[0] == before
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        _threads_in_a_kernel(seen)
        assert seen[0] == 1
        assert numba.get_num_threads() == before
    _threads_in_a_kernel(seen)
    assert seen[0] == before


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
    assert len(_attend.dispatcher.overloads) == 1


def test_index_out_of_range_names_it():
    x = np.zeros((1, 1, 5, 8), np.float32)
    with pytest.raises(IndexError, match=r"index 5 .* 5 tokens"):
        cpu.attend(x[:, :, :1], x, x, np.int32([[[[0, 5]]]]))
    with pytest.raises(IndexError, match=r"index 5 .* 5 tokens"):
        cpu.rerank(x[:, :, :1], x, np.int32([[[[0, 5]]]]), 1)


def test_compilation_is_announced_for_this_package_alone(capfd):
    from numba.core import event

    notice = _jit._Notice()
    event.register("numba:compile", notice)
    numba.njit(lambda x: x + 1)(1)
    assert "adamas" not in capfd.readouterr().err
    event.unregister("numba:compile", notice)
