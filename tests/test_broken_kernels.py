"""Mistakes in the kernels of the library are caught: a missing barrier, a wrong bound, a wrong sum.

Each mistake is one edit of a source. The comparisons with the reference pass for the right sources
and fail for every edit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from cuda_on_cpu import machine
from cuda_on_cpu.arrays import DeviceArray
from cuda_on_cpu.machine import ALL_ORDERS, Cpu, KernelFault, Program
from cuda_on_cpu.marks import BUILDS_PROGRAMS
from oracles import assert_attention, assert_same_bits

from adamas_core import Selection, Softmax, encode, encode_values, gpu, reference
from adamas_core.gpu import estimate, group
from adamas_core.gpu import select as select_of_gpu
from adamas_core.gpu import tail as tail_of_gpu
from adamas_core.gpu._arrays import strides
from adamas_core.gpu._kernels import FOLDER, HADAMARD, Kernel, headers
from adamas_core.gpu.decode_step import DecodeStep, device_cache
from adamas_core.gpu.rerank import rerank_below
from adamas_core.reference.center import CENTERED_THRESHOLDS
from adamas_core.reference.estimate import estimate as reference_estimate
from adamas_core.reference.estimate import rank
from adamas_core.reference.group import levels as reference_levels
from adamas_core.reference.group import pool as reference_pool
from adamas_core.reference.layout import INVISIBLE, Centers, Codes, Fine, Values, words
from adamas_core.reference.tail import tiers
from adamas_core.reference.values import bases_of, total_of

pytestmark = BUILDS_PROGRAMS

LENGTHS = np.array([150, 97])
FORCED = Selection(sinks=1, recent=2)
TAIL_LENGTHS = np.array([300, 97])
TAIL_SIZES = [(2, 2), (1, 300), (1, 300)]  # heads and tokens of q, k and v


class Edited(Cpu):
    """Runs kernels whose source has been edited. Each variant is a program of its own."""

    def __init__(self, file: str, right: str, wrong: str) -> None:
        super().__init__(ALL_ORDERS)
        self._file, self._right, self._wrong = file, right, wrong
        assert (FOLDER / file).read_text().count(right) == 1

    def program(self, kernel: Kernel, expression: str) -> Program:
        texts = {**headers(), kernel.file: kernel.source}
        if self._file not in texts:
            return super().program(kernel, expression)
        texts[self._file] = texts[self._file].replace(self._right, self._wrong)
        return Program(kernel.file, texts.pop(kernel.file), texts, [expression])


def run_hadamard(cpu: Cpu) -> None:
    """With arrays that have no byte more than the kernel needs."""
    x, y = np.ones((1, 1, 3, 12), np.float32), np.zeros((3, 16), np.float32)
    sizes = {"heads": 1, "tokens": 3, "rows": 3, "D": 12, "Dt": 16, "hadamard_scale": 0.25}
    arguments = {**strides("x", DeviceArray(x)), **sizes, "y": DeviceArray(y)}
    cpu.launch(HADAMARD, ("float", 1), (1,), 128, arguments)
    assert_same_bits(y.reshape(1, 1, 3, 16), reference.hadamard(x))


def test_hadamard_within_its_bounds() -> None:
    with machine.installed(Cpu(ALL_ORDERS)) as cpu:
        run_hadamard(cpu)


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("warp_row.cuh", "i < D ?", "i <= D ?"),
        ("hadamard.cu", "if (i < Dt) y[", "if (i <= Dt) y["),
        ("hadamard.cu", "if (row >= rows)", "if (row > rows)"),
    ],
)
def test_a_wrong_bound_of_hadamard(file: str, right: str, wrong: str) -> None:
    with (
        machine.installed(Edited(file, right, wrong)) as cpu,
        pytest.raises(KernelFault, match="heap-buffer-overflow"),
    ):
        run_hadamard(cpu)


def compare_scores(H: int, L: int) -> None:
    """With the reference, as test_score does. H = 2 is counted, H = 4 uses products."""
    rng = np.random.default_rng(0)
    query = rng.integers(0, 2**64, (2, H, L, 4), np.uint64)
    planes = rng.integers(0, 2**64, (2, 2, 2, 3, 8, 1, 8), np.uint64)
    distances = gpu.score(DeviceArray(query), DeviceArray(planes), DeviceArray(LENGTHS))
    assert_same_bits(distances.get(), reference.score(query, planes, LENGTHS))


def compare_attention(K: int) -> None:
    """With the reference, as test_attend does. More than a few tokens are split over blocks."""
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in [(1, 2, 1, 32), (1, 1, 150, 32), (1, 1, 150, 32)]
    )
    indices = rng.integers(0, 150, (1, 2, 1, K), np.int32)
    indices[..., -1] = 149
    out = gpu.attend(*(DeviceArray(x) for x in (q, k, v, indices)))
    exact = reference.attend(q.astype(np.float64), k, v, indices)
    assert_attention(out.get(), exact, q.dtype)


def compare_softmax(K: int, size: float = 1) -> None:
    """With a cap and sinks, and values of another head_dim. Products of 1e40 overflow float32."""
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in [(1, 2, 1, 32), (1, 1, 150, 32), (1, 1, 150, 12)]
    )
    softmax = Softmax(soft_cap=0.7, sink_logits=[1.5, -0.5])
    q, k = np.float32(size) * q, np.float32(size) * k
    indices = rng.integers(0, 150, (1, 2, 1, K), np.int32)
    indices[..., -1] = 149
    got = gpu.attend(*(DeviceArray(x) for x in (q, k, v, indices)), softmax, True)
    out, lse = reference.attend(q.astype(np.float64), k, v, indices, softmax, True)
    assert_attention(got[0].get(), out, q.dtype)
    np.testing.assert_allclose(got[1].get(), lse, rtol=2e-6, atol=4e-6)


def compare_overflow() -> None:
    """A sum of products overflows float32 on its way to 0. The cap must not hide it."""
    q, k = np.ones((1, 1, 1, 17), np.float32), np.zeros((1, 1, 1, 17), np.float32)
    k[..., [0, 16]] = 3e38  # of one lane, at the first exchange
    k[..., [1, 2]] = -3e38
    rows = q, k, np.ones((1, 1, 1, 2), np.float32), np.zeros((1, 1, 1, 1), np.int32)
    softmax = Softmax(scale=1, soft_cap=1, sink_logits=[0])
    out = gpu.attend(*map(DeviceArray, rows), softmax)
    assert_same_bits(out.get(), np.full((1, 1, 1, 2), 0.5, np.float32))


def compare_rerank(n: int) -> None:
    """With the reference, as test_rerank does. The last 16 indices are no tokens of k."""
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((1, H, S, 40)).astype(np.float32) for H, S in [(2, 1), (1, n)])
    indices = np.broadcast_to(np.arange(n + 16, dtype=np.int32), (1, 2, 1, n + 16)).copy()
    best = rerank_below(*(DeviceArray(x) for x in (q, k, indices)), 8, FORCED)
    assert_same_bits(best.get(), reference.rerank(q, k, indices[..., :n], 8, FORCED))


def compare_topk() -> None:
    """With 32 bits, in chunks of which the last has fewer visible tokens than the budget."""
    ranks = np.random.default_rng(0).integers(0, 2**32 - 1, (2, 300), np.uint32)
    ranks[:, 270:] = 2**32 - 1
    best = gpu.topk(DeviceArray(ranks), 40, FORCED)
    assert_same_bits(best.get(), reference.topk(ranks, 40, FORCED))


def compare_centered() -> None:
    """Three calls that begin inside a tile, at its end and at its start, with two lengths."""
    rng = np.random.default_rng(0)
    planes = np.full((2, 2, 1, 6, 8, 1, 8), 7, np.uint64)
    centers = Centers(
        np.full((2, 1, 6, 16), 7, np.float16),
        np.full((2, 1, 6, 64), 7, np.uint8),
        np.full((2, 1, 64, 16), 7, np.float32),
    )
    fine = Fine(np.full((2, 1, 6, 64, 1), 7, np.uint64), np.full((2, 1, 6, 64), 7, np.uint8))
    expected = [x.copy() for x in (planes, *centers)]
    third = Fine(*(x.copy() for x in fine))
    starts = np.zeros(2, np.int64)
    for S, counts in [(150, [150, 30]), (42, [42, 34]), (70, [70, 64])]:
        k = rng.standard_normal((2, 1, S, 12)).astype(np.float32) + np.float32(1)
        at = starts, np.array(counts)
        t = CENTERED_THRESHOLDS
        reference.encode_centered(k, t, expected[0], Centers(*expected[1:]), *at, third)
        there = [DeviceArray(x) for x in (k, t, planes, *centers)]
        own = Fine(*map(DeviceArray, fine))
        gpu.encode_centered(*there[:3], Centers(*there[3:]), *at, own)
        for got, wanted in zip((planes, *centers, *fine), (*expected, *third), strict=True):
            assert_same_bits(got, wanted)
        starts += counts


def estimated(D: int, size: float) -> tuple[Any, ...]:
    """Transformed queries, their planes, distances and codes of 150 and 97 tokens."""
    rng = np.random.default_rng(0)
    k, q = (
        np.float32(size) * rng.standard_normal((2, H, n, D)).astype(np.float32) + np.float32(1)
        for H, n in [(2, 150), (6, 2)]
    )
    codes = encode(k, None, LENGTHS, "reference", centered=True).record
    x = reference.hadamard(q)
    query = reference.quantize_query(x)
    return x, query, reference.score(query, codes.planes, LENGTHS), codes


def on_device(codes: Codes) -> Codes:
    centers = codes.centers and Centers(*map(DeviceArray, codes.centers))
    fine = codes.fine and Fine(*map(DeviceArray, codes.fine))
    t = DeviceArray(codes.thresholds)
    return Codes(DeviceArray(codes.planes), codes.length, t, centers, fine)


def highest_of(levels: Any, seen: Any) -> Any:
    """The highest level of the visible tokens of each row, as the kernels keep it."""
    return np.where(seen, levels.astype(np.int64) + 32769, 0).max(axis=-1).astype(np.uint32)


def compare_levels(D: int, size: float) -> None:
    """Of the visible tokens, and the highest of them."""
    *arrays, codes = estimated(D, size)
    seen = arrays[-1] != INVISIBLE
    levels, highest = estimate.levels(*map(DeviceArray, arrays), on_device(codes), D)
    expected = reference_levels(reference_estimate(*arrays, codes), D).astype(np.int16)
    assert_same_bits(levels.get()[seen], expected[seen])
    assert_same_bits(highest.get(), highest_of(expected, seen))


def compare_hidden_levels() -> None:
    """A sequence does not see its second tile, whose tokens would have the highest level."""
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((2, 1, n, 40)).astype(np.float32) for n in (1, 128))
    k[:, :, 64:] = 9 * q
    codes = encode(k, None, backend="reference", centered=True).record
    x = reference.hadamard(q)
    query = reference.quantize_query(x)
    arrays = x, query, reference.score(query, codes.planes, np.array([128, 64]))
    _, highest = estimate.levels(*map(DeviceArray, arrays), on_device(codes), 40)
    expected = reference_levels(reference_estimate(*arrays, codes), 40).astype(np.int16)
    assert_same_bits(highest.get(), highest_of(expected, arrays[-1] != INVISIBLE))


def compare_selection(
    G: int, L: int, D: int, S: int = 300, centered: bool = True, least: int = 64
) -> None:
    """From codes of S and 97 tokens, as test_select does, in chunks of at least `least` tokens."""
    rng = np.random.default_rng(0)
    k, q = (
        rng.standard_normal((2, H, n, D)).astype(np.float32) + np.float32(1)
        for H, n in [(2, S), (2 * G, L)]
    )
    k[:, :, -1] = 9 * q[:, ::G, 0]  # the nearest token
    if S % 4 == 3:
        k[:, :, -3] = (
            5 * q[:, ::G, 0]
        )  # a near one, not forced, of those that no load of four brings
    t = None if centered else np.array([-1, 0, 1], np.float32)
    codes = encode(k, t, np.array([S, 97]), "reference", centered=centered).record
    most = 8192 if S > 300 else select_of_gpu.MAX_CHUNK  # as on a GPU, or small
    with patch.multiple(select_of_gpu, MAX_CHUNK=most, MIN_CHUNK=least):
        got = gpu.select_topk(DeviceArray(q), on_device(codes), 9, FORCED)
    assert_same_bits(got.get(), reference.select_topk(q, codes, 9, FORCED))


def compare_values() -> None:
    """Two calls, of which the second begins inside a tile, with two lengths."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((2, 2, 150, 12)).astype(np.float32) + np.float32(1)
    lengths, bases = np.array([150, 97]), np.zeros((2, 2, 2, 12), np.float32)
    room = np.full((2, 2, 3, 64, 2, 1), 7, np.uint64), np.full((2, 2, 3, 64), 7, np.uint8)
    expected = [x.copy() for x in room]
    for first, counts in (0, np.array([70, 50])), (np.array([70, 50]), np.array([80, 47])):
        own = np.stack([v[b, :, i : i + 80] for b, i in enumerate(np.broadcast_to(first, 2))])
        bases[...] = bases_of(v, first + counts)
        reference.encode_values(own, *expected, bases, first, counts)
        gpu.encode_values(*map(DeviceArray, (own, *room, bases)), first, counts)
        for got, wanted in zip(room, expected, strict=True):
            assert_same_bits(got, wanted)
    assert (lengths == first + counts).all()


