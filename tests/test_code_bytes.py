"""Bytes per token, against the bytes of real codes."""

from __future__ import annotations

import numpy as np
import pytest

from adamas_core import KVCache, Selection, encode
from adamas_core.lab.code_bytes import code_bytes, extra_key_bytes, tail_bytes, value_bytes
from adamas_core.lab.selectors import AdamasTail


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("D", [16, 64, 80, 128, 200])
def test_bytes_are_those_of_codes(D: int, centered: bool) -> None:
    k = np.random.default_rng(0).standard_normal((2, 640, D)).astype(np.float32)
    codes = encode(k, centered=centered)
    open_tile = 2 * 64 * (1 << (D - 1).bit_length()) * 4 if centered else 0
    assert codes.nbytes == 2 * 640 * code_bytes(D, centered) + open_tile


@pytest.mark.parametrize("D", [16, 64, 80, 128, 200])
def test_bytes_are_those_of_a_cache_with_a_tail(D: int) -> None:
    """What a cache with a tail keeps beside K and V, but for open tiles and the sums of values."""
    k = np.random.default_rng(0).standard_normal((2, 2, 640, D)).astype(np.float32)
    cache = KVCache(selection=Selection(tail=64))
    cache.append(*k)
    fixed = KVCache(selection=Selection(tail=64))
    fixed.append(*k[:, :, :320])
    kept = (cache.nbytes - fixed.nbytes) / (2 * 320) - 2 * 4 * D
    assert kept == AdamasTail(64).bytes_kept(D)


def test_the_documented_sizes() -> None:
    assert (code_bytes(128), code_bytes(128, centered=True)) == (32, 37)
    assert (extra_key_bytes(128), value_bytes(128)) == (17, 33)
    assert tail_bytes(128, 100, 64) == 64 * 33 + 164 * 17
    assert AdamasTail(64).bytes_kept(128) == 37 + 17 + 33
    assert AdamasTail(64).bytes_of_rows(128, 1000, 100) == 100 * 512 + 64 * 33 + 164 * 17
