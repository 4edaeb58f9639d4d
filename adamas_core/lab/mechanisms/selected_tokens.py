"""Attention to tokens that a selector chooses for each query: StreamingLLM, H2O, Quest, Adamas, ...

Each file of `adamas_core.lab.selectors` cites its paper. Adamas: arXiv 2510.18413.

    I_t   = the `budget` tokens s <= t that the selector chooses for q_t
    out_t = softmax attention of q_t to the tokens in I_t

The cache is that of softmax attention, and what the selector keeps beside it.
"""

from __future__ import annotations

from typing import NamedTuple

from ..selectors import Method, attended
from .tokens import Array, Rows


class Cache(NamedTuple):
    """Keys and values of all tokens, and the selector or form that chooses among them."""

    k: Rows  # (H_kv, S, D), float32
    v: Rows  # (H_kv, S, D), float32
    method: Method
    budget: int


def parallel(q: Array, k: Array, v: Array, method: Method, budget: int) -> Array:
    """Outputs (H, L, D) of q (H, L, D), the last L tokens of k and v (H_kv, S, D), all float32."""
    return attended(method, q, k, v, budget)  # (H, L, D)


def start(k: Array, v: Array, method: Method, budget: int) -> Cache:
    """The cache after k and v (H_kv, L, D). A method that is fitted comes fitted."""
    return Cache(Rows(k), Rows(v), method, budget)


def step(state: Cache, q: Array, k: Array, v: Array) -> Array:
    """The output (H, D) of a token with q (H, D), k and v (H_kv, D)."""
    keys, values = state.k.append(k), state.v.append(v)  # (H_kv, S, D) each
    return parallel(q[:, None], keys, values, state.method, state.budget)[:, 0]  # (H, D)


def kept(S: int, H_kv: int, D: int, method: Method) -> float:
    """A key, a value, and the selector's own data, which are counted in numbers of 16 bits."""
    return S * H_kv * (2 * D + method.bytes_kept(D) / 2)
