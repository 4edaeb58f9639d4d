"""Hypothesis strategies: arrays of every shape, dtype, layout and kind of value."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from adamas_core import Selection, Softmax, encode, encode_values, reference
from adamas_core.reference.layout import Codes, Values

DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)]
HEAD_DIMS = [1, 2, 3, 8, 16, 31, 32, 33, 48, 63, 64, 65, 80, 96, 127, 128, 129, 160, 256, 300, 512]
VALUES = ["normal", "wide", "small integers", "equal", "zeros", "specials", "subnormal"]
FINITE = ["normal", "wide", "small integers", "equal", "zeros", "subnormal"]
# Values of unit scale, for which the tolerances of attention are stated.
UNIT = [kind for kind in FINITE if kind != "wide"]
LAYOUTS = ["contiguous", "transposed", "sliced", "read-only"]

seeds = st.integers(0, 2**32 - 1)
head_dims = st.sampled_from(HEAD_DIMS)
dtypes = st.sampled_from(DTYPES)
layouts = st.sampled_from(LAYOUTS)
# Numbers near the sizes of a group, of one tile of 64 tokens, and of several tiles.
lengths = st.one_of(st.integers(0, 70), st.sampled_from([127, 128, 129, 191, 192, 193, 256, 300]))


def values(kind: str, shape: tuple[int, ...], dtype: np.dtype[Any], seed: int) -> NDArray[Any]:
    """An array of one kind of value."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(shape).astype(np.float32)
    if kind == "wide":  # the widest range whose transform cannot overflow
        normal = normal * np.exp2(rng.integers(-10, 8, shape)).astype(np.float32)
    elif kind == "small integers":
        normal = rng.integers(-2, 3, shape).astype(np.float32)
    elif kind == "equal":
        normal = np.full(shape, rng.integers(-3, 4), np.float32)
    elif kind == "zeros":
        normal = np.where(rng.random(shape) < 0.5, np.float32(0.0), np.float32(-0.0))
    elif kind == "subnormal":
        tiny = float(ml_dtypes.finfo(dtype).smallest_subnormal)
        normal = (rng.integers(-40, 41, shape) * tiny).astype(np.float32)
    x = normal.astype(dtype)
    if kind in ("specials", "not finite"):
        top = ml_dtypes.finfo(dtype).max if kind == "specials" else 1
        special = np.array([np.nan, np.inf, -np.inf, top, -top, 0.0, -0.0], dtype)
        where = rng.random(shape) < rng.choice([0.002, 0.05, 0.5])
        x[where] = special[rng.integers(0, len(special), int(where.sum()))]
    return x


def laid_out(x: NDArray[Any], layout: str) -> NDArray[Any]:
    """The same numbers at other strides; the last axis stays contiguous."""
    if layout == "transposed" and x.ndim >= 3:  # as a stack that stores (S, H, D) passes it
        return np.ascontiguousarray(x.swapaxes(-2, -3)).swapaxes(-2, -3)
    if layout == "sliced":
        room = np.zeros([n + 3 for n in x.shape], x.dtype)
        inner = room[tuple(slice(1, n + 1) for n in x.shape)]
        inner[...] = x
        return inner
    if layout == "read-only":
        x = x.copy()
        x.setflags(write=False)
    return x


@st.composite
def vectors(draw: st.DrawFn, kinds: list[str] = VALUES) -> NDArray[Any]:
    """Float arrays of one to four axes, (..., D)."""
    lead = draw(st.lists(st.integers(0, 5), max_size=3))
    shape = (*lead, draw(head_dims))
    x = values(draw(st.sampled_from(kinds)), shape, draw(dtypes), draw(seeds))
    return laid_out(x, draw(layouts))


@st.composite
def transformed(draw: st.DrawFn) -> NDArray[np.float32]:
    """Float32 arrays (B, heads, tokens, Dt), some values exactly at a threshold of `thresholds`."""
    shape = (draw(st.integers(0, 2)), draw(st.integers(1, 4)), draw(st.integers(0, 20)))
    Dt = 2 ** draw(st.integers(0, 9))
    kind = draw(st.sampled_from(VALUES))
    return laid_out(values(kind, (*shape, Dt), DTYPES[2], draw(seeds)), draw(layouts))


@st.composite
def thresholds(draw: st.DrawFn, heads: int) -> NDArray[np.float32]:
    """Ascending thresholds (3,) or (heads, 3), often small integers, which also occur in data."""
    shape = (3,) if draw(st.booleans()) else (heads, 3)
    kind = draw(st.sampled_from(["normal", "small integers", "zeros"]))
    return np.sort(values(kind, shape, DTYPES[2], draw(seeds)), axis=-1)


