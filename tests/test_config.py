"""Sizes that no decoder can have are refused."""

from __future__ import annotations

import math

import pytest
from tiny_model import tiny

from adamas_core.llama import Config
from adamas_core.llama.rope import Rope


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 5}, "head_dim is 5.*even"),
        ({"kv_heads": 3}, "4 query heads cannot share 3 KV heads"),
        ({"layers": 0}, "layers is 0"),
        ({"context": 2**31}, "context is 2147483648, expected 1 to 2147483647"),
        ({"norm_eps": math.nan}, "norm_eps is nan"),
        ({"norm_eps": -1e-5}, "norm_eps is -1e-05"),
        ({"layers": 3}, "ropes has 2 items, expected one per layer, 3"),
        ({"windows": (None,)}, "windows has 1 items, expected one per layer, 2"),
        ({"windows": (None, 0)}, "a window is 0, expected 1 to"),
        ({"ropes": (Rope((1.0,)),) * 2}, "RoPE has 1 frequencies, expected 3"),
        ({"ropes": (Rope((1.0, 0.1, math.inf)),) * 2}, "are not finite"),
        ({"activation": "relu"}, "activation is 'relu', expected silu or gelu"),
        ({"query_scale": 0.0}, "query_scale is 0.0, expected a finite number above 0"),
    ],
)
def test_an_impossible_config_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**(vars(tiny().config) | change))
