"""A decoder from a .bin file of llama2.c, first version.

The file is seven int32 and then float32 weights without names, one kind of weight after the other.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .assemble import RopeSettings, Tensor, Traits, assemble_config, assemble_weights
from .config import Config
from .files import regular
from .settings import CheckpointError
from .weights import Weights

HEADER = 7  # int32 numbers
LATER_VERSIONS = 0x616B3432  # the first number in files of later versions


def load(path: Path) -> tuple[Config, Weights]:
    """The config and the weights of a .bin file."""
    config, tied = _header(path)
    stacks = _stacks(config, tied)
    expected = 4 * (HEADER + sum(math.prod(shape) for shape in stacks.values()))
    if path.stat().st_size != expected:
        raise CheckpointError(
            f"{path}: {path.stat().st_size} bytes, but its header asks for {expected}; "
            "cut short, or not a llama2.c .bin"
        )

    weights = np.memmap(path, "<f4", mode="r", offset=4 * HEADER)
    tensors: dict[str, Tensor] = {}
    start = 0
    for name, shape in stacks.items():
        stack = weights[start : start + math.prod(shape)].reshape(shape)
        start += stack.size
        if "{}" in name:
            tensors |= {name.format(i): _read_later(path, part) for i, part in enumerate(stack)}
        else:
            tensors[name] = _read_later(path, stack)
    del tensors["rope"]
    traits = Traits(tied=tied, interleaved=True)
    names = {name.split(".")[0]: name for name in stacks}
    return config, assemble_weights(path, config, traits, tensors, names)


def _header(path: Path) -> tuple[Config, bool]:
    """The config, and whether the head is tied to the embedding."""
    header = np.fromfile(regular(path), "<i4", HEADER)
    if header.size < HEADER:
        raise CheckpointError(f"{path}: cut short; not even the header is there")
    if header[0] == LATER_VERSIONS:
        raise CheckpointError(
            f"{path}: llama2.c's later .bin versions are not supported; export version 0"
        )
    E, F, layers, H, H_kv, V, context = (int(n) for n in header)
    if H < 1 or E % H:
        raise CheckpointError(
            f"{path}: damaged, or no .bin: dim {E} is not a multiple of {H} heads"
        )
    config = assemble_config(
        path,
        RopeSettings(10000.0),
        layers=layers,
        hidden=E,
        ffn=F,
        heads=H,
        kv_heads=H_kv,
        head_dim=E // H,
        vocab=abs(V),
        context=context,
        norm_eps=1e-5,
    )
    return config, V > 0  # a negative V marks a head of its own


def _stacks(config: Config, tied: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the order of the file. A stack holds one weight of all layers."""
    c = config
    N, E, F, V = c.layers, c.hidden, c.ffn, c.vocab
    kv_rows = c.kv_heads * c.head_dim
    stacks: dict[str, tuple[int, ...]] = {
        "embedding": (V, E),
        "attention_norm.{}": (N, E),
        "q.{}": (N, E, E),
        "k.{}": (N, kv_rows, E),
        "v.{}": (N, kv_rows, E),
        "out.{}": (N, E, E),
        "ffn_norm.{}": (N, E),
        "gate.{}": (N, F, E),
        "down.{}": (N, E, F),
        "up.{}": (N, F, E),
        "norm": (E,),
        "rope": (2, c.context, c.head_dim // 2),  # cos and sin; the config gives them too
    }
    return stacks if tied else stacks | {"head": (V, E)}


def _read_later(path: Path, values: NDArray[Any]) -> Tensor:
    return Tensor(path, values.shape, lambda: np.array(values, np.float32))
