"""The Llama decoder in NumPy, float32, written to be read.

It covers Llama 2 and 3, Mistral, Qwen2, Qwen3 and SmolLM2: they differ in biases, in the norm of
queries and keys, and in the scaling of RoPE. What a checkpoint calls its weights, and how it
orders their rows, is settled in ``checkpoints``; attention and its cache come from outside.

Letters: L new tokens, E hidden size, F feed-forward size, V vocabulary, H query heads,
H_kv key/value heads, D head_dim. A matrix is (outputs, inputs), as in every checkpoint, and is
used as ``x @ w.T``: BLAS takes the transposed view as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float32]
Attention: TypeAlias = Callable[[int, Array, Array, Array], NDArray[Any]]


@dataclass(frozen=True)
class Config:
    """The shape of a decoder, and how its positions rotate queries and keys.

    `frequencies` are the D / 2 angles a position adds, in radians; cos and sin are multiplied by
    `rope_gain`, which is 1 except under yarn.
    """

    layers: int
    hidden: int  # E
    ffn: int  # F
    heads: int  # H
    kv_heads: int  # H_kv
    head_dim: int  # D
    vocab: int  # V
    context: int  # positions that the model was made for
    norm_eps: float
    frequencies: tuple[float, ...]  # (D / 2,)
    rope_gain: float = 1.0

    def __post_init__(self) -> None:
        for name in (
            "layers",
            "hidden",
            "ffn",
            "heads",
            "kv_heads",
            "head_dim",
            "vocab",
            "context",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; RoPE turns pairs and needs it even")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} KV heads")


@dataclass(frozen=True)
class Layer:
    """One layer's weights; rows of q and k are in half-split order, see `rotate`."""

    attention_norm: Array  # (E,)
    qkv: Array  # ((H + 2 H_kv) D, E): queries, keys, values
    qkv_bias: Array | None  # ((H + 2 H_kv) D,), Qwen2
    q_norm: Array | None  # (D,), Qwen3
    k_norm: Array | None  # (D,), Qwen3
    out: Array  # (E, H D)
    out_bias: Array | None  # (E,)
    ffn_norm: Array  # (E,)
    gate_up: Array  # (2 F, E): gate, then up
    down: Array  # (E, F)


@dataclass(frozen=True)
class Weights:
    """All weights; `head` is the very array `embedding` where the two are tied."""

    embedding: Array  # (V, E)
    layers: Sequence[Layer]
    norm: Array  # (E,)
    head: Array  # (V, E)


