"""vAttention: which tokens it takes, and how often each counts."""

from __future__ import annotations

import numpy as np
import pytest
from lab_oracles import best, normal

from adamas_core.lab.selectors import VAttention


def weights(form: VAttention, S: int, budget: int, logits: np.ndarray) -> np.ndarray:
    """How often each token counts: from values that are rows of the identity, at equal logits."""
    k = np.zeros((1, S, S), np.float32)
    k[0, :, 0] = logits
    q = np.zeros((1, 1, S), np.float32)
    q[0, 0, 0] = 1e-6  # orders the tokens, and leaves the logits equal
    out: np.ndarray = form.attend(q, k, np.eye(S, dtype=np.float32)[None], budget)[0, 0]
    return out * S


def test_the_first_recent_and_best_tokens_count_once_and_sampled_ones_for_the_others() -> None:
    S, budget = 64, 32  # 24 chosen: 3 first, 3 recent, 18 best; 8 sampled of 40
    form = VAttention(share=4, forced=8)
    logits = np.random.default_rng(0).permutation(S).astype(np.float32)
    found = weights(form, S, budget, logits)
    rank = [float("inf") if j < 3 or j >= S - 3 else float(logits[j]) for j in range(S)]
    chosen = best(rank, 24)
    np.testing.assert_allclose(found[chosen], 1, rtol=1e-4)
    others = np.delete(found, chosen)
    assert (others > 0).sum() == 8
    np.testing.assert_allclose(others[others > 0], 40 / 8, rtol=1e-4)


def test_every_other_token_is_sampled_equally_often() -> None:
    S, runs = 16, 600
    logits = np.arange(S, dtype=np.float32)
    mean = (
        sum(weights(VAttention(share=4, forced=8, seed=i), S, 8, logits) for i in range(runs))
        / runs
    )
    # 2 of the 10 others, each with 5 in a fifth of the runs: a standard deviation of 2.
    np.testing.assert_allclose(mean, 1, atol=5 * 2 / runs**0.5)


def test_against_sums_over_the_tokens() -> None:
    case = normal(5, 4, 2, 50, 4, 16)
    form = VAttention(share=4, forced=8).fit(case.q0, case.k0)
    got = form.attend(case.q, case.k, case.v, 16)
    chosen = form._chosen(case.q, case.k, 12)
    sample, stand_for = form._sample(chosen, 50, 4)
    for h, l in np.ndindex(4, 4):
        taken, drawn = chosen[h, l].tolist(), sample[h, l].tolist()
        n = case.own(l) + 1
        assert len({*taken, *drawn}) == 16
        assert max(drawn) < n
        assert stand_for[h, l] == (n - 12) / 4
        k, v = case.k[h // 2].astype(np.float64), case.v[h // 2].astype(np.float64)
        p = np.exp(k @ case.q[h, l] / 4)
        p[drawn] *= (n - 12) / 4
        rows = taken + drawn
        np.testing.assert_allclose(
            got[h, l], p[rows] @ v[rows] / p[rows].sum(), rtol=1e-4, atol=1e-5
        )


def test_the_sample_is_that_of_the_seed() -> None:
    case = normal(6, 2, 1, 60, 2, 16)
    form, same = (VAttention().fit(case.q0, case.k0) for _ in range(2))
    assert form == same
    first = form.attend(case.q, case.k, case.v, 16)
    np.testing.assert_array_equal(same.attend(case.q, case.k, case.v, 16), first)
    other = VAttention().fit(case.q0, 2 * case.k0)  # a layer with other keys
    assert other.seed != form.seed
    assert (other.attend(case.q, case.k, case.v, 16) != first).any()
    assert form.attend(case.q, case.k, case.v, 60) == pytest.approx(
        other.attend(case.q, case.k, case.v, 60), abs=1e-5
    )
