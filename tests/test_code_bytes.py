"""Bytes per token, against the bytes of real codes."""

from __future__ import annotations

import numpy as np
import pytest

from adamas_core import encode
from adamas_core.lab.code_bytes import code_bytes


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("D", [16, 64, 80, 128, 200])
def test_bytes_are_those_of_codes(D: int, centered: bool) -> None:
    k = np.random.default_rng(0).standard_normal((2, 640, D)).astype(np.float32)
    codes = encode(k, centered=centered)
    open_tile = 2 * 64 * (1 << (D - 1).bit_length()) * 4 if centered else 0
    assert codes.nbytes == 2 * 640 * code_bytes(D, centered) + open_tile


def test_the_documented_sizes() -> None:
    assert (code_bytes(128), code_bytes(128, centered=True)) == (32, 37)
