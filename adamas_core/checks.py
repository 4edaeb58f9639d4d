"""The errors: every argument is checked once, here, before a backend sees it.

A message names the function and the argument, shows its shape and dtype and says what was
expected. A wrong dtype or type is a TypeError, a wrong shape or value a ValueError.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .reference.score import INVISIBLE

if TYPE_CHECKING:
    from .reference.center import Centers

NDArray = np.ndarray[Any, Any]

METRICS = ("weighted", "manhattan")
FLOATS = ("float16", "bfloat16", "float32")
MAX_HEAD_DIM = 2048  # 3 * 7 * 2048 = 43008 is the largest distance that must fit below INVISIBLE

MAX_TOKENS = 2**31 - 1

_checked: ContextVar[bool] = ContextVar(
    "adamas_checked", default=os.environ.get("ADAMAS_CHECKED", "0") not in ("", "0")
)


@contextmanager
def checked(on: bool = True) -> Iterator[None]:
    """Checked mode: inside the block, float inputs that hold a NaN are refused.

    The search reads every float input once more, so it is off by default; the environment
    variable ``ADAMAS_CHECKED=1`` turns it on for a whole process.

    Parameters
    ----------
    on : bool
        False turns the mode off inside the block.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas_core import checked, hadamard
    >>> with checked():
    ...     hadamard(np.array([1.0, np.nan], np.float32))
    Traceback (most recent call last):
    ValueError: hadamard: x is float32 (2,); expected no NaN, found 1, the first at (1,)
    """
    token = _checked.set(on)
    try:
        yield
    finally:
        _checked.reset(token)


def shown(name: str, x: NDArray) -> str:
    """An array as every message shows it."""
    return f"{name} is {x.dtype} {x.shape}"


def device(x: NDArray | Any) -> str:
    """Where a backend's array lies, as messages say it: cpu, or cuda:0."""
    return "cpu" if isinstance(x, np.ndarray) else f"cuda:{x.device.id}"


def lies_on(where: str, name: str, x: NDArray, expected: str) -> None:
    """An array on an expected device, "cuda" standing for any of them."""
    if expected not in (device(x), device(x).partition(":")[0]):
        raise ValueError(
            f"{where}: {shown(name, x)} on {device(x)}; expected {expected}, and no array is "
            "copied between devices"
        )


@cache
def _is_float(kind: np.dtype[Any]) -> bool:
    """One of FLOATS in native byte order; cached, since the name of a dtype takes NumPy 4 us."""
    return kind.name in FLOATS and kind.isnative


def floats(where: str, name: str, x: NDArray, ndims: tuple[int, ...] | None = None) -> None:
    """A float array whose last axis is contiguous, at most MAX_HEAD_DIM long."""
    if not _is_float(x.dtype):
        raise TypeError(f"{where}: {shown(name, x)}; expected dtype {', '.join(FLOATS)}")
    if ndims is None:
        if x.ndim == 0:
            raise ValueError(f"{where}: {shown(name, x)}; expected at least one axis, head_dim")
    elif x.ndim not in ndims:
        expected = " or ".join(map(str, ndims))
        raise ValueError(f"{where}: {shown(name, x)}; expected {expected} axes")
    if not 1 <= x.shape[-1] <= MAX_HEAD_DIM:
        raise ValueError(
            f"{where}: {shown(name, x)}; expected a last axis, head_dim, of 1 to {MAX_HEAD_DIM}"
        )
    contiguous(where, name, x)
    if _checked.get():
        no_nan(where, name, x)


def no_nan(where: str, name: str, x: NDArray) -> None:
    """No NaN anywhere in a float array."""
    found = np.isnan(x)
    if found.any():
        first = tuple(int(i) for i in np.argwhere(found)[0])
        raise ValueError(
            f"{where}: {shown(name, x)}; expected no NaN, found {int(found.sum())}, "
            f"the first at {first}"
        )


