"""The 2-bit codes of values, with their sums, which the tail of an attention reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import checks, value_store
from .dispatch import BACKENDS, DEFAULT_BACKEND, Array, backend_of, int_or_view, load, views
from .lengths import Lengths
from .reference.layout import Values
from .slot import Slot
from .token_codes import TokenCodes
from .value_store import CodedValues

NDArray = np.ndarray[Any, Any]


class ValueCodes(TokenCodes):
    """Codes of the values of one attention layer, and their sums, that grow token by token.

    A new object has no token. `encode_values` makes one from values. The codes have 2 bits per
    coordinate and a scale per token: 33 bytes per token and KV head at head_dim 128. They are
    relative to a base of the head: the first value, and from the 65th token on the mean of the
    first 64. The error of a code is about a third of the distance of its value from the base. So
    values that drift many times their spread away from these bases are read back coarsely.

    Parameters
    ----------
    B, H_kv, head_dim : int
        Sequences, KV heads, and D_v, the head_dim of the values.
    backend : {"cpu", "gpu", "reference"}
    capacity : int
        Tokens to make room for. Room grows by doubling.

    Attributes
    ----------
    codes : array (B, H_kv, T, 64, 2, P_v), uint64
        T = ceil(tokens / 64) tiles of 64 tokens. The last two axes hold the P_v words of a
        token's high bits, and those of its low bits.
    scales : array (B, H_kv, T, 64), uint8
        One per token: the bits 20 to 27 of a float32, from 2^-16 to 61440. The byte 0 stands for 0.
    bases : array (B, H_kv, 2, D_v), float32
        The first value, and the mean of the first 64; 0 before these are there.
    total : array (B, H_kv, D_v), float32
        The sum of the values of each sequence. Its bits do not depend on how the values came.
    length : int or array (B,)
        On the host. An array where sequences were given lengths of their own.
    tokens : int
        The largest length.
    record : Values
        Codes, scales, bases and total as one tuple, which backends read.
    device : str
        The device of the codes: "cpu", or "cuda:" and a number.
    shape : tuple
        (B, H_kv, tokens, D_v), the shape of the coded values.

    Raises
    ------
    TypeError
        A number is not an integer.
    ValueError
        A number is out of range, or there is no such backend.

    See Also
    --------
    encode_values : makes codes from values.
    attend_tail : attention that reads them.
    """

    __slots__ = ("_slot",)

    name = "ValueCodes"
    rows = "v"

    def __init__(
        self,
        B: int,
        H_kv: int,
        head_dim: int,
        backend: str = DEFAULT_BACKEND,
        capacity: int = 0,
    ) -> None:
        checks.at_least(self.name, "B", B, 0)
        checks.at_least(self.name, "H_kv", H_kv, 1)
        checks.head_dim(self.name, head_dim)
        checks.at_least(self.name, "capacity", capacity, 0)
        load(backend)
        self._slot = Slot(value_store.empty(B, H_kv, head_dim, backend, capacity))

    @classmethod
    def _of(cls, state: CodedValues) -> ValueCodes:
        """Take codes that are known to be right."""
        codes = cls.__new__(cls)
        codes._slot = Slot(state)
        return codes

    def _coded(self) -> CodedValues:
        """Codes and sums, after the repair of an operation that did not end."""
        return self._slot.now()

    @property
    def codes(self) -> Any:
        """A view of the codes (B, H_kv, T, 64, 2, P_v), T = ceil(tokens / 64)."""
        return self._coded().used()[0]

    @property
    def scales(self) -> Any:
        """A view of the scales (B, H_kv, T, 64)."""
        return self._coded().used()[1]

    @property
    def bases(self) -> Any:
        """The bases (B, H_kv, 2, D_v), float32."""
        return self._coded().sums.bases

    @property
    def total(self) -> Any:
        """The sums of the values (B, H_kv, D_v), float32."""
        return self._coded().sums.total()

    @property
    def record(self) -> Values:
        """Codes, scales, bases and total as backends read them."""
        return self._coded().record()

    def __repr__(self) -> str:
        return f"ValueCodes(shape={self.shape}, length={self.length}, backend={self.backend!r})"

    def append(self, v: Array, count: int | Array | None = None) -> None:
        """Encode the values of new tokens after the others, in place. Room grows by doubling.

        If the call fails or is interrupted, the codes are as before.

        Parameters
        ----------
        v : array (B, H_kv, S, D_v)
            float16, bfloat16 or float32; B may be absent where it is 1.
        count : int or array (B,) of integers, optional
            How many of the S tokens each sequence really has: its first ones.

        Raises
        ------
        TypeError
            v has another dtype.
        ValueError
            v does not have the shape of the codes, or count is out of range.
        """
        a, added, lengths = self._new(v, count)
        state = self._coded()
        self._slot.change(lambda guard: value_store.append(state, a, added, lengths, guard))

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` in all. Room that is too short becomes at least twice as large."""
        checks.at_least("ValueCodes.reserve", "tokens", tokens, 0)
        checks.tokens("ValueCodes.reserve", tokens)
        state = self._coded()
        self._slot.put(value_store.reserve(state, tokens))

    def truncate(self, tokens: int | Sequence[int] | Array, v: Array) -> None:
        """Forget all but the first `tokens` tokens of every sequence.

        Afterwards the codes and the sums are those of the tokens that are kept, as if no other had
        come. If the call fails or is interrupted, they are as before.

        Parameters
        ----------
        tokens : int, or (B,) integers
            One number for all sequences, of which shorter ones stay as they are. Or a number per
            sequence, at most its length.
        v : array (B, H_kv, S, D_v)
            The coded values, at least as many as the longest sequence keeps. At most the last 4096
            of each sequence are read.

        Raises
        ------
        ValueError
            tokens is out of range, or v has another shape.
        """
        lengths = self._left(tokens)
        values = self._given("ValueCodes.truncate", v, lengths.longest)
        state = self._coded()
        self._slot.change(lambda guard: value_store.cut(state, lengths, values, guard))


def encode_values(
    v: Array, length: int | Array | None = None, backend: str | None = None
) -> ValueCodes:
    """Codes of cached values, which `attend_tail` reads.

    Parameters
    ----------
    v : array (B, H_kv, S, D_v)
        float16, bfloat16 or float32, as cached; B may be absent. D_v may differ from the head_dim
        of the keys.
    length : int or array (B,) of integers, optional
        Leading tokens of each sequence that count; all S if not given.
    backend : {"cpu", "gpu", "reference"}, optional
        The backend of the values' device if not given.

    Returns
    -------
    ValueCodes

    Raises
    ------
    TypeError
        v has another dtype.
    ValueError
        Shapes do not fit, length is out of range, or v is on another device than the backend.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas_core import encode_values
    >>> v = np.random.default_rng(0).standard_normal((8, 1000, 128), dtype=np.float32)
    >>> values = encode_values(v)
    >>> values.append(v[:, :1])
    >>> values.shape
    (1, 8, 1001, 128)
    """
    where = "encode_values"
    (a,) = views(v=v)
    checks.floats(where, "v", a, (3, 4))
    a = a[None] if a.ndim == 3 else a
    B, _, S, _ = a.shape
    checks.tokens(where, S)
    backend = backend or backend_of(a)
    load(backend)
    checks.lies_on(where, "v", a, BACKENDS[backend])
    n = S if length is None else int_or_view("length", length)
    n = checks.length(where, "length", n, B, S, "v")
    return ValueCodes._of(value_store.encoded(a, Lengths.of(n, B), backend))
