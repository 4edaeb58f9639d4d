"""Names of codes beside those of keys."""

from __future__ import annotations

import pytest

from adamas_core.onnx_convert.codes_io import codes_name


@pytest.mark.parametrize(
    ("keys", "codes"),
    [
        ("past_key_values.0.key", "past_key_values.0.codes"),
        ("present.11.key", "present.11.codes"),
        ("past_key_3", "past_codes_3"),
        ("pastKey", "pastcodes"),
        ("k", "k_codes"),
    ],
)
def test_codes_name(keys: str, codes: str) -> None:
    assert codes_name(keys) == codes
