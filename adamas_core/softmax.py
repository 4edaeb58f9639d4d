"""How inner products become weights, as one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import checks
from .dispatch import Array, on_host, views

NDArray = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Softmax:
    """How the inner products of a query with the keys become weights.

    One object that is checked when it is built. `attend`, `attend_tail` and `decode_attention` take
    it whole, and so does every backend. A logit is x = scale q.k. With a soft cap c it becomes
    c tanh(x / c). Then the weight of token i is exp(x_i) / (exp(s) + sum over j of exp(x_j)), where
    s is the logit of the head's sink. Without a sink exp(s) is 0.

    Parameters
    ----------
    scale : float, optional
        Factor of the inner products, finite; D ** -0.5 if not given.
    soft_cap : float, optional
        c > 0, finite. No logit is above c or below -c then, as in Gemma 2. No cap if not given.
    sink_logits : array (H,), optional
        One learned logit per query head, as in gpt-oss. A sink takes its share of the weights, and
        has no value. So it makes the output smaller. -inf is no sink. It is kept as a copy in
        float32 on the host, which is read-only.

    Raises
    ------
    TypeError
        A number is not a real number, or the sinks are not an array of real numbers.
    ValueError
        scale is not finite, soft_cap is not finite or not above 0, or sink_logits have another
        shape than (H,), or hold NaN or +inf.

    Notes
    -----
    A sink counts in the log-sum-exp too. If attention is made of parts that `merge` puts together,
    give the sinks to one part alone.

    No token changes its rank under a cap. So selection depends on none of these fields, except that
    a group reads `scale`.

    Examples
    --------
    >>> from adamas_core import Softmax
    >>> Softmax(scale=0.1, soft_cap=50)
    Softmax(scale=0.1, soft_cap=50.0, sink_logits=None)
    """

    scale: float | None = None
    soft_cap: float | None = None
    sink_logits: Array | None = None

    def __post_init__(self) -> None:
        where = "Softmax"
        checks.scale(where, self.scale)
        if self.scale is not None:
            object.__setattr__(self, "scale", float(self.scale))
        if self.soft_cap is not None:
            checks.positive(where, "soft_cap", self.soft_cap)
            object.__setattr__(self, "soft_cap", float(self.soft_cap))
        if self.sink_logits is not None:
            object.__setattr__(self, "sink_logits", _sinks(where, self.sink_logits))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Softmax):
            return NotImplemented
        return (
            (self.scale, self.soft_cap) == (other.scale, other.soft_cap)
            and (self.sink_logits is None) == (other.sink_logits is None)
            and np.array_equal(self.sink_logits, other.sink_logits)  # type: ignore[arg-type]
        )

    def __hash__(self) -> int:
        sinks = None if self.sink_logits is None else tuple(self.sink_logits.tolist())
        return hash((self.scale, self.soft_cap, sinks))

    def __reduce__(self) -> tuple[type[Softmax], tuple[Any, ...]]:
        return Softmax, (self.scale, self.soft_cap, self.sink_logits)  # the sinks stay read-only


def _sinks(where: str, given: Any) -> NDArray:
    """The sinks' logits (H,) in float32 on the host, read-only."""
    name = "sink_logits"
    if isinstance(given, (list, tuple)):
        try:
            x = np.asarray(given)
        except ValueError:
            x = np.zeros((0, 0))
    else:
        x = on_host(views(**{name: given})[0])
    checks.real_array(where, name, x)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{where}: {checks.shown(name, x)}; expected (H,), one per query head")
    with np.errstate(over="ignore"):
        sinks = x.astype(np.float32)
    if not (sinks < np.inf).all():  # NaN too
        raise ValueError(
            f"{where}: {checks.stated(name, sinks.tolist())}; expected numbers or -inf, in float32"
        )
    sinks.setflags(write=False)
    return sinks


# The default of every signature. One object serves all calls, because it cannot change.
PLAIN = Softmax()
