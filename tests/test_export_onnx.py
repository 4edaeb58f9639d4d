"""adamas-core export-onnx writes a graph and its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx_graphs import needed, session
from tiny_model import CONFIG, FAMILIES, OutOf, random_weights, shapes, write_llama2c

from adamas_core.llama import load

needed("onnx")


def run(out_of: OutOf, *arguments: object) -> tuple[int, str, str]:
    return out_of(*map(str, arguments))


def test_a_model_is_written(tmp_path: Path, out_of: OutOf) -> None:
    needed("onnxruntime")
    config = CONFIG | FAMILIES["llama"] | {"head_dim": 16, "num_attention_heads": 2,
                                           "num_key_value_heads": 1}  # fmt: skip
    model, out = tmp_path / "model.bin", tmp_path / "model.onnx"
    write_llama2c(model, config, random_weights(shapes(config)))
    status, said, _ = run(out_of, "export-onnx", "--model", model, "-o", out)
    assert (status, said) == (
        0, f"{out}: 2 layers with dense attention, weights of float32\n"
    )  # fmt: skip
    weights = load(model).weights
    assert weights.embedding.nbytes < (tmp_path / "model.onnx.data").stat().st_size
    logits = [x for x in session(out).get_outputs() if x.name == "logits"]
    assert logits[0].shape == ["B", len(weights.embedding)]
    assert np.isfinite(weights.embedding).all()


def test_errors_are_one_sentence(tmp_path: Path, out_of: OutOf) -> None:
    config = CONFIG | FAMILIES["llama"]
    write_llama2c(tmp_path / "model.bin", config, random_weights(shapes(config)))
    status, _, errors = run(
        out_of, "export-onnx", "--model", tmp_path / "model.bin", "-o", "x.onnx"
    )
    assert status == 2
    assert errors.endswith("expected a multiple of 16, as ONNX Runtime's GroupQueryAttention needs "
                           "for rotary positions\n")  # fmt: skip
    status, _, errors = run(out_of, "export-onnx", "--model", tmp_path / "none", "-o", "x.onnx")
    assert (status, errors.count("\n")) == (2, 1)
