"""The sparse operator's node, and the codes that it reads and writes, as parts of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .graph import Graph

DOMAIN, OPERATOR = "adamas", "SparseGroupQueryAttention"


def add_operator(
    graph: Graph,
    inputs: Sequence[str],
    outputs: Sequence[str],
    options: Mapping[str, Any],
    name: str,
    head_sink: str = "",
) -> None:
    """Add a node with GroupQueryAttention's first nine inputs, its layer's codes, and its sinks."""
    past_key, present_key = inputs[3], outputs[1]
    past, present = codes_name(past_key), codes_name(present_key)
    helper, types = graph.onnx.helper, graph.onnx.TensorProto
    axes = past_keys(graph, past_key, present_key, name).shape.dim
    batch = axes[0].dim_param or axes[0].dim_value or None
    heads = int(options["kv_num_heads"])
    for values, codes, bytes_ in (
        (graph.proto.input, past, "past_code_bytes"),
        (graph.proto.output, present, "present_code_bytes"),
    ):
        values.append(helper.make_tensor_value_info(codes, types.UINT8, [batch, heads, bytes_]))
    graph.outputs[present] = graph.proto.output[-1]
    read = [*inputs, past, *([head_sink] if head_sink else [])]
    graph.nodes.append(
        helper.make_node(OPERATOR, read, [*outputs, present], name=name, domain=DOMAIN, **options)
    )


def past_keys(graph: Graph, past_key: str, present_key: str, name: str) -> Any:
    """The type of a layer's past keys, which the caller of the model must hold."""
    if past_key not in graph.inputs or present_key not in graph.outputs:
        raise ValueError(
            f"{name}: its past keys are {past_key!r} and its present ones {present_key!r}; "
            "expected an input and an output of the graph"
        )
    return graph.inputs[past_key].type.tensor_type


def codes_name(keys: str) -> str:
    """The name of the codes beside these keys: "codes" in the place of "key"."""
    for word in ("key", "Key"):
        before, found, after = keys.rpartition(word)
        if found:
            return f"{before}codes{after}"
    return f"{keys}_codes"


def add_domain(model: Any, helper: Any) -> None:
    """Declare the operator's domain."""
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
