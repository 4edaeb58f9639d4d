"""Right results on a GPU at sizes and in orders that the tests do not reach.

    python benchmarks/gpu_large.py            # real sizes: many chunks, many splits, batch 16
    python benchmarks/gpu_large.py --tiny     # small enough for compute-sanitizer
    python benchmarks/gpu_large.py --dry      # tiny sizes through the shim of the tests

It compares selections with the reference to the bit and attention with float64. It replays a
captured step over a cache that grows, and runs steps on two streams at once, and compares both
with eager steps to the bit. It prints a line per check. The exit status is 1 if one fails.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from adamas_core import Selection, encode, encode_values, gpu, reference
from adamas_core.dispatch import on_host
from adamas_core.gpu import tail
from adamas_core.gpu.decode_step import DecodeStep, DeviceCache, device_cache, fill
from adamas_core.reference.layout import Codes
from adamas_core.reference.tail import tiers
from gpu_decode import device

THRESHOLDS = np.array([-1, 0, 1], np.float32)
FLOAT16 = np.dtype(np.float16)
TOLERANCE = 2e-3  # of float16 outputs near 0.1, relative to the largest: half a unit is 5e-4


class Sizes(NamedTuple):
    """Sizes of the checks."""

    shapes: tuple[tuple[int, int, int, int, int, int], ...]  # B, H, H_kv, S, D, K
    tails: tuple[tuple[int, int, int, int, int, int], ...]  # the same, with a tail of 8 K
    capacity: int  # of the cache that a graph steps through
    steps: int
    rounds: int  # of two streams


LARGE = Sizes(
    (
        (1, 8, 2, 131072, 128, 128),
        (1, 4, 4, 32768, 128, 128),
        (1, 8, 1, 131072, 64, 1024),
        (16, 4, 1, 8192, 128, 256),
        (2, 4, 1, 40000, 256, 64),
    ),
    ((1, 4, 1, 32768, 128, 128), (4, 4, 2, 3000, 64, 64)),
    40_000,
    50,
    50,
)
TINY = Sizes(
    ((2, 4, 2, 300, 64, 20), (1, 4, 1, 2500, 128, 64)), ((1, 4, 2, 400, 64, 20),), 400, 3, 3
)


def normal(seed: int, shape: tuple[int, ...]) -> Any:
    """Random float16 numbers on the host."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape, dtype=np.float32).astype(np.float16)


