"""A layer of a cache whose queries see only the last `window` tokens, and which keeps only these.

`WindowLayer` never changes, as `FullLayer`. Its buffer holds consecutive tokens of each sequence.
When it is full, the tokens that are still needed move into a new one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .code_store import Guard, take_sequences
from .dispatch import array_module
from .layer_cache import Options, joined, no_attention, write
from .lengths import Lengths, taken
from .softmax import Softmax

NDArray = np.ndarray[Any, Any]

# Tokens that are kept before the window, so that as many newest ones can be dropped again.
ROLLBACK = 128


class WindowLayer(NamedTuple):
    """Keys and values of the newest tokens of one layer. A query sees `window` of them."""

    options: Options
    backend: str | None = None
    k: Any = None  # (B, H_kv, capacity, D)
    v: Any = None  # (B, H_kv, capacity, D_v)
    lengths: Lengths = Lengths.of(0, 0)
    base: NDArray = np.zeros(0, int)  # (B,): the token in slot 0 of each sequence

    @property
    def codes(self) -> None:
        """A layer with a window has no codes."""

    @property
    def values(self) -> None:
        """Nor has it codes of values."""

    @property
    def window(self) -> int:
        assert self.options.window is not None
        return self.options.window

    @property
    def held(self) -> NDArray:
        """Tokens in the buffer (B,)."""
        held: NDArray = self.lengths.each - self.base
        return held

    def keys_values(self) -> tuple[Any, Any]:
        """Views (B, H_kv, S', D) and (B, H_kv, S', D_v) of the slots with tokens."""
        S = int(self.held.max(initial=0))
        return self.k[:, :, :S], self.v[:, :, :S]

    def shown(self) -> tuple[Any, Any]:
        """The last `window` tokens of each sequence; after those of a shorter one there are 0."""
        layer = self._kept(np.minimum(self.held, self.window), 0)
        return layer.k, layer.v

    def nbytes(self) -> int:
        """Bytes of keys and values, without free slots."""
        return 0 if self.k is None else sum(int(x.nbytes) for x in self.keys_values())

    def with_room(self, S: int) -> Iterator[WindowLayer]:
        """The layer with room for S more tokens, if it has too little."""
        if self.k is not None and self.held.max(initial=0) + S > self.k.shape[2]:
            least = self.window + ROLLBACK
            yield self._kept(np.minimum(self.held, least), max(S, least // 2))

    def _kept(self, held: NDArray, room: int) -> WindowLayer:
        """The layer with the last `held` (B,) tokens alone and more room, in new buffers."""
        B, H_kv = self.k.shape[:2]
        xp = array_module(str(self.backend))
        slots = int(held.max(initial=0)) + room
        k, v = (xp.zeros((B, H_kv, slots, x.shape[3]), x.dtype) for x in (self.k, self.v))
        for b, (first, n) in enumerate(zip(self.held - held, held, strict=True)):
            k[b, :, :n] = self.k[b, :, first : first + n]
            v[b, :, :n] = self.v[b, :, first : first + n]
        return self._replace(k=k, v=v, base=self.lengths.each - held)

    def appended(
        self, k: Any, v: Any, added: int | NDArray, backend: str, guard: Guard
    ) -> WindowLayer:
        """The layer after checked keys and values of S tokens, for which it has room."""
        layer = self
        if self.k is None:
            B, H_kv, S, D = k.shape
            least = self.window + ROLLBACK
            room = (B, H_kv, max(S, min(self.options.capacity, least + least // 2)))
            xp = array_module(backend)
            layer = self._replace(
                backend=backend,
                k=xp.zeros((*room, D), k.dtype),
                v=xp.zeros((*room, v.shape[3]), v.dtype),
                lengths=Lengths.of(0, B),
                base=np.zeros(B, int),
            )
        lengths = layer.lengths.plus(added)
        for buffer, x in (layer.k, k), (layer.v, v):
            write(buffer, x, layer.held, lengths.each - layer.base)
        return layer._replace(lengths=lengths)

    def earliest(self) -> NDArray:
        """The least number of tokens (B,), apart from 0, that each sequence can be cut to.

        The window of the last token that is kept must be there whole.
        """
        found: NDArray = np.where(self.base == 0, 0, self.base + self.window)
        return found

    def cut(self, tokens: int | NDArray, guard: Guard) -> WindowLayer:
        """The layer with at most `tokens` tokens, checked against `earliest`."""
        if self.lengths.longest == 0:
            return self
        lengths = self.lengths.cut(tokens)
        if lengths.longest == 0:
            return WindowLayer(self.options)
        return self._replace(lengths=lengths, base=np.where(lengths.each == 0, 0, self.base))

    def take(self, order: NDArray) -> WindowLayer:
        """The layer of the sequences `order`, in arrays of its own; -1 is an empty sequence."""
        lengths = self.lengths.take(order)
        if self.k is None or lengths.longest == 0:
            return WindowLayer(self.options)
        xp = array_module(str(self.backend))
        k, v = (take_sequences(xp, x, order) for x in (self.k, self.v))
        return self._replace(k=k, v=v, lengths=lengths, base=taken(self.base, order))

    def dense(self, home: Any, q: Any, softmax: Softmax) -> tuple[Any, Any]:
        """Attention of q (B, H, L, D), each query to the last `window` tokens up to itself."""
        xp, L = array_module(str(self.backend)), q.shape[2]
        first = np.maximum(self.lengths.each - L - self.window + 1, 0) - self.base  # slots
        ends = self.held
        if len(ends) and (ends == ends[0]).all() and (first == first[0]).all() and ends[0] > 0:
            groups = [slice(None)]
        else:
            groups = [slice(b, b + 1) for b in range(len(ends))]
        parts = []
        for one in groups:
            start, end = int(first[one][0]), int(ends[one][0])
            if end == 0:
                parts.append(no_attention(xp, q[one], self.v.shape[3], softmax))
                continue
            k, v = self.k[one, :, start:end], self.v[one, :, start:end]
            parts.append(home.attend(q[one], k, v, None, softmax, True, self.window))
        return parts[0] if len(parts) == 1 else joined(xp, parts)

    def reaches(self, L: int) -> bool:
        """Whether the windows of the last L tokens of each sequence are there."""
        first = np.maximum(self.lengths.each - L - self.window + 1, 0)
        return bool(((first >= self.base) | (self.lengths.each == 0)).all())

    def arrays(self) -> dict[str, Any]:
        """The arrays of the layer for a file: none without tokens, as of a new layer."""
        if self.lengths.longest == 0:
            return {}
        layer = self._kept(np.minimum(self.held, self.window + ROLLBACK), 0)
        return {
            "k": layer.k,
            "v": layer.v,
            "length": self.lengths.each.astype(np.int64),
            "base": layer.base.astype(np.int64),
        }
