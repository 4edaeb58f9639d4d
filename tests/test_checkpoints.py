"""The loaders: against transformers, one model in every format, and files that are wrong."""

from __future__ import annotations

import copy
import json
import struct
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_model import (
    CONFIG,
    FAMILIES,
    TOKENS,
    assert_close,
    gguf_name,
    logits,
    peer,
    random_weights,
    shapes,
    write_gguf,
    write_huggingface,
    write_llama2c,
)

from adamas_core.llama import checkpoints
from adamas_core.llama.checkpoints import CheckpointError

gguf = pytest.importorskip("gguf", reason='needs the extra "llama"')
safetensors = pytest.importorskip("safetensors.numpy", reason='needs the extra "llama"')
ml_dtypes = pytest.importorskip("ml_dtypes", reason='needs the extra "llama"')

# Against transformers


@pytest.mark.peers
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_folder_gives_the_logits_of_transformers(family, tmp_path):
    config = CONFIG | family
    folder = write_huggingface(tmp_path / "hf", config, random_weights(shapes(config)))
    assert_close(logits(folder), transformers_logits(folder), 1e-4)


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_what_transformers_saves_is_read(dtype, tied, tmp_path):
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


# One model, every format


# GGUF has no setting for yarn's attention_factor that programs agree on.
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "qwen3 yarn"])
def test_gguf_gives_the_logits_of_the_folder(name, tmp_path):
    config = CONFIG | FAMILIES[name]
    weights = random_weights(shapes(config))
    folder = write_huggingface(tmp_path / "hf", config, weights)
    assert_close(logits(write_gguf(tmp_path / "x.gguf", config, weights)), logits(folder), 1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_llama2c_gives_the_logits_of_the_folder(tied, kv_heads, tmp_path):
    config = CONFIG | FAMILIES["llama"] | {"rope_theta": 10000.0, "tie_word_embeddings": tied}
    config["num_key_value_heads"] = kv_heads
    weights = random_weights(shapes(config))
    folder = write_huggingface(tmp_path / "hf", config, weights)
    assert_close(logits(write_llama2c(tmp_path / "x.bin", config, weights)), logits(folder), 1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_folders_of_other_dtypes_are_widened(dtype, tmp_path):
    config = CONFIG | FAMILIES["qwen2"]
    weights = random_weights(shapes(config))
    rounded = {name: w.astype(dtype).astype(np.float32) for name, w in weights.items()}
    expected = logits(write_huggingface(tmp_path / "rounded", config, rounded))
    np.testing.assert_array_equal(
        logits(write_huggingface(tmp_path / "narrow", config, weights, dtype)), expected
    )


def kinds_that_dequantize():
    """Every quantization that the gguf package dequantizes."""
    for kind in gguf.GGMLQuantizationType:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if 256 % block == 0:
            packed = np.zeros((1, 256 // block * size), np.uint8)
            try:
                gguf.quants.dequantize(packed, kind)
            except (NotImplementedError, ValueError):
                continue
            yield kind


@pytest.mark.parametrize("kind", list(kinds_that_dequantize()), ids=lambda kind: kind.name)
def test_every_quantization_is_dequantized(kind, tmp_path):
    rng = np.random.default_rng(0)
    if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        values = rng.normal(size=(8, 256)).astype(f"f{4 if kind.name == 'F32' else 2}")
        expected = values.astype(np.float32)
    else:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        values = rng.integers(0, 60, (8, 256 // block * size), np.uint8)  # no NaN as a scale
        expected = gguf.quants.dequantize(values, kind)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("x", values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader, _ = checkpoints.open_gguf(tmp_path / "x.gguf")
    tensor = checkpoints._gguf_tensor(tmp_path / "x.gguf", reader.tensors[0])
    found = tensor.read()
    assert tensor.shape == found.shape == (8, 256)
    assert found.dtype == np.float32
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1", "Q4_1", "Q4_0"])
def test_a_quantized_model_is_the_model_of_its_rounded_weights(kind, tmp_path):
    config = CONFIG | FAMILIES["llama"] | {"intermediate_size": 64}
    weights = random_weights(shapes(config))
    quantization = gguf.GGMLQuantizationType[kind]
    rounded = {
        name: gguf.quants.dequantize(gguf.quants.quantize(w, quantization), quantization)
        if w.ndim == 2
        else w
        for name, w in weights.items()
    }
    expected = logits(write_huggingface(tmp_path / "hf", config, rounded))
    assert_close(logits(write_gguf(tmp_path / "x.gguf", config, weights, kind)), expected, 1e-6)


def test_yarn_lengthens_the_context(tmp_path):
    config = CONFIG | FAMILIES["qwen3 yarn"] | {"max_position_embeddings": 32}
    folder = write_huggingface(tmp_path / "hf", config, random_weights(shapes(config)))
    assert checkpoints.load(folder)[0].context == 128


# Weights that are missing, misshapen or unknown


def change(weights, name, values):
    changed = dict(weights)
    changed.pop(name, None)
    return changed if values is None else changed | {name: values}


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
    path = write(tmp_path / "model", config, change(good, name, values))
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(path)
    message = str(error.value)
    assert str(path) in message
    assert (name if write is write_huggingface else gguf_name(name)) in message
    assert str(good[name].shape) in message
    assert ("is missing" if values is None else f"has shape {values.shape}") in message


def test_only_gguf_takes_an_absent_head_for_a_tied_one(tmp_path):
    config = CONFIG | FAMILIES["qwen2"]
    weights = change(random_weights(shapes(config)), "lm_head.weight", None)
    _, loaded = checkpoints.load(write_gguf(tmp_path / "x.gguf", config, weights))
    assert loaded.head is loaded.embedding
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        checkpoints.load(write_huggingface(tmp_path / "hf", config, weights))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.o_proj.bias", "model.layers.2.x"])
def test_a_tensor_that_nothing_asks_for_is_an_error(name, tmp_path):
    config = CONFIG | FAMILIES["qwen2"]
    weights = random_weights(shapes(config)) | {name: np.zeros(32, np.float32)}
    with pytest.raises(CheckpointError, match=f"1 tensors .* does not know, first {name}"):
        checkpoints.load(write_huggingface(tmp_path / "hf", config, weights))


def test_stored_frequencies_of_old_folders_are_passed_over(tmp_path):
    config = CONFIG | FAMILIES["llama"]
    weights = random_weights(shapes(config))
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    checkpoints.load(write_huggingface(tmp_path / "hf", config, weights))


def test_integer_weights_are_an_error(tmp_path):
    config = CONFIG | FAMILIES["llama"]
    folder = write_huggingface(tmp_path / "hf", config, random_weights(shapes(config)), np.int8)
    with pytest.raises(CheckpointError, match=r"embed_tokens.*dtype I8"):
        checkpoints.load(folder)


# Models that this decoder is not for

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
        checkpoints.load(folder)
    assert str(folder / "config.json") in str(error.value)


GGUF_REFUSED = {
    "experts": ({"llama.expert_count": 8}, "mixture of experts"),
    "window": ({"llama.attention.sliding_window": 64}, "window of 64"),
    "scaling": (
        {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0},
        "'longrope' is not supported",
    ),
    "yarn's gain": (
        {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 2.0,
            "llama.rope.scaling.attn_factor": 2.0,
        },
        "attn_factor is not supported",
    ),
    "frequencies": ({"rope_freqs.weight": np.ones(3, np.float32)}, r"rope_freqs.*\(3,\).*\(4,\)"),
    "parts": ({"split.count": 3}, "one part of several"),
}


@pytest.mark.parametrize(("extra", "message"), GGUF_REFUSED.values(), ids=GGUF_REFUSED)
def test_a_gguf_that_is_not_supported_says_why(extra, message, tmp_path):
    config = CONFIG | FAMILIES["llama"]
    path = write_gguf(tmp_path / "x.gguf", config, random_weights(shapes(config)), extra=extra)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoints.load(path)
    assert str(path) in str(error.value)


def test_another_gguf_architecture_is_named(tmp_path):
    config = CONFIG | {"model_type": "gemma"}
    path = write_gguf(tmp_path / "x.gguf", config, {})
    with pytest.raises(CheckpointError, match="architecture 'gemma' is not llama"):
        checkpoints.load(path)


# Damaged files: one clear error, whatever the byte

FUZZ = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One small model in each format."""
    folder = tmp_path_factory.mktemp("whole")
    config = CONFIG | FAMILIES["llama"] | {"rope_theta": 10000.0, "num_hidden_layers": 1}
    weights = random_weights(shapes(config))
    return {
        "gguf": write_gguf(folder / "x.gguf", config, weights),
        "bin": write_llama2c(folder / "x.bin", config, weights),
        "hf": write_huggingface(folder / "hf", config, weights),
    }


@pytest.mark.parametrize("kind", ["gguf", "bin"])
@given(share=st.floats(0, 1, exclude_max=True))
@FUZZ
def test_a_file_cut_anywhere_is_a_clear_error(whole, kind, share, tmp_path):
    data = whole[kind].read_bytes()
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(cut)
    assert str(cut) in str(error.value)


@pytest.mark.parametrize("kind", ["gguf", "bin"])
@given(place=st.integers(0, 3000), value=st.integers(0, 255))
@FUZZ
def test_a_damaged_byte_is_a_clear_error_or_another_model(whole, kind, place, value, tmp_path):
    data = bytearray(whole[kind].read_bytes())
    data[place] = value
    damaged = tmp_path / f"damaged.{kind}"
    damaged.write_bytes(data)
    try:
        checkpoints.load(damaged)
    except CheckpointError as error:
        assert str(damaged) in str(error)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("size", [None, 0, 7, 100, -1])
def test_a_folder_with_a_cut_file_is_a_clear_error(whole, file, size, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((whole["hf"] / name).read_bytes())
    broken = tmp_path / file
    data = broken.read_bytes()
    broken.unlink()
    if size is not None:
        broken.write_bytes(data[:size])
    with pytest.raises(CheckpointError, match="missing" if size is None else "cut short") as error:
        checkpoints.load(tmp_path)
    assert str(broken) in str(error.value)


def test_a_file_that_the_index_names_but_is_absent_is_named(whole, tmp_path):
    (tmp_path / "config.json").write_bytes((whole["hf"] / "config.json").read_bytes())
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors: missing"):
        checkpoints.load(tmp_path)


def test_later_llama2c_versions_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(struct.pack("<Ii", 0x616B3432, 1) + bytes(256))
    with pytest.raises(CheckpointError, match=r"later \.bin versions"):
        checkpoints.load(path)


def test_another_kind_of_file_is_a_clear_error(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="not a checkpoint that can be read"):
        checkpoints.load(path)


@pytest.mark.parametrize(("kind", "module"), [("gguf", "gguf"), ("hf", "safetensors")])
def test_a_missing_extra_says_how_to_install_it(whole, kind, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "adamas-core\[llama\]"'):
        checkpoints.load(whole[kind])
