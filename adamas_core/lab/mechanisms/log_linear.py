"""Log-linear attention: linear attention whose past is split into O(log t) segments.

Guo et al., "Log-Linear Attention", arXiv 2506.04761.

Token t is level 0 itself. The t tokens before it are split as a Fenwick tree does: for each bit
that is 1 in t, from the highest bit to the lowest, the next 2^bit tokens are the segment of level
bit + 1. So the level of s <= t is the number of binary digits of (t xor s).

    out_t = sum over levels j of lambda_tj phi(q_t)^T S_tj / sum over j of lambda_tj phi(q_t).z_tj

S_tj and z_tj are the sums of phi(k) v^T and phi(k) over a segment. The paper has no division, as
many linear forms do not: divides=False. As in `linear_attention`, q and k are the features. weight
(H, L, J) holds lambda for J levels, and 2^(J - 1) is at least the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .tokens import Array, mixed, scores

Sums = tuple[Array, Array]  # (H, F, D_v) and (H, F) of a segment


def levels(t: NDArray[np.int64], s: NDArray[np.int64]) -> NDArray[np.int64]:
    """The level at which t sees each s <= t: the number of binary digits of (t xor s)."""
    return np.frexp((t ^ s).astype(np.float64))[1].astype(np.int64)  # frexp(0) has exponent 0


def parallel(q: Array, k: Array, v: Array, weight: Array, divides: bool = True) -> Array:
    """Outputs (H, L, D_v) of features q and k (H, L, F), v (H, L, D_v), weight (H, L, J)."""
    t, s = np.arange(q.shape[1])[:, None], np.arange(q.shape[1])  # (L, 1), (L,)
    level = np.broadcast_to(levels(t, s), (len(q), q.shape[1], q.shape[1]))  # (H, L, L)
    seen = np.where(s <= t, level, 0)  # (H, L, L)
    lam = np.where(s <= t, np.take_along_axis(weight, seen, axis=-1), 0)  # (H, L, L)
    a = lam * scores(q, k, scale=1)  # (H, L, L)
    return mixed(a, v) / (a.sum(axis=-1, keepdims=True) if divides else 1)  # (H, L, D_v)


@dataclass
class State:
    """The segments of the tokens so far."""

    segments: dict[int, Sums]  # by level, from 1 on
    t: int  # tokens
    divides: bool

    @property
    def size(self) -> int:
        return sum(S.size + z.size for S, z in self.segments.values())


def start(k: Array, v: Array, divides: bool = True) -> State:
    """The state after features k (H, L, F) and v (H, L, D_v)."""
    segments, first = {}, 0
    for bit in reversed(range(k.shape[1].bit_length())):
        if k.shape[1] >> bit & 1:
            own = slice(first, first + 2**bit)
            segments[bit + 1] = k[:, own].swapaxes(1, 2) @ v[:, own], k[:, own].sum(axis=1)
            first += 2**bit
    return State(segments, k.shape[1], divides)


def step(state: State, q: Array, k: Array, v: Array, weight: Array) -> Array:
    """The output (H, D_v) of a token with features q and k (H, F), v (H, D_v), weight (H, J)."""
    own = k[:, :, None] * v[:, None], k  # (H, F, D_v), (H, F)
    out, total = np.zeros_like(v), np.zeros_like(v, shape=(len(v), 1))  # (H, D_v), (H, 1)
    for level, (S, z) in {0: own, **state.segments}.items():
        lam = weight[:, level, None]  # (H, 1)
        out = out + lam * (q[:, None] @ S)[:, 0]  # (H, D_v)
        total = total + lam * (q * z).sum(axis=-1, keepdims=True)  # (H, 1)
    level = 1
    while level in state.segments:  # as a binary counter carries
        S, z = state.segments.pop(level)
        own = own[0] + S, own[1] + z
        level += 1
    state.segments[level] = own
    state.t += 1
    return out / total if state.divides else out  # (H, D_v)


def chunked(
    q: Array, k: Array, v: Array, weight: Array, divides: bool = True, chunk: int = 64
) -> Array:
    """As `parallel`, in chunks of a power of two: O(L log L).

    Two tokens of different chunks n and m have the level log2(chunk) + digits of (n xor m). So
    whole chunks are carried as `step` carries tokens.
    """
    if chunk & (chunk - 1):
        raise ValueError(f"chunked: chunk={chunk}; expected a power of two")
    ones = np.ones_like(v, shape=(*v.shape[:2], 1))  # (H, L, 1)
    wide = np.concatenate([v, ones], axis=-1)  # (H, L, D_v + 1); the last column is the total
    outs, state = [], start(k[:, :0], wide[:, :0], False)
    for first in range(0, q.shape[1], chunk):
        rows = slice(first, first + chunk)
        out = parallel(q[:, rows], k[:, rows], wide[:, rows], weight[:, rows], False)
        for level, (S, _) in state.segments.items():
            lam = weight[:, rows, level + chunk.bit_length() - 1, None]  # (H, C, 1)
            out = out + lam * (q[:, rows] @ S)  # (H, C, D_v + 1)
        own, level = k[:, rows].swapaxes(1, 2) @ wide[:, rows], 1  # (H, F, D_v + 1)
        while level in state.segments:
            own, level = own + state.segments.pop(level)[0], level + 1
        state.segments[level] = own, own[:, :, -1]
        outs.append(out)
    out = np.concatenate(outs, axis=1)  # (H, L, D_v + 1)
    return out[..., :-1] / out[..., -1:] if divides else out[..., :-1]  # (H, L, D_v)


def kept(S: int, H: int, F: int, D_v: int) -> int:
    """A matrix and a vector per head and segment: as many as S has binary digits that are 1."""
    return S.bit_count() * H * F * (D_v + 1)
