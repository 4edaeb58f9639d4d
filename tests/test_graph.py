"""The graph that the converter reads and writes: sources, constants, order, and unused nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_graphs import needed

from adamas_core.onnx_convert.graph import Graph, attributes, label

(onnx,) = needed("onnx")
helper = onnx.helper


def model(nodes: list[Any], initializers: list[Any] | None = None) -> Any:
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", 4]) for name in ("x", "y")
    )
    return helper.make_model(helper.make_graph(nodes, "graph", [x], [y], initializers or []))


def test_nodes_are_sorted_and_unused_ones_go() -> None:
    nodes = [
        helper.make_node("Add", ["a", "b"], ["y"]),
        helper.make_node("Neg", ["x"], ["unused"]),
        helper.make_node("Mul", ["x", "two"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
    ]
    two, three = (onnx.numpy_helper.from_array(np.float32(n)) for n in (2, 3))
    two.name, three.name = "two", "three"
    made = model(nodes, [two, three])
    Graph(made).finish()
    assert [node.output[0] for node in made.graph.node] == ["a", "b", "y"]
    assert [tensor.name for tensor in made.graph.initializer] == ["two"]
    onnx.checker.check_model(made)


def test_a_circle_is_refused() -> None:
    graph = Graph(model([helper.make_node("Add", ["x", "a"], ["y"]),
                         helper.make_node("Neg", ["y"], ["a"], name="minus")]))  # fmt: skip
    with pytest.raises(ValueError, match="Add 'y' would read a value that depends on it"):
        graph.finish()


def test_a_graph_with_branches_is_refused() -> None:
    inner = helper.make_graph([], "inner", [], [])
    node = helper.make_node("If", ["x"], ["y"], name="choice", then_branch=inner, else_branch=inner)
    with pytest.raises(ValueError, match="If 'choice' has a graph of its own"):
        Graph(model([node]))


def test_constants_and_shapes() -> None:
    kept = onnx.numpy_helper.from_array(np.arange(3), "kept")
    far = onnx.numpy_helper.from_array(np.arange(3), "far")
    far.data_location = onnx.TensorProto.EXTERNAL
    nodes = [
        helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.array([5]))),
        helper.make_node("Constant", [], ["d"], value_int=7),
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("Transpose", ["t"], ["y"], perm=[1, 0]),
    ]
    graph = Graph(model(nodes, [kept, far]))
    found = [graph.constant(name) for name in ("kept", "far", "c", "d", "x")]
    assert [None if x is None else x.tolist() for x in found] == [[0, 1, 2], None, [5], 7, None]
    assert (graph.shape("x"), graph.shape("t"), graph.shape("z")) == ([None, 4], [4, None], None)
    assert graph.producer("t", "Transpose") == nodes[2]
    assert graph.producer("t", "Add") is None
    assert attributes(nodes[2]) == {"perm": [1, 0]}


def test_labels() -> None:
    assert label(helper.make_node("Neg", ["x"], ["y"], name="n")) == "Neg 'n'"
    assert label(helper.make_node("Neg", ["x"], ["y"])) == "Neg 'y'"
