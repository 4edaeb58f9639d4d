"""An ONNX graph that can be asked where a value comes from and where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..extra import needs_extra

Node = Any  # onnx.NodeProto


class Graph:
    """The main graph of a model. Nodes may be added in any order, and `finish` sorts them."""

    def __init__(self, model: Any) -> None:
        self.onnx = needs_extra("onnx", "onnxruntime")
        self.model, self.proto = model, model.graph
        self.inputs = {value.name: value for value in self.proto.input}
        self.outputs = {value.name: value for value in self.proto.output}
        self.initializers = {tensor.name: tensor for tensor in self.proto.initializer}
        self.nodes: list[Node] = list(self.proto.node)
        inner = [n for n in self.nodes if any(a.HasField("g") or a.graphs for a in n.attribute)]
        if inner:
            raise ValueError(
                f"{label(inner[0])} has a graph of its own; expected a model without branches and "
                "loops"
            )
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self.users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self._inferred: dict[str, Any] | None = None
        versions = [x.version for x in model.opset_import if x.domain in ("", "ai.onnx")]
        self.opset = versions[0] if versions else 1

    def producer(self, name: str, *ops: str) -> Node | None:
        """The node that makes a value, if it is one of these operators."""
        node = self.producers.get(name)
        return node if node is not None and (not ops or node.op_type in ops) else None

    def constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """The value of a constant that lies in the graph itself."""
        tensor = self.initializers.get(name)
        node = self.producer(name, "Constant")
        if node is not None:
            given = attributes(node)
            if "value" not in given:
                return np.asarray(next(iter(given.values())))
            tensor = given["value"]
        if tensor is None or tensor.data_location == self.onnx.TensorProto.EXTERNAL:
            return None
        return np.asarray(self.onnx.numpy_helper.to_array(tensor))

    def shape(self, name: str) -> list[int | None] | None:
        """The axes of a value, None for one that is not a number; None if its rank is unknown."""
        if name in self.initializers:
            return list(self.initializers[name].dims)
        value = self.inputs.get(name) or self._inferences().get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        axes = value.type.tensor_type.shape.dim
        return [int(axis.dim_value) if axis.HasField("dim_value") else None for axis in axes]

    def _inferences(self) -> dict[str, Any]:
        if self._inferred is None:
            whole = self.onnx.shape_inference.infer_shapes(self.model, data_prop=True)
            values = [*whole.graph.value_info, *whole.graph.output]
            self._inferred = {value.name: value for value in values}
        return self._inferred

    def add(self, op: str, inputs: Sequence[str], output: str, **options: Any) -> str:
        """Add a node with one output; returns the output."""
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [output], name=output, **options))
        return output

    def small(self, name: str, values: Any, dtype: Any = np.int64) -> str:
        """Add a constant; returns its name."""
        if name not in self.initializers:
            tensor = self.onnx.numpy_helper.from_array(np.array(values, dtype), name)
            self.proto.initializer.append(tensor)
            self.initializers[name] = tensor
        return name

    def remove(self, node: Node) -> None:
        self.nodes = [other for other in self.nodes if other is not node]

    def finish(self) -> None:
        """Drop all nodes that nothing uses, and write the others in an order that can run."""
        self.nodes = self._sorted(self._used())
        del self.proto.node[:]
        self.proto.node.extend(self.nodes)
        del self.proto.value_info[:]  # of values that may be gone
        used = {name for node in self.nodes for name in node.input} | set(self.outputs)
        kept = [tensor for tensor in self.proto.initializer if tensor.name in used]
        del self.proto.initializer[:]
        self.proto.initializer.extend(kept)

    def _used(self) -> list[Node]:
        made = {name: node for node in self.nodes for name in node.output if name}
        open_names, used = list(self.outputs), set()
        while open_names:
            node = made.get(open_names.pop())
            if node is not None and id(node) not in used:
                used.add(id(node))
                open_names += node.input
        return [node for node in self.nodes if id(node) in used]

    def _sorted(self, nodes: list[Node]) -> list[Node]:
        made = {name for node in nodes for name in node.output if name}
        done: set[str] = set()
        order: list[Node] = []
        while nodes:
            ready, rest = [], []
            for node in nodes:
                if all(name in done or name not in made for name in node.input):
                    ready.append(node)
                    done.update(node.output)
                else:
                    rest.append(node)
            if not ready:
                raise ValueError(
                    f"{label(rest[0])} would read a value that depends on it; expected nodes that "
                    "take no part in an order with the attention's keys"
                )
            order += ready
            nodes = rest
        return order


def attributes(node: Node) -> dict[str, Any]:
    """The attributes of a node by name; text as str."""
    helper = needs_extra("onnx", "onnxruntime").helper
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: x.decode() if isinstance(x, bytes) else x for name, x in found.items()}


def label(node: Node) -> str:
    """A node as errors name it."""
    return f"{node.op_type} {node.name or node.output[0]!r}"
