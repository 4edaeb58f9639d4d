"""RoPE: rotate the pairs of queries and keys by angles that grow with the position.

Pair i of a head is its coordinates i and i + D / 2. This order is called half-split. Letters:
L tokens, D head_dim.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .weights import Array

KINDS = ("linear", "llama3", "yarn")
LARGEST = 1e9  # of a setting; products of a few such numbers are finite


class Rope(NamedTuple):
    """The angles of one layer's positions."""

    frequencies: tuple[float, ...]  # (D / 2,), radians per position
    gain: float = 1.0  # factor of the rotated queries and keys; it is 1 except for yarn


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate each pair of x (L, heads, D) by its angle; cos and sin are (L, 1, D / 2)."""
    a, b = np.split(x, 2, axis=-1)  # (L, heads, D / 2), (L, heads, D / 2)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)  # (L, heads, D)


def cos_sin(rope: Rope, position: int, L: int) -> tuple[Array, Array]:
    """The gain times the cos and the sin of L positions from `position` on, each (L, 1, D / 2)."""
    # float64, because a float32 angle at position 100,000 is wrong in its third digit.
    angles = np.outer(np.arange(position, position + L), rope.frequencies)  # (L, D / 2)
    cos, sin = rope.gain * np.cos(angles), rope.gain * np.sin(angles)  # (L, D / 2), (L, D / 2)
    return cos.astype(np.float32)[:, None], sin.astype(np.float32)[:, None]  # (L, 1, D / 2) each


def scaled_rope(head_dim: int, theta: float, scaling: Mapping[str, Any] | None = None) -> Rope:
    """The angle of each pair per position, and the gain, for a model of a longer context.

    Parameters
    ----------
    head_dim : int
    theta : float
        Without scaling, pair i turns by theta ** (-2 i / D) radians per position.
    scaling : mapping, optional
        In the words of Hugging Face's config.json: `rope_type` is "linear", "llama3" or "yarn".
        The other keys are the settings of that type.

    Returns
    -------
    Rope

    Raises
    ------
    ValueError
        The type is unknown, one of its settings is missing or not a finite number above 0, there
        is an unknown setting, or theta is not a finite number above 0.
    """
    if not 0 < theta < math.inf:
        raise ValueError(f"RoPE's theta is {theta}, expected a finite number above 0")
    base = float(theta) ** (-np.arange(0, head_dim, 2) / head_dim)  # (D / 2,)
    given = dict(scaling or {"rope_type": "default"})
    kind = given.pop("rope_type")
    if kind in KINDS:
        _refuse_bad_numbers(kind, given)
    gain = 1.0
    try:
        if kind == "default":
            scaled = base  # (D / 2,)
        elif kind == "linear":
            scaled = base / given.pop("factor")  # (D / 2,)
        elif kind == "llama3":
            scaled = _llama3(base, given)  # (D / 2,)
        elif kind == "yarn":
            scaled, gain = _yarn(base, theta, given)  # (D / 2,)
        else:
            raise ValueError(
                f"RoPE scaling {kind!r} is not supported, expected linear, llama3 or yarn"
            )
    except KeyError as missing:
        raise ValueError(f"RoPE scaling {kind!r} needs {missing}") from None
    if given:
        raise ValueError(f"RoPE scaling {kind!r} has unknown settings: {sorted(given)}")
    return Rope(tuple(scaled.tolist()), gain)


def _refuse_bad_numbers(kind: str, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value is not None and not (type(value) in (int, float) and 0 < value < LARGEST):
            raise ValueError(
                f"RoPE scaling {kind!r}: {name} is {reprlib.repr(value)}, expected a number above 0"
            )


def _llama3(base: NDArray[np.float64], given: dict[str, Any]) -> NDArray[np.float64]:
    """Divide the slow pairs, keep the fast ones, and mix the others. Takes its settings out.

    A slow pair makes fewer than `low_freq_factor` turns over the original context, a fast pair
    more than `high_freq_factor`.
    """
    factor = given.pop("factor")
    low, high = given.pop("low_freq_factor"), given.pop("high_freq_factor")
    if not low < high:
        raise ValueError(f"low_freq_factor {low} is not below high_freq_factor {high}")
    turns = given.pop("original_max_position_embeddings") * base / (2 * math.pi)  # (D / 2,)
    keep = np.clip((turns - low) / (high - low), 0, 1)  # (D / 2,)
    mixed: NDArray[np.float64] = keep * base + (1 - keep) * base / factor  # (D / 2,)
    return mixed


def _yarn(
    base: NDArray[np.float64], theta: float, given: dict[str, Any]
) -> tuple[NDArray[np.float64], float]:
    """Like `_llama3`, but mix by the index of a pair, with a gain. Takes its settings out."""
    factor = given.pop("factor")
    original = given.pop("original_max_position_embeddings")
    beta_fast, beta_slow = given.pop("beta_fast", None) or 32, given.pop("beta_slow", None) or 1

    def pair(turns: float) -> float:
        """The index, as a fraction, of the pair with this number of turns over the context."""
        return len(base) * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    first = max(math.floor(pair(beta_fast)), 0)
    final = min(math.ceil(pair(beta_slow)), 2 * len(base) - 1)
    divide = np.clip((np.arange(len(base)) - first) / max(final - first, 1e-3), 0, 1)  # (D / 2,)
    default_gain = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    gain = float(given.pop("attention_factor", None) or default_gain)
    return (1 - divide) * base + divide * base / factor, gain
