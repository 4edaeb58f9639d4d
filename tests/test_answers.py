"""Answers are judged as greedy decoding would."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import DenseAttention, tiny

from adamas_core.lab import answers
from adamas_core.lab.prefix import Prefix
from adamas_core.lab.selectors import SELECTORS
from adamas_core.llama import generate


@pytest.mark.parametrize("key", ["exact", "quest", "adamas"])
def test_exact_means_what_greedy_decoding_gives(key: str) -> None:
    rng = np.random.default_rng(4)
    model = tiny(seed=1)
    text, question = rng.integers(0, 50, 40).tolist(), rng.integers(0, 50, 4).tolist()
    prefix = Prefix(model, text, 12)
    fitted = prefix.fit(SELECTORS[key])
    for budget in (None, 4):
        attention = DenseAttention() if budget is None else prefix.sparse(fitted, budget)
        if budget is None:
            model.forward(text + question[:-1], 0, attention)
        else:
            prefix.cache.truncate(40)
            model.forward(question[:-1], 40, prefix.cache.attention(None))
        decoded = list(generate(model, question[-1:], attention, max_tokens=5, position=43))
        assert answers.exact(prefix, question, decoded, fitted, budget)
        for i in range(5):
            wrong = [*decoded[:i], (decoded[i] + 1) % 50, *decoded[i + 1 :]]
            assert not answers.exact(prefix, question, wrong, fitted, budget)
