"""Softmax attention: MHA, GQA and MQA.

Vaswani et al., "Attention Is All You Need", arXiv 1706.03762 (MHA: H_kv = H). Shazeer, "Fast
Transformer Decoding", arXiv 1911.02150 (MQA: H_kv = 1). Ainslie et al., "GQA", arXiv 2305.13245
(G = H / H_kv query heads share a KV head).

    out_t = sum over s <= t of p_ts v_s
    p_ts  = exp(q_t.k_s / sqrt(D)) / sum over r <= t of exp(q_t.k_r / sqrt(D))
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from .tokens import Array, Rows, causal, mixed, scores, softmax


class Cache(NamedTuple):
    """Keys and values of all tokens."""

    k: Rows  # (H_kv, S, D)
    v: Rows  # (H_kv, S, D_v)


def parallel(
    q: Array, k: Array, v: Array, mask: NDArray[Any] | None = None, scale: float | None = None
) -> Array:
    """Outputs (H, L, D_v) of q (H, L, D) over k (H_kv, S, D) and v (H_kv, S, D_v).

    The queries are the last L of the S tokens. A mask (L, S), or one per head (H, L, S), takes the
    place of the causal one.
    """
    shown = causal(q.shape[1], k.shape[1]) if mask is None else mask  # (L, S)
    return mixed(softmax(scores(q, k, scale), shown), v)  # (H, L, D_v)


def start(k: Array, v: Array) -> Cache:
    """The cache after k (H_kv, L, D) and v (H_kv, L, D_v)."""
    return Cache(Rows(k), Rows(v))


def step(state: Cache, q: Array, k: Array, v: Array) -> Array:
    """The output (H, D_v) of a token with q (H, D), k (H_kv, D) and v (H_kv, D_v)."""
    keys, values = state.k.append(k), state.v.append(v)  # (H_kv, S, D), (H_kv, S, D_v)
    return parallel(q[:, None], keys, values)[:, 0]  # (H, D_v)


def kept(S: int, H_kv: int, D: int) -> int:
    """A key and a value per token and KV head."""
    return 2 * S * H_kv * D
