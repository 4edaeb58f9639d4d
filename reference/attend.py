"""Softmax attention over chosen tokens, the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import Softmax
from .score import visible_tokens
from .softmax import capped, factor, sink_of


def attend(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    indices: NDArray[np.int32] | None,
    softmax: Softmax | None = None,
    return_lse: bool = False,
    window: int | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.float32]]:
    """Attention of q (B, H, L, D) over the rows `indices` (B, H, L, K) of k and v.

    k is (B, H_kv, S, D) and v (B, H_kv, S, D_v), so out is (B, H, L, D_v). With I the indices of a
    query that are not negative, and s the logit of its head's sink, which is -inf without one:
    x_i = scale q.k_i, which becomes c tanh(x_i / c) with a soft cap c,
    lse = log(exp(s) + sum over i in I of exp(x_i)), out = sum over i in I of exp(x_i - lse) v_i.
    scale, c and s are those of `softmax`; if it is None, the scale is D ** -0.5 and there is
    neither a cap nor a sink.
    All sums are float64; out is rounded to q's dtype and lse to float32 (B, H, L). No token at
    all gives out = 0 and lse = s. `indices=None` is dense: the queries are the last L of S
    tokens and each sees the tokens up to itself, or with a window the last `window` of them.
    """
    B, H, L, D = q.shape
    H_kv, S = k.shape[1:3]
    scale = factor(softmax, D)
    out = np.zeros((B, H, L, v.shape[3]))
    lse = np.full((B, H, L), -np.inf)
    for b, h, l in np.ndindex(B, H, L):
        if indices is None:
            end = visible_tokens(np.array([S]), L)[0, l]
            chosen = np.arange(0 if window is None else max(end - window, 0), end)
        else:
            chosen = indices[b, h, l][indices[b, h, l] >= 0]
        sink = sink_of(softmax, h)
        if chosen.size == 0:
            lse[b, h, l] = sink
            continue
        kv_head = h // (H // H_kv)
        keys = k[b, kv_head, chosen].astype(np.float64)  # (|I|, D)
        values = v[b, kv_head, chosen].astype(np.float64)  # (|I|, D_v)
        with np.errstate(invalid="ignore", over="ignore"):
            logits = capped(scale * (keys @ q[b, h, l].astype(np.float64)), softmax)
            largest = np.maximum(logits.max(), sink)
            p = np.exp(logits - largest)
            whole = p.sum() + np.exp(sink - largest)
            out[b, h, l] = p @ values / whole
            lse[b, h, l] = largest + np.log(whole)
    rounded = out.astype(q.dtype)
    return (rounded, lse.astype(np.float32)) if return_lse else rounded
