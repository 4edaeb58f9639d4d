"""A decoder from a Hugging Face folder: config.json and safetensors."""

from __future__ import annotations

import math
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from .assemble import Tensor, Traits, assemble_config, assemble_weights, refuse_window
from .config import Config
from .extra import needs_extra
from .files import regular
from .json_file import read_json
from .library_errors import library_errors
from .settings import MAX_SIZE, CheckpointError, Settings
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
    embedding, head = TENSOR_NAMES["embedding"], TENSOR_NAMES["head"]
    if traits.tied and embedding not in tensors and head in tensors:
        tensors[embedding] = tensors.pop(head)  # one array may be saved under either name
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
    hidden = settings.size("hidden_size")
    heads = settings.size("num_attention_heads")
    head_dim = settings.size("head_dim", hidden // heads)
    context = settings.size("max_position_embeddings")
    if settings.get("use_sliding_window", bool, family == "mistral"):
        refuse_window(settings.path, settings.optional("sliding_window", int), context)
    theta, scaling = _rope_settings(settings, context)
    if scaling and scaling["rope_type"] == "yarn":
        # Some folders declare the context before yarn lengthens it, others the one after.
        longer = scaling["factor"] * scaling["original_max_position_embeddings"]
        context = max(context, int(min(longer, MAX_SIZE + 1)))  # Config refuses the larger ones
    return assemble_config(
        settings.path,
        theta=theta,
        scaling=scaling,
        layers=settings.size("num_hidden_layers"),
        hidden=hidden,
        ffn=settings.size("intermediate_size"),
        heads=heads,
        kv_heads=settings.size("num_key_value_heads", heads),
        head_dim=head_dim,
        vocab=settings.size("vocab_size"),
        context=context,
        norm_eps=settings.get("rms_norm_eps", float, 1e-6),
    )


def _rope_settings(settings: Settings, context: int) -> tuple[float, dict[str, Any] | None]:
    """RoPE's theta and scaling. transformers 5 changed the place and the names of both."""
    place = "rope_parameters" if settings.optional("rope_parameters", dict) else "rope_scaling"
    given: dict[str, Any] = dict(settings.get(place, dict, {}))
    inner = settings.section(place)
    theta = inner.optional("rope_theta", float) or settings.get("rope_theta", float, 10000.0)
    if inner.get("partial_rotary_factor", float, 1.0) != 1:
        raise CheckpointError(f"{settings.path}: partial_rotary_factor is not supported")
    kind = inner.optional("rope_type", str) or inner.optional("type", str) or "default"
    if kind == "default":
        return theta, None
    if kind == "yarn":
        factor, original = inner.get("factor", float), "original_max_position_embeddings"
        given[original] = inner.size(original, context)
        scales = [inner.optional(name, float) for name in ("mscale", "mscale_all_dim")]
        if all(scales) and not given.get("attention_factor") and factor > 0:
            above, below = (0.1 * (m or 0) * math.log(factor) + 1 for m in scales)
            given["attention_factor"] = above / (below or math.nan)
    read = {"rope_theta", "partial_rotary_factor", "type", "rope_type"}
    read |= {"mscale", "mscale_all_dim"} if kind == "yarn" else set()
    numbers = {name: value for name, value in given.items() if name not in read}
    return theta, {"rope_type": kind, **numbers}


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, or of the files in the folder's index."""
    needs_extra("ml_dtypes")  # it gives NumPy the bfloat16 that safetensors asks for
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return _tensors_of_file(folder / "model.safetensors")
    file_of: dict[str, Any] = Settings(index, read_json(index).get).get("weight_map", dict)
    for name, file in file_of.items():
        if not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts:
            raise CheckpointError(
                f"{index}: the file of {name} is {reprlib.repr(file)}, expected one in the folder"
            )
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(file_of.values())):
        part = _tensors_of_file(folder / file)
        if twice := tensors.keys() & part.keys():
            raise CheckpointError(f"{folder / file}: {min(twice)} is in another file, too")
        tensors |= part
    for name, file in file_of.items():
        if name not in tensors or tensors[name].file != folder / file:
            raise CheckpointError(f"{index}: {name} is not in {file}")
    return tensors


def _tensors_of_file(path: Path) -> dict[str, Tensor]:
    safetensors = needs_extra("safetensors")
    try:
        with library_errors(f"{path}: damaged, or cut short"):
            file = safetensors.safe_open(regular(path), framework="numpy")
            names = file.keys()  # a list; the file is no mapping
            slices = {name: file.get_slice(name) for name in names}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None

    def tensor(name: str, part: Any) -> Tensor:
        def read() -> Array:
            if part.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                raise ValueError(f"its dtype {part.get_dtype()} is not F64, F32, F16 or BF16")
            values: Array = file.get_tensor(name).astype(np.float32, copy=False)
            return values

        return Tensor(path, tuple(part.get_shape()), read)

    return {name: tensor(name, part) for name, part in slices.items()}
