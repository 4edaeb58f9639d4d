"""What a step and a prefill of each mechanism cost, counted in runs at several lengths.

The counts are of the NumPy files as they are, by `counted_arrays`. A cost's exponent is the slope
of its logarithm over the logarithm of S: the least squares line through all lengths. The theory's
exponent is the slope of its leading terms at the same lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .counted_arrays import arrays_in, counted, counting
from .drop_ins import BUILDERS, DropIn, Sizes
from .mechanism_catalog import ROWS, Theory
from .mechanisms.tokens import Array, Rows

SIZES = Sizes(H=2, H_kv=1, D=32, S=0)
STEPS = tuple(2**n - 1 for n in range(10, 17))  # 1K to 64K; 2 ** n - 1 has the most segments
PREFILLS = (256, 512, 1024, 2048)
GOLDEN = 0.618
SAMPLES = 24  # steps that are counted where a prefill is a loop of steps


class Costs(NamedTuple):
    """Counts at the lengths STEPS, or PREFILLS. nan where nothing is counted."""

    operations: list[float]  # of a step
    read: list[float]  # bytes of the state or cache that a step reads
    kept: list[float]  # bytes of the state or cache
    prefill: list[float]  # operations


def costs(name: str) -> Costs:
    """Counts of one mechanism, in float32. Those of selectors are their own, in 16 bits."""
    lengths = [SIZES._replace(S=S) for S in STEPS]
    theory = ROWS[name].theory
    if np.isnan(theory.operations(lengths[0])):
        nothing = [float("nan")] * len(PREFILLS)
        own = [[2.0 * cost(s) for s in lengths] for cost in (theory.read, theory.kept)]
        return Costs([float("nan")] * len(STEPS), own[0], own[1], nothing)
    steps = [step_costs(BUILDERS[name](s), s) for s in lengths]
    operations, read, kept = (list(map(float, column)) for column in zip(*steps, strict=True))
    prefill = [prefill_operations(name, SIZES._replace(S=L)) for L in PREFILLS]
    return Costs(operations, read, kept, prefill)


def inputs(s: Sizes, L: int) -> tuple[Array, Array, Array]:
    """Normal q (H, L, D), k and v (H_kv, L, D), float32, in arrays that count."""
    rng = np.random.default_rng(s.S)
    shapes = (s.H, L, s.D), (s.H_kv, L, s.D), (s.H_kv, L, s.D)
    q, k, v = (counted(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes)
    return q, k, v


def step_costs(drop_in: DropIn, s: Sizes) -> tuple[int, int, int]:
    """Operations and bytes of the step after s.S tokens, and the bytes that are kept then."""
    q, k, v = inputs(s, s.S + 1)
    before = s.S - 1
    fill = drop_in.filled or drop_in.start
    state = fill(q[:, :before], k[:, :before], v[:, :before])
    drop_in.step(state, q[:, before], k[:, before], v[:, before])
    kept = 4 * numbers(state)
    with counting(state) as tally:
        drop_in.step(state, q[:, s.S], k[:, s.S], v[:, s.S])
    return tally.operations, tally.read, kept


def numbers(state: Any) -> int:
    """Numbers that a state holds. Weights, and the free room of a cache, are not of the state."""
    if hasattr(state, "size"):
        return int(state.size)
    if isinstance(state, (list, tuple)):
        return sum(numbers(part) for part in state if isinstance(part, (Rows, list, tuple)))
    return sum(x.size for x in arrays_in(state))


def prefill_operations(name: str, s: Sizes) -> float:
    """Operations of a prefill of s.S tokens: counted whole, or over sampled steps."""
    drop_in = BUILDERS[name](s)
    if drop_in.prefill is not None:
        given = inputs(s, s.S)
        with counting(None) as tally:
            drop_in.prefill(*given)
        return float(tally.operations)
    # One step in each of equal parts of the prefill, at a place that differs from part to part.
    at = [max(int(s.S * (i + GOLDEN * i % 1) / SAMPLES), 2) for i in range(SAMPLES)]
    each = [step_costs(BUILDERS[name](s), s._replace(S=t))[0] for t in at]
    return s.S * float(np.mean(each))


def exponent(lengths: Sequence[int], cost: Sequence[float]) -> float:
    """The slope of log(cost) over log(length)."""
    return float(np.polyfit(np.log(lengths), np.log(cost), 1)[0])


def exponents(measured: Costs, theory: Theory) -> dict[str, tuple[float, float]]:
    """Of each cost, the measured exponent and that of the theory."""
    found = {}
    for field, cost in measured._asdict().items():
        lengths = PREFILLS if field == "prefill" else STEPS
        leading = [getattr(theory, field)(SIZES._replace(S=S)) for S in lengths]
        found[field] = exponent(lengths, cost), exponent(lengths, leading)
    return found