def compare_step(Dv: int = 12) -> None:
    """Three steps past the first tile: codes of values, bases and sums, some of them infinite."""
    rng = np.random.default_rng(0)
    P = words(Dv)
    q, k, v = (rng.standard_normal((1, 2, 69, n)).astype(np.float32) for n in (12, 12, Dv))
    v[:, :, 0, 1] = np.inf
    v[:, :, :, 2] = 3e38
    cache = device_cache(1, 2, 12, v.dtype, 69, tail=True, Dv=Dv)
    step = DecodeStep(2, 23, cache, 4, Selection(tail=4))
    for i in range(0, 69, 23):
        step(*(DeviceArray(x[:, :, i : i + 23].copy()) for x in (q, k, v)), cache)
    codes = np.zeros((1, 2, 2, 64, 2, P), np.uint64)
    scales = np.zeros((1, 2, 2, 64), np.uint8)
    bases = bases_of(v, 69)
    reference.encode_values(v, codes, scales, bases)
    assert cache.values is not None
    for got, wanted in zip(cache.values, (codes, scales, bases, total_of(v, 69)), strict=True):
        assert_same_bits(got.get(), wanted)


def compare_tail(
    refine: int,
    tail: int,
    spread: float = 1,
    sizes: tuple[int, int] = (40, 40),
    softmax: Softmax | None = None,
) -> None:
    """Two heads of sequences of 300 and 97 tokens: both tiers to the bit, and the attention."""
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.standard_normal((2, H, n, D)).astype(np.float32)
        for (H, n), D in zip(TAIL_SIZES, (sizes[0], *sizes), strict=True)
    )
    v *= np.float32(spread)
    codes = encode(k, length=TAIL_LENGTHS, backend="reference", bits=3).record
    values = encode_values(v, length=TAIL_LENGTHS, backend="reference").record
    selection = Selection(sinks=1, recent=2, refine=refine, tail=tail)
    there = Values(*map(DeviceArray, values))
    rows = [DeviceArray(x) for x in (q, k, v)]
    with patch.object(tail_of_gpu, "attend_tiers", wraps=tail_of_gpu.attend_tiers) as attend:
        got = gpu.attend_tail(*rows, on_device(codes), there, 6, selection, softmax)
    room = attend.call_args.args[5]
    for tier, wanted in zip(
        (room.indices, room.coded), tiers(q, codes, 6, selection, k), strict=True
    ):
        assert_same_bits(tier.get().reshape(wanted.shape), wanted)
    expected = reference.attend_tail(q, k, v, codes, values, 6, selection, softmax)
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x.get(), y, rtol=2e-6, atol=4e-6)


