"""ChatML, the chat template of SmolLM2 and Qwen."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence


def prompt(
    messages: Sequence[Mapping[str, str]],
    template: str | None,
    control: Mapping[bytes, int],
    encode: Callable[[str], list[int]],
) -> list[int]:
    """Token ids of a conversation, up to the place where the assistant's answer begins.

    Parameters
    ----------
    messages : sequence of {"role": ..., "content": ...}
    template : str or None
        The chat template of the model, in Jinja.
    control : mapping
        Ids of control tokens by their names.
    encode : callable
        ``encode(text) -> ids``. It must not give control tokens, so that no message can forge one.

    Raises
    ------
    ValueError
        The template is not ChatML.
    """
    begin, end = control.get(b"<|im_start|>"), control.get(b"<|im_end|>")
    if begin is None or end is None or "<|im_start|>" not in (template or ""):
        raise ValueError(
            "this model's chat template is neither ChatML nor Gemma's; encode its prompt yourself"
        )
    turns = [(m["role"], m["content"]) for m in messages]
    default = _default_system(template or "")
    if default is not None and turns and turns[0][0] != "system":
        turns.insert(0, ("system", default))
    newline = encode("\n")
    ids: list[int] = []
    for role, content in turns:
        ids += [begin, *encode(f"{role}\n{content}"), end, *newline]
    return [*ids, begin, *encode("assistant\n")]


def _default_system(template: str) -> str | None:
    """The system message that the template adds to a conversation without one."""
    found = re.search(r"<\|im_start\|>system(?:\n|\\n)([^<>{}']+)<\|im_end\|>", template)
    return found and found[1]