def contiguous(where: str, name: str, x: NDArray, axes: int = 1) -> None:
    """The last axes lie together in memory and are aligned; the leading strides are free."""
    expected = x.itemsize
    for axis in range(x.ndim - 1, x.ndim - 1 - axes, -1):
        if x.shape[axis] > 1 and x.strides[axis] != expected and x.size:
            what = "last axis" if axes == 1 else f"last {axes} axes"
            raise ValueError(
                f"{where}: {shown(name, x)} with strides {x.strides}; expected the {what} "
                f"contiguous, pass np.ascontiguousarray({name})"
            )
        expected *= x.shape[axis]
    if not (x.flags.aligned if isinstance(x, np.ndarray) else x.data.ptr % x.itemsize == 0):
        raise ValueError(
            f"{where}: {shown(name, x)} at an address that is no multiple of its itemsize "
            f"{x.itemsize}; expected aligned memory, pass {name}.copy()"
        )


def dtype(where: str, name: str, x: NDArray, expected: str) -> None:
    """One dtype, in native byte order."""
    if x.dtype.name != expected or not x.dtype.isnative:
        raise TypeError(f"{where}: {shown(name, x)}; expected dtype {expected}")


def thresholds(where: str, t: NDArray, heads: int | None) -> None:
    """Three thresholds, or three a head, ascending; equal ones are allowed."""
    dtype(where, "thresholds", t, "float32")
    if t.shape != (3,) and (heads is None or t.shape != (heads, 3)):
        expected = "(3,)" if heads is None else f"(3,) or ({heads}, 3)"
        raise ValueError(f"{where}: {shown('thresholds', t)}; expected shape {expected}")
    if not (t[..., :-1] <= t[..., 1:]).all():
        raise ValueError(f"{where}: {shown('thresholds', t)}, {t.tolist()}; expected ascending")


def no_thresholds(where: str, given: object) -> None:
    """None, as centered codes need."""
    if given is not None:
        raise ValueError(
            f"{where}: thresholds={given} with centered=True, which cuts at each token's own rms; "
            "expected thresholds=None"
        )


def metric(where: str, name: str) -> None:
    """One of the two metrics."""
    if name not in METRICS:
        raise ValueError(f"{where}: metric={name!r}; expected {' or '.join(map(repr, METRICS))}")


def query_bits(where: str, name: str, bits: int, head_dim: int) -> None:
    """A sign and 1 to 7 bits of weight, whose largest distance stays below INVISIBLE."""
    if not 2 <= integer(where, name, bits) <= 8:
        raise ValueError(f"{where}: {name}={bits}; expected 2 to 8")
    largest = 3 * (2 ** (bits - 1) - 1) * padded(head_dim)
    if largest >= INVISIBLE:
        raise ValueError(
            f"{where}: {name}={bits} at head_dim {head_dim} gives distances up to {largest}; "
            f"expected less than {INVISIBLE}, which uint16 can hold"
        )


def together(
    where: str, metric: str, centered: bool, group: object, prefilter: int, refine: int
) -> None:
    """Options that go together: estimates come from weighted distances, and groups choose once."""
    if not isinstance(group, (bool, np.bool_)):
        raise TypeError(f"{where}: group={group!r}; expected True or False")
    if metric != "weighted" and (centered or group):
        what = "group=True" if group else "centered codes"
        raise ValueError(
            f"{where}: metric={metric!r} with {what}, which need estimates of q.k; expected "
            "metric='weighted'"
        )
    if group and (prefilter or refine):
        raise ValueError(
            f"{where}: group=True with prefilter={prefilter} and refine={refine}, which rank "
            "tokens for each head; expected both 0"
        )


def padded(head_dim: int) -> int:
    """Dt: head_dim rounded up to a power of two."""
    return 1 << (head_dim - 1).bit_length()


