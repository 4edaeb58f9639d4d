"""A decoder from a Hugging Face folder: config.json and safetensors."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..extra import needs_extra
from .assemble import (
    RopeSettings,
    Tensor,
    Traits,
    Windows,
    assemble_config,
    assemble_weights,
)
from .config import Config
from .files import regular
from .json_file import read_json
from .library_errors import library_errors
from .settings import MAX_SIZE, CheckpointError, Settings
from .weights import Array, Weights

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
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
GEMMA3_NAMES = TENSOR_NAMES | {
    "attention_post_norm": "model.layers.{}.post_attention_layernorm.weight",
    "ffn_norm": "model.layers.{}.pre_feedforward_layernorm.weight",
    "ffn_post_norm": "model.layers.{}.post_feedforward_layernorm.weight",
}
# The names of Gemma 3's text tensors in a folder that also holds a vision model begin with one of
# these instead of "model.". The other tensors there are left out.
TEXT_PREFIXES = ("model.language_model.", "language_model.model.")
# Gemma 3's config.json leaves out what equals these.
GEMMA3_DEFAULTS: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}
GEMMA3_PATTERN = 6  # five layers with a window, then one without
QWEN_WINDOW, QWEN_DENSE_LAYERS = 4096, 28  # what a config.json of Qwen leaves out
GLOBAL, LOCAL = "full_attention", "sliding_attention"


def load(folder: Path) -> tuple[Config, Weights]:
    """The config and the weights of a folder."""
    settings, family = _settings(folder / "config.json")
    gemma = family == "gemma3_text"
    _refuse_unsupported(settings, gemma)
    config = _config(settings, family)
    bias = settings.get("attention_bias", bool, False)
    traits = Traits(
        qkv_bias=family == "qwen2" or bias,
        out_bias=family != "qwen2" and bias,
        qk_norm=family in ("qwen3", "gemma3_text"),
        post_norms=gemma,
        norms_less_one=gemma,
        tied=settings.get("tie_word_embeddings", bool, False),
    )

    tensors = _tensors(folder)
    names = _names(tensors) if gemma else TENSOR_NAMES
    embedding, head = names["embedding"], names["head"]

    def ignored(name: str) -> bool:
        """Old folders hold RoPE's frequencies, some a tied embedding twice or a vision model."""
        vision = gemma and ("vision_tower." in name or "multi_modal_projector." in name)
        return vision or name.endswith("rotary_emb.inv_freq") or (traits.tied and name == head)

    if traits.tied and embedding not in tensors and head in tensors:
        tensors[embedding] = tensors.pop(head)  # one array may be saved under either name
    return config, assemble_weights(folder, config, traits, tensors, names, ignored)


def _settings(path: Path) -> tuple[Settings, str]:
    """The settings of the text model in a config.json, and its family."""
    whole = Settings(path, read_json(path).get)
    family, settings, defaults = whole.get("model_type", str), whole, {}
    if whole.lookup("quantization_config") is not None:
        raise CheckpointError(f"{path}: quantized safetensors are not supported; GGUF files are")
    if family == "gemma3":
        whole.get("text_config", dict)  # it must be there
        settings = whole.section("text_config")
        family = settings.get("model_type", str, "gemma3_text")
    if family not in FAMILIES:
        raise CheckpointError(f"{path}: model_type {family!r} is not one of {', '.join(FAMILIES)}")
    if family == "gemma3_text":
        defaults = GEMMA3_DEFAULTS

    def lookup(name: str) -> Any:
        value = settings.lookup(name)
        return defaults.get(name) if value is None else value

    return Settings(path, lookup, settings.prefix), family


def _names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The names of Gemma 3's text tensors."""
    for prefix in TEXT_PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            head = "language_model." if prefix.startswith("language_model.") else ""
            renamed = {
                weight: prefix + name.removeprefix("model.")
                for weight, name in GEMMA3_NAMES.items()
            }
            return renamed | {"head": head + GEMMA3_NAMES["head"]}
    return GEMMA3_NAMES


