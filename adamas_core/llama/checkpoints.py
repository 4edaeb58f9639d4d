"""Read a decoder's weights: GGUF, a Hugging Face folder, llama2.c's .bin.

Each format describes its tensors (name, shape, file, how to read) and hands them to `_assemble`,
the one place where presence and shape are checked. All weights become float32, with q and k in
half-split order: pair i of a head is its rows i and i + D / 2. Hugging Face folders and the GGUF
architectures qwen2 and qwen3 are stored so; the GGUF architecture llama and llama2.c are stored
interleaved, pair i being the rows 2 i and 2 i + 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .decoder import Array, Config, Layer, Weights, rope_frequencies

T = TypeVar("T")


class CheckpointError(ValueError):
    """A file that is damaged, incomplete, or of a kind that is not supported; it names the file."""


def load(path: str | Path) -> tuple[Config, Weights]:
    """Read a checkpoint.

    Parameters
    ----------
    path : str or Path
        A GGUF file, a Hugging Face folder (config.json and safetensors) or a llama2.c .bin file
        of the first version.

    Returns
    -------
    (Config, Weights)

    Raises
    ------
    CheckpointError
        A tensor is missing or has another shape than the config asks for, the file is damaged,
        or the model needs something that this decoder does not do.
    """
    path = Path(path)
    if path.is_dir():
        return _load_huggingface(path)
    if is_gguf(path):
        return _load_gguf(path)
    if path.suffix == ".bin":
        return _load_llama2c(path)
    raise CheckpointError(
        f"{path}: not a checkpoint that can be read; "
        "give a GGUF file, a Hugging Face folder or a llama2.c .bin file"
    )


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def needs_extra(module: str) -> Any:
    """Import a module of the extra "llama"."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f'{module} is missing: pip install "adamas-core[llama]"') from error


@dataclass(frozen=True)
class Settings:
    """A checkpoint's metadata: values by name, checked for their type where they are read."""

    path: Path
    lookup: Callable[[str], Any]  # None for a name that is absent

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The value called `name`; without a default it has to be there."""
        value = self.lookup(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.path}: {name} is missing")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(f"{self.path}: {name} is {value!r}, expected {kind.__name__}")
        return value


@dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file, not read yet."""

    file: Path
    shape: tuple[int, ...]
    read: Callable[[], Array]


@dataclass(frozen=True)
class Traits:
    """How the families differ, beyond the numbers of the config."""

    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    interleaved: bool = False


def _assemble(
    path: Path,
    config: Config,
    traits: Traits,
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    ignored: Callable[[str], bool] = lambda name: False,
) -> Weights:
    """Read every weight, checked for presence and shape; `names` are the format's own names.

    A tensor that nothing asks for is an error too, since a bias left out would go unnoticed.
    """
    c = config
    E, F, V, D = c.hidden, c.ffn, c.vocab, c.head_dim
    q_rows, kv_rows = c.heads * D, c.kv_heads * D
    taken = set()

    def take(role: str, *shape: int, layer: int | None = None) -> Array:
        name = names[role].format(layer)
        taken.add(name)
        if name not in tensors:
            raise CheckpointError(f"{path}: tensor {name} is missing, expected of shape {shape}")
        tensor = tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {name} has shape {tensor.shape}, expected {shape}"
            )
        try:
            return tensor.read()
        except Exception as error:  # whatever a file's reader makes of damaged data
            raise CheckpointError(
                f"{tensor.file}: tensor {name} cannot be read: {error}"
            ) from error

    def half_split(rows: Array) -> Array:
        """Rows of q or k, or their bias, in half-split order."""
        if not traits.interleaved:
            return rows
        pairs = rows.reshape(-1, D // 2, 2, *rows.shape[1:])  # (heads, D / 2, 2, ...)
        return pairs.swapaxes(1, 2).reshape(rows.shape)

    def qkv(end: str, i: int, *inputs: int) -> Array:
        return np.concatenate(
            [
                half_split(take(f"q{end}", q_rows, *inputs, layer=i)),
                half_split(take(f"k{end}", kv_rows, *inputs, layer=i)),
                take(f"v{end}", kv_rows, *inputs, layer=i),
            ]
        )

    embedding = take("embedding", V, E)
    layers = [
        Layer(
            attention_norm=take("attention_norm", E, layer=i),
            qkv=qkv("", i, E),
            qkv_bias=qkv("_bias", i) if traits.qkv_bias else None,
            q_norm=take("q_norm", D, layer=i) if traits.qk_norm else None,
            k_norm=take("k_norm", D, layer=i) if traits.qk_norm else None,
            out=take("out", E, q_rows, layer=i),
            out_bias=take("out_bias", E, layer=i) if traits.out_bias else None,
            ffn_norm=take("ffn_norm", E, layer=i),
            gate_up=np.concatenate([take("gate", F, E, layer=i), take("up", F, E, layer=i)]),
            down=take("down", E, F, layer=i),
        )
        for i in range(c.layers)
    ]
    norm = take("norm", E)
    head = embedding if traits.tied else take("head", V, E)
    unknown = sorted(name for name in tensors if name not in taken and not ignored(name))
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} tensors that this decoder does not know, "
            f"first {', '.join(unknown[:3])}"
        )
    return Weights(embedding, layers, norm, head)


