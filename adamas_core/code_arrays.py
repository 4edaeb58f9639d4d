"""encode_into: codes in arrays that the caller owns, for static and paged caches."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import checks
from .codes import KeyCodes
from .dispatch import Array, int_or_view, load, views
from .reference.layout import TILE, Codes

NDArray = np.ndarray[Any, Any]


def encode_into(
    k: Array,
    codes: Codes,
    start: int | Array | None = None,
    count: int | Array | None = None,
) -> Codes:
    """Code the keys of new tokens into the caller's arrays, in place.

    Nothing is allocated, and nothing is kept after the call. The same arrays can be read by
    `select_topk`, and written by the C function `adamas_append_keys`, which has this contract too.

    Parameters
    ----------
    k : array (B, H_kv, S, D)
        float16, bfloat16 or float32, as cached (after RoPE); B may be absent where it is 1.
    codes : Codes
        The arrays, with room for 64 T tokens. They can be written. Free slots may hold anything.
        ``KeyCodes.empty(B, H_kv, D, capacity=...).arrays()`` makes some.
    start : int or array (B,) of integers, optional
        The slot of the first new token of each sequence, `codes.length` if not given. The tokens
        before it are coded already.

        Tokens of centered codes depend on those before them in their tile of 64. So to write over
        tokens again, start in the tile that was open last, at or before its newest token, or at the
        first token of any tile.
    count : int or array (B,) of integers, optional
        How many of the S tokens each sequence really has: its first ones. All S if not given.

    Returns
    -------
    Codes
        The same arrays, with the length start + count. It is an int if both are ints.

    Raises
    ------
    TypeError
        codes is not a Codes, or k or one of the arrays has another dtype.
    ValueError
        Shapes do not fit each other, an array is read-only, or there is no room for the tokens.
        Then nothing was written.

    See Also
    --------
    KeyCodes : owns its arrays, and grows. ``KeyCodes.from_arrays(codes, D)`` wraps the caller's.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas_core import KeyCodes, encode_into, select_topk
    >>> k = np.random.default_rng(0).standard_normal((2, 1000, 64), dtype=np.float32)
    >>> codes = KeyCodes.empty(1, 2, 64, capacity=4096).arrays()
    >>> codes = encode_into(k[:, :900], codes, start=0)
    >>> codes = encode_into(k[:, 900:], codes)
    >>> codes.length
    1000
    >>> select_topk(8 * k[:, 417:418], codes, budget=1)[:, 0, 0]
    array([417, 417], dtype=int32)
    """
    where = "encode_into"
    checks.instance(where, "codes", codes, Codes, "a Codes, as KeyCodes.arrays() returns")
    (a,) = views(k=k)
    checks.floats(where, "k", a, (3, 4))
    held = KeyCodes.from_arrays(codes._replace(length=0), a.shape[-1])
    a = held._given(where, a)
    home, record = load(held.backend), held.arrays()
    _writable(where, record)
    B, _, S, _ = a.shape
    room = TILE * record.planes.shape[3]
    first = int_or_view("start", codes.length if start is None else start)
    first = checks.length(where, "start", first, B, room, "the arrays")
    added = S if count is None else int_or_view("count", count)
    added = checks.length(where, "count", added, B, S, "k")
    length: Any = first + added
    if np.max(length, initial=0) > room:
        raise ValueError(
            f"{where}: start={first} and {added} tokens; expected at most {room} tokens in all, "
            f"the room of {checks.shown('planes', record.planes)}"
        )
    planes, thresholds = record.planes, record.thresholds
    if record.centers is not None:
        home.encode_centered(a, thresholds, planes, record.centers, first, added, record.fine)
    elif np.ndim(added):  # this kernel codes all the tokens that it gets
        starts = np.broadcast_to(first, (B,))
        for b, n in enumerate(map(int, added)):  # type: ignore[arg-type]
            one = slice(b, b + 1)
            home.encode(a[one, :, :n], thresholds, planes[:, one], int(starts[b]))
    else:
        home.encode(a[:, :, :added], thresholds, planes, first)
    return codes._replace(length=length)


def _writable(where: str, record: Codes) -> None:
    """Reject arrays of NumPy that are read-only; CuPy's never are."""
    own = {"planes": record.planes}
    own |= {} if record.centers is None else record.centers._asdict()
    own |= {} if record.fine is None else {f"fine.{n}": x for n, x in record.fine._asdict().items()}
    for name, x in own.items():
        if not getattr(x.flags, "writeable", True):
            raise ValueError(
                f"{where}: {checks.shown(name, x)} is read-only; expected an array that can be "
                "written"
            )
