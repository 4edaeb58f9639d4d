"""A tokenizer: the bytes of each token, and an encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from . import chatml, gemma_turns
from .stream import Stream

# Names of the control tokens that end a model's turn.
ENDS = {b"<|im_end|>", b"<|eot_id|>", b"<|endoftext|>", b"<|end_of_text|>", gemma_turns.END}


@dataclass(frozen=True)
class Tokenizer:
    """Encodes text and decodes ids; `load_tokenizer` makes one.

    Attributes
    ----------
    pieces : list of bytes
        The bytes of each id.
    control : frozenset of ints
        Ids of tokens that mark structure and hold no text, like BOS or <|im_end|>.
    bos, eos : int or None
    adds_bos : bool
        Whether the model expects BOS before a text.
    template : str or None
        The chat template of the model, in Jinja.
    strips_space : bool
        Whether encoding puts a space before a text, so that decoding must remove it.
    encoder : callable
        ``encoder(text, special) -> ids`` without BOS. With `special` the name of a control token
        is that token.
    """

    pieces: list[bytes]
    control: frozenset[int]
    bos: int | None
    eos: int | None
    adds_bos: bool
    template: str | None
    strips_space: bool
    encoder: Callable[[str, bool], list[int]]

    @property
    def stop(self) -> frozenset[int]:
        """Ids that end a model's turn."""
        named = {i for i in self.control if self.pieces[i] in ENDS}
        return frozenset(named if self.eos is None else named | {self.eos})

    def padded(self, vocab: int) -> Tokenizer:
        """The same tokenizer for a model with `vocab` ids.

        Many models have more ids than tokens, because their matrices are padded. Without padding
        the decoding of such an id is an error. With it the id has no text.
        """
        return replace(self, pieces=self.pieces + [b""] * (vocab - len(self.pieces)))

    def encode(self, text: str, bos: bool | None = None, special: bool = True) -> list[int]:
        """Token ids of a text.

        Parameters
        ----------
        text : str
        bos : bool, optional
            Begin with BOS. The default is `adds_bos`.
        special : bool
            Whether the name of a control token, like <|im_start|>, is that token. Turn it off for
            text that you do not trust.

        Raises
        ------
        ValueError
            `bos` is true and there is no BOS token, or a character has no token.
        """
        ids = self.encoder(text, special)
        if self.adds_bos if bos is None else bos:
            if self.bos is None:
                raise ValueError("this tokenizer has no BOS token")
            ids.insert(0, self.bos)
        return ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of a sequence of ids; control tokens are left out unless `special`."""
        stream = self.stream(start=True, special=special)
        return "".join([*map(stream.push, ids), stream.end()])

    def stream(self, start: bool = False, special: bool = False) -> Stream:
        """Decode ids one by one. Set `start` if they begin a text and do not continue one."""
        return Stream(self.pieces, self.control, start and self.strips_space, special)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, up to the place where the assistant's answer begins.

        Parameters
        ----------
        messages : sequence of {"role": ..., "content": ...}
            They are encoded as plain text: no message can forge a control token.

        Raises
        ------
        ValueError
            The model's template is neither ChatML (SmolLM2, Qwen) nor Gemma's.
        """
        control = {self.pieces[i]: i for i in self.control}

        def encode(text: str) -> list[int]:
            return self.encoder(text, False)

        if gemma_turns.fits(self.template, control):
            return gemma_turns.prompt(messages, self.bos, control, encode)
        return chatml.prompt(messages, self.template, control, encode)
