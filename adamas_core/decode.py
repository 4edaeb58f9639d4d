"""One attention step over a layer of a cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import checks
from .dispatch import load
from .layers import Layer
from .lengths import Lengths
from .selection import Selection
from .softmax import Softmax
from .window_layer import WindowLayer

NDArray = np.ndarray[Any, Any]


def check_queries(
    where: str,
    q: NDArray,
    kv_shape: tuple[int, ...],
    selection: Selection,
    budget: int | None,
    softmax: Softmax,
) -> Any:
    """Queries (B, H, L, D) of a caller, checked against keys (B, H_kv, S, D)."""
    checks.floats(where, "q", q, (3, 4))
    q4 = q[None] if q.ndim == 3 else q
    checks.heads(where, "q and the cache", q4.shape, kv_shape)
    checks.same_head_dim(where, q, "the cache", kv_shape[-1])
    checks.query_heads(where, softmax.sink_logits, q4.shape)
    if budget is not None:
        checks.at_least(where, "budget", budget, 1)
        checks.forced(where, budget, selection)
    return q4


def check_tokens(where: str, q: NDArray, layer: Layer) -> None:
    """Reject queries whose tokens are not in the layer. A sequence may have no token at all."""
    L, lengths = q.shape[-2], layer.lengths
    if lengths.shortest < L and _lack_tokens(L, lengths):
        raise ValueError(
            f"{where}: {checks.shown('q', q)} has {L} tokens and the cache {lengths.given()}; "
            "expected the keys and values of these tokens to be appended first"
        )
    if isinstance(layer, WindowLayer) and not layer.reaches(L):
        raise ValueError(
            f"{where}: {checks.shown('q', q)} has {L} tokens; the layer has a window of "
            f"{layer.window} tokens and no longer keeps all of them for the first query; expected "
            "at most the tokens of the last append"
        )


def _lack_tokens(L: int, lengths: Lengths) -> bool:
    """Whether a sequence that is not empty has fewer than L tokens, or all have none."""
    each = lengths.each
    return bool(((each < L) & (each > 0)).any()) or lengths.longest < L


def attend_layer(
    where: str,
    q: Any,
    layer: Layer,
    selection: Selection,
    budget: int | None,
    softmax: Softmax,
) -> tuple[Any, Any]:
    """Attention (B, H, L, D_v) and lse of checked queries: the last L tokens of a layer."""
    home = load(str(layer.backend))
    if budget is None or layer.codes is None or budget >= layer.lengths.longest:
        return layer.dense(home, q, softmax)
    centered = layer.codes.centers is not None
    checks.searchable(where, selection, q.shape[-1], centered)
    rows, K = (q, *layer.keys_values(), layer.codes.record()), int(budget)
    if layer.values is not None:
        return home.attend_tail(*rows, layer.values.record(), K, selection, softmax)  # type: ignore[no-any-return]
    return home.attend_topk(*rows, K, selection, softmax)  # type: ignore[no-any-return]
