"""The errors: every argument is checked once, here, before a backend sees it.

- A message names the function and the argument, shows its shape and dtype, and says what was
  expected.
- A wrong type or dtype is a TypeError. A wrong shape or value is a ValueError.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np

from .reference.layout import (
    INVISIBLE,
    MAX_HEAD_DIM,
    TILE,
    Centers,
    Fine,
    Selection,
    padded,
    words,
)

NDArray = np.ndarray[Any, Any]

METRICS = ("weighted", "manhattan")
FLOATS = ("float16", "bfloat16", "float32")
MAX_TOKENS = 2**31 - 1
MAX_FLOAT32 = float(np.finfo(np.float32).max)

_checked: ContextVar[bool] = ContextVar(
    "adamas_checked", default=os.environ.get("ADAMAS_CHECKED", "0") not in ("", "0")
)


@contextmanager
def checked(on: bool = True) -> Iterator[None]:
    """Checked mode: inside the block, a NaN in a float input is an error.

    The check reads every float input one more time, so the mode is off by default. The environment
    variable ``ADAMAS_CHECKED=1`` turns it on for the whole process.

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
    """Name, dtype and shape of an array, as every message shows them."""
    return f"{name} is {x.dtype} {x.shape}"


def stated(name: str, value: object) -> str:
    """Name and value, as messages show an argument that should be no array: at most 80 characters.

    A large array that is there by mistake, as in ``append(0, k, v)``, is shown as an array.
    """
    text = " ".join(repr(value).split())
    if len(text) <= 80:
        return f"{name}={text}"
    if isinstance(value, np.ndarray):
        return shown(name, value)
    return f"{name}={text[:77]}..."


def device(x: NDArray | Any) -> str:
    """The device of a backend's array, as messages show it: cpu, or cuda:0."""
    return "cpu" if isinstance(x, np.ndarray) else f"cuda:{x.device.id}"


def lies_on(where: str, name: str, x: NDArray, expected: str) -> None:
    """Reject an array on another device than `expected`; "cuda" is any CUDA device."""
    if expected not in (device(x), device(x).partition(":")[0]):
        raise ValueError(
            f"{where}: {shown(name, x)} on {device(x)}; expected {expected}, and no array is "
            "copied between devices"
        )


@cache
def _is_float(kind: np.dtype[Any]) -> bool:
    """Whether a dtype is one of FLOATS, in native order; cached: NumPy takes 4 us for a name."""
    return kind.name in FLOATS and kind.isnative


def floats(where: str, name: str, x: NDArray, ndims: tuple[int, ...] | None = None) -> None:
    """Reject an array that is not float, or whose last axis is not contiguous or too long."""
    float_shape(where, name, x, ndims)
    contiguous(where, name, x)
    if _checked.get():
        no_nan(where, name, x)


def float_shape(where: str, name: str, x: Any, ndims: tuple[int, ...] | None = None) -> None:
    """Reject an array that is not float, or whose last axis is too long; x may be a tracer."""
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


def no_nan(where: str, name: str, x: NDArray) -> None:
    """Reject a NaN anywhere in a float array."""
    found = np.isnan(x)
    if found.any():
        first = tuple(int(i) for i in np.argwhere(found)[0])
        raise ValueError(
            f"{where}: {shown(name, x)}; expected no NaN, found {int(found.sum())}, "
            f"the first at {first}"
        )


def contiguous(where: str, name: str, x: NDArray, axes: int = 1) -> None:
    """Reject last axes that are not contiguous or not aligned; other strides are free."""
    expected = x.itemsize
    for axis in range(x.ndim - 1, x.ndim - 1 - axes, -1):
        if x.shape[axis] > 1 and x.strides[axis] != expected and x.size:
            last = "last axis" if axes == 1 else f"last {axes} axes"
            raise ValueError(
                f"{where}: {shown(name, x)} with strides {x.strides}; expected the {last} "
                f"contiguous, pass np.ascontiguousarray({name})"
            )
        expected *= x.shape[axis]
    if not (x.flags.aligned if isinstance(x, np.ndarray) else x.data.ptr % x.itemsize == 0):
        raise ValueError(
            f"{where}: {shown(name, x)} at an address that is not a multiple of its itemsize "
            f"{x.itemsize}; expected aligned memory, pass {name}.copy()"
        )


