"""Dense attention with a soft cap or sinks, against the formula in torch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason='needs the extra "transformers"')
pytest.importorskip("transformers", reason='needs the extra "transformers"')
pytest.importorskip("ml_dtypes", reason='needs the extra "transformers"')

from adamas_core import Softmax  # noqa: E402
from adamas_core.transformers import dense as module  # noqa: E402
from adamas_core.transformers.dense import dense  # noqa: E402

pytestmark = pytest.mark.peers
H, H_KV, D, DV = 4, 2, 8, 6
SOFTMAX = Softmax(scale=0.8, soft_cap=1.5, sink_logits=[1.0, -1.0, 0.5, 2.0])


def by_formula(q, k, v, seen):
    """Attention (B, L, H, D_v) to the tokens seen (B or 1, L, S)."""
    k, v = (x.repeat_interleave(H // H_KV, 1) for x in (k, v))
    logits = 1.5 * torch.tanh(0.8 * (q @ k.transpose(2, 3)) / 1.5)
    logits = logits.masked_fill(~seen[:, None], -torch.inf)
    sinks = torch.tensor([1.0, -1.0, 0.5, 2.0])[:, None, None].expand(*logits.shape[:3], 1)
    weights = torch.softmax(torch.cat([logits, sinks], -1), -1)[..., :-1]
    return (weights @ v).transpose(1, 2)


def rows(B, L, S, seed=0):
    torch.manual_seed(seed)
    return torch.randn(B, H, L, D), torch.randn(B, H_KV, S, D), torch.randn(B, H_KV, S, DV)


def check(q, k, v, mask, seen, window=None, causal=True):
    out = dense(q, k, v, mask, SOFTMAX, window, causal)
    assert out.shape == (q.shape[0], q.shape[2], H, DV)
    torch.testing.assert_close(out, by_formula(q, k, v, seen), atol=1e-5, rtol=1e-5)


def spy(patch, run):
    """Whether each call of attend had indices."""
    given, attend = [], module.attend
    with patch.context() as inside:
        inside.setattr(
            module,
            "attend",
            lambda q, k, v, indices, *rest, **options: (
                given.append(indices is not None) or attend(q, k, v, indices, *rest, **options)
            ),
        )
        run()
    return given


@pytest.mark.parametrize("L, S, causal", [(1, 9, True), (5, 9, True), (5, 9, False), (9, 9, True)])
def test_without_a_mask(L, S, causal):
    """As sdpa: one query sees all tokens, and several are the first tokens."""
    last = torch.arange(L)[:, None] if L > 1 and causal else torch.tensor(S)
    check(*rows(2, L, S), None, (torch.arange(S) <= last).expand(1, L, S), causal=causal)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("starts", [[0, 0], [3, 0], [3, 3], [9, 12]])
def test_prompts_and_steps_are_read_without_indices(starts, window, monkeypatch):
    """With padding in front, behind tokens of before, and in a cache with room after them."""
    L, S = 8, 20
    token, at = torch.arange(S), torch.arange(5, 5 + L)[:, None]
    seen = (token >= torch.tensor(starts)[:, None, None]) & (token <= at)
    if window is not None:
        seen &= token > at - window
    least = torch.finfo(torch.float32).min
    bias = torch.zeros(seen.shape).masked_fill(~seen, least)[:, None]
    q, k, v = rows(2, L, S)
    for mask in (seen[:, None], bias):
        found = spy(monkeypatch, lambda m=mask: check(q, k, v, m, seen, window))
        assert found == [False] * len(set(starts))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_mask(data):
    B, L, S = (data.draw(st.integers(1, most)) for most in (3, 4, 9))
    one = data.draw(st.booleans())
    seen = torch.rand(1 if one else B, L, S) < data.draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "INDICES", data.draw(st.sampled_from([1, 100, 1 << 24])))
        check(*rows(B, L, S), seen[:, None], seen, data.draw(st.sampled_from([None, 1, 3])))


@pytest.mark.parametrize(
    "mask", [torch.ones(1, H, 2, 9, dtype=torch.bool), torch.linspace(-1, 0, 9).expand(1, 1, 2, 9)]
)
def test_masks_that_are_refused(mask):
    with pytest.raises(ValueError, match=r"attention_mask .* with softcap or s_aux; expected"):
        dense(*rows(1, 2, 9), mask, SOFTMAX, None, True)
