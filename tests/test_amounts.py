"""Amounts as people read them."""

from __future__ import annotations

import pytest

from adamas_core.cli.amounts import amount


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**31, "2.0 GiB")]
)
def test_amount(nbytes: int, text: str) -> None:
    assert amount(nbytes) == text
