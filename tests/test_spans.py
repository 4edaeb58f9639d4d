"""Spans of attention masks, against a search in loops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason='needs the extra "transformers"')
pytest.importorskip("transformers", reason='needs the extra "transformers"')
pytest.importorskip("ml_dtypes", reason='needs the extra "transformers"')

from adamas_core.transformers.spans import Span, spans  # noqa: E402

pytestmark = pytest.mark.peers


def in_loops(mask):
    """The spans of a bool mask (B, 1, L, S), or None."""
    pairs = []
    for rows in mask[:, 0].tolist():
        seen = [t for t, x in enumerate(rows[-1]) if x]
        if len(seen) < len(rows):
            return None
        for i, row in enumerate(reversed(rows)):
            if [t for t, x in enumerate(row) if x] != list(range(seen[0], seen[-1] + 1 - i)):
                return None
        pairs.append((seen[0], seen[-1] + 1))
    if len(set(pairs)) == 1:
        return [Span(0, len(pairs), *pairs[0])]
    return [Span(b, b + 1, *pair) for b, pair in enumerate(pairs)]


def padded(starts, ends, L, S):
    until = torch.tensor(ends)[:, None, None] - torch.arange(L - 1, -1, -1)[:, None]
    token = torch.arange(S)
    return ((token >= torch.tensor(starts)[:, None, None]) & (token < until))[:, None]


@given(st.data())
def test_as_in_loops(data):
    B, L, S = (data.draw(st.integers(1, most)) for most in (3, 3, 8))
    starts = data.draw(st.lists(st.integers(0, S - 1), min_size=B, max_size=B))
    ends = [data.draw(st.integers(start, S)) for start in starts]
    mask = padded(starts, ends, L, S)
    if data.draw(st.booleans()):  # one place is another
        b, i, t = (data.draw(st.integers(0, n - 1)) for n in (B, L, S))
        mask[b, 0, i, t] ^= True
    expected = in_loops(mask)
    assert spans(mask, B, L, S) == expected
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    least = data.draw(st.sampled_from([torch.finfo(dtype).min, -torch.inf]))
    added = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, least)
    assert spans(added, B, L, S) == expected


def test_without_a_mask():
    assert spans(None, 3, 1, 50) == [Span(0, 3, 0, 50)]
    assert spans(None, 3, 2, 50) is None  # a prompt


def test_one_mask_for_all_sequences():
    assert spans(padded([4], [9], 1, 12), 3, 1, 12) == [Span(0, 3, 4, 9)]


@pytest.mark.parametrize(
    "shape", [(2, 1, 1, 11), (3, 1, 1, 12), (2, 2, 1, 12), (2, 1, 2, 12), (2, 12)]
)
def test_masks_of_other_shapes(shape):
    assert spans(torch.ones(shape, dtype=torch.bool), 2, 1, 12) is None


def test_a_bias_is_no_mask():
    bias = torch.zeros(1, 1, 1, 12)
    assert spans(bias, 1, 1, 12) == [Span(0, 1, 0, 12)]
    bias[..., 3] = -1
    assert spans(bias, 1, 1, 12) is None
