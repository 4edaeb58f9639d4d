"""llama2.c's .bin: the logits of the same model in a folder, and later versions."""

from __future__ import annotations

import struct

import pytest
from tiny_model import (
    CONFIG,
    FAMILIES,
    assert_close,
    logits,
    random_weights,
    shapes,
    write_huggingface,
    write_llama2c,
)

from adamas_core.llama import CheckpointError, load


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_llama2c_gives_the_logits_of_the_folder(tied, kv_heads, tmp_path):
    config = CONFIG | FAMILIES["llama"] | {"rope_theta": 10000.0, "tie_word_embeddings": tied}
    config["num_key_value_heads"] = kv_heads
    weights = random_weights(shapes(config))
    folder = write_huggingface(tmp_path / "hf", config, weights)
    assert_close(logits(write_llama2c(tmp_path / "x.bin", config, weights)), logits(folder), 1e-6)


def test_later_llama2c_versions_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(struct.pack("<Ii", 0x616B3432, 1) + bytes(256))
    with pytest.raises(CheckpointError, match=r"later \.bin versions"):
        load(path)


@pytest.mark.parametrize("value", [0, -1, -4, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("place", range(7))
def test_a_size_that_no_model_has_is_refused(place, value, tmp_path):
    config = CONFIG | FAMILIES["llama"]
    path = write_llama2c(tmp_path / "x.bin", config, random_weights(shapes(config)))
    data = path.read_bytes()
    path.write_bytes(data[: 4 * place] + struct.pack("<i", value) + data[4 * place + 4 :])
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert str(path) in str(error.value)
