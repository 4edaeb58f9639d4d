"""A decoder from a GGUF file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..extra import needs_extra
from . import gguf_split
from .assemble import (
    RopeSettings,
    Tensor,
    Traits,
    Windows,
    assemble_config,
    assemble_weights,
)
from .config import Config
from .gguf_file import GgufTensor, open_gguf
from .settings import CheckpointError, Settings
from .weights import Array, Weights

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
GEMMA3_PATTERN = 6  # five layers with a window, then one without
GEMMA3_27B_LAYERS = 62  # converters do not store the scale of this model's attention
TENSOR_NAMES = {
    "embedding": "token_embd.weight",
    "attention_norm": "blk.{}.attn_norm.weight",
    "q": "blk.{}.attn_q.weight",
    "k": "blk.{}.attn_k.weight",
    "v": "blk.{}.attn_v.weight",
    "q_bias": "blk.{}.attn_q.bias",
    "k_bias": "blk.{}.attn_k.bias",
    "v_bias": "blk.{}.attn_v.bias",
    "q_norm": "blk.{}.attn_q_norm.weight",
    "k_norm": "blk.{}.attn_k_norm.weight",
    "out": "blk.{}.attn_output.weight",
    "out_bias": "blk.{}.attn_output.bias",
    "attention_post_norm": "blk.{}.post_attention_norm.weight",
    "ffn_norm": "blk.{}.ffn_norm.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
    "ffn_post_norm": "blk.{}.post_ffw_norm.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
}


def load(path: Path) -> tuple[Config, Weights]:
    """The config and the weights of a GGUF file."""
    first, settings = open_gguf(path)
    parts = gguf_split.parts(first)
    tensors = {t.name: read_later(part.path, t) for part in parts for t in part.tensors}
    arch = settings.get("general.architecture", str)
    if arch not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: architecture {arch!r} is not one of {', '.join(ARCHITECTURES)}"
        )
    _refuse_unsupported(settings, arch)
    config = _config(settings, arch, tensors.get("token_embd.weight"))
    traits = Traits(
        qkv_bias=arch == "qwen2" or "blk.0.attn_q.bias" in tensors,
        out_bias="blk.0.attn_output.bias" in tensors,
        qk_norm=arch in ("qwen3", "gemma3"),
        post_norms=arch == "gemma3",
        tied="output.weight" not in tensors,  # the format's own sign of a tied head
        interleaved=arch == "llama",
    )
    # Llama 3's scaling is stored as divisors of the frequencies.
    divisors = tensors.pop("rope_freqs.weight", None)
    if divisors is not None:
        config = _divide_frequencies(path, config, divisors)
    return config, assemble_weights(path, config, traits, tensors, TENSOR_NAMES)


def read_later(path: Path, tensor: GgufTensor) -> Tensor:
    """A tensor of a GGUF file. Its values are dequantized when they are read."""
    shape = tuple(int(n) for n in reversed(tensor.shape))  # the format's first axis is the fastest

    def read() -> Array:
        values = needs_extra("gguf.quants").dequantize(tensor.data, tensor.tensor_type)
        if np.may_share_memory(values, tensor.data):  # float32 in the file: do not keep it mapped
            values = values.copy()
        return np.asarray(values, np.float32).reshape(shape)

    return Tensor(path, shape, read)


def _config(settings: Settings, arch: str, embedding: Tensor | None) -> Config:
    path = settings.path
    hidden = settings.size(f"{arch}.embedding_length")
    heads = settings.size(f"{arch}.attention.head_count")
    head_dim = settings.size(f"{arch}.attention.key_length", hidden // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if settings.get(f"{arch}.{name}", int, head_dim) != head_dim:
            raise CheckpointError(f"{path}: {arch}.{name} differs from the head_dim, {head_dim}")
    context = settings.size(f"{arch}.context_length")
    layers = settings.size(f"{arch}.block_count")
    gemma = arch == "gemma3"
    theta = settings.get(f"{arch}.rope.freq_base", float, 1e6 if gemma else 10000.0)
    scale = settings.optional(f"{arch}.attention.scale", float)
    if scale is None and gemma and layers == GEMMA3_27B_LAYERS:
        scale = (hidden / heads) ** -0.5
    return assemble_config(
        path,
        RopeSettings(theta, _rope_scaling(settings, arch, context)),
        _windows(settings, arch),
        layers=layers,
        hidden=hidden,
        ffn=settings.size(f"{arch}.feed_forward_length"),
        heads=heads,
        kv_heads=settings.size(f"{arch}.attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab=embedding.shape[0] if embedding else settings.size(f"{arch}.vocab_size"),
        context=context,
        norm_eps=settings.get(f"{arch}.attention.layer_norm_rms_epsilon", float),
        activation="gelu" if gemma else "silu",
        embedding_scale=hidden**0.5 if gemma else 1.0,
        query_scale=1.0 if scale is None else scale * head_dim**0.5,
    )


def _refuse_unsupported(settings: Settings, arch: str) -> None:
    if settings.get(f"{arch}.expert_count", int, 0):
        raise CheckpointError(f"{settings.path}: mixture of experts is not supported")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if settings.get(f"{arch}.{name}", float, 0.0):
            raise CheckpointError(f"{settings.path}: {arch}.{name} is not supported")


def _windows(settings: Settings, arch: str) -> Windows:
    """The layers with a sliding window: by a list, by a period, or all."""
    size = settings.get(f"{arch}.attention.sliding_window", int, 0) or None
    rope = None
    if arch == "gemma3":
        rope = RopeSettings(settings.get(f"{arch}.rope.freq_base_swa", float, 10000.0))
    name = f"{arch}.attention.sliding_window_pattern"
    if isinstance(settings.lookup(name), list):
        flags = settings.items(name, bool)
        layers = settings.get(f"{arch}.block_count", int)
        if len(flags) != layers:
            raise CheckpointError(
                f"{settings.path}: {name} has {len(flags)} items, expected {layers}, one per layer"
            )
        return Windows(size, flags.__getitem__, rope)
    period = settings.get(name, int, GEMMA3_PATTERN if arch == "gemma3" else 0)
    if period < 0:
        raise CheckpointError(f"{settings.path}: {name} is {period}, expected 0 or more")
    return Windows(size, lambda layer: period == 0 or layer % period < period - 1, rope)


def _rope_scaling(settings: Settings, arch: str, context: int) -> dict[str, Any] | None:
    """The scaling of RoPE in the words of `rope.scaled_rope`."""
    prefix = f"{arch}.rope.scaling."
    kind = settings.get(prefix + "type", str, "none")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": settings.get(prefix + "factor", float)}
    if kind == "yarn":
        for name in ("attn_factor", "yarn_attn_factor"):  # programs apply it to different things
            if settings.get(prefix + name, float, 1.0) != 1:
                raise CheckpointError(f"{settings.path}: {prefix}{name} is not supported")
        scaling["original_max_position_embeddings"] = settings.get(
            prefix + "original_context_length", int, context
        )
        for name in ("beta_fast", "beta_slow"):
            scaling[name] = settings.optional(f"{prefix}yarn_{name}", float)
    return scaling


def _divide_frequencies(path: Path, config: Config, divisors: Tensor) -> Config:
    half = (config.head_dim // 2,)
    if divisors.shape != half:
        raise CheckpointError(
            f"{path}: tensor rope_freqs.weight has shape {divisors.shape}, expected {half}"
        )
    values = divisors.values("rope_freqs.weight")  # (D / 2,)
    if not ((values > 0) & (values < np.inf)).all():
        raise CheckpointError(
            f"{path}: tensor rope_freqs.weight is wrong, expected finite numbers above 0"
        )
    divided = {
        id(each): each._replace(frequencies=tuple(np.divide(each.frequencies, values).tolist()))
        for each in {id(each): each for each in config.ropes}.values()
    }
    return replace(config, ropes=tuple(divided[id(each)] for each in config.ropes))
