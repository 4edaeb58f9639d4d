"""Star attention: the context is split over hosts, and only queries see all of it.

Acharya et al., "Star Attention", arXiv 2411.17116.

Phase 1: the context is cut into blocks of `block` tokens, one per host. The first block is the
anchor. Each token attends to the anchor and to the tokens up to itself in its own block.

Phase 2: a query attends to each host's block by itself. A host returns the output o_j and the
log-sum-exp l_j of its logits: D numbers and one per head and query. They are merged to

    out = sum over hosts j of exp(l_j - l) o_j,  l = log sum over j of exp(l_j)

Phase 2 is exact attention over what phase 1 left. In a model the loss of phase 1 is in the keys and
values, and reaches phase 2 through them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import softmax_attention
from .tokens import Array, Rows, causal, mixed, recurrent, scores, softmax


def sees(L: int, block: int, context: int) -> NDArray[np.bool_]:
    """The mask (L, L) of both phases; tokens from `context` on are queries of phase 2."""
    t, s = np.arange(L)[:, None], np.arange(L)  # (L, 1), (L,)
    near = (s < block) | (t // block == s // block) | (t >= context)  # (L, L)
    return causal(L, L) & near  # (L, L)


def parallel(q: Array, k: Array, v: Array, block: int, context: int) -> Array:
    """Outputs (H, L, D) of both phases: `context` tokens, then queries; k and v (H_kv, L, D)."""
    return softmax_attention.parallel(q, k, v, sees(q.shape[1], block, context))  # (H, L, D)


def chunked(q: Array, k: Array, v: Array, block: int, context: int) -> Array:
    """As `parallel`: a block of the context at a time, then one query after another."""
    outs = []
    for first in range(0, context, block):
        own = slice(first, min(first + block, context))
        anchor = slice(0, block if first else 0)
        keys, values = (np.concatenate([x[:, anchor], x[:, own]], axis=1) for x in (k, v))
        outs.append(softmax_attention.parallel(q[:, own], keys, values))  # (H, C, D)
    state = start(k[:, :context], v[:, :context], block)
    if context < q.shape[1]:
        outs.append(recurrent(step, state, *(x[:, context:] for x in (q, k, v))))  # (H, L', D)
    return np.concatenate(outs, axis=1)  # (H, L, D)


@dataclass
class Hosts:
    """Keys and values of each host's block; new tokens go to the last host."""

    k: list[Rows]  # (H_kv, block, D) each
    v: list[Rows]

    @property
    def size(self) -> int:
        return sum(rows.size for rows in (*self.k, *self.v))


def start(k: Array, v: Array, block: int) -> Hosts:
    """The hosts after a context k and v (H_kv, L, D). There is one host at least."""
    firsts = range(0, max(k.shape[1], 1), block)
    keys, values = ([Rows(x[:, i : i + block]) for i in firsts] for x in (k, v))
    return Hosts(keys, values)


def step(state: Hosts, q: Array, k: Array, v: Array) -> Array:
    """Phase 2: the output (H, D) of a token with q (H, D), k and v (H_kv, D)."""
    state.k[-1].append(k)
    state.v[-1].append(v)
    pairs = zip(state.k, state.v, strict=True)
    parts = [on_host(q[:, None], keys.all, values.all) for keys, values in pairs]
    return merged([out for out, _ in parts], [lse for _, lse in parts])[:, 0]  # (H, D)


def on_host(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """The output (H, L, D) and the log-sum-exp (H, L) of queries that see a whole block."""
    logits = scores(q, k)  # (H, L, block)
    top = logits.max(axis=-1, keepdims=True)  # (H, L, 1)
    lse = top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))  # (H, L, 1)
    everything = np.ones(logits.shape[1:], np.bool_)  # (L, block)
    return mixed(softmax(logits, everything), v), lse[..., 0]  # (H, L, D), (H, L)


def merged(outs: list[Array], lses: list[Array]) -> Array:
    """The output (H, L, D) over all hosts, of outs (H, L, D) and lses (H, L)."""
    each = np.stack(lses)  # (hosts, H, L)
    weights = np.exp(each - each.max(axis=0))  # (hosts, H, L)
    share = weights / weights.sum(axis=0)  # (hosts, H, L)
    return (share[..., None] * np.stack(outs)).sum(axis=0)  # (H, L, D)


def kept(S: int, H_kv: int, D: int) -> int:
    """A key and a value per token and KV head, over all hosts together."""
    return 2 * S * H_kv * D
