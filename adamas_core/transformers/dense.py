"""Dense attention with a soft cap or with sinks, because transformers' "sdpa" has neither."""

from __future__ import annotations

import torch

from ..ops import attend
from ..softmax import Softmax
from .spans import seen_tokens

# The most indices of one call, for masks that are not one run of tokens per query: 64 MB.
INDICES = 1 << 24


def dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    softmax: Softmax,
    window: int | None,
    causal: bool,
) -> torch.Tensor:
    """Attention (B, L, H, D_v) to the tokens that a mask (B or 1, 1, L, S) shows.

    Without a mask it is as "sdpa" has it: one query sees all tokens, and several are the first
    tokens of k. `window` only makes masks with that window faster.
    """
    B, _, L, _ = q.shape
    S = k.shape[2]
    if mask is None:
        if L > 1 and causal:
            out = attend(q, k[:, :, :L], v[:, :, :L], None, softmax)
        else:
            out = attend(q, k, v, None, softmax, positions="all")
        return out.transpose(1, 2).contiguous()
    seen = seen_tokens(mask, B, L, S)
    if seen is None:
        raise ValueError(
            f"adamas attention: attention_mask {tuple(mask.shape)} {mask.dtype} with softcap or "
            f"s_aux; expected ({B} or 1, 1, {L}, {S}), bool, or 0 and the least number of the "
            'dtype: use attn_implementation="eager"'
        )
    alike = bool((seen == seen[:1]).all())
    parts = [slice(0, B)] if alike else [slice(b, b + 1) for b in range(B)]
    outs = [_masked(q[at], k[at], v[at], seen[at.start], softmax, window) for at in parts]
    return torch.cat(outs).transpose(1, 2).contiguous()


def _masked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor,
    softmax: Softmax,
    window: int | None,
) -> torch.Tensor:
    """Attention (B, H, L, D_v) of sequences that all see the tokens of one mask (L, S)."""
    B, H, L, _ = q.shape
    S = k.shape[2]
    start, last = _run(seen)
    token = torch.arange(S, device=seen.device)
    causal = (token >= start) & (token <= last[:, None])
    for width in dict.fromkeys((None, window)):
        shown = causal if width is None else causal & (token > last[:, None] - width)
        if torch.equal(shown, seen):
            end = int(last.max()) + 1
            k, v = (x[:, :, start : max(start, end)] for x in (k, v))
            at = (last - start).clamp(min=-1).cpu().numpy()
            return attend(q, k, v, None, softmax, window=width, positions=at)
    places = token.int()
    step = max(1, INDICES // (B * H * S))
    outs = []
    for first in range(0, L, step):
        rows = torch.where(seen[first : first + step], places, -1)
        indices = rows.expand(B, H, *rows.shape).contiguous()
        outs.append(attend(q[:, :, first : first + step], k, v, indices, softmax))
    return torch.cat(outs, 2)


def _run(seen: torch.Tensor) -> tuple[int, torch.Tensor]:
    """The first token that any query of a mask (L, S) sees, and the last one (L,) of each.

    The last one is -1 for a query that sees none.
    """
    start = int(seen.any(0).int().argmax())
    last = seen.shape[1] - 1 - seen.flip(1).to(torch.uint8).argmax(1)
    return start, last.masked_fill(~seen.any(1), -1)
