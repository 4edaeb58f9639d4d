"""The 2-bit shadow of the keys: thresholds, encoding, and codes that grow token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import checks
from .dispatch import (
    BACKENDS,
    DEFAULT_BACKEND,
    Array,
    array_module,
    backend_of,
    int_or_view,
    load,
    on_host_thresholds,
    returner,
    views,
)
from .lengths import Lengths
from .ops import hadamard
from .reference.center import RMS_SHARE
from .reference.layout import TILE, Centers, Codes, padded, tiles, words

NDArray = np.ndarray[Any, Any]

# The thresholds of the published code, the same for queries and keys (arXiv 2510.18413).
PAPER = np.array([-10, 0, 10], np.float32)
PAPER.setflags(write=False)

SAMPLE = 1024  # leading tokens per sequence that `encode` calibrates from


def calibrate(k: Array, rule: str = "rms", length: int | Array | None = None) -> Array:
    """Thresholds for the codes of each KV head, from a sample of its keys; 128 tokens are enough.

    Parameters
    ----------
    k : array (B, H_kv, S, D)
        float16, bfloat16 or float32; B may be absent. The batch shares the thresholds. On a GPU
        keys below 2 ** -126 in absolute value count as 0, because CuPy flushes them.
    rule : {"rms", "quartiles"}
        "rms": (-t, 0, t), where t is 0.996 times the root mean square of the head's transformed
        keys. "quartiles": the quartiles of their coordinates.
    length : int or array (B,) of integers, optional
        Leading tokens of each sequence to use; all S if not given.

    Returns
    -------
    array (H_kv, 3), float32

    Raises
    ------
    TypeError
        k has another dtype.
    ValueError
        There is no token, rule is unknown, or the keys hold NaN or infinities.
    """
    (a,) = views(k=k)
    checks.floats("calibrate", "k", a, (3, 4))
    a = a[None] if a.ndim == 3 else a
    B, S = a.shape[0], a.shape[2]
    n = S if length is None else int_or_view("length", length)
    n = checks.length("calibrate", "length", n, B, S, "k")
    return returner(k)(_calibrated(a, np.broadcast_to(n, (B,)), rule))


def _calibrated(k: Any, counts: NDArray, rule: str = "rms") -> Any:
    """Thresholds (H_kv, 3) from the first counts (B,) tokens of checked keys (B, H_kv, S, D)."""
    B, H_kv, _, D = k.shape
    if counts.sum() == 0:
        raise ValueError(f"calibrate: {checks.shown('k', k)}; expected at least one token")
    sequences = [k[b, :, : counts[b]] for b in range(B)]  # each (H_kv, n_b, D)
    xp = array_module(backend_of(k))
    t = xp.zeros((H_kv, 3), np.float32)
    if rule == "rms":
        squares = sum(_sum_of_squares(xp, x) for x in sequences)  # (H_kv,)
        t[:, 2] = RMS_SHARE * xp.sqrt(squares / float(counts.sum() * padded(D)))
        t[:, 0] = -t[:, 2]
    elif rule == "quartiles":
        coordinates = xp.concatenate([hadamard(x) for x in sequences], axis=1).reshape(H_kv, -1)
        t[:] = xp.quantile(coordinates, [0.25, 0.5, 0.75], axis=1).T
    else:
        raise ValueError(f"calibrate: rule={rule!r}; expected 'rms' or 'quartiles'")
    if not xp.isfinite(t).all():
        raise ValueError(
            f"calibrate: {checks.shown('k', k)} gives thresholds {t.tolist()}; expected finite keys"
        )
    return t


def _sum_of_squares(xp: Any, x: Any) -> Any:
    """Sum per head (H_kv,) in float64; 1024 tokens are converted at a time."""
    total = xp.zeros(len(x))
    for s in range(0, x.shape[1], 1024):
        block = x[:, s : s + 1024].astype(np.float64)
        total += xp.einsum("hsd,hsd->h", block, block)
    return total


class KeyCodes:
    """Codes of the keys of one attention layer, 2 bits per coordinate, that grow token by token.

    Parameters
    ----------
    planes : array (2, B, H_kv, T, 8, P, 8), uint64
        High plane and low plane. The axes of each plane are tile of 64 tokens, group of 8 tokens,
        word, token in the group. The array is not copied; `append` writes into its free slots.
    length : int or array (B,) of integers
        Tokens in the planes, for all sequences or for each.
    thresholds : array (H_kv, 3) or (3,), float32
        For centered codes they are in units of the rms of each token.
    head_dim : int
        D.
    backend : {"cpu", "gpu", "reference"}, optional
        The backend of the planes' device if not given.
    centers : Centers, optional
        For centered codes: means (B, H_kv, T, Dt), float16; scales (B, H_kv, T, 64), uint8;
        open_tile (B, H_kv, 64, Dt), float32. The arrays are not copied.

    Attributes
    ----------
    planes : array
        A view of the tiles in use, of NumPy, or under "gpu" of CuPy.
    thresholds : array (H_kv, 3)
    head_dim, backend
        As above.
    length : int or array (B,)
        On the host. An array where sequences were given lengths of their own.
    tokens : int
        The largest length.
    centers : Centers or None
        Views of the tiles in use; None for plain codes.
    record : Codes
        Planes, length, thresholds and centers as one tuple, which backends read.
    device : str
        The device of the planes: "cpu", or "cuda:" and a number.
    shape : tuple
        (B, H_kv, tokens, D), the shape of the coded keys.

    See Also
    --------
    encode : makes codes from keys.
    """

    def __init__(
        self,
        planes: Array,
        length: int | Array,
        thresholds: Array | Sequence[float],
        head_dim: int,
        backend: str | None = None,
        centers: Centers | None = None,
    ) -> None:
        where = "KeyCodes"
        (buffer,) = views(planes=planes)
        checks.planes(where, buffer)
        _, B, H_kv, T, _, _, _ = buffer.shape
        checks.head_dim(where, head_dim)
        checks.words_per_plane(where, buffer, head_dim)
        t = on_host_thresholds(thresholds)
        checks.thresholds(where, t, H_kv)
        n = checks.length(where, "length", int_or_view("length", length), B, TILE * T, "planes")
        backend = backend or backend_of(buffer)
        load(backend)
        checks.lies_on(where, "planes", buffer, BACKENDS[backend])
        if centers is not None:
            checks.instance(where, "centers", centers, Centers, "Centers")
            centers = Centers(*views(**centers._asdict()))
            checks.centers(where, centers, buffer, head_dim)
        self._hold(buffer, Lengths.of(n, B), t, int(head_dim), backend, centers)

    def _hold(
        self,
        planes: Any,
        lengths: Lengths,
        thresholds: NDArray,
        head_dim: int,
        backend: str,
        centers: Centers | None,
    ) -> KeyCodes:
        """Take checked arrays, with the thresholds on the host."""
        heads = planes.shape[2]
        self._buffer = planes
        self._lengths = lengths
        self._centers = centers
        self.thresholds = array_module(backend).array(
            np.broadcast_to(thresholds, (heads, 3)), order="C"
        )
        self.head_dim = head_dim
        self.backend = backend
        return self

    @classmethod
    def empty(
        cls,
        B: int,
        H_kv: int,
        head_dim: int,
        thresholds: Array | Sequence[float],
        backend: str = DEFAULT_BACKEND,
        capacity: int = 0,
    ) -> KeyCodes:
        """Plain codes of no token yet, with room for `capacity` tokens."""
        checks.head_dim("KeyCodes.empty", head_dim)
        checks.at_least("KeyCodes.empty", "capacity", capacity, 0)
        shape = (2, B, H_kv, tiles(capacity), 8, words(head_dim), 8)
        planes = array_module(backend).zeros(shape, np.uint64)
        return cls(planes, 0, thresholds, head_dim, backend)

    @property
    def length(self) -> int | NDArray:
        """Tokens: an int, or (B,) where the sequences were given lengths of their own."""
        return self._lengths.given()

    @property
    def tokens(self) -> int:
        """The largest length."""
        return self._lengths.longest

    @property
    def device(self) -> str:
        """The device of the planes."""
        return checks.device(self._buffer)

    @property
    def planes(self) -> Any:
        """A view of the planes (2, B, H_kv, T, 8, P, 8), T = ceil(tokens / 64)."""
        return self._buffer[:, :, :, : tiles(self.tokens)]

    @property
    def centers(self) -> Centers | None:
        """Views of the means and scales of the tiles in use, and the open tile; None if plain."""
        if self._centers is None:
            return None
        means, scales, open_tile = self._centers
        T = tiles(self.tokens)
        return Centers(means[:, :, :T], scales[:, :, :T], open_tile)

    @property
    def record(self) -> Codes:
        """Planes, length, thresholds and centers as backends read them."""
        return Codes(self.planes, self.length, self.thresholds, self.centers)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H_kv, tokens, D)."""
        return self._buffer.shape[1], self._buffer.shape[2], self.tokens, self.head_dim

    @property
    def nbytes(self) -> int:
        """Bytes of the planes in use, and of the centers."""
        return int(self.planes.nbytes) + sum(int(x.nbytes) for x in self.centers or ())

    def __repr__(self) -> str:
        centered = "" if self._centers is None else ", centered"
        return (
            f"KeyCodes(shape={self.shape}, length={self.length}, backend={self.backend!r}"
            f"{centered})"
        )

    def append(self, k: Array, count: int | Array | None = None) -> None:
        """Encode the keys of new tokens after the others, in place. Room grows by doubling.

        Parameters
        ----------
        k : array (B, H_kv, S, D)
            float16, bfloat16 or float32; B may be absent where it is 1.
        count : int or array (B,) of integers, optional
            How many of the S tokens each sequence really has: its first ones.

        Raises
        ------
        TypeError
            k has another dtype.
        ValueError
            k does not have the shape of the codes, or count is out of range.
        """
        where = "KeyCodes.append"
        a = self._keys(where, k)
        B, S = a.shape[0], a.shape[2]
        added = S if count is None else int_or_view("count", count)
        added = checks.length(where, "count", added, B, S, "k")
        checks.tokens(where, self.tokens + S)
        self._append(a, added, self._lengths.plus(added))

    def _append(self, k: Any, added: int | NDArray, lengths: Lengths) -> None:
        """Encode checked keys; `lengths` are those after it."""
        start = self._lengths.each if lengths.ragged else self.tokens
        self._make_room(self.tokens + k.shape[2])
        home = load(self.backend)
        if self._centers is None:
            home.encode(k, self.thresholds, self._buffer, start)
        else:
            home.encode_centered(k, self.thresholds, self._buffer, self._centers, start, added)
        self._lengths = lengths

    def _keys(self, where: str, k: Array, tokens: int = 0) -> Any:
        """Keys as a view (B, H_kv, S, D) that fits the codes and has at least `tokens` tokens."""
        (a,) = views(k=k)
        checks.floats(where, "k", a, (3, 4))
        a = a[None] if a.ndim == 3 else a
        B, H_kv, _, D = self.shape
        if a.shape[:2] != (B, H_kv) or a.shape[2] < tokens or a.shape[3] != D:
            least = f" with at least {tokens} tokens" if tokens else ""
            raise ValueError(
                f"{where}: {checks.shown('k', a)}; expected ({B}, {H_kv}, S, {D}){least}"
            )
        checks.lies_on(where, "k", a, self.device)
        return a

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` in all. Room that is too short becomes at least twice as large."""
        checks.at_least("KeyCodes.reserve", "tokens", tokens, 0)
        checks.tokens("KeyCodes.reserve", tokens)
        self._make_room(tokens)

    def _make_room(self, tokens: int) -> None:
        """Grow the buffers, or copy those that are read-only, for a checked number of tokens."""
        held = self._buffer.shape[3]
        needed = tiles(tokens)
        # A caller's arrays may be read-only; CuPy's never are.
        mine = (self._buffer, *(self._centers or ()))
        if needed <= held and all(getattr(x.flags, "writeable", True) for x in mine):
            return
        T = needed if needed <= held else max(needed, 2 * held)
        centers = self.centers
        self._buffer = self._grown(self.planes, 3, T)
        if centers is not None:
            means, scales, open_tile = centers
            self._centers = Centers(
                self._grown(means, 2, T), self._grown(scales, 2, T), self._grown(open_tile, 2, TILE)
            )

    def _grown(self, x: Any, axis: int, size: int) -> Any:
        """A copy of x with this size along an axis, zeros at its end."""
        shape = list(x.shape)
        shape[axis] = size
        grown = array_module(self.backend).zeros(shape, x.dtype)
        grown[(slice(None),) * axis + (slice(x.shape[axis]),)] = x
        return grown

    def truncate(self, tokens: int, k: Array | None = None) -> None:
        """Forget all but the first `tokens` tokens of every sequence.

        Parameters
        ----------
        tokens : int
        k : array (B, H_kv, S, D), optional
            The coded keys, at least `tokens` of them. Centered codes need them where the cut opens
            a full tile again, because the tokens of that tile are then coded again.

        Raises
        ------
        ValueError
            tokens is out of range, or k is needed and not given, or has another shape.
        """
        where = "KeyCodes.truncate"
        if not 0 <= checks.integer(where, "tokens", tokens) <= self.tokens:
            raise ValueError(f"{where}: tokens={tokens}; expected 0 to {self.tokens}")
        tile, rest = divmod(tokens, TILE)
        if self._centers is not None and rest:
            opened = np.flatnonzero(self._lengths.each // TILE > tile)
            if len(opened) and k is None:
                raise ValueError(
                    f"{where}: tokens={tokens} cuts a full tile of centered codes of shape "
                    f"{self.shape}; expected a multiple of {TILE}, or the keys k"
                )
            if len(opened):
                self._code_again(opened, tokens, self._keys(where, k, tokens))
        self._lengths = self._lengths.cut(tokens)

    def _code_again(self, sequences: NDArray, tokens: int, k: Any) -> None:
        """Code the last tile again, as an open one: relative to the mean of the tile before it."""
        self._make_room(self.tokens)  # the buffers must be writable
        assert self._centers is not None
        first = tokens // TILE * TILE
        for b in map(int, sequences):
            one = slice(b, b + 1)
            means, scales, open_tile = self._centers
            centers = Centers(means[one], scales[one], open_tile[one])
            planes = self._buffer[:, one]
            keys = k[one, :, first:tokens]
            load(self.backend).encode_centered(keys, self.thresholds, planes, centers, first)


def encode(
    k: Array,
    thresholds: Array | Sequence[float] | None = None,
    length: int | Array | None = None,
    backend: str | None = None,
    centered: bool = False,
) -> KeyCodes:
    """Codes of cached keys, which `select_topk` searches.

    Parameters
    ----------
    k : array (B, H_kv, S, D)
        float16, bfloat16 or float32, as cached (after RoPE); B may be absent.
    thresholds : array (H_kv, 3) or (3,), float32, or three numbers, optional
        Ascending. `calibrate` of the first 1024 tokens if not given; PAPER for the paper's.
    length : int or array (B,) of integers, optional
        Leading tokens of each sequence that count; all S if not given.
    backend : {"cpu", "gpu", "reference"}, optional
        The backend of the keys' device if not given.
    centered : bool
        Subtract from each key the mean of its tile of 64 tokens, and code the rest at its own rms.
        The mean is kept in float16, and one byte of scale per token: 37 bytes per token at
        head_dim 128 instead of 32. There are no thresholds to calibrate. This is the better choice
        where many keys are alike. While a tile is open, it uses the mean of the tile before it.

    Returns
    -------
    KeyCodes

    Raises
    ------
    TypeError
        k or thresholds have another dtype, or centered is not a bool.
    ValueError
        Shapes do not fit, the thresholds do not ascend or are given for centered codes, or there is
        no token to calibrate from.
    """
    where = "encode"
    (a,) = views(k=k)
    checks.floats(where, "k", a, (3, 4))
    a = a[None] if a.ndim == 3 else a
    B, H_kv, S, _ = a.shape
    checks.tokens(where, S)
    backend = backend or backend_of(a)
    load(backend)
    checks.lies_on(where, "k", a, BACKENDS[backend])
    checks.true_or_false(where, "centered", centered)
    n = S if length is None else int_or_view("length", length)
    n = checks.length(where, "length", n, B, S, "k")
    t = None
    if centered:
        checks.no_thresholds(where, thresholds)
    elif thresholds is not None:
        t = on_host_thresholds(thresholds)
        checks.thresholds(where, t, H_kv)
    return encoded(a, Lengths.of(n, B), t, backend, centered)


def encoded(
    k: Any, lengths: Lengths, thresholds: NDArray | None, backend: str, centered: bool
) -> KeyCodes:
    """Codes of checked keys (B, H_kv, S, D); plain codes without thresholds are calibrated."""
    B, H_kv, S, D = k.shape
    home, xp = load(backend), array_module(backend)
    codes = KeyCodes.__new__(KeyCodes)
    if not centered:
        if thresholds is None:
            counts = np.minimum(lengths.each, SAMPLE)
            thresholds = on_host_thresholds(_calibrated(k[:, :, :SAMPLE], counts))
        t = np.ascontiguousarray(np.broadcast_to(thresholds, (H_kv, 3)))
        return codes._hold(home.encode(k, t), lengths, t, D, backend, None)
    T, Dt = tiles(S), padded(D)
    planes = xp.zeros((2, B, H_kv, T, 8, words(D), 8), np.uint64)
    centers = Centers(
        xp.zeros((B, H_kv, T, Dt), np.float16),
        xp.zeros((B, H_kv, T, TILE), np.uint8),
        xp.zeros((B, H_kv, TILE, Dt), np.float32),
    )
    t = np.array([-RMS_SHARE, 0, RMS_SHARE], np.float32)
    home.encode_centered(k, t, planes, centers, 0, lengths.given())
    return codes._hold(planes, lengths, t, D, backend, centers)
