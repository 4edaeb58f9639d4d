"""A decoder from a Hugging Face folder: config.json and safetensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from .assemble import Tensor, Traits, assemble_config, assemble_weights, refuse_window
from .config import Config
from .extra import needs_extra
from .json_file import read_json
from .settings import CheckpointError, Settings
from .weights import Array, Weights

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TENSOR_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj.weight",
    "k": "model.layers.{}.self_attn.k_proj.weight",
    "v": "model.layers.{}.self_attn.v_proj.weight",
    "q_bias": "model.layers.{}.self_attn.q_proj.bias",
    "k_bias": "model.layers.{}.self_attn.k_proj.bias",
    "v_bias": "model.layers.{}.self_attn.v_proj.bias",
    "q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "k_norm": "model.layers.{}.self_attn.k_norm.weight",
    "out": "model.layers.{}.self_attn.o_proj.weight",
    "out_bias": "model.layers.{}.self_attn.o_proj.bias",
    "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}


def load(folder: Path) -> tuple[Config, Weights]:
    """The config and the weights of a folder."""
    path = folder / "config.json"
    settings = Settings(path, read_json(path).get)
    family = settings.get("model_type", str)
    if family not in FAMILIES:
        raise CheckpointError(
            f"{path}: model_type {family!r} is not llama, mistral, qwen2 or qwen3"
        )
    _refuse_unsupported(settings)
    config = _config(settings, family)
    bias = settings.get("attention_bias", bool, False)
    traits = Traits(
        qkv_bias=family == "qwen2" or bias,
        out_bias=family != "qwen2" and bias,
        qk_norm=family == "qwen3",
        tied=settings.get("tie_word_embeddings", bool, False),
    )

    def ignored(name: str) -> bool:
        """Old folders hold the frequencies of RoPE, and some hold a tied embedding twice."""
        return name.endswith("rotary_emb.inv_freq") or (traits.tied and name == "lm_head.weight")

    tensors = _tensors(folder)
    return config, assemble_weights(folder, config, traits, tensors, TENSOR_NAMES, ignored)


def _refuse_unsupported(settings: Settings) -> None:
    path = settings.path
    for name, supported in (("hidden_act", "silu"), ("mlp_bias", False)):
        value = settings.get(name, type(supported), supported)
        if value != supported:
            raise CheckpointError(f"{path}: {name} {value!r} is not supported")
    if settings.lookup("quantization_config") is not None:
        raise CheckpointError(f"{path}: quantized safetensors are not supported; GGUF files are")


def _config(settings: Settings, family: str) -> Config:
    hidden = settings.get("hidden_size", int)
    heads = settings.get("num_attention_heads", int)
    head_dim = settings.get("head_dim", int, hidden // max(heads, 1))
    context = settings.get("max_position_embeddings", int)
    if settings.get("use_sliding_window", bool, family == "mistral"):
        refuse_window(settings.path, settings.lookup("sliding_window"), context)
    theta, scaling = _rope_settings(settings, context)
    if scaling and scaling["rope_type"] == "yarn":
        # Some folders declare the context before yarn lengthens it, others the one after.
        longer = scaling["factor"] * scaling["original_max_position_embeddings"]
        context = max(context, int(longer))
    return assemble_config(
        settings.path,
        theta=theta,
        scaling=scaling,
        layers=settings.get("num_hidden_layers", int),
        hidden=hidden,
        ffn=settings.get("intermediate_size", int),
        heads=heads,
        kv_heads=settings.get("num_key_value_heads", int, heads),
        head_dim=head_dim,
        vocab=settings.get("vocab_size", int),
        context=context,
        norm_eps=settings.get("rms_norm_eps", float, 1e-6),
    )


def _rope_settings(settings: Settings, context: int) -> tuple[float, dict[str, Any] | None]:
    """RoPE's theta and scaling. transformers 5 changed the place and the names of both."""
    given: dict[str, Any] = dict(settings.get("rope_parameters", dict, {}))
    given = given or dict(settings.get("rope_scaling", dict, {}))
    theta = given.pop("rope_theta", None) or settings.get("rope_theta", float, 10000.0)
    if (given.pop("partial_rotary_factor", None) or 1) != 1:
        raise CheckpointError(f"{settings.path}: partial_rotary_factor is not supported")
    kind = given.pop("type", None)
    kind = given.pop("rope_type", None) or kind or "default"
    if kind == "default":
        return theta, None
    if kind == "yarn":
        if not given.get("original_max_position_embeddings"):
            given["original_max_position_embeddings"] = context
        scales = given.pop("mscale", None), given.pop("mscale_all_dim", None)
        if all(scales) and not given.get("attention_factor"):
            above, below = (0.1 * m * math.log(given["factor"]) + 1 for m in scales)
            given["attention_factor"] = above / below
    return theta, {"rope_type": kind, **given}


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, or of the files in the folder's index."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        file_of: dict[str, str] = Settings(index, read_json(index).get).get("weight_map", dict)
        files = sorted(set(file_of.values()))
    else:
        files = ["model.safetensors"]
    needs_extra("ml_dtypes")  # it gives NumPy the bfloat16 that safetensors asks for
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _tensors_of_file(folder / file)
    return tensors


def _tensors_of_file(path: Path) -> dict[str, Tensor]:
    safetensors = needs_extra("safetensors")
    try:
        file = safetensors.safe_open(path, framework="numpy")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: damaged, or cut short: {error}") from error

    def tensor(name: str, part: Any) -> Tensor:
        def read() -> Array:
            if part.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                raise ValueError(f"its dtype {part.get_dtype()} is not F64, F32, F16 or BF16")
            values: Array = file.get_tensor(name).astype(np.float32, copy=False)
            return values

        return Tensor(path, tuple(part.get_shape()), read)

    return {name: tensor(name, part) for name, part in slices.items()}