def dtype(where: str, name: str, x: NDArray, expected: str) -> None:
    """Reject another dtype than `expected`, or another byte order than the native one."""
    if x.dtype.name != expected or not x.dtype.isnative:
        raise TypeError(f"{where}: {shown(name, x)}; expected dtype {expected}")


def thresholds(where: str, t: NDArray, heads: int | None) -> None:
    """Reject thresholds that are not (3,) or (heads, 3), not finite, or descend anywhere."""
    dtype(where, "thresholds", t, "float32")
    if t.shape != (3,) and (heads is None or t.shape != (heads, 3)):
        expected = "(3,)" if heads is None else f"(3,) or ({heads}, 3)"
        raise ValueError(f"{where}: {shown('thresholds', t)}; expected shape {expected}")
    if not np.isfinite(t).all() or not (t[..., :-1] <= t[..., 1:]).all():
        raise ValueError(
            f"{where}: {shown('thresholds', t)}, {t.tolist()}; expected finite numbers, ascending"
        )


def centered(
    where: str, given: object, thresholds: object, selection: Selection | None = None
) -> bool:
    """Whether codes are centered: as asked for, else unless thresholds or the metric forbid it."""
    if given is None:
        found = thresholds is None and (selection is None or selection.metric == "weighted")
        if selection is not None and not found:
            tail_of_plain(where, selection)
        return found
    true_or_false(where, "centered", given)
    if given and thresholds is not None:
        raise ValueError(
            f"{where}: thresholds={thresholds} with centered=True; expected thresholds=None, "
            "because centered codes cut each token at its own rms"
        )
    if given and selection is not None:
        centered_metric(where, selection)
    if not given and selection is not None:
        tail_of_plain(where, selection)
    return bool(given)


def code_bits(where: str, bits: int, centered: bool) -> int:
    """The bits of a key's coordinate: 2, or 3 for centered codes."""
    if integer(where, "bits", bits) not in (2, 3):
        raise ValueError(f"{where}: bits={bits}; expected 2 or 3")
    if bits == 3 and not centered:
        raise ValueError(f"{where}: bits=3 with plain codes; expected bits=2, or centered codes")
    return int(bits)


def metric(where: str, name: str) -> None:
    """Reject an unknown metric."""
    if name not in METRICS:
        raise ValueError(f"{where}: metric={name!r}; expected {' or '.join(map(repr, METRICS))}")


def query_bits(where: str, name: str, bits: int) -> None:
    """Reject bits that are not a sign and 1 to 7 bits of weight."""
    if not 2 <= integer(where, name, bits) <= 8:
        raise ValueError(f"{where}: {name}={bits}; expected 2 to 8")


def distances_fit(where: str, name: str, bits: int, head_dim: int) -> None:
    """Reject bits whose largest distance does not fit uint16 below INVISIBLE."""
    largest = 3 * (2 ** (bits - 1) - 1) * padded(head_dim)
    if largest >= INVISIBLE:
        raise ValueError(
            f"{where}: {name}={bits} at head_dim {head_dim} gives distances up to {largest}; "
            f"expected less than {INVISIBLE}, so that they fit uint16"
        )


def centered_metric(where: str, selection: Selection) -> None:
    """Reject the Manhattan metric for centered codes."""
    if selection.metric != "weighted":
        raise ValueError(
            f"{where}: metric={selection.metric!r} with centered codes; expected "
            "metric='weighted', or plain codes (centered=False)"
        )


def option_names(where: str, options: Mapping[str, object], known: Iterable[str]) -> None:
    """Reject a keyword that is not an option."""
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(
            f"{where}: no option {', '.join(map(repr, unknown))}; expected {', '.join(known)}"
        )


