"""The loaders: against transformers, one model in every format, and files that are wrong."""

from __future__ import annotations

import copy
import json
import math
import os
import struct
import sys
from importlib import import_module

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_llama import DenseAttention, close

from adamas_core.llama import checkpoints, decoder
from adamas_core.llama.checkpoints import CheckpointError

gguf = pytest.importorskip("gguf", reason='needs the extra "llama"')
safetensors = pytest.importorskip("safetensors.numpy", reason='needs the extra "llama"')
ml_dtypes = pytest.importorskip("ml_dtypes", reason='needs the extra "llama"')

TOKENS = [(7 * i + i * i) % 61 for i in range(40)]


def peer(name):
    """A library to compare with; its absence is a skip, but a failure in CI."""
    try:
        return import_module(name)
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip(f'{name} is absent; it comes with the extra "peers"')


def logits(path, tokens=TOKENS):
    return decoder.load(path).forward(tokens, 0, DenseAttention(), last=False)


# One small model in Hugging Face's words, and writers of every format

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "tie_word_embeddings": False,
}
LINEAR = {"rope_type": "linear", "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

FAMILIES = {
    "llama": {"model_type": "llama"},
    "llama MHA": {"model_type": "llama", "num_key_value_heads": 4},
    "llama MQA": {"model_type": "llama", "num_key_value_heads": 1},
    "llama tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama biases": {"model_type": "llama", "attention_bias": True},
    "llama wide heads": {"model_type": "llama", "head_dim": 12},
    "llama linear": {"model_type": "llama", "rope_scaling": LINEAR},
    "llama llama3": {"model_type": "llama", "rope_scaling": LLAMA3},
    "llama yarn": {"model_type": "llama", "rope_scaling": YARN},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral wide window": {"model_type": "mistral", "sliding_window": 128},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 16},
    "qwen2 tied yarn": {"model_type": "qwen2", "rope_scaling": YARN, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3"},
    "qwen3 yarn": {"model_type": "qwen3", "rope_scaling": YARN | {"attention_factor": 1.25}},
    "qwen3 tied": {"model_type": "qwen3", "tie_word_embeddings": True},
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def shapes(config):
    """Name and shape of every tensor of a Hugging Face folder."""
    E, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    D = config["head_dim"]
    rows, kv_rows = config["num_attention_heads"] * D, config["num_key_value_heads"] * D
    found = {"model.embed_tokens.weight": (V, E), "model.norm.weight": (E,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (V, E)
    for i in range(config["num_hidden_layers"]):
        here = {
            "input_layernorm.weight": (E,),
            "post_attention_layernorm.weight": (E,),
            "self_attn.q_proj.weight": (rows, E),
            "self_attn.k_proj.weight": (kv_rows, E),
            "self_attn.v_proj.weight": (kv_rows, E),
            "self_attn.o_proj.weight": (E, rows),
            "mlp.gate_proj.weight": (F, E),
            "mlp.up_proj.weight": (F, E),
            "mlp.down_proj.weight": (E, F),
        }
        if config["model_type"] == "qwen2" or config.get("attention_bias"):
            here |= {f"self_attn.{n}_proj.bias": (rows if n == "q" else kv_rows,) for n in "qkv"}
        if config.get("attention_bias"):
            here["self_attn.o_proj.bias"] = (E,)
        if config["model_type"] == "qwen3":
            here |= {"self_attn.q_norm.weight": (D,), "self_attn.k_norm.weight": (D,)}
        found |= {f"model.layers.{i}.{name}": shape for name, shape in here.items()}
    return found


def random_weights(shapes, seed=0):
    """Values with a spread that makes attention and positions matter."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        values = rng.normal(0, 1.5 / math.sqrt(shape[-1]), shape)
        weights[name] = (values + ("norm" in name)).astype(np.float32)
    return weights


def write_hf(folder, config, weights, dtype=np.float32):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: values.astype(dtype) for name, values in weights.items()}
    safetensors.save_file(tensors, folder / "model.safetensors")
    return folder


def gguf_name(name):
    """llama.cpp's name of a Hugging Face tensor."""
    names = {their.removesuffix(".weight"): our for our, their in checkpoints._HF_NAMES.items()}
    parts = name.split(".")
    layer = parts[2] if parts[1] == "layers" else None
    stem = ".".join("{}" if part == layer else part for part in parts[:-1])
    return checkpoints._GGUF_NAMES[names[stem]].format(layer).replace("weight", parts[-1])


def interleave(rows, head_dim):
    """What llama.cpp's converter does to q and k of the architecture llama."""
    return rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path, config, weights, kind="F32", extra=None):
    """A GGUF file as llama.cpp's converter makes it; `extra` are more metadata or tensors."""
    arch = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    scaling = config.get("rope_scaling")
    if scaling and scaling["rope_type"] == "llama3":
        plain = decoder.rope_frequencies(config["head_dim"], config["rope_theta"])[0]
        scaled = decoder.rope_frequencies(config["head_dim"], config["rope_theta"], scaling)[0]
        factors = np.divide(plain, scaled).astype(np.float32)
        writer.add_tensor("rope_freqs.weight", factors)
    elif scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
        if "original_max_position_embeddings" in scaling:
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    for name, value in (extra or {}).items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(name, value)
        else:
            {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[
                type(value)
            ](name, value)
    quantization = gguf.GGMLQuantizationType[kind]
    for name, values in weights.items():
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            values = interleave(values, config["head_dim"])
        if values.ndim == 1:  # the converter keeps vectors float32
            writer.add_tensor(gguf_name(name), values)
        else:
            packed = gguf.quants.quantize(values, quantization)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_llama2c(path, config, weights):
    """llama2.c's first .bin."""
    N, V = config["num_hidden_layers"], config["vocab_size"]
    tied = config["tie_word_embeddings"]
    E, H = config["hidden_size"], config["num_attention_heads"]
    header = [E, config["intermediate_size"], N, H, config["num_key_value_heads"]]
    header += [V if tied else -V, config["max_position_embeddings"]]
    with path.open("wb") as file:
        file.write(struct.pack("<7i", *header))
        weights["model.embed_tokens.weight"].tofile(file)
        for name in (
            "input_layernorm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "post_attention_layernorm",
            "mlp.gate_proj",
            "mlp.down_proj",
            "mlp.up_proj",
        ):
            for i in range(N):
                values = weights[f"model.layers.{i}.{name}.weight"]
                if name.endswith(("q_proj", "k_proj")):
                    values = interleave(values, E // H)
                values.tofile(file)
        weights["model.norm.weight"].tofile(file)
        np.zeros(config["max_position_embeddings"] * E // H, np.float32).tofile(file)
        if not tied:
            weights["lm_head.weight"].tofile(file)
    return path


# Against transformers


@pytest.mark.peers
@every_family
def test_a_folder_gives_the_logits_of_transformers(family, tmp_path):
    config = CONFIG | family
    folder = write_hf(tmp_path / "hf", config, random_weights(shapes(config)))
    close(logits(folder), transformers_logits(folder), 1e-4)


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
    close(logits(tmp_path), transformers_logits(tmp_path), 1e-4)


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
    folder = write_hf(tmp_path / "hf", config, weights)
    close(logits(write_gguf(tmp_path / "x.gguf", config, weights)), logits(folder), 1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_llama2c_gives_the_logits_of_the_folder(tied, kv_heads, tmp_path):
    config = CONFIG | FAMILIES["llama"] | {"rope_theta": 10000.0, "tie_word_embeddings": tied}
    config["num_key_value_heads"] = kv_heads
    weights = random_weights(shapes(config))
    folder = write_hf(tmp_path / "hf", config, weights)
    close(logits(write_llama2c(tmp_path / "x.bin", config, weights)), logits(folder), 1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_folders_of_other_dtypes_are_widened(dtype, tmp_path):
    config = CONFIG | FAMILIES["qwen2"]
    weights = random_weights(shapes(config))
    rounded = {name: w.astype(dtype).astype(np.float32) for name, w in weights.items()}
    expected = logits(write_hf(tmp_path / "rounded", config, rounded))
    np.testing.assert_array_equal(
        logits(write_hf(tmp_path / "narrow", config, weights, dtype)), expected
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
    expected = logits(write_hf(tmp_path / "hf", config, rounded))
    close(logits(write_gguf(tmp_path / "x.gguf", config, weights, kind)), expected, 1e-6)


def test_yarn_lengthens_the_context(tmp_path):
    config = CONFIG | FAMILIES["qwen3 yarn"] | {"max_position_embeddings": 32}
    folder = write_hf(tmp_path / "hf", config, random_weights(shapes(config)))
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
@pytest.mark.parametrize("write", [write_hf, write_gguf])
def test_a_bad_weight_is_named(bad, write, tmp_path):
    config = CONFIG | FAMILIES["qwen2"]
    name, values = BAD_WEIGHTS[bad]
    good = random_weights(shapes(config))
    path = write(tmp_path / "model", config, change(good, name, values))
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(path)
    message = str(error.value)
    assert str(path) in message
    assert (name if write is write_hf else gguf_name(name)) in message
    assert str(good[name].shape) in message
    assert ("is missing" if values is None else f"has shape {values.shape}") in message


def test_only_gguf_takes_an_absent_head_for_a_tied_one(tmp_path):
    config = CONFIG | FAMILIES["qwen2"]
    weights = change(random_weights(shapes(config)), "lm_head.weight", None)
    _, loaded = checkpoints.load(write_gguf(tmp_path / "x.gguf", config, weights))
    assert loaded.head is loaded.embedding
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        checkpoints.load(write_hf(tmp_path / "hf", config, weights))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.o_proj.bias", "model.layers.2.x"])
def test_a_tensor_that_nothing_asks_for_is_an_error(name, tmp_path):
    config = CONFIG | FAMILIES["qwen2"]
    weights = random_weights(shapes(config)) | {name: np.zeros(32, np.float32)}
    with pytest.raises(CheckpointError, match=f"1 tensors .* does not know, first {name}"):
        checkpoints.load(write_hf(tmp_path / "hf", config, weights))


def test_stored_frequencies_of_old_folders_are_passed_over(tmp_path):
    config = CONFIG | FAMILIES["llama"]
    weights = random_weights(shapes(config))
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    checkpoints.load(write_hf(tmp_path / "hf", config, weights))


def test_integer_weights_are_an_error(tmp_path):
    config = CONFIG | FAMILIES["llama"]
    folder = write_hf(tmp_path / "hf", config, random_weights(shapes(config)), np.int8)
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
        "hf": write_hf(folder / "hf", config, weights),
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