def compare_pool(size: float) -> None:
    """With levels close together or far apart, in groups of three heads."""
    *arrays, codes = estimated(40, size)
    estimates, seen = reference_estimate(*arrays, codes), arrays[-1] != INVISIBLE
    levels = reference_levels(estimates, 40).astype(np.int16)
    expected = rank(reference_pool(estimates, seen, 3, 40), arrays[-1][:, ::3])
    found = group.pool(*map(DeviceArray, (levels, highest_of(levels, seen))), LENGTHS, 3)
    assert_same_bits(found.get(), expected)


COUNTED = partial(compare_scores, 2, 1)
PRODUCTS = partial(compare_scores, 4, 2)
ONE_BLOCK = partial(compare_attention, 4)
SPLITS = partial(compare_attention, 64)
RERANK = partial(compare_rerank, 60)
RERANK_MANY = partial(compare_rerank, 300)
FEW = partial(compare_selection, 1, 1, 40)
MANY = partial(compare_selection, 4, 2, 40)
SHORT = partial(compare_selection, 1, 2, 6)
WIDE = partial(compare_selection, 1, 1, 100)
LONG = partial(compare_selection, 8, 1, 40, 1900, False)
ONE_WARP = partial(compare_selection, 8, 1, 40, 1900, False, 1900)
SPARE_TEAM = partial(compare_selection, 3, 1, 40, 1900, False)
LONG_CENTERED = partial(compare_selection, 3, 1, 40, 1900)
ODD_CENTERED = partial(compare_selection, 3, 1, 40, 1903)
LEVELS = partial(compare_levels, 40, 1)
SHORT_LEVELS = partial(compare_levels, 12, 1)
FAR_LEVELS = partial(compare_levels, 40, 100)
POOL = partial(compare_pool, 5)
CLOSE_POOL = partial(compare_pool, 0.1)
TAIL = partial(compare_tail, 0, 30)
LONG_TAIL = partial(compare_tail, 0, 200)
REFINED_TAIL = partial(compare_tail, 4, 10)
EQUAL_TAIL = partial(compare_tail, 0, 200, 0)
SOFTMAX = partial(compare_softmax, 4)
SOFTMAX_SPLITS = partial(compare_softmax, 64)
SOFTMAX_IN_DOUBLE = partial(compare_softmax, 4, 1e20)
CAPPED = Softmax(soft_cap=0.7, sink_logits=[1.5, -0.5])
FEW_VALUES = partial(compare_tail, 0, 30, 1, (100, 20), CAPPED)
REFINED_CAPPED = partial(compare_tail, 4, 10, 1, (40, 40), CAPPED)
WIDE_STEP = partial(compare_step, 80)

