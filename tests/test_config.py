"""Sizes that no decoder can have are refused."""

from __future__ import annotations

import math

import pytest
from tiny_model import tiny

from adamas_core.llama import Config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 5}, "head_dim is 5.*even"),
        ({"kv_heads": 3}, "4 query heads cannot share 3 KV heads"),
        ({"layers": 0}, "layers is 0"),
        ({"context": 2**31}, "context is 2147483648, expected 1 to 2147483647"),
        ({"norm_eps": math.nan}, "norm_eps is nan"),
        ({"norm_eps": -1e-5}, "norm_eps is -1e-05"),
        ({"frequencies": (1.0, math.inf, 0.1)}, "RoPE's frequencies or its gain are not finite"),
        ({"rope_gain": math.nan}, "RoPE's frequencies or its gain are not finite"),
    ],
)
def test_an_impossible_config_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**(vars(tiny().config) | change))
