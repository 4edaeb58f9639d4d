"""A Llama's attention in torch, and the ONNX graph that torch's exporter makes of it."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import Any

import torch

H, H_KV, D, E = 4, 2, 16, 32


class Attention(torch.nn.Module):
    """One layer's attention with a cache: the steps of published decoders.

    `written` says how: "eager" as two products and a softmax, "sdpa" by torch's own function.
    """

    def __init__(self, written: str, heads: int = H) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.written, self.heads = written, heads
        self.qkv = torch.nn.ModuleList(
            torch.nn.Linear(E, n * D, bias=False) for n in (heads, H_KV, H_KV)
        )
        self.out = torch.nn.Linear(heads * D, E, bias=False)
        self.register_buffer("angles", 10000.0 ** (-torch.arange(0, D, 2) / D))

    def forward(self, x: Any, mask: Any, past_key: Any, past_value: Any) -> Any:
        B, S, _ = x.shape
        q, k, v = (f(x).view(B, S, -1, D).transpose(1, 2) for f in self.qkv)
        positions = torch.arange(S) + past_key.shape[2]
        turns = (positions[:, None] * self.angles).repeat(1, 2)
        q, k = (y * turns.cos() + self.turned(y) * turns.sin() for y in (q, k))
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        all_k, all_v = self.repeated(k), self.repeated(v)
        if self.written == "sdpa":
            y = torch.nn.functional.scaled_dot_product_attention(q, all_k, all_v, attn_mask=mask)
        else:
            logits = torch.matmul(q, all_k.transpose(2, 3)) * D**-0.5 + mask
            y = torch.matmul(logits.softmax(-1, dtype=torch.float32).to(q.dtype), all_v)
        return self.out(y.transpose(1, 2).contiguous().reshape(B, S, -1)), k, v

    def turned(self, x: Any) -> Any:
        return torch.cat([-x[..., D // 2 :], x[..., : D // 2]], -1)

    def repeated(self, x: Any) -> Any:
        B, heads, S, _ = x.shape
        if self.heads == heads:
            return x
        shape = (B, heads, self.heads // heads, S, D)
        return x[:, :, None].expand(shape).reshape(B, self.heads, S, D)


class Layers(torch.nn.Module):
    """Attention layers one after the other. Of each come past keys and values."""

    def __init__(self, *layers: Attention) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x: Any, mask: Any, *past: Any) -> Any:
        present = []
        for layer, key, value in zip(self.layers, past[::2], past[1::2], strict=True):
            x, *new = layer(x, mask, key, value)
            present += new
        return (x, *present)


def exported(*layers: Attention) -> bytes:
    """The graph of the exporter that traces a module."""
    names = [f"{name}.{i}" for i in range(len(layers)) for name in ("key", "value")]
    past = [torch.randn(1, H_KV, 5, D) for _ in names]
    tensors = (torch.randn(1, 3, E), torch.zeros(1, 1, 3, 8), *past)
    axes = {"x": {0: "B", 1: "S"}, "mask": {0: "B", 2: "S", 3: "T"}}
    axes |= {f"past_{name}": {0: "B", 2: "P"} for name in names}
    axes |= {f"present_{name}": {0: "B", 2: "T"} for name in names}
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would have the other exporter used, and traces ints
        torch.onnx.export(
            Layers(*layers), tensors, file, dynamo=False, opset_version=17, dynamic_axes=axes,
            input_names=["x", "mask", *(f"past_{name}" for name in names)],
            output_names=["y", *(f"present_{name}" for name in names)],
        )  # fmt: skip
    return file.getvalue()
