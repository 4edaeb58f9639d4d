"""DecodeStep gives the result of the reference, and a call allocates nothing."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_attention, exact_attention
from strategies import dtypes, seeds

from adamas_core import Selection, gpu, reference
from adamas_core.dispatch import on_host
from adamas_core.gpu.decode_step import DecodeStep, device_cache
from adamas_core.reference.layout import Codes

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
)
@settings(max_examples=15)
def test_steps_of_a_growing_cache(
    device: Any,
    seed: int,
    dtype: np.dtype[Any],
    heads: tuple[int, int],
    D: int,
    L: int,
    selection: Selection,
) -> None:
    """One step serves lengths of each sequence from 0 to the end of the cache, and beyond it."""
    rng = np.random.default_rng(seed)
    (H_kv, G), B, capacity, budget = heads, 2, 300, 20
    t = np.array([-1, 0, 1], np.float32)
    k, v = (rng.standard_normal((B, H_kv, capacity + L, D)).astype(dtype) for _ in "kv")
    cache = device_cache(B, H_kv, D, dtype, capacity, t)
    step = DecodeStep(H_kv * G, L, cache, budget, selection)
    for base in (0, 63, int(rng.integers(0, capacity - L)), capacity - L):
        lengths = np.array([base, int(rng.integers(0, capacity - L + 1))])
        cache.lengths[:] = device.asarray(lengths, np.int32)
        for b, n in enumerate(lengths):
            cache.k[b, :, :n] = device.asarray(k[b, :, :n])
            cache.v[b, :, :n] = device.asarray(v[b, :, :n])
            gpu.encode(cache.k[b : b + 1, :, :n], cache.thresholds, cache.planes[:, b : b + 1], 0)
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
            thresholds = np.broadcast_to(t, (H_kv, 3))
            codes = Codes(reference.encode(rows[0], t), int(n + L), thresholds)
            indices = reference.select_topk(q[b : b + 1], codes, budget, selection)
            expected, _ = exact_attention(q[b : b + 1], *rows, indices, D**-0.5)
            assert_attention(on_host(out)[b : b + 1], expected, dtype)
    step(given_q, *new, cache)  # after the end: nothing is written or read out of bounds


@pytest.mark.parametrize("selection", [Selection(refine=2), Selection(group=True)])
def test_unsupported_options_are_refused(device: Any, selection: Selection) -> None:
    cache = device_cache(1, 1, 32, np.dtype(np.float32), 64, np.array([-1, 0, 1], np.float32))
    with pytest.raises(ValueError, match=r"DecodeStep: .* expected refine=0 and group=False"):
        DecodeStep(2, 1, cache, 8, selection)


def no_memory(*_: Any, **__: Any) -> None:
    raise AssertionError("a step must not allocate")
