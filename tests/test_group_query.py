"""GroupQueryAttention is replaced where the operator does the same, and refused otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_graphs import attention, lengths, needed, session

from adamas_core import Selection
from adamas_core.onnx_convert import convert
from adamas_core.onnx_convert.graph import attributes

needed("onnx")
H, H_KV, D = 4, 2, 16


def dense(**more: Any) -> Any:
    return attention(H, H_KV, D, sparse=False, **more)


@pytest.mark.parametrize("packed", [False, True])
def test_inputs_attributes_and_codes(packed: bool) -> None:
    model = dense(packed=packed, do_rotary=1, scale=0.5, softcap=0.0, local_window_size=-1)
    (before,) = model.graph.node
    inputs = list(before.input)
    done = convert(model, 64, Selection(tail=9, sinks=3, recent=2, query_bits=5))
    assert done.replaced == 1
    (node,) = model.graph.node
    assert (node.domain, node.op_type) == ("adamas", "SparseGroupQueryAttention")
    assert list(node.input) == [*inputs, "past_codes"]
    assert list(node.output) == ["output", "present_key", "present_value", "present_codes"]
    assert attributes(node) == {
        "num_heads": H, "kv_num_heads": H_KV, "scale": 0.5, "do_rotary": 1, "budget": 64, "tail": 9,
        "sinks": 3, "recent": 2, "query_bits": 5, "refine": 0, "group": 0, "softcap": 0.0,
    }  # fmt: skip
    assert session(model).get_inputs()[-1].shape == ["B", H_KV, "past_code_bytes"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"softcap": 1.5},
        {"head_sink": True},
        {"smooth_softmax": 1},
        {"smooth_softmax": 1, "head_sink": True, "softcap": 1.5},
        {"smooth_softmax": 0, "head_sink": True},
    ],
    ids=str,
)
def test_same_results(more: dict[str, Any], dtype: Any) -> None:
    needed("onnxruntime")
    model, rng = dense(dtype=dtype, **more), np.random.default_rng(0)
    x = {n: (2 * rng.standard_normal((1, 9, heads * D))).astype(dtype)
         for n, heads in (("query", H), ("key", H_KV), ("value", H_KV))}  # fmt: skip
    past = {f"past_{n}": np.zeros((1, H_KV, 0, D), dtype) for n in ("key", "value")}
    inputs = {**x, **past, **lengths([9])}
    if more.get("head_sink"):
        inputs["head_sink"] = np.array([1, 3, -np.inf, -2], dtype)
    wanted = session(model).run(None, inputs)
    convert(model)
    found = session(model).run(None, {**inputs, "past_codes": np.zeros((1, H_KV, 0), np.uint8)})
    for a, b in zip(found, wanted, strict=False):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 if dtype == np.float32 else 4e-3)


def test_cap_and_sinks_are_kept() -> None:
    model = dense(head_sink=True, softcap=1.5)
    convert(model)
    (node,) = model.graph.node
    assert list(node.input)[9:] == ["past_codes", "head_sink"]
    assert attributes(node)["softcap"] == 1.5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"softcap": -30.0}, "GroupQueryAttention 'attention' has softcap=-30.0; expected a pos"),
        ({"softcap": float("nan")}, "has softcap=nan"),
        ({"smooth_softmax": 2}, "has smooth_softmax=2"),
        ({"unheard_of": 1}, "has unheard_of=1"),
    ],
)
def test_attributes_that_the_operator_lacks(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(dense(**more))


@pytest.mark.parametrize("before", [[], [""], ["", "", ""], ["", "", "sinks"]], ids=str)
def test_inputs_that_the_operator_lacks(before: list[str]) -> None:
    model = dense()
    model.graph.node[0].input.extend([*before, "bias"])
    with pytest.raises(ValueError, match="has the input 'bias' after its first 9"):
        convert(model)


def test_a_node_without_a_cache() -> None:
    model = dense()
    model.graph.node[0].input[3] = ""
    with pytest.raises(ValueError, match="'attention' has no cache"):
        convert(model)


@pytest.mark.parametrize("smooth", [0, 1])
def test_keys_that_are_no_input_of_the_graph(smooth: int) -> None:
    model = dense(smooth_softmax=smooth)
    model.graph.node[0].input[3] = "elsewhere"
    with pytest.raises(ValueError, match="its past keys are 'elsewhere'"):
        convert(model)


def test_a_window_stays() -> None:
    model = dense(local_window_size=9)
    done = convert(model)
    assert (done.replaced, done.windows) == (0, ("GroupQueryAttention 'attention'",))
    assert model.graph.node[0].op_type == "GroupQueryAttention"
