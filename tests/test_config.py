"""Sizes that no decoder can have are refused."""

from __future__ import annotations

import pytest
from tiny_model import tiny

from adamas_core.llama import Config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 5}, "head_dim is 5.*even"),
        ({"kv_heads": 3}, "4 query heads cannot share 3 KV heads"),
        ({"layers": 0}, "layers is 0"),
    ],
)
def test_an_impossible_config_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**(vars(tiny().config) | change))