def _config(path: Path, theta: float, scaling: dict[str, Any] | None, **sizes: Any) -> Config:
    """The config, with the file's path before whatever is wrong with it."""
    if sizes["head_dim"] > 1 << 16:  # a damaged number must not ask for gigabytes of frequencies
        raise CheckpointError(f"{path}: head_dim is {sizes['head_dim']}, more than any model's")
    try:
        frequencies, gain = rope_frequencies(sizes["head_dim"], theta, scaling)
        return Config(frequencies=frequencies, rope_gain=gain, **sizes)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _refuse_window(path: Path, window: int | None, context: int) -> None:
    if window is not None and window < context:
        raise CheckpointError(
            f"{path}: sliding window attention is not supported, and this model's window of "
            f"{window} tokens is below its context of {context}"
        )


# GGUF

_GGUF_NAMES = {
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
    "ffn_norm": "blk.{}.ffn_norm.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
}


def open_gguf(path: Path) -> tuple[Any, Settings]:
    """The package's reader of a GGUF file, and its metadata as settings."""
    gguf = needs_extra("gguf")

    class Reader(gguf.GGUFReader):  # type: ignore[misc, name-defined]
        """Keeps the mapped file as a plain array.

        The reader cuts it into a slice a vocabulary entry, and slices of np.memmap are slow: the
        tables of 49 152 tokens take 0.7 s this way and 1.9 s without.
        """

        @property
        def data(self) -> NDArray[np.uint8]:
            return self._data

        @data.setter
        def data(self, mapped: NDArray[np.uint8]) -> None:
            self._data = mapped.view(np.ndarray)

    try:
        reader = Reader(path)
    except Exception as error:  # a damaged file surfaces as almost any error
        raise CheckpointError(f"{path}: damaged, or cut short: {error}") from error

    def lookup(name: str) -> Any:
        field = reader.get_field(name)
        try:
            return None if field is None else field.contents()
        except ValueError as error:
            raise CheckpointError(f"{path}: {name} is damaged: {error}") from error

    settings = Settings(path, lookup)
    if settings.get("split.count", int, 1) > 1:
        raise CheckpointError(f"{path}: one part of several; join them with gguf-split --merge")
    return reader, settings


