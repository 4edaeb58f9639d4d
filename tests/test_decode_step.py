"""The GPU's decode step: what the reference gives, with nothing allocated in a call."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dtypes, seeds
from test_attend import exact
from tolerances import assert_attention

from adamas_core import gpu, reference
from adamas_core.codes import KeyCodes
from adamas_core.dispatch import on_host
from adamas_core.gpu.decode import DecodeStep, device_cache


@given(
    seed=seeds,
    dtype=dtypes,
    heads=st.sampled_from([(1, 1), (1, 4), (2, 3)]),
    D=st.sampled_from([32, 80, 128]),
    L=st.sampled_from([1, 1, 3]),
    form=st.sampled_from([("weighted", 4), ("weighted", 3), ("manhattan", 2)]),
)
@settings(max_examples=15)
def test_steps_of_a_growing_cache(
    device: Any,
    seed: int,
    dtype: np.dtype[Any],
    heads: tuple[int, int],
    D: int,
    L: int,
    form: tuple[str, int],
) -> None:
    """One step object over ragged lengths from nothing to the cache's end and beyond it."""
    rng = np.random.default_rng(seed)
    (H_kv, G), B, capacity, budget = heads, 2, 300, 20
    t = np.array([-1, 0, 1], np.float32)
    k, v = (rng.standard_normal((B, H_kv, capacity + L, D)).astype(dtype) for _ in "kv")
    cache = device_cache(B, H_kv, D, dtype, capacity, t)
    step = DecodeStep(H_kv * G, L, cache, budget, form[0], form[1], sinks=1, recent=2)
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
            codes = KeyCodes(reference.encode(rows[0], t), int(n + L), thresholds, D, "reference")
            indices = reference.select_topk(q[b : b + 1], codes, budget, *form, 1, 2)
            expected, _ = exact((q[b : b + 1], *rows), indices, D**-0.5)
            assert_attention(on_host(out)[b : b + 1], expected, dtype)
    step(given_q, *new, cache)  # behind the end: nothing is written or read out of bounds


def no_memory(*_: Any, **__: Any) -> None:
    raise AssertionError("a step must not allocate")
