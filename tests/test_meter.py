"""Bytes of decode steps."""

from __future__ import annotations

import numpy as np
import pytest

from adamas_core import KVCache, Selection
from adamas_core.lab.meter import Meter


@pytest.mark.parametrize(("centered", "codes"), [(False, 16), (True, 19)])
def test_meter_counts_the_bytes_of_decode_steps(centered: bool, codes: int) -> None:
    rng = np.random.default_rng(0)
    k = rng.standard_normal((2, 200, 64)).astype(np.float32)
    q = rng.standard_normal((6, 200, 64)).astype(np.float32)
    meter = Meter(KVCache(selection=Selection(tail=0), centered=centered), 16)
    meter(0, q, k, k)
    assert (meter.calls, meter.bytes) == (0, 0)
    meter(0, q[:, :1], k[:, :1], k[:, :1])
    assert meter.calls == 1
    assert meter.dense_bytes == 2 * 201 * 2 * 64 * 4
    assert meter.bytes == 2 * 201 * codes + 6 * 16 * 2 * 64 * 4


def test_a_tail_reads_the_codes_of_its_tokens() -> None:
    rng = np.random.default_rng(0)
    k = rng.standard_normal((2, 200, 64)).astype(np.float32)
    q = rng.standard_normal((6, 200, 64)).astype(np.float32)
    for tail, coded in ((40, 40), (1000, 201 - 16)):
        meter = Meter(KVCache(selection=Selection(tail=tail)), 16)
        meter.prefill(0, q, k, k)
        meter(0, q[:, :1], k[:, :1], k[:, :1])
        assert meter.bytes == 2 * 201 * 19 + 6 * (16 * 2 * 64 * 4 + coded * 17 + (16 + coded) * 9)


def test_a_layer_with_a_window_reads_its_window() -> None:
    rng = np.random.default_rng(0)
    k = rng.standard_normal((2, 200, 64)).astype(np.float32)
    meter = Meter(KVCache(windows=[50]), 16)
    meter.prefill(0, k, k, k)
    meter(0, k[:, :1], k[:, :1], k[:, :1])
    assert meter.bytes == meter.dense_bytes == 2 * 50 * 2 * 64 * 4