def _refuse_unsupported(settings: Settings, gemma: bool) -> None:
    path = settings.path
    expected: dict[str, Any] = {"hidden_act": "silu", "mlp_bias": False}
    if gemma:
        expected = {"hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False}
    for name, supported in expected.items():
        value = settings.get(name, type(supported), supported)
        if value != supported:
            raise CheckpointError(f"{path}: {name} {value!r} is not supported")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if settings.lookup(name) is not None:
            raise CheckpointError(f"{path}: {name} is not supported")


def _config(settings: Settings, family: str) -> Config:
    hidden = settings.size("hidden_size")
    heads = settings.size("num_attention_heads")
    head_dim = settings.size("head_dim", hidden // heads)
    context = settings.size("max_position_embeddings")
    layers = settings.size("num_hidden_layers")
    gemma = family == "gemma3_text"
    rope_settings, local = _rope_settings(settings, gemma, context)
    scaling = rope_settings.scaling
    if scaling and scaling["rope_type"] == "yarn":
        # Some folders declare the context before yarn lengthens it, others the one after.
        longer = scaling["factor"] * scaling["original_max_position_embeddings"]
        context = max(context, int(min(longer, MAX_SIZE + 1)))  # Config refuses the larger ones
    return assemble_config(
        settings.path,
        rope_settings,
        _windows(settings, family, layers, local),
        layers=layers,
        hidden=hidden,
        ffn=settings.size("intermediate_size"),
        heads=heads,
        kv_heads=settings.size("num_key_value_heads", heads),
        head_dim=head_dim,
        vocab=settings.size("vocab_size"),
        context=context,
        norm_eps=settings.get("rms_norm_eps", float, 1e-6),
        activation="gelu" if gemma else "silu",
        embedding_scale=hidden**0.5 if gemma else 1.0,
        query_scale=_query_scale(settings, head_dim) if gemma else 1.0,
    )


def _query_scale(settings: Settings, head_dim: int) -> float:
    scalar = settings.get("query_pre_attn_scalar", float)
    if scalar <= 0:
        raise CheckpointError(
            f"{settings.path}: query_pre_attn_scalar is {scalar}, expected a number above 0"
        )
    return float((head_dim / scalar) ** 0.5)


def _windows(settings: Settings, family: str, layers: int, local: RopeSettings | None) -> Windows:
    """The layers with a sliding window. The rule for a folder without layer_types is its family's.

    Llama has none, whatever its config.json says. In Mistral all layers have one, in Qwen those
    from max_window_layers on, and in Gemma 3 all but each sixth.
    """
    size = settings.optional("sliding_window", int)
    if family in ("qwen2", "qwen3"):
        uses = settings.get("use_sliding_window", bool, False)
        size = settings.size("sliding_window", QWEN_WINDOW) if uses else None
    if size is None or family == "llama":
        return Windows(None)
    if settings.lookup("layer_types") is not None:
        kinds = settings.items("layer_types", str)
        if len(kinds) != layers or not {GLOBAL, LOCAL}.issuperset(kinds):
            raise CheckpointError(
                f"{settings.path}: layer_types is {reprlib.repr(kinds)}, expected {layers} of "
                f"{GLOBAL!r} and {LOCAL!r}"
            )
        return Windows(size, lambda layer: kinds[layer] == LOCAL, local)
    if family == "gemma3_text":
        period = settings.size("sliding_window_pattern", GEMMA3_PATTERN)
        return Windows(size, lambda layer: (layer + 1) % period != 0, local)
    first = 0
    if family in ("qwen2", "qwen3"):
        first = settings.get("max_window_layers", int, QWEN_DENSE_LAYERS)
    return Windows(size, lambda layer: layer >= first, local)


def _rope_settings(
    settings: Settings, gemma: bool, context: int
) -> tuple[RopeSettings, RopeSettings | None]:
    """RoPE of the layers without and with a window; None if both are one.

    transformers 5 changed the place and the names of theta and of the scaling.
    """
    place = "rope_parameters" if settings.optional("rope_parameters", dict) else "rope_scaling"
    theta = settings.get("rope_theta", float, 10000.0)
    local_theta = settings.get("rope_local_base_freq", float, 10000.0)
    if not settings.get(place, dict, {}).keys() & {GLOBAL, LOCAL}:
        everywhere = _rope_of(settings, place, theta, context)
        return everywhere, RopeSettings(local_theta) if gemma else None
    by_kind = settings.section(place)
    local = _rope_of(by_kind, LOCAL, local_theta, context)
    has_local = gemma or bool(by_kind.optional(LOCAL, dict))
    return _rope_of(by_kind, GLOBAL, theta, context), local if has_local else None


def _rope_of(settings: Settings, name: str, theta: float, context: int) -> RopeSettings:
    """The settings in the object `name`; `theta` is used if it holds none."""
    path, inner = settings.path, settings.section(name)
    given: dict[str, Any] = dict(settings.get(name, dict, {}))
    theta = inner.optional("rope_theta", float) or theta
    if inner.get("partial_rotary_factor", float, 1.0) != 1:
        raise CheckpointError(f"{path}: partial_rotary_factor is not supported")
    kind = inner.optional("rope_type", str) or inner.optional("type", str) or "default"
    if kind == "default":
        return RopeSettings(theta)
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
    return RopeSettings(theta, {"rope_type": kind, **numbers})


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
