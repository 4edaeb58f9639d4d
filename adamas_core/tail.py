"""attend_tail: attention to all tokens, of which only the best are read as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from . import checks
from .attend_coded import attend_coded
from .codes import KeyCodes
from .dispatch import Array, load, returner, views
from .options import both_with
from .positions import Positions, tokens_seen
from .selection import DEFAULT, TAIL, Selection
from .softmax import PLAIN, Softmax
from .values import ValueCodes


def attend_tail(
    q: Array,
    k: Array,
    v: Array,
    codes: KeyCodes,
    values: ValueCodes,
    budget: int,
    selection: Selection = DEFAULT,
    softmax: Softmax = PLAIN,
    return_lse: bool = False,
    positions: Positions = None,
    **options: Any,
) -> Array:
    """Attention to all tokens in three tiers: exact, by codes, and by a mean.

    Two bits per coordinate of the keys find the budget + tail best tokens, and three bits rank
    them. The `budget` best of these count by their keys and values. The others count by estimated
    logits, and by values that are read back from their codes. All tokens of the sequence after them
    count by the sum of their estimated weights, at the mean of the values. One softmax covers the
    three.

    Parameters
    ----------
    q : array (B, H, L, D)
        float16, bfloat16 or float32, as the model computes it (after RoPE); B may be absent. The
        queries are the last L of the coded tokens, unless `positions` say otherwise. Each sees the
        tokens up to itself.
    k : array (B, H_kv, S, D)
        The keys that were coded, with at least as many tokens as the codes. One of the three
        dtypes, which may differ from q's. The leading strides are free.
    v : array (B, H_kv, S, D_v)
        The values that were coded, of the dtype of k.
    codes : KeyCodes
        From ``encode(k, bits=3)``.
    values : ValueCodes
        From ``encode_values(v)``, for the same tokens.
    budget : int
        K, 1 to the number of coded tokens.
    selection : Selection
        The options. Its tail is the number of tokens that count by their codes, 256 if not given.
        With tail=0 only the budget's tokens count.
    softmax : Softmax
        How inner products become weights: the scale, a soft cap, and sinks. The cap bounds
        estimated logits too.
    return_lse : bool
        Also return the log-sum-exp, which `merge` needs.
    positions : "all", or (L,) or (B, L) integers, optional
        The last token that each query sees, as in `select_topk`. All tokens up to there count.
    **options
        Fields of `selection` or `softmax` to change for this call, as in
        ``attend_tail(q, k, v, codes, values, 128, tail=1024)``.

    Returns
    -------
    out : array (B, H, L, D_v), q's dtype
        0 for a query that sees no token.
    lse : array (B, H, L), float32
        Natural log of the denominator of the softmax over all tokens. Where there is no token it is
        the logit of the head's sink, or -inf without sinks. Only with `return_lse`.

    Raises
    ------
    TypeError
        codes is not a KeyCodes, values is not a ValueCodes, selection is not a Selection, softmax
        is not a Softmax, an array has another dtype, a number is not an integer, or there is no
        such option.
    ValueError
        Shapes or numbers of tokens do not fit each other. The codes are empty, plain or of 2 bits.
        An option is out of range. The budget is below 1 or above the number of coded tokens.

    See Also
    --------
    KVCache : keeps both kinds of codes, with ``selection=Selection(tail=1024)``.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas_core import attend, attend_tail, encode, encode_values
    >>> k, v = np.random.default_rng(0).standard_normal((2, 2, 1000, 64), dtype=np.float32)
    >>> q = k[:, -1:] + v[:, -1:]
    >>> codes, values = encode(k, bits=3), encode_values(v)
    >>> out = attend_tail(q, k, v, codes, values, budget=32, tail=128)
    >>> bool(abs(out - attend(q, k, v, None)).max() < 0.1)
    True
    """
    where = "attend_tail"
    checks.true_or_false(where, "return_lse", return_lse)
    checks.instance(where, "codes", codes, KeyCodes, "the KeyCodes that encode(k, bits=3) returns")
    checks.instance(
        where, "values", values, ValueCodes, "the ValueCodes that encode_values(v) returns"
    )
    selection, softmax = both_with(where, selection, softmax, options)
    if selection.tail is None:
        selection = replace(selection, tail=TAIL)
    a, b, c = views(q=q, k=k, v=v)
    checks.floats(where, "q", a, (3, 4))
    checks.keys_values(where, b, c, (a.ndim,))
    q4 = a[None] if a.ndim == 3 else a
    checks.heads(where, "q and codes", q4.shape, codes.shape)
    checks.same_head_dim(where, a, "codes", codes.head_dim)
    checks.lies_on(where, "q", a, codes.device)
    k4, v4 = codes._given(where, b, codes.tokens), values._given(where, c, values.tokens)
    _same_tokens(where, codes, values)
    if codes.tokens == 0:
        raise ValueError(f"{where}: codes of shape {codes.shape} are empty; append keys first")
    checks.searchable(where, selection, codes.head_dim, codes.centered)
    if selection.tail and codes.bits == 2:
        raise ValueError(
            f"{where}: tail={selection.tail} with codes of 2 bits; expected encode(k, bits=3)"
        )
    checks.budget(where, budget, codes.tokens, codes.shape)
    checks.forced(where, budget, selection)
    checks.query_heads(where, softmax.sink_logits, q4.shape)
    rows, record = (q4, k4, v4), codes.record
    seen = tokens_seen(where, positions, q4.shape, record.length)
    coded = values._coded() if selection.tail else None
    home, K = load(codes.backend), int(budget)
    found, lse = attend_coded(home, rows, record, coded, K, selection, softmax, seen)
    give = returner(q)
    out = give(found.reshape(*a.shape[:-1], c.shape[-1]))
    return (out, give(lse.reshape(a.shape[:-1]))) if return_lse else out


def _same_tokens(where: str, codes: KeyCodes, values: ValueCodes) -> None:
    """Reject codes of keys and codes of values of different tokens."""
    lengths = [np.broadcast_to(x.length, x.shape[:1]) for x in (codes, values)]
    if (
        codes.shape[:-1] != values.shape[:-1]
        or codes.backend != values.backend
        or (lengths[0] != lengths[1]).any()
    ):
        raise ValueError(
            f"{where}: codes of {codes.shape} on {codes.backend!r} with length {codes.length}, and "
            f"values of {values.shape} on {values.backend!r} with length {values.length}; expected "
            "the keys and values of the same tokens, and one backend"
        )