class Case(NamedTuple):
    """A decode step's inputs."""

    q: NDArray[Any]  # (B, H, L, D)
    k: NDArray[Any]  # (B, H_kv, S, D)
    v: NDArray[Any]  # (B, H_kv, S, D_v)
    codes: Codes
    length: int | NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """The largest length."""
        return int(np.max(self.length, initial=0))


@st.composite
def softmaxes(draw: st.DrawFn, H: int) -> Softmax:
    """Scales, caps from far below the logits to far above them, and sinks of each size."""
    scale = draw(st.sampled_from([None, None, 0.05, -0.3]))
    cap = draw(st.sampled_from([None, 1e-3, 0.3, 2.0, 30.0, 1e6]))
    sinks = None
    if draw(st.booleans()):
        sinks = np.array(
            draw(
                st.lists(st.sampled_from([-np.inf, -20.0, -1.0, 0.5, 6.0]), min_size=H, max_size=H)
            )
        )
    return Softmax(scale, cap, sinks)


@st.composite
def cases(
    draw: st.DrawFn, kinds: list[str] = VALUES, centered: bool = False, own_values: bool = False
) -> Case:
    """Queries, keys, values and codes; MHA, GQA and MQA; one length, or one per sequence.

    With `own_values` the head_dim of the values is another one.
    """
    B, H_kv, G = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 2, 3, 4])),
    )
    S, D = draw(lengths), draw(head_dims)
    Dv = draw(head_dims) if own_values else D
    L = draw(st.sampled_from([1, 1, 1, 2, 5]))
    kind = draw(st.sampled_from(kinds))
    seed, dtype = draw(seeds), draw(dtypes)
    k, v = (
        laid_out(values(kind, (B, H_kv, S, n), dtype, seed + i), draw(layouts))
        for i, n in enumerate((D, Dv))
    )
    q = laid_out(values(kind, (B, H_kv * G, L, D), draw(dtypes), seed + 2), draw(layouts))
    length: int | NDArray[np.int64] = S
    if draw(st.booleans()):
        length = np.array(draw(st.lists(st.integers(0, S), min_size=B, max_size=B)))
    if centered:
        codes = encode(k, length=length, backend="reference", bits=3).record
        return Case(q, k, v, codes, length)
    t = np.ascontiguousarray(np.broadcast_to(draw(thresholds(H_kv)), (H_kv, 3)))
    tiles = -(-int(np.max(length, initial=0)) // 64)
    codes = Codes(reference.encode(k, t)[:, :, :, :tiles], length, t)
    return Case(q, k, v, codes, length)


def coded_values(v: NDArray[Any], length: int | NDArray[np.int64]) -> Values:
    """The codes of values (B, H_kv, S, D), and their sum."""
    return encode_values(v, length=length, backend="reference").record


@st.composite
def distances(draw: st.DrawFn) -> NDArray[np.uint16]:
    """Distances (B, H, L, S): random, tied, ordered, with and without invisible tokens."""
    shape = tuple(draw(st.integers(0, 3)) for _ in range(3))
    S = draw(st.one_of(lengths, st.sampled_from([1000, 5000])))
    rng = np.random.default_rng(draw(seeds))
    top = draw(st.sampled_from([1, 2, 3, 300, 2688, 65535]))
    d = rng.integers(0, top, (*shape, S), dtype=np.uint16)
    order = draw(st.sampled_from(["random", "ascending", "descending"]))
    if order != "random":
        d = np.sort(d, axis=-1)
    if order == "descending":
        d = np.ascontiguousarray(d[..., ::-1])
    hidden = draw(st.sampled_from(["none", "tail", "anywhere"]))
    if hidden == "tail":
        d[..., rng.integers(0, S + 1) :] = 65535
    elif hidden == "anywhere":
        d[rng.random(d.shape) < 0.3] = 65535
    return laid_out(d, draw(layouts))


@st.composite
def selections(draw: st.DrawFn, S: int, **options: Any) -> tuple[int, Selection]:
    """A budget below, at or above S, and a selection whose forced tokens it holds."""
    K = draw(st.one_of(st.integers(1, max(S, 1)), st.integers(1, S + 80)))
    sinks = recent = 0
    if draw(st.booleans()):
        sinks = draw(st.integers(0, K))
        recent = draw(st.integers(0, K - sinks))
    return K, Selection(sinks=sinks, recent=recent, **options)


# Forms of the query. At head_dim 512, 6 bits are the most whose distances fit uint16.
metrics = st.sampled_from(
    [
        Selection(),
        Selection(),
        Selection(query_bits=3),
        Selection(query_bits=6),
        Selection(metric="manhattan"),
    ]
)
