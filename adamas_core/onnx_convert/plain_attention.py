"""Attention as PyTorch's exporter writes it, and the sparse operator in its place.

The nodes are a MatMul of queries and keys, a sum with a mask, a Softmax, and a MatMul with values.
Keys and values are Concats of past and new ones, repeated for the query heads that share them. The
mask is taken to be causal and without padding: the operator needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .codes_io import add_operator
from .graph import Graph, Node, attributes, label

# A factor of the logits may be computed from these alone: then it is the same for all tokens.
ARITHMETIC = (
    "Cast", "Div", "Gather", "Identity", "Mul", "Pow", "Slice", "Sqrt", "Squeeze", "Unsqueeze"
)  # fmt: skip
LENGTHS = ("adamas.seqlens_k", "adamas.total_sequence_length")


@dataclass(frozen=True)
class Cache:
    """Keys or values: the past ones, the new ones, and all; whether their heads are repeated."""

    past: str
    new: str
    present: str
    repeated: bool


@dataclass(frozen=True)
class Plain:
    """The ends of one attention. Factors are (operator, scalar), to be applied to the queries."""

    q: str  # (B, H, S, D)
    factors: tuple[tuple[str, str], ...]
    keys: Cache
    values: Cache
    out: str  # (B, S, H D)
    name: str


def find(graph: Graph) -> list[Node]:
    """The Softmax of each attention: one whose result is multiplied as a matrix."""
    found = [node for node in graph.nodes if node.op_type == "Softmax"]
    return [n for n in found if _next(graph, _after(graph, n.output[0]), "MatMul") is not None]


def match(graph: Graph, softmax: Node) -> Plain:
    """The attention around a Softmax; a ValueError names the node that is not as expected."""
    usual = -1 if graph.opset >= 13 else 1
    if attributes(softmax).get("axis", usual) not in (-1, 3):
        raise _unexpected(softmax, "a Softmax along the last axis")
    products, factors = _logits(graph, softmax)
    q, more = _scaled(graph, products.input[0])
    transposed, yet_more = _scaled(graph, products.input[1])
    turned = graph.producer(transposed, "Transpose")
    if turned is None or attributes(turned).get("perm") != [0, 1, 3, 2]:
        raise _unexpected(products, "keys (B, H, D, tokens) from a Transpose")
    weighted = _next(graph, _after(graph, softmax.output[0]), "MatMul")
    assert weighted is not None  # `find` saw it
    keys, values = (_cache(graph, x, softmax) for x in (turned.input[0], weighted.input[1]))
    heads = _next(graph, weighted.output[0], "Transpose")
    if heads is None or attributes(heads).get("perm") != [0, 2, 1, 3]:
        raise _unexpected(weighted, "a Transpose of its result to (B, S, H, D) and nothing else")
    rows = _next(graph, _after(graph, heads.output[0]), "Reshape")
    if rows is None:
        raise _unexpected(heads, "a Reshape of its result to (B, S, H D) and nothing else")
    shape = graph.shape(rows.output[0])
    if shape is not None and len(shape) != 3:
        raise _unexpected(rows, "a result (B, S, H D)")
    name = f"{softmax.name or softmax.output[0]}.attention"
    return Plain(q, (*factors, *more, *yet_more), keys, values, rows.output[0], name)


def replace(graph: Graph, plain: Plain, options: Mapping[str, Any]) -> None:
    """Put the sparse operator with these options in the place of an attention."""
    H, H_kv = _heads(graph, plain)
    for name in (plain.out, plain.keys.present, plain.values.present):
        graph.remove(graph.producers[name])
    q = plain.q
    for i, (op, scalar) in enumerate(plain.factors):
        q = graph.add(op, [q, scalar], f"{plain.name}.q.{i}")
    rows = [
        _rows(graph, f"{plain.name}.{name}", x)
        for name, x in (("query", q), ("key", plain.keys.new), ("value", plain.values.new))
    ]
    inputs = [*rows, plain.keys.past, plain.values.past, *_lengths(graph, plain.keys), "", ""]
    outputs = [plain.out, plain.keys.present, plain.values.present]
    heads = {"num_heads": H, "kv_num_heads": H_kv, "scale": 1.0}
    add_operator(graph, inputs, outputs, {**heads, **options}, plain.name)


def _heads(graph: Graph, plain: Plain) -> tuple[int, int]:
    """H and H_kv: from shapes, or from the weights that the result is multiplied with."""
    q, k = graph.shape(plain.q), graph.shape(plain.keys.past)
    _, H_kv, _, D = k if k is not None and len(k) == 4 else [None] * 4
    H = q[1] if q is not None and len(q) == 4 else None
    if H is None and not plain.keys.repeated:
        H = H_kv
    product = _next(graph, plain.out, "MatMul")
    weight = graph.shape(product.input[1]) if product is not None else None
    if H is None and D is not None and weight is not None and weight[0] is not None:
        H = weight[0] // D
    if H is None or H_kv is None:
        raise ValueError(
            f"{plain.name}: {plain.q!r} has shape {q} and {plain.keys.past!r} {k}; expected known "
            "numbers of heads in (B, H, S, D) and (B, H_kv, S, D)"
        )
    return H, H_kv


def _rows(graph: Graph, name: str, x: str) -> str:
    """x (B, heads, S, D) as (B, S, heads D)."""
    turned = graph.add("Transpose", [x], f"{name}.heads", perm=[0, 2, 1, 3])
    return graph.add("Reshape", [turned, graph.small("adamas.rows", [0, 0, -1])], name)


def _lengths(graph: Graph, keys: Cache) -> tuple[str, str]:
    """seqlens_k and total_sequence_length from the shapes of past and new keys, once per graph."""
    if not any(node.output[0] == LENGTHS[0] for node in graph.nodes):
        types = graph.onnx.TensorProto

        def axis(x: str, i: int) -> str:
            shape = graph.add("Shape", [x], f"{LENGTHS[1]}.shape.{i}.{x}")
            return graph.add(
                "Gather", [shape, graph.small(f"adamas.axis.{i}", [i])], f"{shape}.size"
            )

        total = graph.add("Add", [axis(keys.past, 2), axis(keys.new, 2)], f"{LENGTHS[1]}.int64")
        total = graph.add("Cast", [total], LENGTHS[1], to=types.INT32)
        last = graph.add("Sub", [total, graph.small("adamas.one", [1], "int32")], "adamas.last")
        graph.add("Expand", [last, axis(keys.new, 0)], LENGTHS[0])
    return LENGTHS


def _logits(graph: Graph, softmax: Node) -> tuple[Node, list[tuple[str, str]]]:
    """The MatMul that a Softmax gets its logits from, and the factors after it."""
    logits = _before(graph, softmax.input[0])
    total = graph.producer(logits, "Add")
    for name in total.input if total is not None else [logits]:
        x, factors = _scaled(graph, _before(graph, name))
        products = graph.producer(_before(graph, x), "MatMul")
        if products is not None:
            return products, factors
    raise _unexpected(softmax, "logits from a MatMul, with factors and a mask or without")


def _scaled(graph: Graph, name: str) -> tuple[str, list[tuple[str, str]]]:
    """A value without its scalar factors, and these."""
    factors: list[tuple[str, str]] = []
    while (node := graph.producer(name, "Mul", "Div")) is not None:
        a, b = node.input
        if _is_scalar(graph, b):
            name, scalar = a, b
        elif node.op_type == "Mul" and _is_scalar(graph, a):
            name, scalar = b, a
        else:
            break
        factors.append((node.op_type, scalar))
    return name, factors


def _is_scalar(graph: Graph, name: str) -> bool:
    """Whether a value is one number, made of constants and lengths of axes alone."""
    value = graph.constant(name)
    if value is not None:
        return bool(value.size == 1)
    node = graph.producer(name, *ARITHMETIC)
    if node is None:
        return False
    own = [x for x in node.input if x]
    if node.op_type in ("Slice", "Gather"):  # one axis of a shape
        return graph.producer(own[0], "Shape") is not None
    if node.op_type in ("Squeeze", "Unsqueeze"):
        own = own[:1]
    return all(_is_scalar(graph, x) for x in own)


def _cache(graph: Graph, name: str, softmax: Node) -> Cache:
    """The keys or values behind a value (B, H, tokens, D)."""
    shaped = graph.producer(name, "Reshape")
    wide = graph.producer(shaped.input[0], "Expand") if shaped is not None else None
    single = graph.producer(wide.input[0], "Unsqueeze") if wide is not None else None
    repeated = single is not None
    if single is not None:
        axes = graph.constant(single.input[1]) if len(single.input) > 1 else None
        axes = attributes(single).get("axes") if axes is None else axes.tolist()
        if axes != [2]:
            raise _unexpected(single, "an Unsqueeze at axis 2, so that heads repeat side by side")
        name = single.input[0]
    joined = graph.producer(name, "Concat")
    if joined is None or len(joined.input) != 2 or attributes(joined)["axis"] not in (2, -2):
        raise _unexpected(softmax, f"{name!r} from a Concat of past and new tokens along axis 2")
    return Cache(joined.input[0], joined.input[1], name, repeated)


def _before(graph: Graph, name: str) -> str:
    """The value before nodes that change its dtype at most."""
    while (node := graph.producer(name, "Cast", "Identity")) is not None:
        name = node.input[0]
    return name


def _after(graph: Graph, name: str) -> str:
    """The value after nodes that change its dtype at most."""
    while (node := _next(graph, name, "Cast", "Identity")) is not None:
        name = node.output[0]
    return name


def _next(graph: Graph, name: str, *ops: str) -> Node | None:
    """The only user of a value, if it is one of these operators."""
    users = graph.users.get(name, [])
    return users[0] if len(users) == 1 and users[0].op_type in ops else None


def _unexpected(node: Node, expected: str) -> ValueError:
    return ValueError(f"{label(node)} is no attention that is known; expected {expected}")
