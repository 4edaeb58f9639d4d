"""Hugging Face folders: the logits of transformers, dtypes, models that are refused, cut files."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from tiny_model import (
    CONFIG,
    FAMILIES,
    TOKENS,
    assert_close,
    logits,
    peer,
    random_weights,
    shapes,
    write_huggingface,
)

from adamas_core.llama import CheckpointError, load

pytest.importorskip("safetensors", reason='needs the extra "llama"')
ml_dtypes = pytest.importorskip("ml_dtypes", reason='needs the extra "llama"')


@pytest.mark.peers
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_folder_gives_the_logits_of_transformers(family, tmp_path):
    config = CONFIG | family
    folder = write_huggingface(tmp_path / "hf", config, random_weights(shapes(config)))
    assert_close(logits(folder), transformers_logits(folder), 1e-4)


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_from_transformers_is_read(dtype, tied, tmp_path):
    """Its own config.json, its dtypes, and several files with an index."""
    torch, transformers = peer("torch"), peer("transformers")
    values = CONFIG | FAMILIES["llama llama3"] | {"tie_word_embeddings": tied}
    config = transformers.AutoConfig.for_model(**copy.deepcopy(values))  # it writes into them
    model = transformers.AutoModelForCausalLM.from_config(config)
    weights = random_weights(shapes(values))
    model.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()}, strict=False)
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_close(logits(tmp_path), transformers_logits(tmp_path), 1e-4)


def transformers_logits(folder):
    torch, transformers = peer("torch"), peer("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_folders_of_other_dtypes_are_widened(dtype, tmp_path):
    config = CONFIG | FAMILIES["qwen2"]
    weights = random_weights(shapes(config))
    rounded = {name: w.astype(dtype).astype(np.float32) for name, w in weights.items()}
    expected = logits(write_huggingface(tmp_path / "rounded", config, rounded))
    np.testing.assert_array_equal(
        logits(write_huggingface(tmp_path / "narrow", config, weights, dtype)), expected
    )


def test_yarn_lengthens_the_context(tmp_path):
    config = CONFIG | FAMILIES["qwen3 yarn"] | {"max_position_embeddings": 32}
    folder = write_huggingface(tmp_path / "hf", config, random_weights(shapes(config)))
    assert load(folder).config.context == 128


def test_stored_frequencies_of_old_folders_are_passed_over(tmp_path):
    config = CONFIG | FAMILIES["llama"]
    weights = random_weights(shapes(config))
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    load(write_huggingface(tmp_path / "hf", config, weights))


def test_integer_weights_are_an_error(tmp_path):
    config = CONFIG | FAMILIES["llama"]
    folder = write_huggingface(tmp_path / "hf", config, random_weights(shapes(config)), np.int8)
    with pytest.raises(CheckpointError, match=r"embed_tokens.*dtype I8"):
        load(folder)


REFUSED = {
    "family": ({"model_type": "mixtral"}, "'mixtral' is not llama"),
    "odd head_dim": ({"head_dim": 7}, "head_dim is 7.*even"),
    "huge head_dim": ({"head_dim": 10**12}, "head_dim is 1000000000000"),
    "uneven heads": ({"num_key_value_heads": 3}, "4 query heads cannot share 3"),
    "no layers": ({"num_hidden_layers": 0}, "layers is 0"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "mlp_bias": ({"mlp_bias": True}, "mlp_bias True"),
    "window": ({"model_type": "mistral", "sliding_window": 64}, "window of 64 .* context of 128"),
    "qwen window": (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64},
        "window of 64",
    ),
    "scaling": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
    "scaling's factor": ({"rope_scaling": {"type": "linear"}}, "needs 'factor'"),
    "part of the head": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "partial_rotary_factor",
    ),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "quantized safetensors"),
    "text for a number": ({"hidden_size": "32"}, "hidden_size is '32', expected int"),
    "no number": ({"vocab_size": None}, "vocab_size is missing"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_folder_that_is_not_supported_says_why(changes, message, tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | FAMILIES["llama"] | changes))
    with pytest.raises(CheckpointError, match=message) as error:
        load(folder)
    assert str(folder / "config.json") in str(error.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    config = CONFIG | FAMILIES["llama"]
    return write_huggingface(
        tmp_path_factory.mktemp("whole") / "hf", config, random_weights(shapes(config))
    )


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("size", [None, 0, 7, 100, -1])
def test_a_folder_with_a_cut_file_is_a_clear_error(whole, file, size, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    broken = tmp_path / file
    data = broken.read_bytes()
    broken.unlink()
    if size is not None:
        broken.write_bytes(data[:size])
    with pytest.raises(CheckpointError, match="missing" if size is None else "cut short") as error:
        load(tmp_path)
    assert str(broken) in str(error.value)


def test_a_file_that_the_index_names_but_is_absent_is_named(whole, tmp_path):
    (tmp_path / "config.json").write_bytes((whole / "config.json").read_bytes())
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors: missing"):
        load(tmp_path)
