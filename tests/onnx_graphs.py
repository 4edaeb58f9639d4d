"""ONNX graphs of one attention, and sessions that know the sparse operator."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

NDArray = np.ndarray[Any, Any]


def needed(*names: str) -> list[Any]:
    """The libraries of the extra; without them the test is skipped."""
    return [pytest.importorskip(x, reason='needs the extra "onnxruntime"') for x in names]


def session(model: Any) -> Any:
    """A session of a model, or of the file of one, in which the sparse operator is known."""
    (onnxruntime,) = needed("onnxruntime")
    from adamas_core.onnxruntime import library

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library())
    options.log_severity_level = 4  # errors are raised, and need no second line on stderr
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    given = os.fspath(model) if isinstance(model, os.PathLike) else model.SerializeToString()
    return onnxruntime.InferenceSession(given, options)


def attention(
    H: int,
    H_kv: int,
    D: int,
    dtype: Any = np.float32,
    packed: bool = False,
    sparse: bool = True,
    head_sink: bool = False,
    **attributes: Any,
) -> Any:
    """A graph of one node: the sparse operator, or GroupQueryAttention."""
    (onnx,) = needed("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rows = (H + 2 * H_kv) * D if packed else H * D
    shapes: dict[str, tuple[int, list[Any]]] = {
        "query": (number, ["B", "S", rows]),
        "key": (number, ["B", "S", H_kv * D]),
        "value": (number, ["B", "S", H_kv * D]),
        "past_key": (number, ["B", H_kv, "P", D]),
        "past_value": (number, ["B", H_kv, "P", D]),
        "seqlens_k": (types.INT32, ["B"]),
        "total_sequence_length": (types.INT32, []),
        "cos_cache": (number, ["M", "half"]),
        "sin_cache": (number, ["M", "half"]),
        "past_codes": (types.UINT8, ["B", H_kv, "code_bytes"]),
        "head_sink": (number, [H]),
    }
    absent = ["key", "value"] if packed else []
    absent += [] if attributes.get("do_rotary") else ["cos_cache", "sin_cache"]
    names = [name if name not in absent else "" for name in shapes]
    outputs: dict[str, tuple[int, list[Any]]] = {
        "output": (number, ["B", "S", H * D]),
        "present_key": (number, ["B", H_kv, "T", D]),
        "present_value": (number, ["B", H_kv, "T", D]),
        "present_codes": (types.UINT8, ["B", H_kv, "present_bytes"]),
    }
    if not head_sink:
        names.remove("head_sink")
    if not sparse:
        i = names.index("past_codes")
        names[i : i + 1] = ["", ""] if head_sink else []  # position_ids and attention_bias
        del outputs["present_codes"]
    node = helper.make_node(
        "SparseGroupQueryAttention" if sparse else "GroupQueryAttention",
        names,
        list(outputs),
        name="attention",
        domain="adamas" if sparse else "com.microsoft",
        num_heads=H,
        kv_num_heads=H_kv,
        **attributes,
    )
    infos = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "attention",
        [infos(name, *shapes[name]) for name in names if name],
        [infos(name, *about) for name, about in outputs.items()],
    )
    domains = {"": 17, "com.microsoft": 1, "adamas": 1}
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def joined(x: NDArray) -> NDArray:
    """x (B, heads, S, D) as the operators take it, (B, S, heads D)."""
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape[0], x.shape[2], -1)


def parted(x: NDArray, D: int) -> NDArray:
    """(B, S, heads D) as (B, heads, S, D)."""
    return x.reshape(*x.shape[:2], -1, D).swapaxes(1, 2)


def lengths(each: Any, total: int | None = None) -> dict[str, NDArray]:
    """The two inputs that say how many tokens there are, with the new ones."""
    return {
        "seqlens_k": np.array(each, np.int32) - 1,
        "total_sequence_length": np.array(max(each) if total is None else total, np.int32),
    }
