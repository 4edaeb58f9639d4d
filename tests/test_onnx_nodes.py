"""Nodes and weights of a graph as they are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx_graphs import needed

from adamas_core.llama.onnx_nodes import ALIGNMENT, Nodes

(onnx,) = needed("onnx")


def test_weights_are_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((3, 5)).astype(np.float32), rng.standard_normal(7).astype("f2")]
    with Nodes(tmp_path / "data") as nodes:
        names = [nodes.weight(f"w{i}", x.T) for i, x in enumerate(values)]
    for tensor, x in zip(nodes.weights, values, strict=True):
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(tmp_path))
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), x.T)
    assert names == ["w0", "w1"]
    assert (tmp_path / "data").stat().st_size == ALIGNMENT + 14


def test_names_are_unique(tmp_path: Path) -> None:
    with Nodes(tmp_path / "data") as nodes:
        assert [nodes.one("Neg", "x"), nodes.one("Neg", "x")] == ["Neg", "Neg_2"]
        assert nodes.add("Split", "x", name="parts", outputs=2) == ["parts.0", "parts.1"]
        assert nodes.add("Neg", "x", name="last", outputs=["y"]) == ["y"]
        assert nodes.small("one", [1], np.int64) == "one"
        assert nodes.small("one", [1], np.int64) == "one_2"
    assert [node.name for node in nodes.nodes] == ["Neg", "Neg_2", "parts", "last"]