def searchable(where: str, selection: Selection, head_dim: int, centered: bool) -> None:
    """Reject a selection that codes of this head_dim and kind do not support."""
    if selection.metric == "weighted":
        distances_fit(where, "query_bits", selection.query_bits, head_dim)
    if centered:
        centered_metric(where, selection)
    else:
        tail_of_plain(where, selection)


def tail_of_plain(where: str, selection: Selection) -> None:
    """Reject a tail for plain codes, which have no scale of each token."""
    if selection.tail:
        raise ValueError(
            f"{where}: tail={selection.tail} with plain codes; expected tail=0, or centered codes"
        )


def instance(where: str, name: str, value: object, kind: type, expected: str) -> None:
    """Reject an object of another type."""
    if not isinstance(value, kind):
        raise TypeError(
            f"{where}: {name} is of type {type(value).__qualname__}; expected {expected}"
        )


def true_or_false(where: str, name: str, value: object) -> None:
    """Reject an object that is not a Python or NumPy bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{where}: {stated(name, value)}; expected True or False")


def integer(where: str, name: str, value: object) -> int:
    """Return a Python or NumPy integer as an int; reject anything else, a bool too."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{where}: {stated(name, value)}; expected an integer")
    return int(value)


def real(where: str, name: str, value: object) -> None:
    """Reject a value that is not a Python or NumPy number, or that float32 cannot hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{where}: {stated(name, value)}; expected a number")
    size = abs(value if isinstance(value, int) else float(value))  # an int may be too large
    if not size <= MAX_FLOAT32:  # NaN too
        raise ValueError(f"{where}: {stated(name, value)}; expected a finite number, in float32")


def scale(where: str, value: object) -> None:
    """Reject a factor of the inner products that is neither None nor a finite number."""
    if value is not None:
        real(where, "scale", value)


def positive(where: str, name: str, value: object) -> None:
    """Reject a value that is not a finite number above 0, in float32."""
    real(where, name, value)
    if not np.float32(value) > 0:  # type: ignore[arg-type]
        raise ValueError(f"{where}: {stated(name, value)}; expected a number above 0, in float32")


def query_heads(where: str, sinks: NDArray | None, q: tuple[int, ...]) -> None:
    """Reject sinks (H,) of another number of heads than queries of shape (B, H, L, D) have."""
    if sinks is not None and len(sinks) != q[1]:
        raise ValueError(
            f"{where}: {shown('sink_logits', sinks)} and q {q}; expected one per query head, {q[1]}"
        )


def real_array(where: str, name: str, x: NDArray) -> None:
    """Reject an array of anything but integers and floats."""
    if x.dtype.kind not in "iuf" and x.dtype.name != "bfloat16":
        raise TypeError(f"{where}: {shown(name, x)}; expected real numbers")


def at_least(where: str, name: str, value: object, low: int) -> int:
    """Return an integer; reject one below `low`."""
    number = integer(where, name, value)
    if number < low:
        raise ValueError(f"{where}: {name}={value}; expected at least {low}")
    return number


def budget(where: str, K: int, S: int, shape: tuple[int, ...]) -> None:
    """Reject a budget that is not 1 to S tokens."""
    if at_least(where, "budget", K, 1) > S:
        raise ValueError(
            f"{where}: budget={K} is above the {S} tokens of shape {shape}; expected at most {S}"
        )


def forced(where: str, K: int, selection: Selection) -> None:
    """Reject sinks and recent tokens that the budget cannot hold."""
    sinks, recent = selection.sinks, selection.recent
    if sinks + recent > K:
        raise ValueError(
            f"{where}: sinks={sinks} and recent={recent} are {sinks + recent} tokens; expected at "
            f"most budget={K}"
        )


def length(where: str, name: str, n: object, B: int, limit: int, holder: str) -> int | NDArray:
    """Return a length or count; reject one above the tokens of its holder.

    One number becomes an int, and an array (B,) int64, whose sums cannot overflow.
    """
    if isinstance(n, np.ndarray):
        if n.dtype.kind not in "iu":
            raise TypeError(f"{where}: {shown(name, n)}; expected integers")
        if n.shape != (B,):
            raise ValueError(f"{where}: {shown(name, n)}; expected shape ({B},)")
        low, high = int(n.min(initial=0)), int(n.max(initial=0))
        value: int | NDArray = n.astype(np.int64)
    else:
        low = high = value = integer(where, name, n)
    if low < 0 or high > limit:
        raise ValueError(f"{where}: {name}={n}; expected 0 to {limit}, the tokens of {holder}")
    return value


def cut(where: str, tokens: object, each: NDArray, holder: str = "") -> int | NDArray:
    """Return the tokens to keep, one number or (B,); reject more than the sequences have (B,)."""
    if isinstance(tokens, np.ndarray):
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"{where}: {shown('tokens', tokens)}; expected integers")
        if tokens.shape != each.shape:
            raise ValueError(f"{where}: {shown('tokens', tokens)}; expected shape {each.shape}")
        kept: int | NDArray = tokens.astype(np.int64)
    else:
        kept = integer(where, "tokens", tokens)
    most = each if np.ndim(kept) else np.int64(each.max(initial=0))
    if (np.less(kept, 0) | np.greater(kept, most)).any():
        raise ValueError(f"{where}: tokens={tokens}; expected 0 to {most}{holder}")
    return kept


def order(where: str, name: str, value: object, B: int, least: int = 0) -> NDArray:
    """Return numbers of sequences as an array; reject one that is not `least` to B - 1."""
    try:
        numbers = np.atleast_1d(np.asarray(value))
    except ValueError:
        numbers = np.zeros(1)
    if numbers.size == 0:
        numbers = np.zeros(numbers.shape, np.int64)  # NumPy makes an empty list float64
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise TypeError(
            f"{where}: {stated(name, value)}; expected an integer, or a list of integers"
        )
    if numbers.min(initial=least) < least or numbers.max(initial=-1) >= B:
        raise ValueError(f"{where}: {stated(name, value)}; expected {least} to {B - 1}")
    return numbers.astype(np.int64)


def layer(where: str, value: object, layers: int) -> int:
    """Return the number of a layer; reject one that there is not."""
    number = integer(where, "layer", value)
    if not 0 <= number < layers:
        raise IndexError(f"{where}: layer={value}; expected 0 to {layers - 1}")
    return number


def windows(where: str, given: object, layers: int) -> tuple[int | None, ...]:
    """Return a window per layer; reject another number of them, or a window below 1."""
    if not isinstance(given, (list, tuple)):
        raise TypeError(
            f"{where}: {stated('windows', given)}; expected a list with an int or None per layer"
        )
    if len(given) not in (0, layers):
        raise ValueError(f"{where}: windows has {len(given)} items; expected {layers}, or none")
    each = tuple(x if x is None else at_least(where, "an item of windows", x, 1) for x in given)
    return each or (None,) * layers


def finite(where: str, name: str, x: NDArray) -> None:
    """Reject keys that hold NaN or infinities: they have no codes."""
    finite = np.isfinite(x)
    if not finite.all():
        found = ~finite
        first = tuple(int(i) for i in np.argwhere(found)[0])
        raise ValueError(
            f"{where}: {shown(name, x)}; expected finite numbers, found {int(found.sum())} others, "
            f"the first at {first}"
        )


def tokens(where: str, S: int) -> None:
    """Reject more tokens than an int32 index can count."""
    if S > MAX_TOKENS:
        raise ValueError(f"{where}: {S} tokens; expected at most {MAX_TOKENS}, an int32 index")


def planes(where: str, x: NDArray) -> None:
    """Reject planes that are not (2, B, H_kv, T, 8, P, 8)."""
    dtype(where, "planes", x, "uint64")
    if x.ndim != 7 or x.shape[0] != 2 or x.shape[4] != 8 or x.shape[6] != 8 or x.shape[5] < 1:
        raise ValueError(
            f"{where}: {shown('planes', x)}; expected (2, B, H_kv, T, 8, P, 8), or without B"
        )
    contiguous(where, "planes", x, axes=4)


def head_dim(where: str, D: int, name: str = "head_dim") -> None:
    """Reject a head_dim that is not 1 to MAX_HEAD_DIM."""
    if not 1 <= integer(where, name, D) <= MAX_HEAD_DIM:
        raise ValueError(f"{where}: {name}={D}; expected 1 to {MAX_HEAD_DIM}")


def words_per_plane(where: str, planes: NDArray, head_dim: int) -> None:
    """Reject planes of another head_dim."""
    P = planes.shape[5]
    if words(head_dim) != P:
        raise ValueError(
            f"{where}: {shown('planes', planes)} has P={P} words per plane; expected "
            f"{words(head_dim)} for head_dim={head_dim}"
        )


def centers(where: str, given: Centers, planes: NDArray, head_dim: int) -> None:
    """Reject centers that do not fit their planes."""
    _, B, H_kv, T, _, _, _ = planes.shape
    Dt = padded(head_dim)
    expected = {
        "means": ("float16", (B, H_kv, T, Dt)),
        "scales": ("uint8", (B, H_kv, T, TILE)),
        "open_tile": ("float32", (B, H_kv, TILE, Dt)),
    }
    _beside_planes(where, "centers", given, expected, planes)


def fine(where: str, given: Fine, planes: NDArray) -> None:
    """Reject third bits that do not fit their planes."""
    _, B, H_kv, T, _, P, _ = planes.shape
    expected = {"bits": ("uint64", (B, H_kv, T, TILE, P)), "scales": ("uint8", (B, H_kv, T, TILE))}
    _beside_planes(where, "fine", given, expected, planes)


def _beside_planes(
    where: str,
    of: str,
    given: Centers | Fine,
    expected: Mapping[str, tuple[str, tuple[int, ...]]],
    planes: NDArray,
) -> None:
    """Reject arrays of another dtype, shape, layout or device than their planes need."""
    for field, x in given._asdict().items():
        kind, shape = expected[field]
        name = f"{of}.{field}"
        dtype(where, name, x, kind)
        if x.shape != shape:
            raise ValueError(f"{where}: {shown(name, x)}; expected {shape}, as the planes have")
        contiguous(where, name, x, axes=2)
        lies_on(where, name, x, device(planes))


def heads(where: str, names: str, q: tuple[int, ...], kv: tuple[int, ...]) -> None:
    """Reject shapes (B, H, ...) and (B, H_kv, ...) of two batches, or H not a multiple of H_kv."""
    if q[0] != kv[0]:
        raise ValueError(f"{where}: {names} have shapes {q} and {kv}; expected the same batch")
    if kv[1] == 0 or q[1] % kv[1]:
        raise ValueError(
            f"{where}: {names} have shapes {q} and {kv}; expected the query heads, {q[1]}, to be "
            f"a multiple of the KV heads, {kv[1]}"
        )


def keys_values(where: str, k: NDArray, v: NDArray, ndims: tuple[int, ...]) -> None:
    """Reject keys (..., S, D) and values (..., S, D_v) that are not floats of one dtype."""
    floats(where, "k", k, ndims)
    floats(where, "v", v, ndims)
    same_tokens(where, k, v)


def same_tokens(where: str, k: NDArray, v: NDArray) -> None:
    """Reject keys (..., S, D) and values (..., S, D_v) of different tokens or dtypes."""
    if k.shape[:-1] != v.shape[:-1] or k.dtype != v.dtype:
        raise ValueError(
            f"{where}: {shown('k', k)} and {shown('v', v)}; expected (B, H_kv, S, D) and "
            "(B, H_kv, S, D_v), of one dtype"
        )


def same_head_dim(where: str, q: NDArray, name: str, D: int) -> None:
    """Reject queries of another head_dim than the keys."""
    if q.shape[-1] != D:
        raise ValueError(
            f"{where}: {shown('q', q)}; expected head_dim {D}, as {name} has, in its last axis"
        )


def transformed(where: str, x: NDArray) -> None:
    """Reject a last axis that is not a power of two, as the result of hadamard has."""
    if padded(x.shape[-1]) != x.shape[-1]:
        raise ValueError(
            f"{where}: {shown('x', x)}; expected a power of two in the last axis, as hadamard(x) "
            "has"
        )
