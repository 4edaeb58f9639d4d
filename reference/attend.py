"""Softmax attention over chosen tokens, the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .score import visible_tokens


def attend(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    indices: NDArray[np.int32] | None,
    scale: float | None = None,
    return_lse: bool = False,
    window: int | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.float32]]:
    """Attention of q (B, H, L, D) over the rows `indices` (B, H, L, K) of k, v (B, H_kv, S, D).

    With I the indices of a query that are not negative:
    out = sum over i in I of p_i v_i, p_i = exp(scale q.k_i - lse),
    lse = log sum over i in I of exp(scale q.k_i), scale = D ** -0.5 unless given.
    All sums are float64; out is rounded to q's dtype and lse to float32 (B, H, L). No token at
    all gives out = 0 and lse = -inf. `indices=None` is dense: the queries are the last L of S
    tokens and each sees the tokens up to itself, or with a window the last `window` of them.
    """
    B, H, L, D = q.shape
    H_kv, S = k.shape[1:3]
    scale = D**-0.5 if scale is None else scale
    out = np.zeros((B, H, L, D))
    lse = np.full((B, H, L), -np.inf)
    for b, h, l in np.ndindex(B, H, L):
        if indices is None:
            end = visible_tokens(np.array([S]), L)[0, l]
            chosen = np.arange(0 if window is None else max(end - window, 0), end)
        else:
            chosen = indices[b, h, l][indices[b, h, l] >= 0]
        if chosen.size == 0:
            continue
        kv_head = h // (H // H_kv)
        keys = k[b, kv_head, chosen].astype(np.float64)  # (|I|, D)
        values = v[b, kv_head, chosen].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            logits = scale * (keys @ q[b, h, l].astype(np.float64))
            p = np.exp(logits - logits.max())
            out[b, h, l] = p @ values / p.sum()
            lse[b, h, l] = logits.max() + np.log(p.sum())
    rounded = out.astype(q.dtype)
    return (rounded, lse.astype(np.float32)) if return_lse else rounded