def _load_gguf(path: Path) -> tuple[Config, Weights]:
    reader, settings = open_gguf(path)
    tensors = {t.name: _gguf_tensor(path, t) for t in reader.tensors}
    arch = settings.get("general.architecture", str)
    if arch not in ("llama", "qwen2", "qwen3"):
        raise CheckpointError(f"{path}: architecture {arch!r} is not llama, qwen2 or qwen3")
    if settings.get(f"{arch}.expert_count", int, 0):
        raise CheckpointError(f"{path}: mixture of experts is not supported")

    hidden = settings.get(f"{arch}.embedding_length", int)
    heads = settings.get(f"{arch}.attention.head_count", int)
    head_dim = settings.get(f"{arch}.attention.key_length", int, hidden // max(heads, 1))
    for name in ("attention.value_length", "rope.dimension_count"):
        if settings.get(f"{arch}.{name}", int, head_dim) != head_dim:
            raise CheckpointError(f"{path}: {arch}.{name} differs from the head_dim, {head_dim}")
    embedding = tensors.get("token_embd.weight")
    context = settings.get(f"{arch}.context_length", int)
    _refuse_window(path, settings.lookup(f"{arch}.attention.sliding_window"), context)
    config = _config(
        path,
        theta=settings.get(f"{arch}.rope.freq_base", float, 10000.0),
        scaling=_gguf_scaling(settings, arch, context),
        layers=settings.get(f"{arch}.block_count", int),
        hidden=hidden,
        ffn=settings.get(f"{arch}.feed_forward_length", int),
        heads=heads,
        kv_heads=settings.get(f"{arch}.attention.head_count_kv", int, heads),
        head_dim=head_dim,
        vocab=embedding.shape[0] if embedding else settings.get(f"{arch}.vocab_size", int),
        context=context,
        norm_eps=settings.get(f"{arch}.attention.layer_norm_rms_epsilon", float),
    )
    traits = Traits(
        qkv_bias=arch == "qwen2" or "blk.0.attn_q.bias" in tensors,
        out_bias="blk.0.attn_output.bias" in tensors,
        qk_norm=arch == "qwen3",
        tied="output.weight" not in tensors,  # the format's own way to say so
        interleaved=arch == "llama",
    )
    # Llama 3's scaling is stored as divisors of the frequencies.
    factors = tensors.pop("rope_freqs.weight", None)
    if factors is not None:
        config = _divide_frequencies(path, config, factors)
    return config, _assemble(path, config, traits, tensors, _GGUF_NAMES)


def _gguf_tensor(path: Path, tensor: Any) -> Tensor:
    shape = tuple(int(n) for n in reversed(tensor.shape))  # the format's first axis is the fastest

    def read() -> Array:
        values = needs_extra("gguf.quants").dequantize(tensor.data, tensor.tensor_type)
        if np.may_share_memory(values, tensor.data):  # stored as float32: leave the mapped file
            values = values.copy()
        return np.asarray(values, np.float32).reshape(shape)

    return Tensor(path, shape, read)


def _gguf_scaling(settings: Settings, arch: str, context: int) -> dict[str, Any] | None:
    """The RoPE scaling in Hugging Face's words."""
    prefix = f"{arch}.rope.scaling."
    kind = settings.get(prefix + "type", str, "none")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": settings.get(prefix + "factor", float)}
    if kind == "yarn":
        for name in ("attn_factor", "yarn_attn_factor"):  # programs disagree on what it multiplies
            if settings.get(prefix + name, float, 1.0) != 1:
                raise CheckpointError(f"{settings.path}: {prefix}{name} is not supported")
        scaling["original_max_position_embeddings"] = settings.get(
            prefix + "original_context_length", int, context
        )
        for name in ("beta_fast", "beta_slow"):
            scaling[name] = settings.lookup(f"{prefix}yarn_{name}")
    return scaling


def _divide_frequencies(path: Path, config: Config, factors: Tensor) -> Config:
    half = (config.head_dim // 2,)
    if factors.shape != half:
        raise CheckpointError(
            f"{path}: tensor rope_freqs.weight has shape {factors.shape}, expected {half}"
        )
    frequencies = np.divide(config.frequencies, factors.read())
    return replace(config, frequencies=tuple(frequencies.tolist()))


# Hugging Face

_HF_NAMES = {
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged, or cut short: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return values


def _load_huggingface(folder: Path) -> tuple[Config, Weights]:
    path = folder / "config.json"
    values = read_json(path)
    settings = Settings(path, values.get)
    family = settings.get("model_type", str)
    if family not in ("llama", "mistral", "qwen2", "qwen3"):
        raise CheckpointError(
            f"{path}: model_type {family!r} is not llama, mistral, qwen2 or qwen3"
        )
    for name, supported in (("hidden_act", "silu"), ("mlp_bias", False)):
        if settings.get(name, type(supported), supported) != supported:
            raise CheckpointError(f"{path}: {name} {values[name]!r} is not supported")
    if values.get("quantization_config") is not None:
        raise CheckpointError(f"{path}: quantized safetensors are not supported; GGUF files are")

    hidden = settings.get("hidden_size", int)
    heads = settings.get("num_attention_heads", int)
    head_dim = settings.get("head_dim", int, hidden // max(heads, 1))
    context = settings.get("max_position_embeddings", int)
    if settings.get("use_sliding_window", bool, family == "mistral"):
        _refuse_window(path, values.get("sliding_window"), context)
    theta, scaling = _hf_rope(settings, context)
    if scaling and scaling["rope_type"] == "yarn":  # the declared context may be the one before
        longer = scaling["factor"] * scaling["original_max_position_embeddings"]
        context = max(context, int(longer))
    config = _config(
        path,
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
    bias = settings.get("attention_bias", bool, False)
    traits = Traits(
        qkv_bias=family == "qwen2" or bias,
        out_bias=family != "qwen2" and bias,
        qk_norm=family == "qwen3",
        tied=settings.get("tie_word_embeddings", bool, False),
    )

    def ignored(name: str) -> bool:
        """Old folders hold RoPE's frequencies, and some the embedding a second time."""
        return name.endswith("rotary_emb.inv_freq") or (traits.tied and name == "lm_head.weight")

    tensors = _hf_tensors(folder)
    return config, _assemble(folder, config, traits, tensors, _HF_NAMES, ignored)


def _hf_rope(settings: Settings, context: int) -> tuple[float, dict[str, Any] | None]:
    """RoPE's theta and scaling, as written before and since transformers 5."""
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


def _hf_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, or of the files that its index names."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        where: dict[str, str] = Settings(index, read_json(index).get).get("weight_map", dict)
        files = sorted(set(where.values()))
    else:
        files = ["model.safetensors"]
    needs_extra("ml_dtypes")  # gives NumPy the bfloat16 that safetensors asks it for
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _safetensors(folder / file)
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
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
                raise ValueError(f"its dtype {part.get_dtype()} is not a float that is supported")
            values: Array = file.get_tensor(name).astype(np.float32, copy=False)
            return values

        return Tensor(path, tuple(part.get_shape()), read)

    return {name: tensor(name, part) for name, part in slices.items()}


# llama2.c


def _load_llama2c(path: Path) -> tuple[Config, Weights]:
    """The first version of llama2.c's .bin: seven int32, then float32 weights without names."""
    header = np.fromfile(path, "<i4", 7)
    if header.size < 7:
        raise CheckpointError(f"{path}: cut short; not even the header is there")
    if header[0] == 0x616B3432:
        raise CheckpointError(
            f"{path}: llama2.c's later .bin versions are not supported; export version 0"
        )
    E, F, N, H, H_kv, V, context = (int(n) for n in header)
    if H < 1 or E % H:
        raise CheckpointError(f"{path}: damaged, or no .bin: dim {E} is not for {H} heads")
    D = E // H
    config = _config(
        path,
        theta=10000.0,
        scaling=None,
        layers=N,
        hidden=E,
        ffn=F,
        heads=H,
        kv_heads=H_kv,
        head_dim=D,
        vocab=abs(V),
        context=context,
        norm_eps=1e-5,
    )
    traits = Traits(tied=V > 0, interleaved=True)  # a negative V says that the head is its own

    stacks = {  # each weight of all layers together, in the order of the file
        "embedding": (abs(V), E),
        "attention_norm.{}": (N, E),
        "q.{}": (N, E, E),
        "k.{}": (N, H_kv * D, E),
        "v.{}": (N, H_kv * D, E),
        "out.{}": (N, E, E),
        "ffn_norm.{}": (N, E),
        "gate.{}": (N, F, E),
        "down.{}": (N, E, F),
        "up.{}": (N, F, E),
        "norm": (E,),
        "rope": (2, context, D // 2),  # cos and sin, which follow from the config
    }
    if not traits.tied:
        stacks["head"] = (abs(V), E)
    expected = 4 * (7 + sum(math.prod(shape) for shape in stacks.values()))
    if path.stat().st_size != expected:
        raise CheckpointError(
            f"{path}: {path.stat().st_size} bytes, but its header asks for {expected}; "
            "cut short, or not a llama2.c .bin"
        )

    weights = np.memmap(path, "<f4", mode="r", offset=4 * 7)
    tensors: dict[str, Tensor] = {}
    start = 0
    for name, shape in stacks.items():
        stack = weights[start : start + math.prod(shape)].reshape(shape)
        start += stack.size
        if "{}" in name:
            tensors |= {name.format(i): _in_memory(path, part) for i, part in enumerate(stack)}
        else:
            tensors[name] = _in_memory(path, stack)
    del tensors["rope"]
    names = {name.split(".")[0]: name for name in stacks}
    return config, _assemble(path, config, traits, tensors, names)


def _in_memory(path: Path, values: NDArray[Any]) -> Tensor:
    return Tensor(path, values.shape, lambda: np.array(values, np.float32))
