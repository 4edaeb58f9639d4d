"""select_topk: from raw queries to token indices."""

from __future__ import annotations

from typing import Any

from . import checks
from .codes import KeyCodes, key_codes
from .dispatch import Array, load, returner, views
from .options import both_with
from .positions import Positions, in_runs, together, tokens_seen
from .reference.layout import Codes
from .scores import chosen_scores
from .selection import DEFAULT, Selection
from .softmax import PLAIN, Softmax


def select_topk(
    q: Array,
    codes: KeyCodes | Codes,
    budget: int,
    selection: Selection = DEFAULT,
    k: Array | None = None,
    softmax: Softmax = PLAIN,
    positions: Positions = None,
    return_scores: bool = False,
    **options: Any,
) -> Any:
    """Indices of the tokens that matter most to raw queries.

    This is the fused step: no distances are kept in memory. For plain codes and default options the
    result equals topk(score(quantize_query(hadamard(q)), ...)) to the bit.

    Parameters
    ----------
    q : array (B, H, L, D)
        float16, bfloat16 or float32, as the model computes it (after RoPE); B may be absent. Unless
        `positions` say otherwise, the queries are the last L of the coded tokens, and each sees the
        tokens up to itself.
    codes : KeyCodes or Codes
        From `encode(k)`, or arrays of your own that `encode_into` filled.
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
    positions : "all", or (L,) or (B, L) integers, optional
        The last token that each query sees, as in a static cache, which does not know how many of
        its slots hold tokens. -1 sees none. "all" is the last token of the sequence for every
        query, as in cross attention; L may then be larger than the number of tokens.
    return_scores : bool
        Also return the numbers by which the tokens were chosen, which `merge_topk` needs. Those of
        the K tokens are computed again from their codes, and a GPU is waited for.
    **options
        Fields of `selection` or `softmax` to change for this call, as in
        ``select_topk(q, codes, 128, sinks=4)``.

    Returns
    -------
    indices : array (B, H, L, K), int32
        Ascending. Where fewer than K tokens are visible, the last places hold -1.
    scores : array (B, H, L, K)
        Only with `return_scores`. Of plain codes the distances, uint16, and 65535 at the places
        that hold -1. Of centered codes the estimates of q.k, float32, without the scale, and -inf
        at these places. With refine they are the products q.k, float32. A NaN counts as -inf. They
        have the same bits in every backend.

    Raises
    ------
    TypeError
        codes is neither a KeyCodes nor a Codes, selection is not a Selection, softmax is not a
        Softmax, q has another dtype, a number is not an integer, or there is no such option.
    ValueError
        Shapes do not fit. The codes are empty. An option is out of range. k is missing although
        refine needs it. The budget is below 1 or above the number of coded tokens. Centered codes
        are searched with metric="manhattan". Scores are asked for with group=True, whose shares
        depend on all tokens.

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
    selection, softmax = both_with(where, selection, softmax, options)
    checks.true_or_false(where, "return_scores", return_scores)
    if return_scores and selection.group:
        raise ValueError(
            f"{where}: return_scores=True with group=True; expected group=False, because a group "
            "chooses by shares that depend on all tokens"
        )
    (a,) = views(q=q)
    checks.floats(where, "q", a, (3, 4))
    codes = key_codes(where, codes, a.shape[-1])
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
    record = codes.record
    seen = tokens_seen(where, positions, q4.shape, record.length)
    home, K = load(codes.backend), int(budget)

    def call(part: Any, lengths: Any, softmax: Softmax) -> tuple[Any]:
        own = record._replace(length=lengths)
        return (home.select_topk(part, own, K, selection, keys, softmax),)

    if seen is None:
        (found,) = call(q4, record.length, softmax)
    else:
        (found,) = together(in_runs(q4, seen, softmax, call, selection.group))
    give, shape = returner(q), (*a.shape[:-1], K)
    indices = give(found.reshape(shape))
    if not return_scores:
        return indices
    return indices, give(chosen_scores(home, q4, record, found, selection, keys).reshape(shape))


def _coded_keys(codes: KeyCodes, k: Array | None, selection: Selection) -> Array:
    """The keys (B, H_kv, S, D) that were coded, checked against their codes."""
    if k is None:
        raise ValueError(
            f"select_topk: refine={selection.refine} without k; expected the keys of codes "
            f"{codes.shape}"
        )
    return codes._given("select_topk", k, codes.tokens)