ROWS_BARRIER = "    __syncthreads();\n    for (int i"
TURN_BARRIER = "    __syncthreads();\n  }\n  Half* const written"
MEAN_BARRIER = "  __syncthreads();\n\n  for (int slot"
PARTS_BARRIER = "  __syncthreads();\n  if (threadIdx.x == 0 && first < n)"
HEADS_BARRIER = "  __syncthreads();\n  for (Int i = first"
BINS_BARRIER = "  unsigned own = 0;\n  __syncthreads();\n"
LIST_BARRIER = "  __syncthreads();\n  if (compares) {\n#pragma"
CHUNK_BARRIER = "  __syncthreads();\n  const Team team"
SCORE_BARRIER = "  __syncthreads();\n\n  const int n = lengths"
QUERY_BARRIER = "  __syncthreads();\n\n  using Part"
PRODUCTS_BARRIER = "  __syncthreads();\n  const int taken"
QUERIES_BARRIER = "  __syncthreads();\n  for (int q = threadIdx"
RANKS_BARRIER = "  __syncthreads();\n  if (rests) {\n    for"
TIERS_BARRIER = "  __syncthreads();\n  if (threadIdx.x < LANES)"
BASES_BARRIER = "    __syncthreads();  // the bases are there\n    for (int s = warp"
SUMS_BARRIER = "  __syncthreads();\n\n  // Merge the warps"

