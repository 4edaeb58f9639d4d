"""The attention that torch's exporter writes is found, and the operator in its place equals it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_graphs import needed, session

from adamas_core.onnx_convert import convert
from adamas_core.onnx_convert.graph import Graph
from adamas_core.onnx_convert.plain_attention import find, match

pytestmark = pytest.mark.peers
S = 4  # of the parts that are not single tokens


@pytest.fixture(
    scope="module", params=["eager", "sdpa", "a head of keys per query head", "two layers"]
)
def model(request: pytest.FixtureRequest) -> bytes:
    needed("onnx")
    pytest.importorskip("torch", reason='needs the extra "peers"')
    from torch_attention import H_KV, Attention, H, exported

    if request.param == "two layers":
        return exported(Attention("eager", H), Attention("sdpa", H))
    if request.param in ("eager", "sdpa"):
        return exported(Attention(request.param, H))
    return exported(Attention("eager", H_KV))


def read(model: bytes) -> Any:
    import onnx

    return onnx.load_from_string(model)


def test_the_operator_equals_what_it_replaces(model: bytes) -> None:
    sparse = read(model)
    done = convert(sparse, budget=200)
    layers = (len(sparse.graph.input) - 2) // 3
    assert (done.replaced, done.causal) == (layers, layers)
    assert "Softmax" not in {node.op_type for node in sparse.graph.node}
    runs = [session(read(model)), session(sparse)]
    H_kv, D = runs[0].get_inputs()[2].shape[1::2]
    rng = np.random.default_rng(0)
    past = {x.name: np.zeros((1, H_kv, 0, D), np.float32) for x in runs[0].get_inputs()[2:]}
    codes = {f"past_codes.{i}": np.zeros((1, H_kv, 0), np.uint8) for i in range(layers)}
    n = 0
    for new in (100, S, 1, 1):
        x = rng.standard_normal((1, new, 32)).astype(np.float32)
        seen = np.arange(n + new) <= np.arange(n, n + new)[:, None]
        mask = np.where(seen, 0, -1e9).astype(np.float32)[None, None]
        found, wanted = (
            {
                y.name.replace("present", "past"): values
                for y, values in zip(
                    run.get_outputs(), run.run(None, {"x": x, "mask": mask, **more}), strict=True
                )
            }
            for run, more in ((runs[1], past | codes), (runs[0], past))
        )
        for name, values in wanted.items():
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5)
        past, codes, n = wanted, {name: found[name] for name in codes}, n + new
        del past["y"]


def nodes(model: Any, op: str) -> list[Any]:
    return [node for node in model.graph.node if node.op_type == op]


def attention_nodes(model: Any) -> dict[str, Any]:
    """The nodes around the Softmax, by what they do."""
    made = {name: node for node in model.graph.node for name in node.output}
    (softmax,) = nodes(model, "Softmax")
    weights = {softmax.output[0]}
    for node in nodes(model, "Cast"):  # which follow each other in the order of the graph
        weights |= set(node.output) if weights.intersection(node.input) else set()
    weighted = next(n for n in nodes(model, "MatMul") if weights.intersection(n.input))
    turned = next(n for n in nodes(model, "Transpose") if weighted.output[0] in n.input)
    return {"softmax": softmax, "weighted": weighted, "turned": turned, "made": made}


def break_axis(model: Any) -> None:
    (axis,) = [a for a in attention_nodes(model)["softmax"].attribute if a.name == "axis"]
    axis.i = 1


def break_output(model: Any) -> None:
    attention_nodes(model)["turned"].attribute[0].ints[:] = [0, 1, 3, 2]


def break_logits(model: Any) -> None:
    attention_nodes(model)["softmax"].input[0] = "mask"


def break_cache(model: Any) -> None:
    """Keys without past ones."""
    for node in nodes(model, "Concat"):
        if "past_key.0" in node.input:
            node.op_type = "Add"
            del node.attribute[:]


def break_order(model: Any) -> None:
    """Heads that repeat one after the other, and not each beside itself."""
    for node in nodes(model, "Unsqueeze"):
        if node.input[0] == "present_value.0":
            axis = attention_nodes(model)["made"][node.input[1]]
            axis.attribute[0].t.raw_data = np.array([1], np.int64).tobytes()


def break_scale(model: Any) -> None:
    """A factor that differs from token to token."""
    made = attention_nodes(model)["made"]
    logits = made[attention_nodes(model)["softmax"].input[0]].input[0]
    assert made[logits].op_type == "Mul"
    made[logits].input[1] = "mask"


def break_cap(model: Any) -> None:
    """Logits under a cap."""
    attention = attention_nodes(model)
    total = attention["made"][attention["softmax"].input[0]]
    model.graph.node.add(op_type="Tanh", input=[total.input[0]], output=["capped"])
    total.input[0] = "capped"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_axis, "Softmax .*a Softmax along the last axis"),
        (break_output, r"MatMul .*a Transpose of its result to \(B, S, H, D\)"),
        (break_logits, "Softmax .*logits from a MatMul"),
        (break_cache, "'present_key.0' from a Concat of past and new tokens"),
        (break_order, "Unsqueeze .*an Unsqueeze at axis 2"),
        (break_scale, "Softmax .*logits from a MatMul"),
        (break_cap, "Softmax .*logits from a MatMul"),
    ],
)
def test_what_is_not_as_expected_is_named(damage: Any, message: str) -> None:
    needed("onnx")
    pytest.importorskip("torch", reason='needs the extra "peers"')
    from torch_attention import Attention, exported

    model = read(exported(Attention("eager")))
    damage(model)
    graph = Graph(model)
    (softmax,) = find(graph)
    with pytest.raises(ValueError, match=message):
        match(graph, softmax)


def test_a_softmax_of_other_things_is_left_alone() -> None:
    (onnx,) = needed("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, kind, [3, 3]) for name in "xy")
    node = helper.make_node("Softmax", ["x"], ["y"])
    model = helper.make_model(helper.make_graph([node], "probabilities", [x], [y]))
    assert find(Graph(model)) == []
