"""The attention function that transformers calls, and the operator that torch.compile sees."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..dispatch import Array
from ..ops import attend
from ..select import select_topk
from ..selection import DEFAULT, Selection
from ..softmax import Softmax
from ..tail import attend_tail
from .dense import dense
from .followed import Followed, Memory, memory, written_once
from .plan import Plan
from .spans import spans

# The plans of all registrations. The operator takes numbers, so a plan goes by its place here.
PLANS: list[Plan] = []

# Arguments that change the attention in a way that is not computed here, and the error of each.
REFUSED = {
    "output_attentions": "output_attentions=True; expected False, because the weights of all "
    "tokens are never computed",
}


class Layer:
    """The codes of one attention layer, by their sequences and their first token."""

    def __init__(self) -> None:
        self.k: Memory | None = None
        self.v: Memory | None = None
        self.followed: dict[tuple[int, ...], Followed] = {}

    def expired(self) -> bool:
        """Whether the keys that were seen last are gone."""
        return self.k is not None and bool(self.k.storage.expired())


# A layer is taken out for a step and put back after it. So a step that fails leaves no codes, and
# two threads never share some.
LAYERS: dict[tuple[int, int, int], Layer] = {}


def register(
    budget: int = 128,
    selection: Selection = DEFAULT,
    *,
    thresholds: Array | Sequence[float] | None = None,
    draft: int = 0,
    name: str = "adamas",
) -> None:
    """Make sparse decoding an attention of transformers, by a name for `attn_implementation`.

    A prompt is read densely, by transformers' own "sdpa". A step with one new token reads `budget`
    tokens per query by their keys and values. The others count by codes, as in `attend_tail`, or
    are dropped with ``Selection(tail=0)``. The codes lie beside the model's cache, and follow
    whatever happens to it.

    Attention is dense where the budget covers the tokens, in layers with a sliding window, without
    a causal mask, where gradients or dropout are asked for, and where the mask hides more than
    padding in front of a sequence. A model with a soft cap or with sinks
    is dense by `attend`, because "sdpa" has neither. There gradients and dropout are refused.

    Parameters
    ----------
    budget : int
        Tokens per query.
    selection : Selection
        The options. A tail that is not given is 256, or 0 where there can be none.
    thresholds : array (3,) or (H_kv, 3), or three numbers, optional
        Thresholds of plain codes, as in `encode`. metric="manhattan" needs them.
    draft : int
        Draft tokens that a step verifies: calls with up to draft + 1 new tokens are sparse too. In
        such a call each query sees the codes as they are after all its tokens.
    name : str
        The name to give as `attn_implementation`. A name that is there already is replaced.

    Raises
    ------
    TypeError
        An argument has another type.
    ValueError
        A number is out of range, or options do not fit each other.

    Examples
    --------
    >>> from adamas_core.transformers import register
    >>> register(budget=64)
    >>> # model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="adamas")
    """
    if not isinstance(name, str):
        raise TypeError(f"register: name={name!r}; expected a str")
    PLANS.append(Plan.of(budget, selection, thresholds, draft))
    AttentionInterface.register(name, _function(len(PLANS) - 1))
    AttentionMaskInterface.register(name, sdpa_mask)


def _function(number: int) -> Any:
    """The attention function of a plan."""

    def adamas_attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        for argument, wrong in REFUSED.items():
            if options.get(argument) is not None and options[argument] is not False:
                raise ValueError(f'adamas attention: {wrong}; or use attn_implementation="eager"')
        plan = PLANS[number]
        cap, sinks = options.get("softcap"), options.get("s_aux")
        logits = (scaling, None if cap is None else float(cap), sinks)
        special = cap is not None or sinks is not None
        causal = _causal(module, options.get("is_causal"))
        gradients = torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in (query, key, value, sinks)
        )
        biased = options.get("position_bias") is not None
        if special:
            _check_special(dropout, biased, gradients)
        arguments = (query, key, value, attention_mask)
        place = (id(getattr(module, "config", module)), id(module))
        if (
            query.shape[-2] <= plan.tokens
            and key.shape[-2] > plan.budget
            and dropout == 0.0
            and options.get("sliding_window") is None
            and causal
            and not (biased or gradients)
        ):
            if torch.compiler.is_compiling():
                step = torch.ops.adamas_core.step
                return step(*arguments, *logits, *place, number), None
            out = _sparse(*arguments, _softmax(*logits), *place, number)
            if out is not None:
                return out, None
        if special:
            window = options.get("sliding_window")
            if torch.compiler.is_compiling():
                return torch.ops.adamas_core.dense(*arguments, *logits, window, causal), None
            return dense(*arguments, _softmax(*logits), window, causal), None
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            **options,
        )

    return adamas_attention


def _check_special(dropout: float, biased: bool, gradients: bool) -> None:
    """Reject arguments that attention with a soft cap or sinks has not."""
    for given, name, expected in (
        (gradients, "gradients", "a call under torch.no_grad()"),
        (dropout != 0.0, f"dropout={dropout}", "dropout=0"),
        (biased, "position_bias", "none"),
    ):
        if given:
            raise ValueError(
                f"adamas attention: {name} with softcap or s_aux; expected {expected}: "
                'or use attn_implementation="eager"'
            )


def _softmax(scale: float | None, cap: float | None, sinks: torch.Tensor | None) -> Softmax:
    """The Softmax of a layer; its sinks are a parameter of the model, on any device."""
    return Softmax(scale, cap, None if sinks is None else sinks.detach().float().cpu())


def _causal(module: torch.nn.Module, given: bool | None) -> bool:
    return bool(getattr(module, "is_causal", True) if given is None else given)


# A CUDA graph would replay the kernels of a step without the Python that follows the cache. A torch
# without this tag fails when it records such a graph, because a step waits for values.
_TAGS = [t for t in [getattr(torch.Tag, "cudagraph_unsafe", None)] if t is not None]


@torch.library.custom_op(  # type: ignore[untyped-decorator]
    "adamas_core::step", mutates_args=(), tags=_TAGS
)
def _step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    cap: float | None,
    sinks: torch.Tensor | None,
    model: int,
    layer: int,
    number: int,
) -> torch.Tensor:
    """A step as an operator. The result depends on the arguments alone; codes only save work."""
    softmax = _softmax(scale, cap, sinks)
    out = _sparse(query, key, value, mask, softmax, model, layer, number)
    if out is None and not (cap is None and sinks is None):
        return dense(query, key, value, mask, softmax, None, True)
    if out is None:
        groups = SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1])
        out = sdpa_attention_forward(groups, query, key, value, mask, scaling=scale)[0]
    return out


@torch.library.custom_op(  # type: ignore[untyped-decorator]
    "adamas_core::dense", mutates_args=(), tags=_TAGS
)
def _dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    cap: float | None,
    sinks: torch.Tensor | None,
    window: int | None,
    causal: bool,
) -> torch.Tensor:
    """Dense attention with a soft cap or sinks as an operator."""
    return dense(query, key, value, mask, _softmax(scale, cap, sinks), window, causal)


@_step.register_fake  # type: ignore[untyped-decorator]
@_dense.register_fake  # type: ignore[untyped-decorator]
def _empty(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
    """An array of the shape (B, L, H, D_v) and dtype of the result, of either operator."""
    B, H, L, _D = query.shape
    return query.new_empty((B, L, H, value.shape[-1]))


def _sparse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    softmax: Softmax,
    model: int,
    layer: int,
    number: int,
) -> torch.Tensor | None:
    """Attention (B, L, H, D_v) of a step, or None where it has to be dense."""
    plan = PLANS[number]
    seen = spans(mask, query.shape[0], query.shape[2], key.shape[2])
    if seen is None or all(span.end - span.start <= plan.budget for span in seen):
        return None
    held = LAYERS.pop((number, model, layer), None)
    if held is None:
        # The other layers of this model stay, because its keys may be gone after each call.
        for at, other in list(LAYERS.items()):
            if at[:2] != (number, model) and other.expired():
                LAYERS.pop(at, None)
        held = Layer()
    now = memory(key), memory(value)
    once = written_once(held.k, now[0]) and written_once(held.v, now[1])
    held.k, held.v = now
    old, held.followed = held.followed, {}
    outs = []
    for span in seen:
        q, k, v = (x[span.first : span.last] for x in (query, key, value))
        k, v = (x[:, :, span.start : span.end] for x in (k, v))
        if span.end - span.start <= plan.budget:
            outs.append(attend(q, k, v, None, softmax=softmax))
            continue
        part = (span.first, span.last, span.start)
        followed = old.get(part)
        if followed is not None and followed.fits(k, v):
            followed.follow(k, v, known=once and k.shape[2] == followed.codes.tokens + q.shape[2])
        else:
            followed = Followed(k, v, plan)
        held.followed[part] = followed
        outs.append(_attention(q, k, v, followed, plan, softmax))
    LAYERS[number, model, layer] = held
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return out.transpose(1, 2).contiguous()


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    followed: Followed,
    plan: Plan,
    softmax: Softmax,
) -> torch.Tensor:
    """Attention (B, H, L, D_v) to the tokens of a span."""
    codes, budget = followed.codes, plan.budget
    if followed.values is not None:
        return attend_tail(q, k, v, codes, followed.values, budget, plan.selection, softmax=softmax)
    indices = select_topk(q, codes, budget, plan.selection, k=k, softmax=softmax)
    return attend(q, k, v, indices, softmax=softmax)