def exact(q: Any, k: Any, v: Any, indices: Any) -> Any:
    """Attention of q (B, H, 1, D) to the chosen tokens in float64."""
    B, H, _, D = q.shape
    G = H // k.shape[1]
    out = np.empty((B, H, 1, D))
    for b in range(B):
        for h in range(H):
            chosen = indices[b, h, 0][indices[b, h, 0] >= 0]
            rows = k[b, h // G, chosen].astype(float)
            logits = rows @ q[b, h, 0].astype(float) * D**-0.5
            weights = np.exp(logits - logits.max())
            out[b, h, 0] = weights @ v[b, h // G, chosen].astype(float) / weights.sum()
    return out


def close(actual: Any, expected: Any) -> None:
    """Fail where attention is further from float64 than rounding to float16 explains."""
    error = np.abs(np.asarray(actual, float) - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE, f"relative error {error:.2e}; expected less than {TOLERANCE}"


def coded(backend: str, k: Any, centered: bool) -> Codes:
    """Codes of keys k (B, H_kv, S, D) by a backend."""
    return encode(k, None if centered else THRESHOLDS, backend=backend).record


def selects_as_the_reference(xp: Any, shape: tuple[int, int, int, int, int, int]) -> None:
    """Codes and indices to the bit, for all forms, and attention within the tolerance."""
    B, H, H_kv, S, D, K = shape
    q, k, v = normal(1, (B, H, 1, D)), normal(2, (B, H_kv, S, D)), normal(3, (B, H_kv, S, D))
    there = [xp.asarray(x) for x in (q, k, v)]
    for centered, metric in ((True, "weighted"), (False, "weighted"), (False, "manhattan")):
        codes, expected_codes = (
            coded("gpu", there[1], centered),
            coded("reference", k, centered),
        )
        np.testing.assert_array_equal(on_host(codes.planes), expected_codes.planes)
        for got, expected in zip(codes.centers or (), expected_codes.centers or (), strict=True):
            np.testing.assert_array_equal(on_host(got), expected)
        selection = Selection(metric=metric)
        indices = gpu.select_topk(there[0], codes, K, selection)
        expected = reference.select_topk(q, expected_codes, K, selection)
        np.testing.assert_array_equal(on_host(indices), expected)
    out, _ = gpu.attend(*there, indices, None, True)
    close(on_host(out), exact(q, k, v, expected))


def chooses_tiers_as_the_reference(xp: Any, shape: tuple[int, int, int, int, int, int]) -> None:
    """Codes of values and indices of both tiers to the bit, and attention within the tolerance."""
    B, H, H_kv, S, D, K = shape
    q, k, v = normal(1, (B, H, 1, D)), normal(2, (B, H_kv, S, D)), normal(3, (B, H_kv, S, D))
    there = [xp.asarray(x) for x in (q, k, v)]
    codes, values = (
        [
            encode(x, backend=home, bits=3).record
            for home, x in (("gpu", there[1]), ("reference", k))
        ],
        [
            encode_values(x, backend=home).record
            for home, x in (("gpu", there[2]), ("reference", v))
        ],
    )
    pairs = zip((*values[0], *codes[0].fine), (*values[1], *codes[1].fine), strict=True)
    for got, expected in pairs:
        np.testing.assert_array_equal(on_host(got), expected)
    selection = Selection(tail=8 * K)
    chosen: list[Any] = []
    attend = tail.attend_tiers

    def kept(q: Any, k: Any, v: Any, values: Any, lengths: Any, room: Any, *rest: Any) -> None:
        chosen.extend((room.indices, room.coded))
        attend(q, k, v, values, lengths, room, *rest)

    with patch.object(tail, "attend_tiers", kept):
        out, _ = gpu.attend_tail(*there, codes[0], values[0], K, selection)
    for got, expected in zip(chosen, tiers(q, codes[1], K, selection), strict=True):
        np.testing.assert_array_equal(on_host(got).reshape(expected.shape), expected)
    wide = q.astype(np.float32)
    close(on_host(out), reference.attend_tail(wide, k, v, codes[1], values[1], K, selection)[0])


def filled(xp: Any, seed: int, capacity: int, lengths: Any, tail: bool = False) -> DeviceCache:
    """A cache 16/4 of sequences of these lengths."""
    B, H_kv, D = len(lengths), 4, 128
    cache = device_cache(B, H_kv, D, FLOAT16, capacity, tail=tail)
    k, v = (xp.asarray(normal(seed + i, cache.k.shape)) for i in range(2))
    fill(cache, k, v, np.asarray(lengths))
    return cache


def arrays_of(cache: DeviceCache) -> list[Any]:
    """All arrays of a cache; the sums hold those of its values."""
    found = [*cache[:5], *(cache.centers or ()), *(cache.fine or ())]
    if cache.values is not None:
        found += [*cache.values[:3], cache.sums]
    return found


def restore(cache: DeviceCache, old: DeviceCache) -> None:
    """Put the arrays of another cache into this one, in place."""
    for x, y in zip(arrays_of(cache), arrays_of(old), strict=True):
        x[...] = y


def new_tokens(xp: Any, step: int, B: int) -> list[Any]:
    """q, k and v of one step."""
    return [
        xp.asarray(normal(100 + 3 * step + i, (B, h, 1, 128))) for i, h in enumerate((16, 4, 4))
    ]


def replays_as_eager(xp: Any, sizes: Sizes, tail: int) -> None:
    """A captured step over a ragged cache that grows: the bits of eager steps."""
    capacity = sizes.capacity
    lengths = [capacity - sizes.steps - 1, capacity // 3, 1]
    captured, eager = (filled(xp, 7, capacity, lengths, tail > 0) for _ in range(2))
    selection = Selection(tail=tail)
    steps = [DecodeStep(16, 1, c, 128, selection) for c in (captured, eager)]
    inputs = new_tokens(xp, 0, 3)
    stream = xp.cuda.Stream(non_blocking=True)
    xp.cuda.get_current_stream().synchronize()  # before the other stream reads the caches
    with stream:
        steps[0](*inputs, captured)  # compiles
        restore(captured, filled(xp, 7, capacity, lengths, tail > 0))
        stream.synchronize()
        stream.begin_capture()
        steps[0](*inputs, captured)
        graph = stream.end_capture()
        for i in range(sizes.steps):
            given = new_tokens(xp, i, 3)
            for x, new in zip(inputs, given, strict=True):
                x[...] = new
            graph.launch(stream)
            out = steps[1](*given, eager)
            stream.synchronize()
            for a, b in ((steps[0].out, out), (steps[0].lse, steps[1].lse)):
                np.testing.assert_array_equal(on_host(a), on_host(b))
            np.testing.assert_array_equal(on_host(captured.lengths), on_host(eager.lengths))
            grown = np.add(lengths, i + 1)
            np.testing.assert_array_equal(on_host(captured.lengths), grown)
    for x, y in zip(arrays_of(captured)[2:], arrays_of(eager)[2:], strict=True):
        np.testing.assert_array_equal(on_host(x), on_host(y))
    compare_with_reference(captured, steps[0], inputs[0], selection)


def compare_with_reference(
    cache: DeviceCache, step: DecodeStep, q: Any, selection: Selection
) -> None:
    """The last result of a step against the reference's selection and float64."""
    k, v, q, out = (on_host(x) for x in (cache.k, cache.v, q, step.out))
    for b, n in enumerate(on_host(cache.lengths)):
        rows = k[b : b + 1, :, :n], v[b : b + 1, :, :n]
        if selection.tail:
            codes = encode(rows[0], backend="reference", bits=3).record
            values = encode_values(rows[1], backend="reference").record
            wide = q[b : b + 1].astype(np.float32)
            expected, _ = reference.attend_tail(wide, *rows, codes, values, 128, selection)
            close(out[b : b + 1], expected)
            continue
        codes = coded("reference", rows[0], True)
        indices = reference.select_topk(q[b : b + 1], codes, 128, Selection())
        close(out[b : b + 1], exact(q[b : b + 1], *rows, indices))


def overlaps(xp: Any, sizes: Sizes) -> None:
    """Steps on two streams at once give the bits of steps that run alone."""
    lengths = [sizes.capacity - 1, sizes.capacity // 2]
    caches = [filled(xp, 11 * i, sizes.capacity, lengths) for i in (1, 2)]
    steps = [DecodeStep(16, 1, c, 128, Selection()) for c in caches]
    given = [new_tokens(xp, i, 2) for i in range(2)]
    start = xp.asarray(lengths, np.int32)
    alone = []
    for step, cache, new in zip(steps, caches, given, strict=True):
        alone.append(on_host(step(*new, cache)).copy())
    xp.cuda.Device().synchronize()
    streams = [xp.cuda.Stream(non_blocking=True) for _ in range(2)]
    for _ in range(sizes.rounds):
        for stream, step, cache, new in zip(streams, steps, caches, given, strict=True):
            with stream:
                cache.lengths[...] = start  # the step writes the same token again
                step(*new, cache)
        xp.cuda.Device().synchronize()
        for step, expected in zip(steps, alone, strict=True):
            np.testing.assert_array_equal(on_host(step.out), expected)


def checks(xp: Any, sizes: Sizes, streams: bool) -> dict[str, Callable[[], None]]:
    """All checks by name."""
    all_ = {
        f"select B={s[0]} {s[1]}/{s[2]} S={s[3]} D={s[4]} K={s[5]}": partial(
            selects_as_the_reference, xp, s
        )
        for s in sizes.shapes
    }
    all_ |= {
        f"tail B={s[0]} {s[1]}/{s[2]} S={s[3]} D={s[4]} K={s[5]}": partial(
            chooses_tiers_as_the_reference, xp, s
        )
        for s in sizes.tails
    }
    if streams:
        all_["graph"] = partial(replays_as_eager, xp, sizes, 0)
        all_["graph with a tail"] = partial(replays_as_eager, xp, sizes, 1024)
        all_["two streams"] = partial(overlaps, xp, sizes)
    return all_


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--no-pool", action="store_true", help="one allocation per array")
    options = parser.parse_args(arguments)
    failed = 0
    with device(options.dry) as xp:
        if options.no_pool:
            xp.cuda.set_allocator(None)
        sizes = TINY if options.tiny or options.dry else LARGE
        for name, check in checks(xp, sizes, not options.dry).items():
            start = time.perf_counter()
            try:
                check()
                print(f"ok      {name}  {time.perf_counter() - start:.1f} s", flush=True)
            except Exception:
                failed += 1
                print(f"FAILED  {name}\n{traceback.format_exc(limit=3)}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
