"""Hugging Face folders: the logits of transformers, dtypes, models that are refused, cut files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_model import (
    CONFIG,
    FAMILIES,
    GEMMA3,
    TOKENS,
    DenseAttention,
    assert_close,
    logits,
    peer,
    random_weights,
    shapes,
    write_huggingface,
)

from adamas_core.llama import CheckpointError, huggingface, load, rope
from adamas_core.llama.huggingface import TEXT_PREFIXES
from adamas_core.llama.settings import Settings

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
@pytest.mark.parametrize("name", ["llama llama3", "qwen2 window", "gemma3 linear"])
def test_a_folder_from_transformers_is_read(dtype, tied, name, tmp_path):
    """Its own config.json, its dtypes, and several files with an index."""
    torch, transformers = peer("torch"), peer("transformers")
    values = CONFIG | FAMILIES[name] | {"tie_word_embeddings": tied}
    config = transformers.AutoConfig.for_model(**copy.deepcopy(values))  # it writes into them
    model = transformers.AutoModelForCausalLM.from_config(config)
    weights = random_weights(shapes(values))
    model.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()}, strict=False)
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_close(logits(tmp_path), transformers_logits(tmp_path), 1e-4)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["mistral window", "gemma3", "gemma3 linear"])
def test_decoding_beyond_the_window_gives_the_logits_of_transformers(name, tmp_path):
    config = CONFIG | FAMILIES[name]
    folder = write_huggingface(tmp_path / "hf", config, random_weights(shapes(config)))
    model = load(folder)
    attention = DenseAttention(model.config.windows)
    found = [model.forward(TOKENS[:5], 0, attention, last=False)]
    found.append(model.forward(TOKENS[5:24], 5, attention, last=False))
    found += [model.forward(TOKENS[i : i + 1], i, attention, last=False) for i in range(24, 40)]
    assert_close(np.concatenate(found), transformers_logits(folder), 1e-4)


@pytest.mark.parametrize("prefix", TEXT_PREFIXES)
def test_the_text_model_of_a_folder_with_a_vision_model_is_read(prefix, tmp_path):
    config = CONFIG | FAMILIES["gemma3 head"]
    weights = random_weights(shapes(config))
    expected = logits(write_huggingface(tmp_path / "text", config, weights))
    head = "language_model." if prefix.startswith("language_model.") else ""
    renamed = {
        head + name if name == "lm_head.weight" else prefix + name.removeprefix("model."): values
        for name, values in weights.items()
    }
    renamed["model.vision_tower.x.weight"] = np.zeros((2, 3), np.float32)
    renamed["multi_modal_projector.y.weight"] = np.zeros(4, np.float32)
    whole = {"model_type": "gemma3", "text_config": config}
    found = logits(write_huggingface(tmp_path / "both", whole, renamed))
    np.testing.assert_array_equal(found, expected)


def test_numbers_that_gemmas_folder_leaves_out(tmp_path):
    """Those of Gemma 3 4B, whose config.json has no number of heads and no size of a head."""
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    config = huggingface._config(*huggingface._settings(tmp_path / "config.json"))
    assert (config.heads, config.kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab, config.context, config.query_scale) == (262208, 131072, 1.0)
    assert config.windows == tuple(None if i % 6 == 5 else 1024 for i in range(34))
    assert config.ropes[4] == rope.scaled_rope(256, 1e4)
    assert config.ropes[5] == rope.scaled_rope(256, 1e6, {"rope_type": "linear", "factor": 8.0})


def test_the_window_of_mistral_7b():
    """All layers have it; a prompt inside of it sees all tokens."""
    text = {
        "model_type": "mistral",
        "num_hidden_layers": 3,
        "sliding_window": 16,
        "use_sliding_window": None,
    }
    for context, windows in ((128, (16,) * 3), (16, (None,) * 3)):
        values = CONFIG | text | {"max_position_embeddings": context}
        settings = Settings(Path("config.json"), values.get)
        assert huggingface._config(settings, "mistral").windows == windows


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
    "family": ({"model_type": "mixtral"}, "'mixtral' is not one of llama"),
    "odd head_dim": ({"head_dim": 7}, "head_dim is 7.*even"),
    "huge head_dim": ({"head_dim": 10**12}, "head_dim is 1000000000000"),
    "uneven heads": ({"num_key_value_heads": 3}, "4 query heads cannot share 3"),
    "no layers": ({"num_hidden_layers": 0}, "layers is 0"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "mlp_bias": ({"mlp_bias": True}, "mlp_bias True"),
    "window": ({"model_type": "mistral", "sliding_window": 0}, "window is 0, expected 1"),
    "qwen window": (
        {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": -3,
            "max_window_layers": 0,
        },
        "window is -3",
    ),
    "layer types": (
        {"model_type": "mistral", "sliding_window": 9, "layer_types": ["full_attention"]},
        "layer_types is .*, expected 2 of",
    ),
    "unknown layer types": (
        {"model_type": "mistral", "sliding_window": 9, "layer_types": ["x", "full_attention"]},
        "layer_types is .*, expected 2 of",
    ),
    "huge number of layers": ({"num_hidden_layers": 10**9}, "layers is 1000000000, expected at"),
    "gemma's activation": (GEMMA3 | {"hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
    "gemma's cap": (GEMMA3 | {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "gemma both ways": (GEMMA3 | {"use_bidirectional_attention": True}, "use_bidirectional"),
    "gemma's scale": (GEMMA3 | {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    "gemma's pattern": (GEMMA3 | {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
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
