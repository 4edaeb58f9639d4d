"""Weights that are missing, of a wrong shape, or unknown."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import (
    CONFIG,
    FAMILIES,
    gguf_name,
    random_weights,
    shapes,
    without,
    write_gguf,
    write_huggingface,
)

from adamas_core.llama import CheckpointError, load

pytest.importorskip("gguf", reason='needs the extra "llama"')
pytest.importorskip("safetensors", reason='needs the extra "llama"')


BAD_WEIGHTS = {
    "missing": ("model.layers.1.mlp.up_proj.weight", None),
    "no bias": ("model.layers.1.self_attn.k_proj.bias", None),
    "short": ("model.layers.0.self_attn.v_proj.weight", np.zeros((15, 32), np.float32)),
    "transposed": ("model.layers.0.mlp.down_proj.weight", np.zeros((48, 32), np.float32)),
    "square": ("model.norm.weight", np.zeros((32, 32), np.float32)),
    "vocabulary": ("lm_head.weight", np.zeros((60, 32), np.float32)),
}


@pytest.mark.parametrize("bad", BAD_WEIGHTS)
@pytest.mark.parametrize("write", [write_huggingface, write_gguf])
def test_a_bad_weight_is_named(bad, write, tmp_path):
    config = CONFIG | FAMILIES["qwen2"]
    name, values = BAD_WEIGHTS[bad]
    good = random_weights(shapes(config))
    path = write(
        tmp_path / "model", config, without(good, name) if values is None else good | {name: values}
    )
    with pytest.raises(CheckpointError) as error:
        load(path)
    message = str(error.value)
    assert str(path) in message
    assert (name if write is write_huggingface else gguf_name(name)) in message
    assert str(good[name].shape) in message
    assert ("is missing" if values is None else f"has shape {values.shape}") in message


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.o_proj.bias", "model.layers.2.x"])
def test_a_tensor_that_nothing_asks_for_is_an_error(name, tmp_path):
    config = CONFIG | FAMILIES["qwen2"]
    weights = random_weights(shapes(config)) | {name: np.zeros(32, np.float32)}
    with pytest.raises(CheckpointError, match=f"1 tensors .* does not know, first {name}"):
        load(write_huggingface(tmp_path / "hf", config, weights))
