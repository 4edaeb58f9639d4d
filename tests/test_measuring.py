"""A reading of a text: a block against single steps, captured attention against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from lab_oracles import log_softmax
from tiny_model import DenseAttention, tiny

from adamas_core.lab.measuring import Reading
from adamas_core.lab.metrics import Captured, Choice
from adamas_core.lab.selectors import SELECTORS, Form, attended


def chosen_of(captured: Captured) -> Choice:
    """The figures of a choice that must be there."""
    assert captured.choice is not None
    return captured.choice


FORMS = ["tail-64", "vattention", "sparq-mean"]


class StepByStep:
    """A cache of its own and float64 sums: dense for many tokens, by a selector for one."""

    def __init__(self, fitted: Any, budget: int) -> None:
        self.dense, self.fitted, self.budget = DenseAttention(), fitted, budget

    def __call__(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        out = self.dense(layer, q, k, v)
        if q.shape[1] > 1:
            return out
        keys, values = self.dense.k[layer], self.dense.v[layer]
        if isinstance(self.fitted[layer], Form):
            return self.fitted[layer].attend(q, keys, values, self.budget)
        indices = self.fitted[layer](q, keys, self.budget)
        for h in range(len(q)):
            g = h * len(keys) // len(q)
            chosen = indices[h, 0][indices[h, 0] >= 0]
            logits = keys[g, chosen].astype(np.float64) @ q[h, 0] / math.sqrt(q.shape[-1])
            out[h, 0] = np.exp(log_softmax(logits)) @ values[g, chosen]
        return out


@pytest.mark.parametrize("key", ["exact", "streaming-llm", "quest", "h2o", "adamas", *FORMS])
def test_a_block_is_decoding_position_by_position(reading: Reading, key: str) -> None:
    model = reading.prefix.model
    fitted = reading.prefix.fit(SELECTORS[key])
    found = reading.next_token(fitted, 8)
    attention, dense = StepByStep(fitted, 8), DenseAttention()
    model.forward(reading.tokens[: reading.start], 0, attention)
    full = model.forward(reading.tokens[: reading.context], 0, dense, last=False)[reading.start :]
    for i in range(reading.context - reading.start):
        logits = model.forward(
            reading.tokens[reading.start + i : reading.start + i + 1], reading.start + i, attention
        )
        p, other = log_softmax(full[i]), log_softmax(logits)
        assert found.kl[i] == pytest.approx((np.exp(p) * (p - other)).sum(), abs=2e-4, rel=2e-3)
        assert found.loss[i] == pytest.approx(
            -other[reading.tokens[reading.start + i + 1]], abs=2e-4
        )
        assert found.agrees[i] == (full[i].argmax() == logits.argmax())
    assert found.kl.mean() > 0.01


@pytest.mark.parametrize("key", ["quest", "paper-quartiles", "adamas"])
def test_captured_attention_is_that_of_plain_loops(reading: Reading, key: str) -> None:
    fitted = reading.prefix.fit(SELECTORS[key])
    found = reading.captured(fitted, 8)
    choice = chosen_of(found)
    for layer, q in enumerate(reading.q):
        keys, values = reading.prefix.keys_values(layer)
        indices = fitted[layer](q, keys, 8)
        for h, i in np.ndindex(q.shape[:2]):
            g, seen = h * len(keys) // len(q), reading.start + i + 1
            logits = keys[g, :seen].astype(np.float64) @ q[h, i] / math.sqrt(q.shape[-1])
            p = np.exp(log_softmax(logits))
            best, chosen = set(np.argsort(-logits)[:8]), [j for j in indices[h, i] if j >= 0]
            mass, most = p[chosen].sum(), p[list(best)].sum()
            full = p @ values[g, :seen]
            error = np.linalg.norm(p[chosen] / mass @ values[g, chosen] - full)
            at = layer, h, i
            assert choice.mass[at] == pytest.approx(mass, rel=1e-4)
            assert choice.relative[at] == pytest.approx(mass / most, rel=1e-4)
            assert choice.recall[at] == pytest.approx(len(best & set(chosen)) / 8)
            assert found.error[at] == pytest.approx(error / np.linalg.norm(full), abs=1e-4)
    assert 0 < choice.recall.mean() < 1


@pytest.mark.parametrize("key", FORMS)
def test_a_form_has_an_error_and_no_choice(reading: Reading, key: str) -> None:
    fitted = reading.prefix.fit(SELECTORS[key])
    found = reading.captured(fitted, 8)
    assert found.choice is None
    for place, q in enumerate(reading.q):
        out = attended(fitted[place], q, *reading.prefix.keys_values(place), 8)
        for at in np.ndindex(q.shape[:2]):
            full = reading.out[place][at].astype(np.float64)
            error = np.linalg.norm(out[at] - full) / np.linalg.norm(full)
            assert found.error[place][at] == pytest.approx(error, rel=1e-4)
    assert found.error.mean() > 0.001


def test_the_oracle_and_full_attention(reading: Reading) -> None:
    oracle = reading.captured(reading.prefix.fit(SELECTORS["exact"]), 8)
    np.testing.assert_allclose(chosen_of(oracle).relative, 1)
    np.testing.assert_array_equal(chosen_of(oracle).recall, 1)
    assert (chosen_of(oracle).mass < 1).any()
    assert oracle.error.mean() > 0.01
    fitted = reading.prefix.fit(SELECTORS["full"])
    full, itself = reading.next_token(fitted, 8), reading.full()
    np.testing.assert_allclose(full.kl, 0, atol=1e-5)
    np.testing.assert_allclose(full.loss, itself.loss, atol=1e-4)
    np.testing.assert_array_equal(itself.kl, 0)
    assert full.agrees.all()
    captured = reading.captured(fitted, 8)
    np.testing.assert_allclose(chosen_of(captured).mass, 1, rtol=1e-5)
    np.testing.assert_allclose(captured.error, 0, atol=1e-5)
    np.testing.assert_array_equal(chosen_of(captured).recall, 1)


def test_dense_layers_are_dense(reading: Reading) -> None:
    fitted = reading.prefix.fit(SELECTORS["sliding-window"])
    kl = [reading.next_token(fitted, 4, dense).kl.mean() for dense in (0, 1, 2)]
    assert kl[0] > 0.01
    assert kl[1] not in (kl[0], kl[2])
    assert kl[2] == pytest.approx(0, abs=1e-6)


def test_a_run_leaves_the_dense_cache_as_it_was(reading: Reading) -> None:
    fitted = reading.prefix.fit(SELECTORS["adamas"])
    first = reading.captured(fitted, 8)
    reading.next_token(fitted, 4)
    again = reading.captured(fitted, 8)
    np.testing.assert_array_equal(first.error, again.error)
    for a, b in zip(chosen_of(first)[:-1], chosen_of(again)[:-1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_window_needs_a_prefix() -> None:
    for positions in (0, 5, 6):
        with pytest.raises(ValueError, match=f"5 tokens; expected more than the {positions} posit"):
            Reading(tiny(), [1, 2, 3, 4, 5, 6], positions)
