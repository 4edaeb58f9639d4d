"""Attention mechanisms of the field, each as one readable file of NumPy.

Every file has the equations and the paper in its docstring, and the same functions. A function that
makes no sense for a mechanism is absent.

===============================  =================================================================
``parallel(q, k, v, ...)``       the outputs (H, L, D) of all tokens at once
``chunked(q, k, v, ...)``        the same outputs, in blocks of `chunk` tokens
``start(k, v, ...)``             the state, or the cache, after the tokens of k and v: a prefill
``step(state, q, k, v, ...)``    one more token: change the state, and return its output (H, D)
``kept(S, ...)``                 how many numbers the state holds after S tokens
===============================  =================================================================

Heads are on the first axis and tokens on the second: q is (H, L, D), and k and v are (H_kv, L, D).
What all heads share has one head. Further inputs, such as gates, are (H, L) or (H, L, D). `step`
takes the same inputs without the axis of tokens. Arrays are float64 or float32. ``kept(0, ...)`` is
the size of the empty state, which `start` gives for arrays of no tokens.

Projections from a token's hidden state to q, k, v and gates are left out where they are plain
matrices. RoPE is left out too: queries and keys come after it.

Letters: H query heads, H_kv KV heads, G = H / H_kv, L query tokens, S cached tokens, D head_dim, E
width of the hidden states.
"""

from . import (
    delta_rule,
    differential,
    dsa_indexer,
    flash_tiles,
    gated_attention,
    kimi_delta,
    latent_attention,
    linear_attention,
    log_linear,
    lolcats,
    looped_decoder,
    mosa,
    multi_token,
    selected_tokens,
    softmax_attention,
    sparse_patterns,
    star_attention,
)

__all__ = [
    "delta_rule",
    "differential",
    "dsa_indexer",
    "flash_tiles",
    "gated_attention",
    "kimi_delta",
    "latent_attention",
    "linear_attention",
    "log_linear",
    "lolcats",
    "looped_decoder",
    "mosa",
    "multi_token",
    "selected_tokens",
    "softmax_attention",
    "sparse_patterns",
    "star_attention",
]
