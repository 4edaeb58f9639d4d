"""The tokens that the sequences of a batch see, read from an attention mask."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Span(NamedTuple):
    """Sequences `first` to `last`, without `last`, see the tokens `start` to `end`, without `end`.

    These are the tokens that the newest query of each sequence sees.
    """

    first: int
    last: int
    start: int
    end: int


def spans(mask: torch.Tensor | None, B: int, L: int, S: int) -> list[Span] | None:
    """Spans of a mask (B or 1, 1, L, S), or None where it is not causal with padding in front.

    Without a mask one query sees all tokens. Several queries without a mask read a prompt: None.
    """
    if mask is None:
        return [Span(0, B, 0, S)] if L == 1 else None
    seen = seen_tokens(mask, B, L, S)
    if seen is None:
        return None
    newest = seen[:, -1]
    start = newest.int().argmax(-1)  # the first True
    end = start + newest.sum(-1)
    token = torch.arange(S, device=seen.device)
    until = end[:, None] - torch.arange(L - 1, -1, -1, device=mask.device)  # (B or 1, L)
    expected = (token >= start[:, None, None]) & (token < until[..., None])
    if not torch.equal(expected, seen) or bool((end - start < L).any()):
        return None
    pairs = list(zip(start.tolist(), end.tolist(), strict=True))
    if len(set(pairs)) == 1:
        return [Span(0, B, *pairs[0])]
    return [Span(b, b + 1, *pair) for b, pair in enumerate(pairs)]


def seen_tokens(mask: torch.Tensor, B: int, L: int, S: int) -> torch.Tensor | None:
    """The tokens that each query sees, bool (B or 1, L, S); None for another shape, or a bias.

    A bool mask (B or 1, 1, L, S) is True where a token is seen. A float mask is 0 there, and very
    small elsewhere.
    """
    if mask.ndim != 4 or mask.shape[0] not in (1, B) or tuple(mask.shape[1:]) != (1, L, S):
        return None
    seen = mask[:, 0]
    if mask.dtype == torch.bool:
        return seen
    hidden = seen <= torch.finfo(mask.dtype).min / 2
    return ~hidden if bool(((seen == 0) | hidden).all()) else None
