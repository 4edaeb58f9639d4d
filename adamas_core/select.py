"""select_topk: from raw queries to token indices."""

from __future__ import annotations

from typing import Any

from . import checks
from .codes import KeyCodes
from .dispatch import Array, load, returner, views
from .options import both_with
from .selection import DEFAULT, Selection
from .softmax import PLAIN, Softmax


def select_topk(
    q: Array,
    codes: KeyCodes,
    budget: int,
    selection: Selection = DEFAULT,
    k: Array | None = None,
    softmax: Softmax = PLAIN,
    **options: Any,
) -> Array:
    """Indices of the tokens that matter most to raw queries.

    This is the fused step: no distances are kept in memory. For plain codes and default options the
    result equals topk(score(quantize_query(hadamard(q)), ...)) to the bit.

    Parameters
    ----------
    q : array (B, H, L, D)
        float16, bfloat16 or float32, as the model computes it (after RoPE); B may be absent. The
        queries are the last L of the coded tokens. Each sees the tokens up to itself.
    codes : KeyCodes
        From `encode(k)`.
    budget : int
        K, 1 to the number of coded tokens.
    selection : Selection
        The options. The tail does not change the tokens; `attend_tail` reads it.
    k : array (B, H_kv, S, D), optional
        The keys that were coded: float16, bfloat16 or float32, with at least as many tokens as the
        codes. Needed for `selection.refine`.
    softmax : Softmax
        That of the attention that follows. Only the choice of a group depends on it, and only on
        its scale: the shares of the heads leave the cap and the sinks out.
    **options
        Fields of `selection` or `softmax` to change for this call, as in
        ``select_topk(q, codes, 128, sinks=4)``.

    Returns
    -------
    array (B, H, L, K), int32
        Ascending. Where fewer than K tokens are visible, the last places hold -1.

    Raises
    ------
    TypeError
        codes is not a KeyCodes, selection is not a Selection, softmax is not a Softmax, q has
        another dtype, a number is not an integer, or there is no such option.
    ValueError
        Shapes do not fit. The codes are empty. An option is out of range. k is missing although
        refine needs it. The budget is below 1 or above the number of coded tokens. Centered codes
        are searched with metric="manhattan".

    Examples
    --------
    >>> import numpy as np
    >>> from adamas_core import encode, select_topk
    >>> rng = np.random.default_rng(0)
    >>> k = rng.standard_normal((2, 1000, 64), dtype=np.float32)
    >>> select_topk(8 * k[:, 417:418], encode(k), budget=1)[:, 0, 0]
    array([417, 417], dtype=int32)
    """
    where = "select_topk"
    checks.instance(where, "codes", codes, KeyCodes, "the KeyCodes that encode(k) returns")
    selection, softmax = both_with(where, selection, softmax, options)
    (a,) = views(q=q)
    checks.floats(where, "q", a, (3, 4))
    q4 = a[None] if a.ndim == 3 else a
    checks.heads(where, "q and codes", q4.shape, codes.shape)
    checks.same_head_dim(where, a, "codes", codes.head_dim)
    checks.lies_on(where, "q", a, codes.device)
    if codes.tokens == 0:
        raise ValueError(f"{where}: codes of shape {codes.shape} are empty; append keys first")
    checks.searchable(where, selection, codes.head_dim, codes.centers is not None)
    checks.budget(where, budget, codes.tokens, codes.shape)
    checks.forced(where, budget, selection)
    checks.query_heads(where, softmax.sink_logits, q4.shape)
    keys = _coded_keys(codes, k, selection) if selection.refine else None
    found = load(codes.backend).select_topk(q4, codes.record, int(budget), selection, keys, softmax)
    return returner(q)(found.reshape(*a.shape[:-1], int(budget)))


def _coded_keys(codes: KeyCodes, k: Array | None, selection: Selection) -> Array:
    """The keys (B, H_kv, S, D) that were coded, checked against their codes."""
    if k is None:
        raise ValueError(
            f"select_topk: refine={selection.refine} without k; expected the keys of codes "
            f"{codes.shape}"
        )
    return codes._given("select_topk", k, codes.tokens)
