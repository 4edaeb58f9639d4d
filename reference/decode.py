"""One attention step over a layer of a cache, the specification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .attend import attend
from .score import visible_tokens
from .select import select_topk

if TYPE_CHECKING:
    from adamas_core.cache import KVCache


def decode_attention(
    q: NDArray[Any],
    cache: KVCache,
    budget: int | None,
    layer: int = 0,
    scale: float | None = None,
    return_lse: bool = False,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.float32]]:
    """Attention of q (B, H, L, D), the cache's last L tokens, to the `budget` nearest tokens each.

    Where the budget covers the whole cache, as None does, and in a layer without codes, every
    query attends to all tokens up to itself.
    """
    held = cache[layer]
    if budget is None or held.codes is None or budget >= held.tokens:
        B, H, L, _ = q.shape
        seen = visible_tokens(np.broadcast_to(held.length, (B,)), L)[:, None, :, None]
        token = np.arange(held.tokens, dtype=np.int32)
        every = np.where(token < seen, token, np.int32(-1))  # (B, 1, L, S)
        indices = np.broadcast_to(every, (B, H, L, held.tokens))
    else:
        options = (cache.metric, cache.query_bits, cache.sinks, cache.recent)
        more = cache.prefilter, cache.refine, cache.group, held.k
        indices = select_topk(q, held.codes, budget, *options, *more)
    return attend(q, held.k, held.v, indices, scale, return_lse)
