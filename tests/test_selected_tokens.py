import numpy as np
import pytest
from mechanism_checks import draws, steps_equal_parallel

from adamas_core.lab.mechanisms import selected_tokens as m
from adamas_core.lab.mechanisms import softmax_attention
from adamas_core.lab.selectors import SELECTORS


def inputs():
    return [x.astype(np.float32) for x in draws(0, (4, 40, 16), (2, 40, 16), (2, 40, 16))]


@pytest.mark.parametrize("name", ["exact", "streaming-llm", "quest", "sparq"])
def test_forms_agree(name):
    q, k, v = inputs()
    method = SELECTORS[name].fit(q[:, :20], k[:, :20])
    whole = m.parallel(q, k, v, method, 8)
    for n in (20, 39):
        start = m.start(k[:, :n], v[:, :n], method, 8)
        out = m.step(start, q[:, n], k[:, n], v[:, n])
        np.testing.assert_allclose(out, whole[:, n], atol=2e-6)


def test_a_budget_of_all_tokens_is_softmax_attention():
    q, k, v = inputs()
    exact = SELECTORS["exact"]
    whole = softmax_attention.parallel(q, k, v)
    start = lambda n: m.start(k[:, :n], v[:, :n], exact, 40)  # noqa: E731
    steps_equal_parallel(m.step, start, whole, (q, k, v), 1e-5)


def test_kept_adds_the_bytes_of_the_selector():
    assert m.kept(10, 2, 64, SELECTORS["exact"]) == 10 * 2 * 128
    assert m.kept(10, 2, 64, SELECTORS["adamas-plain"]) == 10 * 2 * (128 + 16 / 2)
