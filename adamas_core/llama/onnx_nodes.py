"""The nodes and weights of an ONNX graph as they are made: weights go to a file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..extra import needs_extra

ALIGNMENT = 4096  # of a weight in the file, so that it can be mapped into memory


class Nodes:
    """Nodes, each with one or more outputs whose names it chooses, and weights.

    A weight is written to the file at once. So no second copy of a model is in memory, and there is
    no limit of 2 GB.
    """

    def __init__(self, data: Path) -> None:
        self.onnx = needs_extra("onnx", "onnxruntime")
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._data = data
        self._file: IO[bytes] = data.open("wb")
        self._names: dict[str, int] = {}

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(
        self,
        op: str,
        *inputs: str,
        name: str = "",
        outputs: int | Sequence[str] = 1,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Add a node; returns the names of its outputs. An empty input is one that is not given."""
        own = self._unique(name or op)
        if isinstance(outputs, int):
            outputs = [own if outputs == 1 else f"{own}.{i}" for i in range(outputs)]
        made = self.onnx.helper.make_node(
            op, list(inputs), list(outputs), name=own, domain=domain, **attributes
        )
        self.nodes.append(made)
        return list(outputs)

    def one(self, op: str, *inputs: str, **options: Any) -> str:
        """Add a node with one output; returns its name."""
        return self.add(op, *inputs, **options)[0]

    def weight(self, name: str, values: NDArray[Any]) -> str:
        """Write a weight to the file; returns its name."""
        values = np.ascontiguousarray(values)
        start = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.seek(start)
        self._file.write(values.data)
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = self.onnx.TensorProto(name=name, data_type=kind, dims=values.shape)
        tensor.data_location = self.onnx.TensorProto.EXTERNAL
        place = {"location": self._data.name, "offset": start, "length": values.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self.weights.append(tensor)
        return name

    def small(self, name: str, values: Any, dtype: Any) -> str:
        """A constant that lies in the graph itself; returns its name."""
        name = self._unique(name)
        self.weights.append(self.onnx.numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def _unique(self, name: str) -> str:
        self._names[name] = count = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"
