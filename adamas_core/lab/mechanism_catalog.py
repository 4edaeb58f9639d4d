"""The mechanisms that are measured side by side: their costs in theory, and who uses them.

The theory of a row is its leading terms, as functions of S tokens: operations of a step, numbers
that a step reads of the cache or state, numbers kept, and operations of a prefill of S tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt, log2
from typing import NamedTuple

from .drop_ins import BUDGET, D_R, HOSTS, KERNEL, LOOPS, WINDOW, Sizes
from .indexer_fit import D_I, H_I
from .mechanisms import (
    delta_rule,
    differential,
    dsa_indexer,
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
)
from .selectors import SELECTORS

Cost = Callable[[Sizes], float]  # of s.S tokens


class Theory(NamedTuple):
    """Leading terms."""

    operations: Cost  # of a step
    read: Cost  # numbers of the cache or state that a step reads
    kept: Cost  # numbers
    prefill: Cost  # operations
    order: str  # of a step's operations, of the numbers kept, and of a prefill


class Row(NamedTuple):
    """A mechanism in the table."""

    name: str
    paper: str  # arXiv number
    theory: Theory
    models: str
    replaces: bool  # whether it can take the place of full attention untrained


CHUNK = 64


def _tokens(count: Callable[[int], float]) -> tuple[Cost, Cost]:
    """Operations and numbers of softmax attention to count(S) tokens."""
    return (lambda s: 4 * s.H * s.D * count(s.S), lambda s: 2 * s.H_kv * s.D * count(s.S))


def _steps(step: Cost) -> Cost:
    """The operations of S steps, by Simpson's rule."""

    def total(s: Sizes) -> float:
        at = [step(s._replace(S=max(s.S * i // 2, 1))) for i in range(3)]
        return s.S / 6 * (at[0] + 4 * at[1] + at[2])

    return total


def _whole(s: Sizes) -> float:
    """All weights of all pairs of tokens, masked or not."""
    return 4.0 * s.H * s.D * s.S * s.S


def _cache(s: Sizes) -> float:
    return softmax_attention.kept(s.S, s.H_kv, s.D)


FULL = Theory(*_tokens(lambda S: S), _cache, _whole, "S, S, S^2")


def _pattern(count: Callable[[int], float], kept: Cost, order: str) -> Theory:
    operations, read = _tokens(count)
    return Theory(operations, read, kept, _steps(operations), order)


def _selected(name: str, order: str) -> Theory:
    """A selector's bytes are its own count, in numbers of 16 bits. It counts no operations.

    All rows of keys and values are kept, because another query may choose any of them.
    """
    method = SELECTORS[name]

    def read(s: Sizes) -> float:
        each = method.bytes_read(s.D, s.S, BUDGET) * s.H_kv
        return (each + 2 * 2 * s.D * BUDGET * s.H) / 2

    def kept(s: Sizes) -> float:
        return selected_tokens.kept(s.S, s.H_kv, s.D, method)

    return Theory(lambda s: float("nan"), read, kept, _whole, order)


def _state(s: Sizes) -> float:
    return linear_attention.kept(s.S, s.H, s.D, s.D)


def _layer(s: Sizes) -> float:
    """Operations of a looped decoder's layer on a token, but for its attention."""
    E = 2 * (s.H + s.H_kv) * s.D
    return 4.0 * E * E


def _segments(s: Sizes) -> float:
    return log2(s.S + 1) * _state(s)


LINEAR = Theory(
    lambda s: 6 * s.H * s.D * s.D,
    _state,
    _state,
    lambda s: s.S * s.H * 4 * s.D * (CHUNK + s.D),
    "1, 1, S",
)
DELTA = LINEAR._replace(
    operations=lambda s: 7 * s.H * s.D * s.D,
    read=lambda s: s.H * s.D * s.D,
    kept=lambda s: delta_rule.kept(s.S, s.H, s.D, s.D),
)
INDEX = Theory(
    lambda s: (2 * D_I + 3) * H_I * s.S + 4 * s.H * s.D * BUDGET,
    lambda s: D_I * s.S + 2 * s.H_kv * s.D * BUDGET,
    lambda s: dsa_indexer.kept(s.S, s.H_kv, s.D, D_I),
    lambda s: _whole(s) + 2 * D_I * H_I * s.S * s.S,
    "S, S, S^2",
)
LATENT = Theory(
    lambda s: 2 * s.H * s.S * (4 * s.H_kv * s.D + D_R),
    lambda s: s.S * (4 * s.H_kv * s.D + D_R),
    lambda s: latent_attention.kept(s.S, 2 * s.H_kv * s.D, D_R),
    lambda s: _whole(s) + 8 * s.S * s.H * s.H_kv * s.D * s.D,
    "S, S, S^2",
)

ROWS: dict[str, Row] = {
    "softmax": Row(
        "MHA, GQA, MQA", "1706.03762", FULL, "Llama 3, Qwen3 (GQA); Falcon 7B (MQA)", True
    ),
    "flash": Row("FlashAttention's tiles", "2205.14135", FULL, "a kernel, for any of them", True),
    "window": Row(
        f"sliding window {WINDOW}",
        "2004.05150",
        _pattern(
            lambda S: min(S, WINDOW),
            lambda s: sparse_patterns.kept(s.S, s.H_kv, s.D, sparse_patterns.Local(WINDOW)),
            "1, 1, S",
        ),
        "Gemma 3, gpt-oss (some layers), Mistral 7B v0.1",
        True,
    ),
    "strided": Row(
        "strided, stride sqrt(S)",
        "1904.10509",
        _pattern(lambda S: 2 * isqrt(S), _cache, "sqrt S, S, S^1.5"),
        "Sparse Transformer",
        True,
    ),
    "fixed": Row(
        "fixed, block sqrt(S)",
        "1904.10509",
        _pattern(
            lambda S: S % max(isqrt(S), 1) + S // max(isqrt(S), 1),
            lambda s: sparse_patterns.kept(s.S, s.H_kv, s.D, sparse_patterns.Fixed(isqrt(s.S))),
            "sqrt S, sqrt S, S^1.5",
        )._replace(prefill=lambda s: 4 * s.H * s.D * s.S**1.5),
        "Sparse Transformer",
        True,
    ),
    **{
        name: Row(
            f"{title}, {BUDGET} tokens", paper, _selected(name, order), "any model, untrained", True
        )
        for name, title, paper, order in (
            ("streaming-llm", "StreamingLLM", "2309.17453", "1, S, S^2"),
            ("h2o", "H2O", "2306.14048", "1, S, S^2"),
            ("quest", "Quest", "2406.10774", "S, S, S^2"),
            ("sparq", "SparQ", "2312.04985", "S, S, S^2"),
            ("adamas", "codes (this library)", "2510.18413", "S, S, S^2"),
            ("tail-256", "codes with a tail of 256", "2510.18413", "S, S, S^2"),
        )
    },
    "dsa": Row(f"DSA indexer, {BUDGET} tokens", "2512.02556", INDEX, "DeepSeek-V3.2, GLM-5", True),
    "mosa": Row(
        f"MoSA, {BUDGET} tokens per head",
        "2505.00315",
        Theory(
            *_tokens(lambda S: min(S, BUDGET)),
            lambda s: mosa.kept(s.S, s.H, s.D, BUDGET),
            lambda s: 4 * s.H * s.D * min(s.S, BUDGET) ** 2 + 2 * s.H * s.D * s.S,
            "1, 1, S",
        ),
        "the paper's only",
        False,
    ),
    "star": Row(
        f"Star attention, {HOSTS} hosts",
        "2411.17116",
        FULL._replace(prefill=lambda s: _whole(s) * 2 / HOSTS),
        "Llama 3.1 in the paper, untrained",
        True,
    ),
    "mla": Row("MLA, absorbed", "2405.04434", LATENT, "DeepSeek-V2, V3, R1, Kimi K2", True),
    "linear": Row("linear attention", "2006.16236", LINEAR, "MiniMax-01 (with a decay)", True),
    "lolcats": Row(
        f"LoLCATs, window {WINDOW}",
        "2410.10254",
        Theory(
            lambda s: 4 * s.H * s.D * min(s.S, WINDOW) + 12 * s.H * s.D * s.D,
            lambda s: lolcats.kept(s.S, s.H, s.D, 2 * s.D, WINDOW),
            lambda s: lolcats.kept(s.S, s.H, s.D, 2 * s.D, WINDOW),
            _steps(lambda s: 4 * s.H * s.D * min(s.S, WINDOW) + 12 * s.H * s.D * s.D),
            "1, 1, S",
        ),
        "Llama 3.1 8B to 405B, converted in the paper",
        True,
    ),
    "log-linear": Row(
        "log-linear attention",
        "2506.04761",
        Theory(
            lambda s: 3 * s.H * s.D * s.D * log2(s.S + 1),
            _segments,
            lambda s: log_linear.kept(s.S, s.H, s.D, s.D),
            lambda s: s.S * s.H * s.D * (4 * CHUNK + s.D * max(log2(s.S / CHUNK), 0)),
            "log S, log S, S log S",
        ),
        "the paper's only",
        True,
    ),
    "differential": Row(
        "differential attention",
        "2410.05258",
        Theory(
            lambda s: 8 * s.H * s.D * s.S,
            lambda s: 4 * s.H_kv * s.D * s.S,
            lambda s: differential.kept(s.S, s.H_kv, s.D, s.D),
            lambda s: 2 * _whole(s),
            "S, S, S^2",
        ),
        "the paper's, DiffLlama",
        False,
    ),
    "multi-token": Row(
        "multi-token attention",
        "2504.00927",
        Theory(
            lambda s: s.H * s.S * KERNEL[0] * (2 * s.D + 2 * KERNEL[0] * KERNEL[1]),
            lambda s: 2 * s.H_kv * s.D * s.S,
            lambda s: multi_token.kept(s.S, s.H, s.H_kv, s.D, KERNEL[0]),
            lambda s: _whole(s) + 2 * s.H * s.S * s.S * KERNEL[0] * KERNEL[1],
            "S, S, S^2",
        ),
        "the paper's only",
        False,
    ),
    "gated-delta": Row(
        "DeltaNet, Gated DeltaNet", "2412.06464", DELTA, "Qwen3-Next, 3 layers of 4", False
    ),
    "kda": Row("KDA", "2510.26692", DELTA, "Kimi Linear, 3 layers of 4", False),
    "gated": Row("gated attention", "2505.06708", FULL, "Qwen3-Next, 1 layer of 4", False),
    "looped": Row(
        f"looped decoder, {LOOPS} loops",
        "2510.25741",
        Theory(
            lambda s: LOOPS * (4 * s.H * s.D * s.S + _layer(s)),
            lambda s: LOOPS * 2 * s.H_kv * s.D * s.S,
            lambda s: looped_decoder.kept(s.S, s.H_kv, s.D, LOOPS),
            lambda s: LOOPS * (_whole(s) + s.S * _layer(s)),
            "S, S, S^2",
        ),
        "Ouro 1.4B and 2.6B",
        False,
    ),
}
