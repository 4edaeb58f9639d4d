"""The 2-bit shadow of the keys: thresholds, encoding, and codes that grow token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import checks, code_store
from .code_store import Coded, Kind, head_thresholds
from .dispatch import (
    BACKENDS,
    DEFAULT_BACKEND,
    Array,
    array_module,
    backend_of,
    int_or_view,
    load,
    on_host,
    on_host_thresholds,
    returner,
    views,
)
from .lengths import Lengths
from .ops import hadamard
from .pairs import words_or_pairs
from .reference.center import CENTERED_THRESHOLDS, RMS_SHARE
from .reference.layout import TILE, Centers, Codes, Fine, padded
from .slot import Slot
from .token_codes import TokenCodes

NDArray = np.ndarray[Any, Any]

# The thresholds of the published code, the same for queries and keys (arXiv 2510.18413).
PAPER = np.array([-10, 0, 10], np.float32)
PAPER.setflags(write=False)

SAMPLE = 1024  # leading tokens per sequence that plain codes are calibrated from


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
        # Sorted, so that the order of the sequences does not change the sum.
        squares = sum(xp.sort(xp.stack([_sum_of_squares(xp, x) for x in sequences]), axis=0))
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


class KeyCodes(TokenCodes):
    """Codes of the keys of one attention layer, 2 bits per coordinate, that grow token by token.

    Parameters
    ----------
    planes : array (2, B, H_kv, T, 8, P, 8), uint64, or (2, B, H_kv, T, 8, P, 8, 2), uint32
        High plane and low plane. The axes of each plane are tile of 64 tokens, group of 8 tokens,
        word, token in the group. uint32 are pairs, as of `as_pairs`. The array is not copied;
        `append` writes into its free slots.
    length : int or array (B,) of integers
        Tokens in the planes, for all sequences or for each.
    thresholds : array (H_kv, 3) or (3,), or three numbers
        Finite and ascending. They are converted to float32. For centered codes they are in units of
        the rms of each token.
    head_dim : int
        D.
    backend : {"cpu", "gpu", "reference"}, optional
        The backend of the planes' device if not given.
    centers : Centers, optional
        For centered codes: means (B, H_kv, T, Dt), float16; scales (B, H_kv, T, 64), uint8;
        open_tile (B, H_kv, 64, Dt), float32. The arrays are not copied.
    fine : Fine, optional
        For centered codes of three bits: bits (B, H_kv, T, 64, P), uint64, or pairs
        (B, H_kv, T, 64, P, 2), uint32; scales (B, H_kv, T, 64), uint8. The arrays are not copied.

    Attributes
    ----------
    planes : array
        A view of the tiles in use, of NumPy, or under "gpu" of CuPy.
    thresholds : array (H_kv, 3)
    head_dim, backend
        As above.
    centered : bool
        Whether the codes are centered.
    bits : int
        Bits per coordinate: 2, or 3 where a tail can read a third one.
    length : int or array (B,)
        On the host. An array where sequences were given lengths of their own.
    tokens : int
        The largest length.
    centers : Centers or None
        Views of the tiles in use; None for plain codes.
    fine : Fine or None
        Views of the tiles in use; None for codes of two bits.
    record : Codes
        Planes, length, thresholds, centers and fine as one tuple, which backends read.
    device : str
        The device of the planes: "cpu", or "cuda:" and a number.
    shape : tuple
        (B, H_kv, tokens, D), the shape of the coded keys.

    See Also
    --------
    encode : makes codes from keys.
    """

    __slots__ = ("_slot",)

    name = "KeyCodes"
    rows = "k"

    def __init__(
        self,
        planes: Array,
        length: int | Array,
        thresholds: Array | Sequence[float],
        head_dim: int,
        backend: str | None = None,
        centers: Centers | None = None,
        fine: Fine | None = None,
    ) -> None:
        where = "KeyCodes"
        buffer = words_or_pairs(where, "planes", *views(planes=planes))
        checks.planes(where, buffer)
        _, B, H_kv, T, _, _, _ = buffer.shape
        checks.head_dim(where, head_dim)
        checks.words_per_plane(where, buffer, head_dim)
        t = on_host_thresholds(where, thresholds)
        checks.thresholds(where, t, H_kv)
        n = checks.length(where, "length", int_or_view("length", length), B, TILE * T, "planes")
        backend = backend or backend_of(buffer)
        load(backend)
        checks.lies_on(where, "planes", buffer, BACKENDS[backend])
        if centers is not None:
            checks.instance(where, "centers", centers, Centers, "Centers")
            centers = Centers(*views(**centers._asdict()))
            checks.centers(where, centers, buffer, head_dim)
        if fine is not None:
            checks.instance(where, "fine", fine, Fine, "Fine")
            checks.code_bits(where, 3, centers is not None)
            bits, scales = views(**fine._asdict())
            fine = Fine(words_or_pairs(where, "fine.bits", bits), scales)
            checks.fine(where, fine, buffer)
        t = head_thresholds(t, H_kv, backend)
        lengths = Lengths.of(n, B)
        self._slot = Slot(Coded(buffer, centers, fine, t, lengths, int(head_dim), backend))

    @classmethod
    def _of(cls, coded: Coded) -> KeyCodes:
        """Take codes that are known to be right."""
        codes = cls.__new__(cls)
        codes._slot = Slot(coded)
        return codes

    @classmethod
    def empty(
        cls,
        B: int,
        H_kv: int,
        head_dim: int,
        thresholds: Array | Sequence[float] | None = None,
        backend: str = DEFAULT_BACKEND,
        capacity: int = 0,
        bits: int = 2,
    ) -> KeyCodes:
        """Codes of no token yet, with room for `capacity` tokens.

        Without thresholds they are centered. Plain codes need thresholds, because there is no token
        to calibrate from. bits as in `encode`.
        """
        where = "KeyCodes.empty"
        checks.at_least(where, "B", B, 0)
        checks.at_least(where, "H_kv", H_kv, 1)
        checks.head_dim(where, head_dim)
        checks.at_least(where, "capacity", capacity, 0)
        load(backend)
        if thresholds is not None:
            t = on_host_thresholds(where, thresholds)
            checks.thresholds(where, t, H_kv)
        else:
            t = CENTERED_THRESHOLDS
        by_means = thresholds is None
        kind = Kind(by_means, checks.code_bits(where, bits, by_means) == 3)
        t = head_thresholds(t, H_kv, backend)
        return cls._of(code_store.empty(B, H_kv, head_dim, t, backend, capacity, kind))

    @classmethod
    def from_arrays(cls, codes: Codes, head_dim: int, backend: str | None = None) -> KeyCodes:
        """Wrap the arrays of a caller, without a copy: `encode_into` and `arrays` give such ones.

        The arguments are those of `KeyCodes`, in one record. `append` writes into the arrays as
        long as there is room in them, and else goes on with larger ones of its own.
        """
        checks.instance("KeyCodes.from_arrays", "codes", codes, Codes, "a Codes")
        planes, length, thresholds, centers, fine = codes
        return cls(planes, length, thresholds, head_dim, backend, centers, fine)

    def arrays(self) -> Codes:
        """The arrays with all their room, as one record, without a copy.

        They stay those of the codes until an operation needs more room, or a read-only array has to
        be written.
        """
        held = self._coded()
        return Codes(held.planes, held.lengths.given(), held.thresholds, held.centers, held.fine)

    @property
    def planes(self) -> Any:
        """A view of the planes (2, B, H_kv, T, 8, P, 8), T = ceil(tokens / 64)."""
        return self._coded().used()

    @property
    def centers(self) -> Centers | None:
        """Means and scales of the tiles in use, and the open tile; None if plain.

        Rows of the open tile that belong to no token of it are 0.
        """
        coded = self._coded()
        centers = coded.used_centers()
        if centers is None:
            return None
        open_tile = centers.open_tile.copy()
        for b, n in enumerate(coded.lengths.each):
            open_tile[b, :, n % TILE :] = 0
        return centers._replace(open_tile=open_tile)

    @property
    def centered(self) -> bool:
        """Whether the codes are relative to the means of their tiles."""
        return self._coded().centers is not None

    @property
    def bits(self) -> int:
        """Bits per coordinate, 2 or 3."""
        return 2 if self._coded().fine is None else 3

    @property
    def fine(self) -> Fine | None:
        """Third bits and their scales of the tiles in use; None for codes of two bits."""
        return self._coded().used_fine()

    def _coded(self) -> Coded:
        """The codes, after the repair of an operation that did not end."""
        return self._slot.now()

    @property
    def thresholds(self) -> Any:
        """(H_kv, 3), on the device of the planes. In NumPy the array is read-only."""
        return self._coded().thresholds

    @property
    def record(self) -> Codes:
        """Planes, length, thresholds, centers and fine as backends read them."""
        return self._coded().record()

    def __repr__(self) -> str:
        return (
            f"KeyCodes(shape={self.shape}, length={self.length}, centered={self.centered}, "
            f"bits={self.bits}, backend={self.backend!r})"
        )

    def append(self, k: Array, count: int | Array | None = None) -> None:
        """Encode the keys of new tokens after the others, in place. Room grows by doubling.

        If the call fails or is interrupted, the codes are as before.

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
        a, added, lengths = self._new(k, count)
        coded = self._coded()
        self._slot.change(lambda guard: code_store.append(coded, a, added, lengths, guard))

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` in all. Room that is too short becomes at least twice as large."""
        checks.at_least("KeyCodes.reserve", "tokens", tokens, 0)
        checks.tokens("KeyCodes.reserve", tokens)
        self._slot.put(code_store.reserve(self._coded(), tokens))

    def truncate(self, tokens: int | Sequence[int] | Array, k: Array | None = None) -> None:
        """Forget all but the first `tokens` tokens of every sequence.

        Afterwards the codes are those of the tokens that are kept, as if no other had come. If the
        call fails or is interrupted, the codes are as before.

        Parameters
        ----------
        tokens : int, or (B,) integers
            One number for all sequences, of which shorter ones stay as they are. Or a number per
            sequence, at most its length.
        k : array (B, H_kv, S, D), optional
            The coded keys, at least as many as the longest sequence keeps. Centered codes need them
            where the cut opens a full tile again, because the tokens of that tile are then coded
            again.

        Raises
        ------
        ValueError
            tokens is out of range, or k is needed and not given, or has another shape.
        """
        coded, lengths = self._coded(), self._left(tokens)
        keys = None
        if coded.centers is not None and code_store.reopened(coded.lengths, lengths).any():
            where = "KeyCodes.truncate"
            if k is None:
                raise ValueError(
                    f"{where}: tokens={tokens} cuts a full tile of centered codes of shape "
                    f"{self.shape}; expected a multiple of {TILE}, or the keys k"
                )
            keys = self._given(where, k, lengths.longest)
        self._slot.change(lambda guard: code_store.cut(coded, lengths, keys, guard))


def encode(
    k: Array,
    thresholds: Array | Sequence[float] | None = None,
    length: int | Array | None = None,
    backend: str | None = None,
    centered: bool | None = None,
    bits: int = 2,
) -> KeyCodes:
    """Codes of cached keys, which `select_topk` searches.

    Parameters
    ----------
    k : array (B, H_kv, S, D)
        float16, bfloat16 or float32, as cached (after RoPE); B may be absent.
    thresholds : array (H_kv, 3) or (3,), or three numbers, optional
        The thresholds of plain codes, finite and ascending; PAPER for the paper's. They are
        converted to float32, so the float64 results of `np.quantile` can be given.
    length : int or array (B,) of integers, optional
        Leading tokens of each sequence that count; all S if not given.
    backend : {"cpu", "gpu", "reference"}, optional
        The backend of the keys' device if not given.
    centered : bool, optional
        Centered or plain codes. If not given: plain codes where thresholds are given, else centered
        ones.

        Centered codes: subtract from each key the mean of its tile of 64 tokens, and code the rest
        at its own rms. The mean is kept in float16, and one byte of scale per token: 37 bytes per
        token at head_dim 128. Nothing is calibrated. While a tile is open, it uses the mean of the
        tile before it.

        Plain codes: cut each key itself, at the same thresholds for all tokens of a head: 32 bytes
        per token at head_dim 128. Without thresholds they use `calibrate` of the first 1024 tokens.
        metric="manhattan" needs plain codes. They find far fewer of the best tokens where the keys
        have a large part in common.
    bits : {2, 3}
        Bits per coordinate. A search reads two. `attend_tail` needs the third one, for the tokens
        of its tail, and so centered codes. It takes 17 bytes more per token at head_dim 128.

    Returns
    -------
    KeyCodes

    Raises
    ------
    TypeError
        k has another dtype, thresholds are not real numbers, or centered is not a bool.
    ValueError
        Shapes do not fit. The thresholds are not finite, do not ascend or are given with
        centered=True. Plain codes have no token to calibrate from, or bits is 3.
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
    by_means = checks.centered(where, centered, thresholds)
    kind = Kind(by_means, checks.code_bits(where, bits, by_means) == 3)
    n = S if length is None else int_or_view("length", length)
    n = checks.length(where, "length", n, B, S, "k")
    t = None
    if thresholds is not None:
        t = on_host_thresholds(where, thresholds)
        checks.thresholds(where, t, H_kv)
    return KeyCodes._of(encoded(a, Lengths.of(n, B), t, backend, kind))


def key_codes(where: str, codes: KeyCodes | Codes, head_dim: int) -> KeyCodes:
    """The codes of a caller; arrays of a caller are wrapped."""
    if isinstance(codes, Codes):
        return KeyCodes.from_arrays(codes, head_dim)
    checks.instance(where, "codes", codes, KeyCodes, "the KeyCodes that encode(k) returns")
    return codes


def encoded(
    k: Any, lengths: Lengths, thresholds: NDArray | None, backend: str, kind: Kind
) -> Coded:
    """Codes of checked keys (B, H_kv, S, D); plain codes without thresholds are calibrated."""
    B, H_kv, S, D = k.shape
    if kind.centered:
        rule = CENTERED_THRESHOLDS
    elif thresholds is None:
        rule = sample_thresholds(k, sample_of(lengths))
    else:
        rule = thresholds
    t = head_thresholds(rule, H_kv, backend)
    state = code_store.empty(B, H_kv, D, t, backend, S, kind)
    return code_store.append(state, k, lengths.given(), lengths, lambda undo: None)


def sample_of(lengths: Lengths) -> NDArray:
    """How many tokens of each sequence (B,) thresholds are calibrated from."""
    sample: NDArray = np.minimum(lengths.each, SAMPLE)
    return sample


def sample_thresholds(k: Any, counts: NDArray) -> NDArray:
    """Thresholds (H_kv, 3) on the host, from the first counts (B,) tokens of checked keys."""
    return on_host(_calibrated(k[:, :, :SAMPLE], counts))
