"""GGUF: the logits of the same model in a folder, every quantization, models that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_model import (
    CONFIG,
    FAMILIES,
    assert_close,
    logits,
    random_weights,
    shapes,
    without,
    write_gguf,
    write_huggingface,
)

from adamas_core.llama import CheckpointError, load, rope
from adamas_core.llama import gguf as gguf_format
from adamas_core.llama.gguf import read_later
from adamas_core.llama.gguf_file import open_gguf
from adamas_core.llama.settings import Settings

gguf = pytest.importorskip("gguf", reason='needs the extra "llama"')
pytest.importorskip("safetensors", reason='needs the extra "llama"')
pytest.importorskip("ml_dtypes", reason='needs the extra "llama"')


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "qwen3 yarn"])
def test_gguf_gives_the_logits_of_the_folder(name, tmp_path):
    config = CONFIG | FAMILIES[name]
    weights = random_weights(shapes(config))
    folder = write_huggingface(tmp_path / "hf", config, weights)
    assert_close(logits(write_gguf(tmp_path / "x.gguf", config, weights)), logits(folder), 1e-6)


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
    reader, _ = open_gguf(tmp_path / "x.gguf")
    tensor = read_later(tmp_path / "x.gguf", reader.tensors[0])
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


def test_only_gguf_takes_an_absent_head_for_a_tied_one(tmp_path):
    config = CONFIG | FAMILIES["qwen2"]
    weights = without(random_weights(shapes(config)), "lm_head.weight")
    loaded = load(write_gguf(tmp_path / "x.gguf", config, weights)).weights
    assert loaded.head is loaded.embedding
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        load(write_huggingface(tmp_path / "hf", config, weights))


GGUF_REFUSED = {
    "experts": ({"llama.expert_count": 8}, "mixture of experts"),
    "window": (
        {
            "llama.attention.sliding_window": 9,
            "llama.attention.sliding_window_pattern": [True],
        },
        "sliding_window_pattern has 1 items, expected 2, one per layer",
    ),
    "cap": ({"llama.final_logit_softcapping": 30.0}, "final_logit_softcapping is not supported"),
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
}


@pytest.mark.parametrize(("extra", "message"), GGUF_REFUSED.values(), ids=GGUF_REFUSED)
def test_a_gguf_that_is_not_supported_says_why(extra, message, tmp_path):
    config = CONFIG | FAMILIES["llama"]
    path = write_gguf(tmp_path / "x.gguf", config, random_weights(shapes(config)), extra=extra)
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_another_gguf_architecture_is_named(tmp_path):
    config = CONFIG | {"model_type": "gemma"}
    path = write_gguf(tmp_path / "x.gguf", config, {})
    with pytest.raises(CheckpointError, match="architecture 'gemma' is not one of llama"):
        load(path)


@pytest.mark.parametrize(("layers", "scale"), [(34, 1.0), (62, (128 / 168) ** 0.5)])
def test_the_scale_of_gemma_3_27b_is_known_by_its_layers(layers, scale):
    """No file stores it: it is the hidden size per head, 168, and not the head_dim, 128."""
    sizes = {"block_count": layers, "embedding_length": 5376, "feed_forward_length": 21504}
    sizes |= {"context_length": 131072, "attention.head_count": 32, "attention.key_length": 128}
    sizes |= {"attention.head_count_kv": 16, "attention.layer_norm_rms_epsilon": 1e-6}
    sizes |= {"attention.sliding_window": 1024, "vocab_size": 262208}
    sizes |= {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    values = {f"gemma3.{name}": value for name, value in sizes.items()}
    config = gguf_format._config(Settings(Path("x.gguf"), values.get), "gemma3", None)
    assert config.query_scale == pytest.approx(scale)
    assert config.windows[:7] == (1024,) * 5 + (None, 1024)
    assert config.ropes[0] == rope.scaled_rope(128, 1e4)
    assert config.ropes[5] == rope.scaled_rope(128, 1e6, {"rope_type": "linear", "factor": 8.0})
