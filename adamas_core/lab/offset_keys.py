"""Synthetic keys with a common offset, as key biases make them, and the mass that a choice keeps.

Letters: H query heads, L positions, S tokens, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..llama import rope
from ..ops import attend
from .selectors import Exact, Form, Selector
from .variants import Variant

Array = NDArray[np.float32]

NORMS = (0, 22, 100, 600)
PAIRS = ("slow", "all")
H, L, S, D = 4, 64, 8192, 128
THETA = 1e6  # the RoPE base of Qwen2
# Standard deviation of the logits. At 4 the exact top 128 of 8192 tokens hold 0.93 of the softmax,
# as they do on real models.
SPREAD = 4.0


class Sample(NamedTuple):
    """Queries and keys after RoPE."""

    before: Array  # (H, S - L, D), the queries of the tokens before the positions
    q: Array  # (H, L, D)
    k: Array  # (1, S, D)


def sample(norm: float, pairs: str, seed: int) -> Sample:
    """Normal queries, and normal keys with a common offset of this norm before RoPE.

    Parameters
    ----------
    norm : float
        A finite number from 0 on. The keys without the offset have a norm of about sqrt(D) = 11.
    pairs : {"slow", "all"}
        The pairs of RoPE that hold the offset: those that turn by less than one radian over the
        window, or all. The offset stays nearly the same for all tokens in slow pairs. It turns
        with the position in fast pairs.
    seed : int
    """
    if not 0 <= norm < math.inf:
        raise ValueError(f"sample: norm={norm}; expected a finite number from 0 on")
    rng = np.random.default_rng(seed)
    angles = rope.scaled_rope(D, THETA)
    k = rng.standard_normal((S, 1, D), dtype=np.float32)
    q = np.float32(SPREAD) * rng.standard_normal((L, H, D), dtype=np.float32)
    offset = rng.standard_normal(D, dtype=np.float32)
    before = np.float32(SPREAD) * rng.standard_normal((S - L, H, D), dtype=np.float32)
    if pairs == "slow":
        offset *= np.tile(np.array(angles.frequencies) * S < 1, 2)  # pair i is i and i + D / 2
    k += norm * offset / np.linalg.norm(offset)
    k = rope.rotate(k, *rope.cos_sin(angles, 0, S))
    q = rope.rotate(q, *rope.cos_sin(angles, S - L, L))
    before = rope.rotate(before, *rope.cos_sin(angles, 0, S - L))
    return Sample(*(np.ascontiguousarray(x.swapaxes(0, 1)) for x in (before, q, k)))


def measure(
    chosen: Iterable[Variant],
    budgets: Iterable[int],
    seeds: Iterable[int],
    progress: Callable[[str, int, int], object],
) -> list[dict[str, Any]]:
    """Rows: for each budget, pairs, norm and variant, the mass relative to the exact top-k's.

    `mass` of a row is the mean over seeds, heads and positions. `oracle` is the share of the
    softmax that the exact top-k holds. ``progress(text, done, total)`` is called before each
    sample.
    """
    chosen, budgets, seeds = list(chosen), list(budgets), list(seeds)
    selectors = {variant.key: selector_of(variant) for variant in chosen}
    sums: dict[tuple[int, str, float, str], list[float]] = {}
    oracle: dict[tuple[int, str, float], list[float]] = {}
    cases = list(product(PAIRS, NORMS, seeds))
    for done, (pairs, norm, seed) in enumerate(cases):
        progress(f"Offset of norm {norm} in {pairs} pairs", done, len(cases))
        before, q, k = sample(norm, pairs, seed)
        full = _lse(q, k, None)
        fitted = {key: selector.fit(before, k[:, : S - L]) for key, selector in selectors.items()}
        for budget in budgets:
            best = _lse(q, k, Exact()(q, k, budget))
            share = float(np.exp(best - full).mean())
            oracle.setdefault((budget, pairs, norm), []).append(share)
            for key, selector in fitted.items():
                mass = float(np.exp(_lse(q, k, selector(q, k, budget)) - best).mean())
                sums.setdefault((budget, pairs, norm, key), []).append(mass)
    names = {variant.key: variant.name for variant in chosen}
    return [
        {
            "pairs": pairs,
            "norm": norm,
            "selector": key,
            "name": names[key],
            "budget": budget,
            "mass": float(np.mean(masses)),
            "oracle": float(np.mean(oracle[budget, pairs, norm])),
        }
        for (budget, pairs, norm, key), masses in sums.items()
    ]


def selector_of(variant: Variant) -> Selector:
    """The selector of a variant. A form is refused, because only chosen tokens have a mass."""
    if isinstance(variant.selector, Form):
        raise ValueError(
            f"selector_of: {variant.key} is a form of attention, and chooses no tokens; expected "
            "selectors, because the figure is the mass of chosen tokens"
        )
    return variant.selector


def _lse(q: Array, k: Array, indices: NDArray[np.int32] | None) -> Array:
    """Log-sum-exp (H, L) of the logits of the chosen tokens."""
    lse: Array = attend(q, k, k, indices, return_lse=True)[1]
    return lse
