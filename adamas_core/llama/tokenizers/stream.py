"""Text from token ids, one id at a time."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence


class Stream:
    """Joins the bytes of tokens to text. It never gives half a character.

    Parameters
    ----------
    pieces : sequence of bytes
        The bytes of each token id.
    control : collection of ints
        Ids of control tokens.
    strip : bool
        Remove the space before the first token that is text.
    special : bool
        Give the names of control tokens as text.
    """

    def __init__(
        self, pieces: Sequence[bytes], control: Collection[int], strip: bool, special: bool
    ) -> None:
        self._pieces = pieces
        self._control = control
        self._strip = strip
        self._special = special
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is complete with this token. It may be empty.

        Raises
        ------
        ValueError
            The id is not in the table.
        """
        if not 0 <= token < len(self._pieces):
            raise ValueError(
                f"token id {token} is not in the table, expected 0 to {len(self._pieces) - 1}"
            )
        piece = self._pieces[token]
        if token in self._control:
            return self.end() + (piece.decode() if self._special else "")
        if self._strip:
            piece = piece.removeprefix(b" ")
            self._strip = False
        return self._characters.decode(piece)

    def end(self) -> str:
        """A replacement character if the last character is not complete, else nothing."""
        return self._characters.decode(b"", final=True)
