"""Hugging Face folders: shards, a head that is stored alone, and numbers that no model has."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from tiny_model import (
    CONFIG,
    FAMILIES,
    LLAMA3,
    YARN,
    random_weights,
    shapes,
    without,
    write_huggingface,
)

from adamas_core.llama import CheckpointError, load

pytest.importorskip("safetensors", reason='needs the extra "llama"')

LLAMA = CONFIG | FAMILIES["llama"]
EMBEDDING = "model.embed_tokens.weight"


def folder_of(folder, **changes):
    config = LLAMA | changes
    return write_huggingface(folder, config, random_weights(shapes(LLAMA)))


def refused(folder, message):
    with pytest.raises((CheckpointError, OSError), match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -1, 0, 10**300, 2**31, "2", None, [], {}, True, 0.5]
)
@pytest.mark.parametrize(
    "name",
    [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
    ],
)
def test_a_size_that_no_model_has_is_named(name, value, tmp_path):
    refused(folder_of(tmp_path / "hf", **{name: value}), rf"config\.json: {name} is")


def test_more_layers_than_the_file_holds_end_at_the_first_that_is_missing(tmp_path):
    refused(folder_of(tmp_path / "many", num_hidden_layers=10**9), "layers is 1000000000, expected")
    folder = folder_of(tmp_path / "hf", num_hidden_layers=10**4)
    refused(folder, r"model\.layers\.2\.[a-z_]+\.weight is missing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, expected a finite number"),
        ({"rms_norm_eps": -1.0}, "norm_eps is -1.0"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_theta": -5.0}, "theta is -5.0"),
        ({"rope_theta": "10000"}, "rope_theta is '10000', expected float"),
        ({"rope_parameters": {"rope_theta": [1]}}, r"rope_parameters\.rope_theta is \[1\]"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\], expected dict"),
        ({"rope_scaling": {"type": 5}}, "rope_scaling.type is 5, expected str"),
        ({"rope_scaling": YARN | {"factor": "x" * 9}}, "rope_scaling.factor is 'xxx"),
        ({"rope_scaling": YARN | {"factor": -4.0}}, "factor is -4.0, expected a number above 0"),
        ({"rope_scaling": YARN | {"factor": 1e300}}, "factor is 1e\\+300"),
        (
            {"rope_scaling": YARN | {"original_max_position_embeddings": 10**400}},
            "rope_scaling.original_max_position_embeddings is 1000",
        ),
        (
            {"rope_scaling": YARN | {"factor": 1e8, "original_max_position_embeddings": 10**8}},
            "context is 2147483648",
        ),
        ({"rope_scaling": YARN | {"mscale": "a", "mscale_all_dim": 1}}, "mscale is 'a'"),
        ({"rope_scaling": YARN | {"beta_fast": []}}, r"beta_fast is \[\]"),
        ({"rope_scaling": LLAMA3 | {"factor": 0}}, "factor is 0, expected a number above 0"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "low_freq_factor 1.0 is not below"),
    ],
)
def test_a_number_that_rope_cannot_use_is_named(changes, message, tmp_path):
    refused(folder_of(tmp_path / "hf", **changes), rf"config\.json: .*{message}")


def test_a_tied_embedding_may_be_stored_under_the_name_of_the_head(tmp_path):
    config = LLAMA | {"tie_word_embeddings": True}
    weights = random_weights(shapes(config))
    expected = load(write_huggingface(tmp_path / "one", config, weights))
    moved = without(weights, EMBEDDING) | {"lm_head.weight": weights[EMBEDDING]}
    found = load(write_huggingface(tmp_path / "other", config, moved))
    assert found.weights.head is found.weights.embedding
    np.testing.assert_array_equal(found.weights.embedding, expected.weights.embedding)
    # A model with a head of its own needs both.
    untied = without(random_weights(shapes(LLAMA)), EMBEDDING)
    refused(write_huggingface(tmp_path / "untied", LLAMA, untied), f"{EMBEDDING} is missing")


# Shards


def shard(folder, **changes):
    """A folder of two shards; `changes` are those of the weight map."""
    from safetensors.numpy import save_file

    weights = random_weights(shapes(LLAMA))
    write_huggingface(folder, LLAMA, {})
    (folder / "model.safetensors").unlink()
    save_file(without(weights, EMBEDDING), folder / "a.safetensors")
    save_file({EMBEDDING: weights[EMBEDDING]}, folder / "b.safetensors")
    place = dict.fromkeys(weights, "a.safetensors") | {EMBEDDING: "b.safetensors"}
    index = {"metadata": {}, "weight_map": place | changes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_are_read(tmp_path):
    expected = load(folder_of(tmp_path / "hf")).weights.embedding
    np.testing.assert_array_equal(load(shard(tmp_path / "shards")).weights.embedding, expected)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../outside.safetensors", "expected one in the folder"),
        ("/etc/hostname", "expected one in the folder"),
        ("c/../../b.safetensors", "expected one in the folder"),
        (5, "model.embed_tokens.weight is 5, expected one in the folder"),
        (None, "expected one in the folder"),
        ("c.safetensors", r"c\.safetensors: missing"),
        ("b\0", "is not the path of a file"),
        ("", "this is a folder"),
        ("a.safetensors", r"model\.embed_tokens\.weight is not in a\.safetensors"),
        ("config.json", r"config\.json: damaged"),
    ],
)
def test_a_shard_that_is_not_there_is_named(file, message, tmp_path):
    (tmp_path / "outside.safetensors").write_bytes(b"")
    refused(shard(tmp_path / "hf", **{EMBEDDING: file}), message)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    from safetensors.numpy import save_file

    folder = shard(tmp_path / "hf")
    save_file(random_weights(shapes(LLAMA)), folder / "a.safetensors")
    refused(folder, rf"b\.safetensors: {EMBEDDING} is in another file, too")


# The header of a safetensors file


def header(text, size=None):
    return struct.pack("<Q", len(text) if size is None else size) + text.encode()


def entry(name, begin, end, shape=(1,), dtype="F32"):
    value = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return f"{json.dumps(name)}: {json.dumps(value)}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        header("{}", 2**40),
        header("{}", 2**64 - 1),
        header("{}", -(2**62) % 2**64),
        header('{"a":' * 100_000),
        header("{" + entry("a", 0, 8) + "}") + bytes(8),  # 8 bytes for one float32
        header("{" + entry("a", 0, 2**62, [2**60]) + "}") + bytes(8),
        header("{" + entry("a", 0, 4, [2**63, 2**63]) + "}") + bytes(4),
        header("{" + entry("a", 4, 0) + "}") + bytes(4),
        header("{" + entry("a", 0, 4) + "," + entry("b", 0, 4) + "}") + bytes(4),
        header("{" + entry("a", 0, 4) + "," + entry("a", 4, 8) + "}") + bytes(8),
        header("{" + entry("a", 0, 4) + "," + entry("b", 2, 6) + "}") + bytes(6),
        header("{" + entry("a", 0, 4, dtype="F99") + "}") + bytes(4),
    ],
)
def test_a_damaged_safetensors_header_is_named(data, tmp_path):
    folder = folder_of(tmp_path / "hf")
    (folder / "model.safetensors").write_bytes(data)
    refused(folder, r"model\.safetensors: damaged")
