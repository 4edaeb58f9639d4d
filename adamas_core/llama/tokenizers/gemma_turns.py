"""Gemma's chat template: turns of a user and of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

BEGIN, END = b"<start_of_turn>", b"<end_of_turn>"


def fits(template: str | None, control: Mapping[bytes, int]) -> bool:
    """Whether a model's template is of this kind."""
    return BEGIN in control and END in control and BEGIN.decode() in (template or "")


def prompt(
    messages: Sequence[Mapping[str, str]],
    bos: int | None,
    control: Mapping[bytes, int],
    encode: Callable[[str], list[int]],
) -> list[int]:
    """Token ids of a conversation, up to the place where the model's answer begins.

    A system message stands before the first user message, in the same turn. `encode` must not give
    control tokens, so that no message can forge one.
    """
    turns = [(m["role"], m["content"]) for m in messages]
    system = ""
    if turns and turns[0][0] == "system":
        system = f"{turns.pop(0)[1]}\n\n"
    newline = encode("\n")
    ids = [] if bos is None else [bos]
    for i, (role, content) in enumerate(turns):
        name = "model" if role == "assistant" else role
        text = f"{name}\n{system if i == 0 else ''}{content.strip()}"
        ids += [control[BEGIN], *encode(text), control[END], *newline]
    return [*ids, control[BEGIN], *encode("model\n")]