def integer(where: str, name: str, value: object) -> int:
    """A Python or NumPy integer that is no bool."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{where}: {name}={value!r}; expected an integer")
    return int(value)


def at_least(where: str, name: str, value: object, low: int) -> int:
    """An integer that is not below `low`."""
    number = integer(where, name, value)
    if number < low:
        raise ValueError(f"{where}: {name}={value}; expected at least {low}")
    return number


def budget(where: str, K: int, S: int, shape: tuple[int, ...], sinks: int, recent: int) -> None:
    """1 to S tokens, room for the forced ones included."""
    if at_least(where, "budget", K, 1) > S:
        raise ValueError(
            f"{where}: budget={K} is above the {S} tokens of shape {shape}; expected at most {S}"
        )
    forced(where, K, sinks, recent)


def forced(where: str, K: int, sinks: int, recent: int) -> None:
    """Sinks and recent tokens count towards the budget, so it must hold both."""
    both = at_least(where, "sinks", sinks, 0) + at_least(where, "recent", recent, 0)
    if both > K:
        raise ValueError(
            f"{where}: sinks={sinks} and recent={recent} are {both} tokens; expected at most "
            f"budget={K}"
        )


def length(where: str, n: object, B: int, capacity: int) -> int | NDArray:
    """An integer, or one a sequence, of 0 to `capacity` tokens."""
    if isinstance(n, np.ndarray):
        if n.dtype.kind not in "iu":
            raise TypeError(f"{where}: {shown('length', n)}; expected integers")
        if n.shape != (B,):
            raise ValueError(f"{where}: {shown('length', n)}; expected shape ({B},)")
        low, high = int(n.min(initial=0)), int(n.max(initial=0))
        value: int | NDArray = n
    else:
        low = high = value = integer(where, "length", n)
    if low < 0 or high > capacity:
        raise ValueError(f"{where}: length={n}; expected 0 to {capacity}, what the planes hold")
    return value


def tokens(where: str, S: int) -> None:
    """As many tokens as an int32 index can name."""
    if S > MAX_TOKENS:
        raise ValueError(f"{where}: {S} tokens; expected at most {MAX_TOKENS}, an int32 index")


def planes(where: str, x: NDArray) -> None:
    """Key planes (2, B, H_kv, T, 8, P, 8)."""
    dtype(where, "planes", x, "uint64")
    if x.ndim != 7 or x.shape[0] != 2 or x.shape[4] != 8 or x.shape[6] != 8 or x.shape[5] < 1:
        raise ValueError(
            f"{where}: {shown('planes', x)}; expected (2, B, H_kv, T, 8, P, 8), or without B"
        )
    contiguous(where, "planes", x, axes=4)


def centers(where: str, given: Centers, planes: NDArray, head_dim: int) -> None:
    """Means, scales and tail of key planes, where the planes lie."""
    _, B, H_kv, T, _, _, _ = planes.shape
    Dt = padded(head_dim)
    expected = {
        "means": ("float16", (B, H_kv, T, Dt)),
        "scales": ("uint8", (B, H_kv, T, 64)),
        "tail": ("float32", (B, H_kv, 64, Dt)),
    }
    for name, x in given._asdict().items():
        kind, shape = expected[name]
        dtype(where, name, x, kind)
        if x.shape != shape:
            raise ValueError(f"{where}: {shown(name, x)}; expected {shape}, as planes have tiles")
        contiguous(where, name, x, axes=2)
        lies_on(where, name, x, device(planes))


def heads(where: str, names: str, q: tuple[int, ...], kv: tuple[int, ...]) -> None:
    """The batch of q (B, H, ...) is that of kv (B, H_kv, ...), and H a multiple of H_kv."""
    if q[0] != kv[0]:
        raise ValueError(f"{where}: {names} have shapes {q} and {kv}; expected the same batch")
    if kv[1] == 0 or q[1] % kv[1]:
        raise ValueError(
            f"{where}: {names} have shapes {q} and {kv}; expected the query heads, {q[1]}, to be "
            f"a multiple of the KV heads, {kv[1]}"
        )


def keys_values(where: str, k: NDArray, v: NDArray, ndims: tuple[int, ...]) -> None:
    """Keys and values of one shape and dtype."""
    floats(where, "k", k, ndims)
    floats(where, "v", v, ndims)
    if k.shape != v.shape or k.dtype != v.dtype:
        raise ValueError(
            f"{where}: {shown('k', k)} and {shown('v', v)}; expected one shape and dtype"
        )


def same_head_dim(where: str, q: NDArray, name: str, D: int) -> None:
    """q's head_dim is that of the keys."""
    if q.shape[-1] != D:
        raise ValueError(
            f"{where}: {shown('q', q)}; expected head_dim {D}, as {name} has, in its last axis"
        )


def transformed(where: str, x: NDArray) -> None:
    """A last axis that is a power of two, as hadamard leaves it."""
    if padded(x.shape[-1]) != x.shape[-1]:
        raise ValueError(
            f"{where}: {shown('x', x)}; expected a power of two in the last axis, as hadamard(x) "
            "has"
        )
