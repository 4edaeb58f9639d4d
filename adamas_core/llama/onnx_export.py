"""A decoder as a graph for ONNX Runtime, with its own fused attention.

The graph reads the cache of all layers and returns it with the new tokens. Its attention is ONNX
Runtime's GroupQueryAttention, which also applies the positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import rope
from .decoder import Llama
from .onnx_nodes import Nodes
from .weights import Array, Layer

OPSETS = {"": 20, "com.microsoft": 1}
RUNTIME = "com.microsoft"  # the domain of ONNX Runtime's own operators


def export(model: Llama, path: str | Path) -> None:
    """Write a decoder as ONNX: a graph, and beside it a file of weights.

    Inputs of the graph are `input_ids` (B, S), `seqlens_k` (B,), the tokens of each sequence
    with the new ones, less 1, and `total_sequence_length`, the largest of these numbers, plus 1.
    Layer i has `past_key_values.i.key` and `.value` (B, H_kv, tokens, D), and the outputs
    `present.i.key` and `.value`. `logits` (B, V) are those of each sequence's last token. S tokens
    are a prompt if they are all there is: shorter sequences then end with any tokens.

    Parameters
    ----------
    model : Llama
    path : str or Path
        The graph. The weights, float32, go to the same name with ".data" at its end.

    Raises
    ------
    ValueError
        head_dim is no multiple of 16, as GroupQueryAttention needs it.
    ImportError
        The extra "onnxruntime" is not installed.
    OSError
        A file cannot be written.
    """
    path, c = Path(path), model.config
    if c.head_dim % 16:
        raise ValueError(
            f"export: the model has head_dim={c.head_dim}; expected a multiple of 16, as ONNX "
            "Runtime's GroupQueryAttention needs for rotary positions"
        )
    with Nodes(path.with_name(path.name + ".data")) as nodes:
        _Decoder(model, nodes).logits()
        helper, types = nodes.onnx.helper, nodes.onnx.TensorProto
        names = [f"{i}.{kind}" for i in range(c.layers) for kind in ("key", "value")]
        ids = helper.make_tensor_value_info("input_ids", types.INT64, ["B", "S"])
        each = helper.make_tensor_value_info("seqlens_k", types.INT32, ["B"])
        total = helper.make_tensor_value_info("total_sequence_length", types.INT32, [])
        logits = helper.make_tensor_value_info("logits", types.FLOAT, ["B", c.vocab])

        def cache(prefix: str, tokens: str) -> list[Any]:
            shape = ["B", c.kv_heads, tokens, c.head_dim]
            return [helper.make_tensor_value_info(prefix + n, types.FLOAT, shape) for n in names]

        inputs = [ids, each, total, *cache("past_key_values.", "past")]
        outputs = [logits, *cache("present.", "present")]
        graph = helper.make_graph(nodes.nodes, "decoder", inputs, outputs, nodes.weights)
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        path.write_bytes(made.SerializeToString())


class _Decoder:
    """The nodes of `Llama.forward`, in its order."""

    def __init__(self, model: Llama, nodes: Nodes) -> None:
        self.config, self.weights, self.nodes = model.config, model.weights, nodes
        self.angles: dict[int, tuple[str, str]] = {}

    def logits(self) -> None:
        c, w, n = self.config, self.weights, self.nodes
        embedding = n.weight("embedding", w.embedding)
        x = n.one("Gather", embedding, "input_ids")  # (B, S, E)
        if c.embedding_scale != 1:
            x = n.one("Mul", x, n.small("embedding_scale", c.embedding_scale, np.float32))
        for i, layer in enumerate(w.layers):
            x = self._layer(i, layer, x)
        x = self._norm("norm", self._last(x), w.norm)  # (B, E)
        head = embedding if w.head is w.embedding else n.weight("head", w.head)
        n.add("FusedMatMul", x, head, name="head", outputs=["logits"], domain=RUNTIME, transB=1)

    def _last(self, x: str) -> str:
        """The rows (B, E) of each sequence's last token of x (B, S, E)."""
        n = self.nodes
        S = n.one("Shape", "input_ids", start=1, end=2)
        most = n.one("Sub", S, n.small("one", [1], np.int64))
        held = n.one("Cast", "seqlens_k", to=n.onnx.TensorProto.INT64)  # (B,)
        last = n.one("Min", held, most)  # (B,): a prompt may be shorter than S
        rows = n.one("Unsqueeze", last, n.small("axis", [1], np.int64))  # (B, 1)
        return n.one("GatherND", x, rows, batch_dims=1)

    def _layer(self, i: int, layer: Layer, x: str) -> str:
        n, c = self.nodes, self.config
        h = self._norm(f"{i}.attention_norm", x, layer.attention_norm)
        h = self._attention(i, layer, h)
        h = self._linear(f"{i}.out", h, layer.out, layer.out_bias)
        h = self._norm(f"{i}.attention_post_norm", h, layer.attention_post_norm)
        x = n.one("Add", x, h)
        h = self._norm(f"{i}.ffn_norm", x, layer.ffn_norm)
        h = self._linear(f"{i}.gate_up", h, layer.gate_up)
        gate, up = n.add("Split", h, name=f"{i}.gate", outputs=2, axis=-1, num_outputs=2)
        if c.activation == "silu":
            gate = n.one("Mul", gate, n.one("Sigmoid", gate))
        else:
            gate = n.one("Gelu", gate, approximate="tanh")
        h = self._linear(f"{i}.down", n.one("Mul", gate, up), layer.down)
        h = self._norm(f"{i}.ffn_post_norm", h, layer.ffn_post_norm)
        return n.one("Add", x, h)

    def _attention(self, i: int, layer: Layer, h: str) -> str:
        n, c = self.nodes, self.config
        sizes = [c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim]
        qkv = self._linear(f"{i}.qkv", h, layer.qkv, layer.qkv_bias)
        parts = n.small("parts", sizes, np.int64)
        q, k, v = n.add("Split", qkv, parts, name=f"{i}.heads", outputs=3, axis=-1)
        q = self._head_norm(f"{i}.q_norm", q, layer.q_norm)
        k = self._head_norm(f"{i}.k_norm", k, layer.k_norm)
        past = [f"past_key_values.{i}.{kind}" for kind in ("key", "value")]
        present = [f"present.{i}.{kind}" for kind in ("key", "value")]
        lengths = ["seqlens_k", "total_sequence_length"]
        inputs = [q, k, v, *past, *lengths, *self._angles(c.ropes[i])]
        window = c.windows[i]
        out, *_ = n.add(
            "GroupQueryAttention",
            *inputs,
            name=f"{i}.attention",
            outputs=[f"{i}.attention", *present],
            domain=RUNTIME,
            num_heads=c.heads,
            kv_num_heads=c.kv_heads,
            scale=c.query_scale * c.head_dim**-0.5,
            do_rotary=1,
            **({} if window is None else {"local_window_size": window}),
        )
        return out

    def _angles(self, angles: rope.Rope) -> tuple[str, str]:
        """cos and sin of all positions (context, D / 2), once for the layers that share them."""
        if id(angles) not in self.angles:
            number = len(self.angles)
            both = rope.cos_sin(angles, 0, self.config.context)
            names = (f"cos.{number}", f"sin.{number}")
            for name, x in zip(names, both, strict=True):
                self.nodes.weight(name, x[:, 0])
            self.angles[id(angles)] = names
        return self.angles[id(angles)]

    def _linear(self, name: str, x: str, weight: Array, bias: Array | None = None) -> str:
        """x (B, S, inputs) times weight (outputs, inputs), plus bias."""
        n = self.nodes
        y = n.one("MatMul", x, n.weight(f"{name}.weight", weight.T))
        return y if bias is None else n.one("Add", y, n.weight(f"{name}.bias", bias))

    def _norm(self, name: str, x: str, weight: Array | None) -> str:
        """The RMS norm of x along its last axis; x itself in a model without this norm."""
        if weight is None:
            return x
        own = self.nodes.weight(f"{name}.weight", weight)
        eps = self.config.norm_eps
        return self.nodes.one("SimplifiedLayerNormalization", x, own, axis=-1, epsilon=eps)

    def _head_norm(self, name: str, x: str, weight: Array | None) -> str:
        """The norm of each head of x (B, S, heads D)."""
        if weight is None:
            return x
        n, D = self.nodes, self.config.head_dim
        heads = n.one("Reshape", x, n.small("heads", [0, 0, -1, D], np.int64))
        normed = self._norm(name, heads, weight)
        return n.one("Reshape", normed, n.small("rows", [0, 0, -1], np.int64))
