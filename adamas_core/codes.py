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
    returner,
    views,
)
from .ops import hadamard, thresholds_array
from .reference.center import Centers
from .reference.quantize import TILE

# The published code's thresholds, the same for queries and keys (arXiv 2510.18413).
PAPER = np.array([-10, 0, 10], np.float32)
PAPER.setflags(write=False)

# The outer thresholds in units of the keys' rms: those of the least mean squared error for a
# normal variable cut into four (Max 1960 has 0.9816); 0.996 was measured best on real keys.
RMS_SHARE = 0.996


def calibrate(k: Array, rule: str = "rms", length: int | Array | None = None) -> Array:
    """Thresholds of a KV head's codes, from a sample of its keys; 128 tokens are enough.

    Parameters
    ----------
    k : array (B, H_kv, S, D)
        float16, bfloat16 or float32; B may be absent. The batch shares the thresholds.
    rule : {"rms", "quartiles"}
        "rms": (-t, 0, t) with t = 0.996 times the root mean square of the head's transformed
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
    B, H_kv, S, D = a.shape
    n = checks.length("calibrate", S if length is None else int_or_view("length", length), B, S)
    counts = np.broadcast_to(n, (B,))
    if counts.sum() == 0:
        raise ValueError(f"calibrate: {checks.shown('k', a)}; expected at least one token")
    sequences = [a[b, :, : counts[b]] for b in range(B)]  # each (H_kv, n_b, D)
    xp = array_module(backend_of(a))
    t = xp.zeros((H_kv, 3), np.float32)
    if rule == "rms":
        squares = sum(_sum_of_squares(xp, x) for x in sequences)  # (H_kv,)
        t[:, 2] = RMS_SHARE * xp.sqrt(squares / float(counts.sum() * checks.padded(D)))
        t[:, 0] = -t[:, 2]
    elif rule == "quartiles":
        coordinates = xp.concatenate([hadamard(x) for x in sequences], axis=1).reshape(H_kv, -1)
        t[:] = xp.quantile(coordinates, [0.25, 0.5, 0.75], axis=1).T
    else:
        raise ValueError(f"calibrate: rule={rule!r}; expected 'rms' or 'quartiles'")
    if not xp.isfinite(t).all():
        raise ValueError(
            f"calibrate: {checks.shown('k', a)} gives thresholds {t.tolist()}; expected finite keys"
        )
    return returner(k)(t)


def _sum_of_squares(xp: Any, x: Any) -> Any:
    """Per head (H_kv,), in float64, converting 1024 tokens at a time."""
    total = xp.zeros(len(x))
    for s in range(0, x.shape[1], 1024):
        block = x[:, s : s + 1024].astype(np.float64)
        total += xp.einsum("hsd,hsd->h", block, block)
    return total


class KeyCodes:
    """Codes of the keys of one attention layer, 2 bits a coordinate, that grow token by token.

    Parameters
    ----------
    planes : array (2, B, H_kv, T, 8, P, 8), uint64
        High plane and low plane, each: tile of 64 tokens, group of 8 tokens, word, token in the
        group. Used as it is; `append` writes into its free slots.
    length : int or array (B,) of integers
        Tokens in the planes, of all sequences or of each.
    thresholds : array (H_kv, 3) or (3,), float32
    head_dim : int
        D.
    backend : {"cpu", "gpu", "reference"}, optional
        That of the planes' own device if not given.
    centers : Centers, optional
        Of centered codes: means (B, H_kv, T, Dt), float16; scales (B, H_kv, T, 64), uint8; tail
        (B, H_kv, 64, Dt), float32. Used as they are, like the planes. Thresholds are then in units
        of each token's own rms.

    Attributes
    ----------
    planes, length, thresholds, head_dim, backend
        As above; planes end at the last tile in use. Planes and thresholds are arrays of NumPy,
        or under "gpu" of CuPy; length is kept on the host.
    centers : Centers or None
        As above, up to the last tile in use.
    device : str
        Where the planes lie: "cpu", or "cuda:" and a number.
    tokens : int
        The largest length.
    shape : tuple
        (B, H_kv, tokens, D), the shape of the keys that it stands for.

    See Also
    --------
    encode : makes one from keys.
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
        (buffer,) = views(planes=planes)
        checks.planes("KeyCodes", buffer)
        _, B, H_kv, T, _, P, _ = buffer.shape
        if not 1 <= checks.integer("KeyCodes", "head_dim", head_dim) <= checks.MAX_HEAD_DIM:
            raise ValueError(f"KeyCodes: head_dim={head_dim}; expected 1 to {checks.MAX_HEAD_DIM}")
        if _words(head_dim) != P:
            raise ValueError(
                f"KeyCodes: {checks.shown('planes', buffer)} has P={P} words a plane; expected "
                f"{_words(head_dim)} for head_dim={head_dim}"
            )
        t = thresholds_array(thresholds)
        checks.thresholds("KeyCodes", t, H_kv)
        n = int_or_view("length", length)
        backend = backend or backend_of(buffer)
        load(backend)
        checks.lies_on("KeyCodes", "planes", buffer, BACKENDS[backend])
        self._buffer = buffer
        self._set_length(np.broadcast_to(checks.length("KeyCodes", n, B, TILE * T), (B,)))
        self._ragged = np.ndim(n) == 1
        self.thresholds = array_module(backend).array(np.broadcast_to(t, (H_kv, 3)), order="C")
        self.head_dim = int(head_dim)
        self.backend = backend
        if centers is not None:
            centers = Centers(*views(**centers._asdict()))
            checks.centers("KeyCodes", centers, buffer, head_dim)
        self._centers = centers

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
        """Codes of no token yet, not centered, with room for `capacity`."""
        T = -(-capacity // TILE)
        planes = array_module(backend).zeros((2, B, H_kv, T, 8, _words(head_dim), 8), np.uint64)
        return cls(planes, 0, thresholds, head_dim, backend)

    @property
    def length(self) -> int | np.ndarray[Any, Any]:
        """Tokens: an int, or (B,) where the sequences were given lengths of their own."""
        return self._length.copy() if self._ragged else self.tokens

    @property
    def tokens(self) -> int:
        """The largest length."""
        return self._tokens

    def _set_length(self, length: np.ndarray[Any, Any]) -> None:
        self._length = length.astype(int)
        self._tokens = int(self._length.max(initial=0))

    @property
    def device(self) -> str:
        """Where the planes lie."""
        return checks.device(self._buffer)

    @property
    def planes(self) -> Any:
        """A view of the planes (2, B, H_kv, T, 8, P, 8), T = ceil(tokens / 64)."""
        return self._buffer[:, :, :, : -(-self.tokens // TILE)]

    @property
    def centers(self) -> Centers | None:
        """Views of means and scales of the tiles in use, and the tail; None if not centered."""
        if self._centers is None:
            return None
        means, scales, tail = self._centers
        T = -(-self.tokens // TILE)
        return Centers(means[:, :, :T], scales[:, :, :T], tail)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H_kv, tokens, D)."""
        return self._buffer.shape[1], self._buffer.shape[2], self.tokens, self.head_dim

    @property
    def nbytes(self) -> int:
        """Bytes of the planes in use, and of means, scales and tail."""
        return int(self.planes.nbytes) + sum(int(x.nbytes) for x in self.centers or ())

    def __repr__(self) -> str:
        centered = "" if self._centers is None else ", centered"
        return (
            f"KeyCodes(shape={self.shape}, length={self.length}, backend={self.backend!r}"
            f"{centered})"
        )

    def append(self, k: Array, count: int | Array | None = None) -> None:
        """Encode new tokens' keys behind the others, in place; room grows by doubling.

        Parameters
        ----------
        k : array (B, H_kv, S, D)
            float16, bfloat16 or float32; B may be absent where it is 1.
        count : array (B,) of integers, optional
            How many of the S tokens each sequence really has, the first ones.

        Raises
        ------
        TypeError
            k has another dtype.
        ValueError
            k's shape is not that of the codes, or count is out of range.
        """
        (a,) = views(k=k)
        checks.floats("KeyCodes.append", "k", a, (3, 4))
        a = a[None] if a.ndim == 3 else a
        B, H_kv, _, D = self.shape
        S = a.shape[2]
        if (a.shape[0], a.shape[1], a.shape[3]) != (B, H_kv, D):
            raise ValueError(
                f"KeyCodes.append: {checks.shown('k', a)}; expected ({B}, {H_kv}, S, {D})"
            )
        checks.lies_on("KeyCodes.append", "k", a, self.device)
        added = checks.length(
            "KeyCodes.append", S if count is None else int_or_view("count", count), B, S
        )
        if count is not None:
            self._ragged = True
        self.reserve(self.tokens + S)
        start = self._length if self._ragged else self.tokens
        home = load(self.backend)
        if self._centers is None:
            home.encode(a, self.thresholds, self._buffer, start)
        else:
            centers = self._centers
            home.encode_centered(a, self.thresholds, self._buffer, centers, start, added)
        self._set_length(self._length + added)

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` in all, at least twice the present room where that is short."""
        checks.tokens("KeyCodes.reserve", tokens)
        held = self._buffer.shape[3]
        needed = -(-tokens // TILE)
        # A caller's arrays may be read-only, which CuPy's never are.
        mine = (self._buffer, *(self._centers or ()))
        if needed <= held and all(getattr(x.flags, "writeable", True) for x in mine):
            return
        T = needed if needed <= held else max(needed, 2 * held)
        centers = self.centers
        self._buffer = self._grown(self.planes, 3, T)
        if centers is not None:
            means, scales, tail = centers
            self._centers = Centers(
                self._grown(means, 2, T), self._grown(scales, 2, T), self._grown(tail, 2, TILE)
            )

    def _grown(self, x: Any, axis: int, size: int) -> Any:
        """x in an array of this size along an axis, zeros behind."""
        shape = list(x.shape)
        shape[axis] = size
        grown = array_module(self.backend).zeros(shape, x.dtype)
        grown[(slice(None),) * axis + (slice(x.shape[axis]),)] = x
        return grown

    def truncate(self, tokens: int, k: Array | None = None) -> None:
        """Forget all but the first `tokens` of every sequence.

        Parameters
        ----------
        tokens : int
        k : array (B, H_kv, S, D), optional
            The coded keys, at least `tokens` of them. Centered codes need it where a tile that was
            full is cut, because its tokens are then coded again.

        Raises
        ------
        ValueError
            tokens is out of range, or k is needed and not given, or has another shape.
        """
        if not 0 <= checks.integer("KeyCodes.truncate", "tokens", tokens) <= self.tokens:
            raise ValueError(f"KeyCodes.truncate: tokens={tokens}; expected 0 to {self.tokens}")
        tile, rest = divmod(tokens, TILE)
        cut = np.flatnonzero(self._length // TILE > tile) if self._centers and rest else np.empty(0)
        if len(cut) and k is None:
            raise ValueError(
                f"KeyCodes.truncate: tokens={tokens} cuts a full tile of centered codes of shape "
                f"{self.shape}; expected a multiple of {TILE}, or the keys k"
            )
        if len(cut):
            self._code_again(cut, tokens, k)
        self._set_length(np.minimum(self._length, tokens))

    def _code_again(self, sequences: Any, tokens: int, k: Array | None) -> None:
        """The tokens of a tile that is to be no longer full, against the mean of the one before."""
        (a,) = views(k=k)
        checks.floats("KeyCodes.truncate", "k", a, (3, 4))
        a = a[None] if a.ndim == 3 else a
        B, H_kv, _, D = self.shape
        if a.shape[:2] != (B, H_kv) or a.shape[2] < tokens or a.shape[3] != D:
            raise ValueError(
                f"KeyCodes.truncate: {checks.shown('k', a)}; expected ({B}, {H_kv}, S, {D}) with "
                f"at least {tokens} tokens"
            )
        checks.lies_on("KeyCodes.truncate", "k", a, self.device)
        self.reserve(self.tokens)  # to be writable
        assert self._centers is not None
        first = tokens // TILE * TILE
        for b in map(int, sequences):
            one = slice(b, b + 1)
            means, scales, tail = self._centers
            centers = Centers(means[one], scales[one], tail[one])
            planes = self._buffer[:, one]
            keys = a[one, :, first:tokens]
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
        That of the keys' own device if not given.
    centered : bool
        Code what is left of a key behind the mean of its tile of 64 tokens, by its own rms, and
        keep the mean in float16 and a byte of scale a token: 37 bytes a token at head_dim 128 in
        place of 32, no thresholds, and the better choice where many keys are alike. A tile is
        coded against the mean of the tile before until it is full.

    Returns
    -------
    KeyCodes

    Raises
    ------
    TypeError
        k or thresholds have another dtype.
    ValueError
        Shapes do not fit, thresholds are not ascending or given for centered codes, or there is no
        token to calibrate from.
    """
    (a,) = views(k=k)
    checks.floats("encode", "k", a, (3, 4))
    a = a[None] if a.ndim == 3 else a
    B, H_kv, S, D = a.shape
    checks.tokens("encode", S)
    backend = backend or backend_of(a)
    home = load(backend)
    checks.lies_on("encode", "k", a, BACKENDS[backend])
    n = checks.length("encode", S if length is None else int_or_view("length", length), B, S)
    if centered:
        checks.no_thresholds("encode", thresholds)
        return _encode_centered(home, a, n, backend)
    if thresholds is None:
        sample = np.minimum(n, 1024)
        thresholds = calibrate(a[:, :, :1024], length=sample if np.ndim(n) else int(sample))
    t = thresholds_array(thresholds)
    checks.thresholds("encode", t, H_kv)
    t = np.ascontiguousarray(np.broadcast_to(t, (H_kv, 3)))
    planes = home.encode(a, t)
    return KeyCodes(planes, n, t, D, backend)


def _encode_centered(home: Any, k: Any, n: int | np.ndarray[Any, Any], backend: str) -> KeyCodes:
    B, H_kv, S, D = k.shape
    T, Dt = -(-S // TILE), checks.padded(D)
    xp = array_module(backend)
    planes = xp.zeros((2, B, H_kv, T, 8, _words(D), 8), np.uint64)
    centers = Centers(
        xp.zeros((B, H_kv, T, Dt), np.float16),
        xp.zeros((B, H_kv, T, TILE), np.uint8),
        xp.zeros((B, H_kv, TILE, Dt), np.float32),
    )
    t = np.array([-RMS_SHARE, 0, RMS_SHARE], np.float32)
    home.encode_centered(k, t, planes, centers, 0, n)
    return KeyCodes(planes, n, t, D, backend, centers)


def _words(head_dim: int) -> int:
    """P: words a bit plane of one token."""
    return -(-checks.padded(head_dim) // 64)
