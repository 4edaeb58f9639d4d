"""ONNX Runtime's GroupQueryAttention, and the sparse operator in its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .codes_io import add_operator, past_keys
from .graph import Graph, Node, attributes, label

DOMAIN, OPERATOR = "com.microsoft", "GroupQueryAttention"
# Inputs that the sparse operator has too: the first ones, and one of those after them.
INPUTS, HEAD_SINK = 9, 11
KEPT = ("num_heads", "kv_num_heads", "scale", "softcap", "do_rotary", "rotary_interleaved")
# Other attributes, and the values that the sparse operator needs no attribute for.
IDLE: Mapping[str, tuple[Any, ...]] = {
    "local_window_size": (-1, 0),
    "smooth_softmax": (-1, 0, 1),  # 1: a sink of 0 per head, unless head_sink is given
    "qk_output": (0,),
    "kv_cache_bit_width": (0,),
    "k_quant_type": ("NONE",),
    "v_quant_type": ("NONE",),
}


def find(graph: Graph) -> list[Node]:
    """All nodes of the operator."""
    return [n for n in graph.nodes if n.op_type == OPERATOR and n.domain == DOMAIN]


def has_window(node: Node) -> bool:
    """Whether it attends to a window, which it reads densely, without codes."""
    return int(attributes(node).get("local_window_size", -1)) > 0


def replace(graph: Graph, node: Node, options: Mapping[str, Any]) -> None:
    """Put the sparse operator with these options in the place of a node."""
    given, name = attributes(node), label(node)
    for key, value in given.items():
        if key not in KEPT and value not in IDLE.get(key, ()):
            raise ValueError(
                f"{name} has {key}={value!r}; expected a node without it: the sparse operator has "
                "no such attribute"
            )
    inputs = [*node.input, *[""] * (INPUTS - len(node.input))]
    more = [x for i, x in enumerate(inputs[INPUTS:], INPUTS) if x and i != HEAD_SINK]
    if more:
        raise ValueError(
            f"{name} has the input {more[0]!r} after its first {INPUTS}; expected head_sink at "
            "most, and none of position_ids, attention_bias and scales of a quantized cache"
        )
    if not inputs[3] or not inputs[4] or len([x for x in node.output if x]) != 3:
        raise ValueError(f"{name} has no cache; expected past and present keys and values")
    kept = {key: value for key, value in given.items() if key in KEPT}
    if not 0 <= kept.get("softcap", 0) < math.inf:
        raise ValueError(
            f"{name} has softcap={kept['softcap']!r}; expected a positive number, or 0 for none"
        )
    outputs, merged = list(node.output), {**kept, **options}
    sink = "".join(inputs[HEAD_SINK : HEAD_SINK + 1])
    if not sink and given.get("smooth_softmax") == 1:
        keys = past_keys(graph, inputs[3], outputs[1], node.name or name)
        sink = _zero_sinks(graph, int(given["num_heads"]), keys.elem_type)
    graph.remove(node)
    add_operator(graph, inputs[:INPUTS], outputs, merged, node.name or name, sink)


def _zero_sinks(graph: Graph, H: int, element: int) -> str:
    """A sink per query head whose logit is 0, of a dtype of ONNX; returns its name."""
    dtype = graph.onnx.helper.tensor_dtype_to_np_dtype(element)
    return graph.small(f"adamas.sinks.{H}.{dtype}", [0] * H, dtype)
