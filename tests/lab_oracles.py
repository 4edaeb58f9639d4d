"""Cases for selectors and plain forms of their choices, and cells of results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import hadamard as sylvester
from strategies import seeds

from adamas_core.lab.metrics import Captured, Choice, NextToken
from adamas_core.lab.results import BYTES, cell

Array = NDArray[Any]

# Selectors


class Case:
    """Queries (H, L, D) of the last of S tokens, keys and values (H_kv, S, D), and the prefix."""

    def __init__(self, q: Array, k: Array, L: int) -> None:
        self.k, self.L = k, L
        self.q, self.q0 = q[:, k.shape[1] - L :], q[:, : k.shape[1] - L]
        self.k0 = k[:, : k.shape[1] - L]
        self.v = np.random.default_rng(3).standard_normal(k.shape, np.float32)
        self.H, self.S, self.D = len(q), k.shape[1], k.shape[2]
        self.G = self.H // len(k)

    def own(self, l: int) -> int:
        """The token of query l."""
        return self.S - self.L + l


@st.composite
def cases(
    draw: st.DrawFn, integers: bool = True, dims: tuple[int, ...] = (4, 16), longest: int = 60
) -> Case:
    """Small cases. Integers make ties, and products and transforms of 4 or 16 coordinates exact."""
    H_kv, G = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3]))
    S = draw(st.integers(2, longest))
    L = draw(st.integers(1, min(S - 1, 9)))
    D = draw(st.sampled_from(dims))
    rng = np.random.default_rng(draw(seeds))
    q, k = rng.standard_normal((H_kv * G, S, D)), rng.standard_normal((H_kv, S, D))
    if integers:
        q, k = np.rint(2 * q), np.rint(2 * k)
    else:
        k += rng.standard_normal((H_kv, 1, D))  # a mean, for codes relative to means
    return Case(q.astype(np.float32), k.astype(np.float32), L)


budgets = st.integers(1, 80)


def normal(seed: int, H: int, H_kv: int, S: int, L: int, D: int) -> Case:
    """A fixed case whose scores have no ties."""
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((H_kv, S, D)) + rng.standard_normal((H_kv, 1, D))
    return Case(rng.standard_normal((H, S, D)).astype(np.float32), k.astype(np.float32), L)


def best(scores: list[float], K: int) -> list[int]:
    """The K largest scores, the later of equal ones first, in ascending order of index."""
    order = sorted(range(len(scores)), key=lambda j: (scores[j], j), reverse=True)
    return sorted(order[:K])


def filled(chosen: list[int], K: int) -> list[int]:
    """K indices: the chosen ones, then -1."""
    return chosen + [-1] * (K - len(chosen))


def expect(
    case: Case, got: Array, budget: int, choose: Callable[[int, int, int], list[int]]
) -> None:
    """Every head and query must have ``choose(h, l, K)``, then -1."""
    K = min(budget, case.S)
    assert (got.dtype, got.shape) == (np.int32, (case.H, case.L, K))
    for h in range(case.H):
        for l in range(case.L):
            assert got[h, l].tolist() == filled(choose(h, l, K), K), (h, l)


def expect_scores(
    case: Case, got: Array, budget: int, score: Callable[[int, int, int], float]
) -> None:
    """Of the visible tokens j, those with the largest ``score(h, l, j)`` must be chosen."""

    def choose(h: int, l: int, K: int) -> list[int]:
        return best([score(h, l, j) for j in range(case.own(l) + 1)], K)

    expect(case, got, budget, choose)


def transform(x: Array) -> Array:
    """The Walsh-Hadamard transform as a matrix product, in float64."""
    D = x.shape[-1]
    out: Array = x.astype(np.float64) @ sylvester(D) / D**0.5
    return out


def log_softmax(logits: Any) -> Any:
    """Log-probabilities in float64."""
    x = np.asarray(logits, np.float64)
    return x - np.log(np.exp(x - x.max()).sum()) - x.max()


# Results of the lab


def made_cell(
    text: str, kl: float, seed: int, budget: int = 8, form: bool = False
) -> dict[str, Any]:
    """A cell of random figures, of a selector or of a form of attention."""
    rng = np.random.default_rng(seed)
    n = 32
    next_token = NextToken(np.full(n, kl), rng.random(n), rng.random(n) < 0.5)
    full = NextToken(np.zeros(n), np.full(n, math.log(4.0)), np.ones(n, bool))
    mass, relative, recall, error = (rng.random((2, 3, n), np.float32) for _ in range(4))
    captured = Captured(error, None if form else Choice(mass, relative, recall, 0.5))
    description: dict[str, Any] = {"text": text, "context": 64, "budget": budget}
    key, name = ("tail-64", "tail of 64") if form else ("quest", "Quest")
    description |= {"selector": key, "name": name, **dict.fromkeys(BYTES, 7.0)}
    return cell(full, next_token, captured, description)
