"""A decoder that was exported to ONNX gives the logits of the NumPy decoder."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from tiny_model import (
    CONFIG,
    FAMILIES,
    TOKENS,
    DenseAttention,
    assert_close,
    random_weights,
    shapes,
    write_huggingface,
)

from adamas_core.llama import load
from adamas_core.llama.onnx_export import export

WIDE = {"head_dim": 16}  # GroupQueryAttention takes multiples of 16


def decoder(folder, family, **more):
    pytest.importorskip("safetensors", reason='needs the extra "llama"')
    pytest.importorskip("onnx", reason='needs the extra "onnxruntime"')
    config = CONFIG | FAMILIES[family] | WIDE | more
    return load(write_huggingface(folder / "model", config, random_weights(shapes(config))))


def exported(model, folder):
    """The session of a model, and the empty cache of one sequence."""
    onnxruntime = pytest.importorskip("onnxruntime", reason='needs the extra "onnxruntime"')
    export(model, folder / "model.onnx")
    return onnxruntime.InferenceSession(str(folder / "model.onnx"))


def empty(config, B=1):
    nothing = np.zeros((B, config.kv_heads, 0, config.head_dim), np.float32)
    names = [f"{i}.{kind}" for i in range(config.layers) for kind in ("key", "value")]
    return {f"past_key_values.{name}": nothing for name in names}


def lengths(each):
    return {
        "seqlens_k": np.array(each, np.int32) - 1,
        "total_sequence_length": np.array(max(each), np.int32),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_and_single_tokens(family, tmp_path):
    model = decoder(tmp_path, family)
    session, past, n = exported(model, tmp_path), empty(model.config), 0
    expected = model.forward(TOKENS, 0, DenseAttention(model.config.windows), last=False)
    found, rows = [], []
    for part in [TOKENS[:30], *([t] for t in TOKENS[30:])]:
        n += len(part)
        ids = np.array([part])
        logits, *present = session.run(None, {"input_ids": ids, **lengths([n]), **past})
        past = dict(zip(past, present, strict=True))
        found.append(logits[0])
        rows.append(n - 1)
    assert_close(np.array(found), expected[rows], 2e-5)


def test_sequences_of_different_lengths(tmp_path):
    model = decoder(tmp_path, "qwen3 yarn")
    session = exported(model, tmp_path)
    parts = [TOKENS[:9], TOKENS[5:25]]
    ids = np.array([[*parts[0], *([0] * 11)], parts[1]])
    inputs = {"input_ids": ids, **lengths([9, 20]), **empty(model.config, B=2)}
    logits = session.run(["logits"], inputs)[0]
    for found, part in zip(logits, parts, strict=True):
        assert_close(found, model.forward(part, 0, DenseAttention()), 2e-5)


def test_weights_lie_beside_the_graph(tmp_path):
    model = decoder(tmp_path, "llama tied")
    export(model, tmp_path / "model.onnx")
    held = model.weights.embedding.nbytes
    assert (tmp_path / "model.onnx").stat().st_size < held
    assert held < (tmp_path / "model.onnx.data").stat().st_size


def test_a_head_dim_that_the_operator_lacks(tmp_path):
    model = decoder(tmp_path, "llama", head_dim=8)
    with pytest.raises(ValueError, match="head_dim=8; expected a multiple of 16"):
        export(model, tmp_path / "model.onnx")


def test_without_the_extra(tmp_path, monkeypatch):
    model = decoder(tmp_path, "llama")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'pip install "adamas-core\[onnxruntime\]"'):
        export(model, tmp_path / "model.onnx")
