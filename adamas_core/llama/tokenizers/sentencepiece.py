"""SentencePiece's BPE, which merges by score. GGUF's "llama" tables and llama2.c use it.

The `tokenizers` package merges by rank only. The results differ if several pairs join to one token.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable

SPACE = "\u2581"  # it stands for a space in the tokens
BYTE_NAMES = {f"<0x{byte:02X}>": byte for byte in range(256)}


def token_bytes(token: str) -> bytes:
    """The bytes of a token: <0x0A> is one byte, and SPACE is a space."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()


class ScoreBPE:
    """Merges neighbours as long as two of them join to a token, the highest score first.

    Among equal scores the leftmost pair is merged. A character without a token becomes its UTF-8
    bytes.

    Parameters
    ----------
    texts : list of str
        The text of each token id, with plain spaces.
    scores : list of float
    control, user_defined : ids
        Tokens that are never merged or split. User-defined tokens are text.
    space_prefix : bool
        Put a space before a text, and before the text after a control token.
    """

    def __init__(
        self,
        texts: list[str],
        scores: list[float],
        control: Iterable[int],
        user_defined: Iterable[int],
        space_prefix: bool,
    ) -> None:
        self._space_prefix = space_prefix
        self._special = {texts[i]: i for i in control if texts[i]}
        self._user_defined = {texts[i]: i for i in user_defined if texts[i]}
        self._byte = {BYTE_NAMES[t]: i for i, t in enumerate(texts) if t in BYTE_NAMES}
        apart = {*self._special.values(), *self._user_defined.values(), *self._byte.values()}
        self._token: dict[str, int] = {}
        for i, text in enumerate(texts):
            if i not in apart:
                self._token.setdefault(text, i)
        self._scores = scores

    def __call__(self, text: str, special: bool) -> list[int]:
        """Token ids of a text. With `special` the name of a control token is that token."""
        atoms = {**self._user_defined, **self._special} if special else self._user_defined
        ids: list[int] = []
        prefix = self._space_prefix
        for part in _split(text, atoms):
            if part in atoms:
                ids.append(atoms[part])
                prefix = self._space_prefix and part in self._special
            else:
                for symbol in self._merge(f" {part}" if prefix else part):
                    ids += self._ids(symbol)
                prefix = False
        return ids

    def _merge(self, text: str) -> list[str]:
        """The parts of a text when no pair of neighbours joins to a token any more."""
        symbols = list(text)  # a merged symbol is at the place of its first character
        before = list(range(-1, len(symbols) - 1))
        after = list(range(1, len(symbols) + 1))
        candidates: list[tuple[float, int, str]] = []

        def consider(left: int) -> None:
            if left >= 0 and after[left] < len(symbols):
                joined = symbols[left] + symbols[after[left]]
                if joined in self._token:
                    score = self._scores[self._token[joined]]
                    heapq.heappush(candidates, (-score, left, joined))

        for left in range(len(symbols)):
            consider(left)
        while candidates:
            _, left, joined = heapq.heappop(candidates)
            right = after[left]
            # One of the two may have been merged with another neighbour since.
            if (
                right == len(symbols)
                or not symbols[left]
                or symbols[left] + symbols[right] != joined
            ):
                continue
            symbols[left], symbols[right] = joined, ""
            after[left] = after[right]
            if after[left] < len(symbols):
                before[after[left]] = left
            consider(before[left])
            consider(left)
        return [symbol for symbol in symbols if symbol]

    def _ids(self, symbol: str) -> list[int]:
        if symbol in self._token:
            return [self._token[symbol]]
        try:
            return [self._byte[byte] for byte in symbol.encode()]
        except KeyError:
            raise ValueError(
                f"the tokenizer has no token for {symbol!r}, and none for its bytes"
            ) from None


def _split(text: str, atoms: Iterable[str]) -> list[str]:
    """Cut a text before and after every atom, the longest first. The parts join to the text."""
    longest_first = sorted(atoms, key=len, reverse=True)
    if not longest_first:
        return [text] if text else []
    pattern = "|".join(re.escape(atom) for atom in longest_first)
    return [part for part in re.split(f"({pattern})", text) if part]