MISTAKES = [
    ("score.cu", SCORE_BARRIER, "  const int n = lengths", COUNTED),
    ("score.cu", "if (token < S)", "if (token <= S)", COUNTED),
    ("score.cu", "chunk, tiles)", "chunk, tiles - 1)", COUNTED),
    ("score.cuh", "(L - 1 - l)", "(L - l)", PRODUCTS),
    ("score.cuh", "rows < TILE; rows", "rows < TILE - 16; rows", PRODUCTS),
    ("score.cuh", "+ 2 * g + word", "+ 2 * g + 2 + word", PRODUCTS),
    ("attend.cu", SUMS_BARRIER, "  // Merge the warps", ONE_BLOCK),
    ("attend.cu", "== splits - 1u", "== splits - 2u", SPLITS),
    ("attend.cuh", "named < tokens.S ?", "named < tokens.S - 1 ?", ONE_BLOCK),
    ("attend.cu", "min(begin + size, count)", "min(begin + size + 1, count)", SPLITS),
    ("attend.cuh", "stride = TEAM; stride < LANES;", "stride = TEAM; stride < 16;", SPLITS),
    ("rerank.cu", QUERY_BARRIER, "  using Part", RERANK),
    ("rerank.cu", PRODUCTS_BARRIER, "  const int taken", RERANK),
    ("rerank.cu", PRODUCTS_BARRIER, "  const int taken", RERANK_MANY),
    ("rerank.cu", "token < S", "token <= S", RERANK),
    ("rerank.cu", "stride = SHARERS / 2", "stride = SHARERS / 4", RERANK),
    ("rerank.cu", "start < n", "start + teams <= n", RERANK),
    ("common.cuh", "bits ^ 0x7fffffffu", "~bits", RERANK),
    ("topk.cuh", "- __clz(width - 1), 0)", "- __clz(width - 1) - 1, 0)", compare_topk),
    ("topk.cuh", "less < wanted && wanted", "wanted", RERANK),
    ("topk.cuh", BINS_BARRIER, "  unsigned own = 0;\n", compare_topk),
    ("topk.cuh", LIST_BARRIER, "  if (compares) {\n#pragma", LONG_CENTERED),
    ("topk.cuh", "&bins[(d - first) >> shift], by", "&bins[d - first], by", compare_topk),
    ("topk.cuh", "free_end + team.thread; i < n", "free_end + team.thread + 1; i < n", LONG),
    ("topk.cuh", "low_bits(free_begin - own_start)", "0", LONG),
    ("topk.cuh", "<< 1;\n    return __funnel", ";\n    return __funnel", LONG),
    ("topk.cuh", "some.y, some.z, some.w};\n", "some.z, some.y, some.w};\n", LONG),
    ("topk.cuh", "n % 8) own.add", "n % 8 - 1) own.add", LONG),
    ("topk.cuh", "N * turn)};", "turn)};", LONG_CENTERED),
    ("topk.cuh", "rows > 2 ? 4", "rows > 2 ? 2", LONG_CENTERED),
    ("topk.cuh", "n % N) visit", "n % N - 1) visit", LONG),
    ("select.cu", CHUNK_BARRIER, "  const Team team", LONG),
    ("select.cu", "= team.number < count;", "= true;", SPARE_TEAM),
    ("topk.cuh", "+ i] = NOT_THERE<T>", "+ i] = INVISIBLE", compare_topk),
    ("topk.cu", "S - start)", "S - start + 1)", compare_topk),
    ("center.cuh", ROWS_BARRIER, "    for (int i", compare_centered),
    ("center.cuh", TURN_BARRIER, "  }\n  Half* const written", compare_centered),
    ("center.cuh", MEAN_BARRIER, "\n  for (int slot", compare_centered),
    ("center.cuh", "w < warps;", "w < warps - 1;", compare_centered),
    ("center.cuh", "key < 0", "key <= 0", compare_centered),
    ("center.cu", "tile >= span.end / TILE", "tile > span.end / TILE", compare_centered),
    ("center.cuh", "i < size) x[j]", "i <= size) x[j]", compare_centered),
    ("center.cuh", "span.end - TILE)", "span.end - TILE + 1)", compare_centered),
    ("center.cuh", "token < open * TILE", "token <= open * TILE", compare_centered),
    ("center.cuh", "span.begin <= open", "span.begin < open", compare_centered),
    ("center.cuh", "? means - Dt", "? means", compare_centered),
    ("center.cuh", "(bits + (1 << (SCALE_SHIFT - 1)))", "bits", compare_centered),
    ("warp_row.cuh", "upper ? other : own", "own", LEVELS),
    ("estimate.cu", "i < width ?", "i <= width ?", SHORT_LEVELS),
    ("estimate.cu", "int b = 1;", "int b = 0;", LEVELS),
    ("estimate.cu", "min((tile + 1) * TILE, end)", "(tile + 1) * TILE", LEVELS),
    ("estimate.cu", "fminf(level, 32767.0f)", "level", FAR_LEVELS),
    ("estimate.cu", "floorf(", "rintf(", LEVELS),
    ("select_centered.cu", QUERIES_BARRIER, QUERIES_BARRIER.partition("\n")[2], MANY),
    ("select_centered.cu", RANKS_BARRIER, RANKS_BARRIER.partition("\n")[2], MANY),
    ("select_centered.cu", "at / count", "at % count", MANY),
    ("select_centered.cu", "if (i < Dt) sum", "if (i <= Dt) sum", SHORT),
    ("select_centered.cu", "stride = SHARERS / 2", "stride = SHARERS / 4", FEW),
    ("select_centered.cu", "sum[0], sum[2]", "sum[0], sum[1]", WIDE),
    ("select_centered.cu", "int b = 1;", "int b = 0;", FEW),
    ("select_centered.cu", "on_means + q * tiles", "on_means", MANY),
    ("select_centered.cu", "lane_index() == 0) units", "lane_index() == 0 && q == 0) units", MANY),
    ("select_centered.cu", "scale_words[v] >> (8 * j)", "scale_words[v] >> 8", FEW),
    ("select_centered.cu", "own[i], bytes[i]", "own[i], bytes[0]", ODD_CENTERED),
    ("select_centered.cu", "i < tiles * (TILE / 4)", "i <= tiles * (TILE / 4)", FEW),
    ("group.cu", PARTS_BARRIER, PARTS_BARRIER.partition("\n")[2], POOL),
    ("group.cu", HEADS_BARRIER, HEADS_BARRIER.partition("\n")[2], POOL),
    ("group.cu", "int w = 1;", "int w = 2;", POOL),
    ("group.cu", "static_cast<int>(size), n)", "static_cast<int>(size), n - 1)", POOL),
    ("group.cu", "32 * STEPS - 1", "32 * STEPS", POOL),
    ("group.cu", "levels[(first_row + g * L)", "levels[(first_row + (G - 1 - g) * L)", CLOSE_POOL),
    ("group.cu", "totals[first_row + g * L]", "totals[first_row]", CLOSE_POOL),
    ("group.cu", "i < n ? rank_of", "i <= n ? rank_of", POOL),
    ("group.cu", "visible_tokens(n, l, L)", "n", POOL),
    ("group.cu", "min(first + size, S)", "first + size", POOL),
    ("center.cuh", "? 0.25f : -0.25f", "? 0.25f : 0.5f", compare_centered),
    ("center.cuh", "head.bits[token * words", "head.bits[words", compare_centered),
    ("select_centered.cu", "noise, squares[r]", "noise, squares[0]", TAIL),
    ("select_centered.cu", "* T + first_tile + i", "* T + i", TAIL),
    ("select_centered.cu", "rests != nullptr", "false", TAIL),
    ("tail.cuh", "other.sum, __fmul_rn(share, sum)", "other.sum, sum", TAIL),
    ("tail.cuh", "int w = 1; w <", "int w = 2; w <", TAIL),
    ("tail.cuh", "LANES] = own;\n  __syncthreads();", "LANES] = own;", TAIL),
    ("tiers.cu", "2 * far + 2 * __popcll", "2 * far + __popcll", TAIL),
    ("tiers.cu", "- weights / 3", "", TAIL),
    ("tiers.cu", "  __syncthreads();\n  if (nearest)", "  if (nearest)", LONG_TAIL),
    ("tiers.cu", "first = middle + 1", "first = middle + 2", REFINED_TAIL),
    ("tiers.cu", "i < M; i += blockDim.x) coded", "i < M - 1; i += blockDim.x) coded", LONG_TAIL),
    ("tiers.cu", "others.add(list.logits[i]);", ";", REFINED_TAIL),
    ("attend_tail.cu", "sum[j] - 1.5f * along", "sum[j] - along", TAIL),
    ("attend_tail.cu", "int token = seen;", "int token = seen + 1;", TAIL),
    ("attend_tail.cu", "at < end ?", "at <= end ?", TAIL),
    ("attend_tail.cu", "on_first * bases[d]", "on_first * bases[D + d]", TAIL),
    ("attend_tail.cu", "(token < TILE ? 0.0f : p)", "p", TAIL),
    ("attend_tail.cu", "split < exact ? 0.0f :", "", TAIL),
    ("attend_tail.cu", "on_first + others", "others", TAIL),
    ("attend_tail.cu", "byte ? p", "token >= 0 ? p", EQUAL_TAIL),
    ("values.cuh", "token < TILE ?", "token <= TILE ?", compare_values),
    ("values.cuh", "token * (2 * P)", "token * P", compare_values),
    ("values.cuh", "0.0f, head.cut", "0.1f, head.cut", compare_values),
    ("values.cu", "i >= span.end - span.begin", "i > span.end - span.begin", compare_values),
    ("begin_step.cu", BASES_BARRIER, "    for (int s = warp", compare_step),
    ("begin_step.cu", "token == TILE - 1) bases", "token == TILE) bases", compare_step),
    ("begin_step.cu", "bases[d] = finite(x)", "bases[d] = x", compare_step),
    ("begin_step.cu", "finite(__fmul_rn(tile, 1.0f / TILE))", "tile / TILE", compare_step),
    ("topk.cuh", "kept[KEPT - 1]", "kept[0]", ONE_WARP),
    ("estimate.cu", "distance != INVISIBLE", "true", compare_hidden_levels),
    ("attend.cuh", "GENERAL ? value_size : key_size", "key_size", SOFTMAX),
    ("attend.cuh", "GENERAL && logits.soft_cap > 0", "false", SOFTMAX),
    ("attend.cuh", "again && ", "false && ", compare_overflow),
    ("attend.cu", "share(row_top, larger) * row_mass", "row_mass", SOFTMAX),
    ("attend.cu", "+ share(sink, larger)", "", SOFTMAX),
    ("attend.cu", "float sink = sink_of", "float sink = splits * sink_of", SOFTMAX_SPLITS),
    ("attend.cu", "exp(sink - top)", "0", SOFTMAX_IN_DOUBLE),
    ("attend.cu", "if (rule.soft_cap > 0)", "if (false)", SOFTMAX_IN_DOUBLE),
    ("softmax.cuh", "size < 0.625f", "size < 6.25f", SOFTMAX),
    ("softmax.cuh", "2.88539008f", "1.44269504f", SOFTMAX),
    ("softmax.cuh", "small : large, x)", "small : large, size)", SOFTMAX),
    ("softmax.cuh", "sink_logits[h]", "sink_logits[0]", SOFTMAX),
    ("attend_tail.cu", "GENERAL ? (Dt + 63) / 64 * 2 : MOST", "MOST", FEW_VALUES),
    ("attend_tail.cu", "row / L % H)", "row % H)", FEW_VALUES),
    ("attend_tail.cu", "others + on_sink", "others", FEW_VALUES),
    ("tail.cuh", "others.add(cap(", "others.add((", FEW_VALUES),
    ("tiers.cu", "cap_all(list.logits, list.count, soft_cap);", ";", REFINED_CAPPED),
    ("tiers.cu", "cap_all(logits, taken, at.soft_cap);", ";", REFINED_CAPPED),
    ("begin_step.cu", "write_value<NV>", "write_value<N>", WIDE_STEP),
    ("begin_step.cu", "head) * Dv,", "head) * D,", WIDE_STEP),
    ("attend_tail.cu", "== splits - 1u", "== splits - 2u", TAIL),
    ("attend_tail.cu", TIERS_BARRIER, "  if (threadIdx.x < LANES)", TAIL),
]  # fmt: skip


