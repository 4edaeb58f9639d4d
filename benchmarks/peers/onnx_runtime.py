"""ONNX Runtime's CPU GroupQueryAttention, with inputs and outputs bound once.

Past and present keys and values are bound to the same memory, which is that of the caller. So the
operator appends the new token in place and copies nothing else. The appended token equals the last
one, which is already there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from . import Unavailable

_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def forms(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], threads: int
) -> dict[str, Callable[[], NDArray[Any]]]:
    if k.dtype.name not in _TYPES:
        raise Unavailable(f"its CPU GroupQueryAttention does not support {k.dtype.name}")
    if not (k.flags.c_contiguous and v.flags.c_contiguous):
        raise Unavailable("k or v is not contiguous; it binds only contiguous arrays")
    B, H, _, D = q.shape
    H_kv, S = k.shape[1:3]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads may spin while they work, but not into the turn of the next peer.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        _model(H, D, k.shape, _TYPES[k.dtype.name]).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )

    output = np.empty((B, 1, H * D), q.dtype)
    arrays = {
        "query": q.reshape(B, 1, H * D),
        "key": np.ascontiguousarray(k[:, :, -1]).reshape(B, 1, H_kv * D),
        "value": np.ascontiguousarray(v[:, :, -1]).reshape(B, 1, H_kv * D),
        "past_key": k,
        "past_value": v,
        "seqlens_k": np.full(B, S - 1, np.int32),
        "total_sequence_length": np.array([S], np.int32),
        "output": output,
    }
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(x)  # shares the memory of x
        for name, x in arrays.items()
    }
    binding = session.io_binding()
    for x in session.get_inputs():
        binding.bind_ortvalue_input(x.name, values[x.name])
    binding.bind_ortvalue_output("output", values["output"])
    binding.bind_ortvalue_output("present_key", values["past_key"])
    binding.bind_ortvalue_output("present_value", values["past_value"])

    def run() -> NDArray[Any]:
        session.run_with_iobinding(binding)
        return output

    return {"GroupQueryAttention": run}


def _model(H: int, D: int, cache: tuple[int, ...], kind: int) -> ModelProto:
    """One GroupQueryAttention of H query heads over k and v of the shape `cache`."""
    B, H_kv = cache[:2]
    shapes = {
        "query": (B, 1, H * D),
        "key": (B, 1, H_kv * D),
        "value": (B, 1, H_kv * D),
        "past_key": cache,
        "past_value": cache,
    }
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    inputs += [
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [B]),
        helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, [1]),
    ]
    shapes = {"output": (B, 1, H * D), "present_key": cache, "present_value": cache}
    outputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    node = helper.make_node(
        "GroupQueryAttention",
        [x.name for x in inputs],
        [x.name for x in outputs],
        domain="com.microsoft",
        num_heads=H,
        kv_num_heads=H_kv,
    )
    return helper.make_model(
        helper.make_graph([node], "decode", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
