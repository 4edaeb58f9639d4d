"""The weights of a decoder.

A matrix is (outputs, inputs), as in every checkpoint. It is used as ``x @ w.T``, because BLAS takes
the transposed view without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """The weights of one layer. The rows of q and k are in half-split order, see `rope`."""

    attention_norm: Array  # (E,)
    qkv: Array  # ((H + 2 H_kv) D, E): queries, keys, values
    qkv_bias: Array | None  # ((H + 2 H_kv) D,), Qwen2
    q_norm: Array | None  # (D,), Qwen3 and Gemma 3
    k_norm: Array | None  # (D,), Qwen3 and Gemma 3
    out: Array  # (E, H D)
    out_bias: Array | None  # (E,)
    attention_post_norm: Array | None  # (E,), Gemma 3
    ffn_norm: Array  # (E,)
    gate_up: Array  # (2 F, E): gate, then up
    down: Array  # (E, F)
    ffn_post_norm: Array | None  # (E,), Gemma 3


@dataclass(frozen=True)
class Weights:
    """All weights. `head` and `embedding` are one array if the model ties them."""

    embedding: Array  # (V, E)
    layers: Sequence[Layer]
    norm: Array  # (E,)
    head: Array  # (V, E)