@pytest.mark.parametrize(
    "compare",
    [
        *(COUNTED, PRODUCTS, ONE_BLOCK, SPLITS, RERANK, RERANK_MANY, compare_topk),
        *(compare_centered, FEW, MANY, SHORT, WIDE, LONG, LONG_CENTERED, SPARE_TEAM),
        *(LEVELS, SHORT_LEVELS, FAR_LEVELS, POOL, CLOSE_POOL, TAIL, LONG_TAIL, REFINED_TAIL),
        *(EQUAL_TAIL, compare_values, compare_step, ODD_CENTERED, compare_hidden_levels),
        *(SOFTMAX, SOFTMAX_SPLITS, SOFTMAX_IN_DOUBLE, FEW_VALUES, REFINED_CAPPED, WIDE_STEP),
        *(compare_overflow, ONE_WARP),
    ],
)
def test_the_right_kernel_passes(compare: Callable[[], None]) -> None:
    with machine.installed(Cpu(ALL_ORDERS)):
        compare()


@pytest.mark.parametrize(("file", "right", "wrong", "compare"), MISTAKES)
def test_a_mistake_is_caught(
    file: str, right: str, wrong: str, compare: Callable[[], None]
) -> None:
    with (
        machine.installed(Edited(file, right, wrong)),
        pytest.raises((KernelFault, AssertionError, IndexError)),
    ):
        compare()