class Llama:
    """A decoder: tokens and their position in, logits out.

    Parameters
    ----------
    config : Config
    weights : Weights
        As `checkpoints.load` returns them, checked against the config there.
    """

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = config
        self.weights = weights

    def forward(
        self, tokens: ArrayLike, position: int, attention: Attention, last: bool = True
    ) -> Array:
        """Run new tokens through all layers.

        Parameters
        ----------
        tokens : (L,) ints
        position : int
            Where the first of them stands in the sequence.
        attention : callable
            ``attention(layer, q, k, v) -> out`` with q (H, L, D), k and v (H_kv, L, D), float32,
            after RoPE, of the new tokens only, and out (H, L, D) of any float dtype. It keeps
            the cache: it appends k and v, then attends, each query to the tokens up to itself.
        last : bool
            Only the last token's logits.

        Returns
        -------
        (V,) float32, or (L, V) with `last=False`.
        """
        c, w = self.config, self.weights
        ids = self._checked(tokens)
        L = len(ids)
        cos, sin = self._rotation(position, L)  # (L, 1, D / 2) each
        x = w.embedding[ids]  # (L, E)
        for index, layer in enumerate(w.layers):
            h = rms_norm(x, layer.attention_norm, c.norm_eps)  # (L, E)
            qkv = linear(h, layer.qkv, layer.qkv_bias)  # (L, (H + 2 H_kv) D)
            heads = qkv.reshape(L, c.heads + 2 * c.kv_heads, c.head_dim)
            q, k, v = np.split(heads, [c.heads, c.heads + c.kv_heads], axis=1)  # (L, H or H_kv, D)
            if layer.q_norm is not None and layer.k_norm is not None:
                q = rms_norm(q, layer.q_norm, c.norm_eps)  # (L, H, D)
                k = rms_norm(k, layer.k_norm, c.norm_eps)  # (L, H_kv, D)
            q = rotate(q, cos, sin).swapaxes(0, 1)  # (H, L, D)
            k = rotate(k, cos, sin).swapaxes(0, 1)  # (H_kv, L, D)
            out = np.asarray(attention(index, q, k, v.swapaxes(0, 1)), np.float32)  # (H, L, D)
            if out.shape != q.shape:
                raise ValueError(f"attention returned shape {out.shape}, expected {q.shape}")
            out = out.swapaxes(0, 1).reshape(L, c.heads * c.head_dim)  # (L, H D)
            x += linear(out, layer.out, layer.out_bias)  # (L, E)

            h = rms_norm(x, layer.ffn_norm, c.norm_eps)  # (L, E)
            gate, up = np.split(h @ layer.gate_up.T, 2, axis=1)  # (L, F) each
            x += swiglu(gate, up) @ layer.down.T  # (L, E)
        if last:
            x = x[-1:]  # (1, E)
        logits = rms_norm(x, w.norm, c.norm_eps) @ w.head.T  # (L or 1, V)
        return logits[0] if last else logits

    def _checked(self, tokens: ArrayLike) -> NDArray[np.integer[Any]]:
        """Token ids as an array; a negative one would silently index from the end."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"tokens must be a row of at least one integer, got {tokens!r}")
        if ids.min() < 0 or ids.max() >= self.config.vocab:
            raise ValueError(
                f"token ids must be from 0 to {self.config.vocab - 1}, "
                f"got {ids.min()} to {ids.max()}"
            )
        return ids

    def _rotation(self, position: int, L: int) -> tuple[Array, Array]:
        """The cos and sin (L, 1, D / 2) of positions position, position + 1, ..."""
        # float64: in float32 the angle at position 100 000 is already wrong in its third digit.
        angles = np.outer(np.arange(position, position + L), self.config.frequencies)  # (L, D / 2)
        gain = self.config.rope_gain
        cos, sin = (gain * np.cos(angles)), (gain * np.sin(angles))
        return cos.astype(np.float32)[:, None], sin.astype(np.float32)[:, None]


def load(path: str | Path) -> Llama:
    """Load a decoder from a GGUF file, a Hugging Face folder or a llama2.c .bin file."""
    from . import checkpoints  # it imports this module

    return Llama(*checkpoints.load(path))


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """x (L, inputs) times weight (outputs, inputs), plus bias (outputs,): (L, outputs)."""
    y: Array = x @ weight.T
    if bias is not None:
        y += bias
    return y


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Scale x (..., N) to a root mean square of 1, then by weight (N,)."""
    mean_square = np.vecdot(x, x)[..., None] / np.float32(x.shape[-1])  # (..., 1)
    y: Array = x / np.sqrt(mean_square + np.float32(eps))
    y *= weight
    return y


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turn each pair (x_i, x_{i + D/2}) of x (L, heads, D) by its angle: half-split RoPE."""
    a, b = np.split(x, 2, axis=-1)  # (L, heads, D / 2) each
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up, all (L, F), with silu(g) = g / (1 + exp(-g))."""
    y = np.negative(gate)
    with np.errstate(over="ignore"):  # exp gives inf for a very negative gate, and g / inf = -0
        np.exp(y, out=y)
    y += 1
    np.divide(gate, y, out=y)
    y *= up
    return y


def rope_frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> tuple[tuple[float, ...], float]:
    """RoPE's frequencies (D / 2,) and gain, after the scaling that lengthens a model's context.

    Parameters
    ----------
    head_dim : int
    theta : float
        Pair i turns by theta ** (-2 i / D) radians a position.
    scaling : mapping, optional
        In the words of Hugging Face's config.json: `rope_type` "linear", "llama3" or "yarn", with
        `factor` and what else the type needs. A type or a key that is not known is an error.
    """
    base = float(theta) ** (-np.arange(0, head_dim, 2) / head_dim)  # (D / 2,)
    given = dict(scaling or {"rope_type": "default"})
    kind = given.pop("rope_type")
    gain = 1.0
    try:
        if kind == "default":
            frequencies = base
        elif kind == "linear":
            frequencies = base / given.pop("factor")
        elif kind == "llama3":
            frequencies = _llama3(
                base,
                given.pop("factor"),
                given.pop("low_freq_factor"),
                given.pop("high_freq_factor"),
                given.pop("original_max_position_embeddings"),
            )
        elif kind == "yarn":
            factor = given.pop("factor")
            frequencies = _yarn(
                base,
                theta,
                factor,
                given.pop("original_max_position_embeddings"),
                given.pop("beta_fast", None) or 32,
                given.pop("beta_slow", None) or 1,
            )
            default_gain = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
            gain = float(given.pop("attention_factor", None) or default_gain)
        else:
            raise ValueError(f"RoPE scaling {kind!r} is not supported (linear, llama3, yarn are)")
    except KeyError as missing:
        raise ValueError(f"RoPE scaling {kind!r} needs {missing}") from None
    if given:
        raise ValueError(f"RoPE scaling {kind!r} has settings that are not known: {sorted(given)}")
    return tuple(frequencies.tolist()), gain


