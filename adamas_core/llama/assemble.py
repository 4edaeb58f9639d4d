"""Build a decoder's config and weights from the settings and tensors of a checkpoint.

Each format describes its tensors (file, shape, how to read them) and gives its own names for them.
Presence and shape are checked here, once for all formats. All weights become float32, with the
rows of q and k in half-split order: pair i of a head is its rows i and i + D / 2. Hugging Face
folders and the GGUF architectures qwen2, qwen3 and gemma3 store this order. The GGUF architecture
llama and llama2.c store the interleaved order: pair i is the rows 2 i and 2 i + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import rope
from .config import Config
from .library_errors import library_errors
from .settings import CheckpointError
from .weights import Array, Layer, Weights

# A damaged number must not ask for gigabytes of frequencies.
LIMITS = {"head_dim": 1 << 16, "layers": 1 << 14}


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file, not read yet."""

    file: Path
    shape: tuple[int, ...]
    read: Callable[[], Array]

    def values(self, name: str) -> Array:
        """The result of `read`. Its errors give the name of the tensor."""
        with library_errors(f"{self.file}: tensor {name} cannot be read"):
            return self.read()


@dataclass(frozen=True)
class Traits:
    """The differences between model families that the config does not hold."""

    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norms_less_one: bool = False  # the file holds the weights of all norms minus 1
    tied: bool = False
    interleaved: bool = False


@dataclass(frozen=True)
class RopeSettings:
    """Arguments of `rope.scaled_rope`."""

    theta: float
    scaling: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Windows:
    """Which layers have a sliding window.

    Their RoPE is `rope` if it is not None, and else that of the other layers.
    """

    size: int | None  # None: no layer has one
    covers: Callable[[int], bool] = lambda layer: True
    rope: RopeSettings | None = None


NO_WINDOWS = Windows(None)


def assemble_config(
    path: Path, rope_settings: RopeSettings, windows: Windows = NO_WINDOWS, **sizes: Any
) -> Config:
    """The config of `sizes`, RoPE and windows. An error begins with the path of the file."""
    for name, limit in LIMITS.items():
        if sizes[name] > limit:
            raise CheckpointError(f"{path}: {name} is {sizes[name]}, expected at most {limit}")
    windowed = [windows.size is not None and windows.covers(i) for i in range(sizes["layers"])]
    # A window as long as the context hides nothing.
    size = None if windows.size is not None and windows.size >= sizes["context"] else windows.size
    try:
        given = rope_settings, windows.rope or rope_settings
        both = [rope.scaled_rope(sizes["head_dim"], x.theta, x.scaling) for x in given]
        return Config(
            ropes=tuple(both[window] for window in windowed),
            windows=tuple(size if window else None for window in windowed),
            **sizes,
        )
    except (ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def assemble_weights(
    path: Path,
    config: Config,
    traits: Traits,
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    ignored: Callable[[str], bool] = lambda name: False,
) -> Weights:
    """Read every weight, checked for presence and shape.

    Parameters
    ----------
    path : Path
        The checkpoint, for errors.
    config : Config
    traits : Traits
    tensors : mapping
        Every tensor of the checkpoint by its name there.
    names : mapping
        The format's name for each weight, with {} for the index of the layer.
    ignored : callable
        True for the name of a tensor that may be left out. Any other tensor that is not read is
        an error, because a bias that is left out would go unnoticed.
    """
    c = config
    source = _Source(path, tensors, names, traits)
    embedding = source.read("embedding", c.vocab, c.hidden)  # (V, E)
    layers = [_layer(source, c, traits, i) for i in range(c.layers)]
    norm = source.norm("norm", c.hidden)  # (E,)
    head = embedding if traits.tied else source.read("head", c.vocab, c.hidden)  # (V, E)
    source.refuse_unread(ignored)
    return Weights(embedding, layers, norm, head)


@dataclass(frozen=True)
class _Source:
    """The tensors of a checkpoint, and the names that were read."""

    path: Path
    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    traits: Traits
    names_read: set[str] = field(default_factory=set)

    def read(self, weight: str, *shape: int, layer: int | None = None) -> Array:
        """The values of a weight, which must have this shape."""
        name = self.names[weight].format(layer)
        self.names_read.add(name)
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.path}: tensor {name} is missing, expected of shape {shape}"
            )
        tensor = self.tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {name} has shape {tensor.shape}, expected {shape}"
            )
        return tensor.values(name)

    def norm(self, weight: str, size: int, layer: int | None = None) -> Array:
        """The weights of a norm."""
        values = self.read(weight, size, layer=layer)
        return values + np.float32(1) if self.traits.norms_less_one else values

    def refuse_unread(self, ignored: Callable[[str], bool]) -> None:
        unknown = sorted(n for n in self.tensors if n not in self.names_read and not ignored(n))
        if unknown:
            raise CheckpointError(
                f"{self.path}: {len(unknown)} tensors that this decoder does not know, "
                f"first {', '.join(unknown[:3])}"
            )


def _layer(source: _Source, config: Config, traits: Traits, i: int) -> Layer:
    E, F, D = config.hidden, config.ffn, config.head_dim
    q_rows, kv_rows = config.heads * D, config.kv_heads * D

    def rows(weight: str, count: int, *inputs: int) -> Array:
        """The rows of q or k, or their bias, in half-split order."""
        values = source.read(weight, count, *inputs, layer=i)
        return _half_split(values, D) if traits.interleaved else values

    def qkv(end: str, *inputs: int) -> Array:
        q = rows(f"q{end}", q_rows, *inputs)
        k = rows(f"k{end}", kv_rows, *inputs)
        v = source.read(f"v{end}", kv_rows, *inputs, layer=i)
        return np.concatenate([q, k, v])

    def gate_up() -> Array:
        gate = source.read("gate", F, E, layer=i)
        return np.concatenate([gate, source.read("up", F, E, layer=i)])

    def post_norm(weight: str) -> Array | None:
        return source.norm(weight, E, layer=i) if traits.post_norms else None

    return Layer(
        attention_norm=source.norm("attention_norm", E, layer=i),
        qkv=qkv("", E),
        qkv_bias=qkv("_bias") if traits.qkv_bias else None,
        q_norm=source.norm("q_norm", D, layer=i) if traits.qk_norm else None,
        k_norm=source.norm("k_norm", D, layer=i) if traits.qk_norm else None,
        out=source.read("out", E, q_rows, layer=i),
        out_bias=source.read("out_bias", E, layer=i) if traits.out_bias else None,
        attention_post_norm=post_norm("attention_post_norm"),
        ffn_norm=source.norm("ffn_norm", E, layer=i),
        gate_up=gate_up(),
        down=source.read("down", E, F, layer=i),
        ffn_post_norm=post_norm("ffn_post_norm"),
    )


def _half_split(rows: Array, D: int) -> Array:
    """Interleaved rows (heads D, ...) in half-split order."""
    pairs = rows.reshape(-1, D // 2, 2, *rows.shape[1:])  # (heads, D / 2, 2, ...)
    return pairs.swapaxes(1, 2).reshape(rows.shape)  # (heads D, ...)
