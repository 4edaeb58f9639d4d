"""Codes of values, each relative to a base of its head."""

from __future__ import annotations

from adamas_core.reference.center import CENTERED_THRESHOLDS
from adamas_core.reference.layout import padded

from . import _launch
from ._arrays import element, head_values, spans, strides
from ._kernels import ENCODE_VALUES
from ._launch import Array
from ._warps import LANES, THREADS, hadamard_scale, per_lane

# Codes of values are cut at -CUT, 0 and CUT times the root mean square of a token.
CUT = float(CENTERED_THRESHOLDS[2])


def encode_values(
    v: Array,
    codes: Array,
    scales: Array,
    bases: Array,
    start: int | Array = 0,
    count: int | Array | None = None,
) -> Array:
    """Code values v (B, H_kv, S, D_v) as tokens start, start + 1, ... of codes and scales.

    They are written in place. Each sequence takes its first `count` values, or all if count is not
    given. start and count are ints or arrays (B,) on the host. `bases` (B, H_kv, 2, D_v) are those
    of the sequence with its new tokens. Returns codes.
    """
    B, H_kv, S, Dv = v.shape
    new, (_, taken) = spans(B, S, start, count)
    most = int(taken.max(initial=0))
    if H_kv == 0 or most == 0:
        return codes
    arguments = {
        **strides("v", v),
        **new,
        **head_values(codes, scales, bases),
        "cut": CUT,
        "D": Dv,
        "Dt": padded(Dv),
        "hadamard_scale": hadamard_scale(Dv),
    }
    grid = -(-most * LANES // THREADS), H_kv, B
    variant = element(v), per_lane(Dv)
    _launch.device().launch(ENCODE_VALUES, variant, grid, THREADS, arguments)
    return codes