def _llama3(
    base: NDArray[np.float64], factor: float, low: float, high: float, original: int
) -> NDArray[np.float64]:
    """Slow pairs are divided by factor, fast ones are kept, and those between are mixed.

    Slow is fewer than `low` turns over the original context, fast is more than `high`.
    """
    turns = original * base / (2 * math.pi)  # (D / 2,)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return keep * base + (1 - keep) * base / factor


def _yarn(
    base: NDArray[np.float64],
    theta: float,
    factor: float,
    original: int,
    beta_fast: float,
    beta_slow: float,
) -> NDArray[np.float64]:
    """The same idea, with a ramp over the index of the pair instead of its number of turns."""

    def pair(turns: float) -> float:
        """Which pair, as a fraction, makes so many turns over the original context."""
        return len(base) * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    first = max(math.floor(pair(beta_fast)), 0)
    final = min(math.ceil(pair(beta_slow)), 2 * len(base) - 1)
    divide = np.clip((np.arange(len(base)) - first) / max(final - first, 1e-3), 0, 1)  # (D / 2,)
    return (1 - divide) * base + divide * base / factor


def sample(logits: Array, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """Choose a token from logits (V,): the largest at temperature 0, else at random.

    With top_p < 1 only the fewest likeliest tokens that together reach it are drawn from.
    """
    if temperature == 0:
        return int(np.argmax(logits))
    p = np.exp((logits - logits.max()).astype(np.float64) / temperature)  # (V,)
    likeliest = np.argsort(-p, kind="stable")
    mass = np.cumsum(p[likeliest])
    kept = min(int(np.searchsorted(mass, top_p * mass[-1])) + 1, len(mass))
    drawn = np.searchsorted(mass[:kept], rng.random() * mass[kept - 1], side="right")
    return int(likeliest[min(int(drawn), kept - 1)])


def generate(
    model: Llama,
    prompt_tokens: Sequence[int],
    attention: Attention,
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chunk: int = 256,
    on_prefill: Callable[[int, int], object] | None = None,
    stop: Collection[int] = (),
    position: int = 0,
) -> Iterator[int]:
    """Read a prompt in chunks, then yield new token ids one by one.

    Generation ends before a token of `stop`, which is not yielded, after `max_tokens`, or where
    the model's context is full. The last token that was yielded has been read back only if
    generation ended at a stop token.

    Parameters
    ----------
    model : Llama
    prompt_tokens : sequence of ints
        At least one; they follow what `attention` has cached already.
    attention : callable
        See `Llama.forward`.
    max_tokens : int
    temperature, top_p : float
        See `sample`.
    seed : int
        The same seed gives the same tokens.
    chunk : int
        Prompt tokens a forward pass.
    on_prefill : callable, optional
        ``on_prefill(done, total)`` after each chunk.
    stop : collection of ints
    position : int
        How many tokens are cached already.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, expected 0 or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected more than 0 and at most 1")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, expected at least 1")
    total = len(prompt_tokens)
    if total == 0:
        raise ValueError("the prompt holds no token; begin with the model's BOS token")
    room = model.config.context - position - total
    if room < 0:
        raise ValueError(
            f"{position + total} tokens do not fit the model's context of {model.config.context}"
        )

    for start in range(0, total, chunk):
        part = prompt_tokens[start : start + chunk]
        logits = model.forward(part, position, attention)  # (V,)
        position += len(part)
        if on_prefill is not None:
            on_prefill(start + len(part), total)

    rng = np.random.default_rng(seed)
    for left in reversed(range(min(max_tokens, room + 1))):
        token = sample(logits, temperature, top_p, rng)
        if token in stop:
            return
        yield token
        if left:
            logits = model.forward([token], position, attention)
            position += 1
