"""ONNX Runtime's GroupQueryAttention, and the sparse operator in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .codes_io import add_operator
from .graph import Graph, Node, attributes, label

DOMAIN, OPERATOR = "com.microsoft", "GroupQueryAttention"
INPUTS = 9  # that the sparse operator has too; after them come more, which it has not
KEPT = ("num_heads", "kv_num_heads", "scale", "do_rotary", "rotary_interleaved")
# Other attributes, and the values that ask for nothing.
IDLE: Mapping[str, tuple[Any, ...]] = {
    "softcap": (0.0,),
    "local_window_size": (-1, 0),
    "smooth_softmax": (-1, 0),
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
    more = [x for x in inputs[INPUTS:] if x]
    if more:
        raise ValueError(
            f"{name} has the input {more[0]!r} after its first {INPUTS}; expected none of "
            "position_ids, attention_bias, head_sink and scales of a quantized cache"
        )
    if not inputs[3] or not inputs[4] or len([x for x in node.output if x]) != 3:
        raise ValueError(f"{name} has no cache; expected past and present keys and values")
    kept = {key: value for key, value in given.items() if key in KEPT}
    graph.remove(node)
    add_operator(graph, inputs[:INPUTS], list(node.output), {**kept, **options}, node.name or name)
