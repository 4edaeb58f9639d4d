from __future__ import annotations

import numpy as np
import pytest
from mechanism_checks import draws

from adamas_core import attend, encode, select_topk
from adamas_core.lab import indexer_fit, lolcats_fit
from adamas_core.lab import mechanism_model as m
from adamas_core.lab.drop_ins import BUILDERS, Sizes
from adamas_core.lab.mechanisms.tokens import scores

S = 400


@pytest.fixture
def layer():
    q, k, v = (x.astype(np.float32) for x in draws(0, (4, S, 32), (2, S, 32), (2, S, 32)))
    return 3 * q, k, v


@pytest.fixture
def few_steps(monkeypatch):
    for module in (indexer_fit, lolcats_fit):
        real = module.fit
        monkeypatch.setattr(module, "fit", lambda *given, real=real: real(*given, steps=3))


def test_the_error_is_that_of_the_last_positions(layer):
    q, k, v = layer
    s = Sizes(4, 2, 32, S)
    assert m.output_error(BUILDERS["softmax"](s), q, k, v) < 1e-5
    n = S - m.POSITIONS
    full = attend(q[:, n:], k, v, None)
    chosen = attend(q[:, n:], k, v, select_topk(q[:, n:], encode(k), 128))
    expected = (np.linalg.norm(chosen - full, axis=-1) / np.linalg.norm(full, axis=-1)).mean()
    # A step codes the tokens so far, whose last block has other means.
    assert m.output_error(BUILDERS["adamas"](s), q, k, v) == pytest.approx(expected, rel=0.1)


def test_errors_of_all_that_can_replace_attention(layer):
    names = []
    errors = m.output_errors([layer, layer], names.append)
    assert set(names) == set(errors) == {n for n, row in m.ROWS.items() if row.replaces}
    assert max(errors[n] for n in ("softmax", "flash", "star", "mla")) < 1e-5
    assert errors["tail-256"] < errors["adamas"] < errors["window"]


def test_a_fit_and_its_judge_see_different_queries(layer):
    (q, k, v), (q_held, k_held, v_held) = m.halves(layer)
    np.testing.assert_array_equal(q, layer[0][:, :200])
    np.testing.assert_array_equal(q_held, layer[0][:, -m.HELD_OUT :])
    assert k.shape[1] == v.shape[1] == 200
    assert k_held.shape[1] == v_held.shape[1] == S


def test_estimated_logits_are_near_the_exact_ones(layer):
    q, k, _ = layer
    exact = scores(q[:, -5:], k)[..., :-5]  # of tokens that all five queries see
    found = [m.estimated_logits(q[:, -5:], k, bits)[..., :-5] for bits in (2, 3)]
    errors = [np.abs(logits - exact).mean() for logits in found]
    assert errors[1] < 0.7 * errors[0] < 0.3 * np.abs(exact).mean()


def test_rows_of_the_indexer(layer, few_steps):
    rows = {row["name"]: row for row in m.indexer_rows(layer)}
    mean, own = rows["the mean attention itself"], rows["codes of 2 bits, each head its own"]
    assert mean["kl"] == 0
    assert own["mass"] > mean["mass"] > rows["DSA indexer, untrained"]["mass"]
    assert [row["shared"] for row in rows.values()] == [True, True, True, False, True, True]
    codes = [rows[f"codes of {bits} bits, their mean over heads"]["kl"] for bits in (2, 3)]
    assert 0 < codes[1] < codes[0] < rows["DSA indexer, fitted"]["kl"]


def test_rows_of_lolcats(layer, few_steps):
    rows = {row["name"]: row for row in m.lolcats_rows(layer)}
    codes = [rows[f"codes of {bits} bits, all tokens"] for bits in (2, 3)]
    assert codes[1]["kl"] < codes[0]["kl"] < rows["LoLCATs, before the fit"]["kl"]
    assert codes[1]["error"] < codes[0]["error"] < rows["LoLCATs, before the fit"]["error"]
    assert rows["the window of 128 alone"]["kl"] is None
