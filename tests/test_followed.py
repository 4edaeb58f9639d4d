"""Codes that follow tensors of somebody else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason='needs the extra "transformers"')
pytest.importorskip("transformers", reason='needs the extra "transformers"')
pytest.importorskip("ml_dtypes", reason='needs the extra "transformers"')

from adamas_core import Selection, encode, encode_values  # noqa: E402
from adamas_core.transformers import followed  # noqa: E402
from adamas_core.transformers.followed import Followed, memory, row_sums, written_once  # noqa: E402
from adamas_core.transformers.plan import Plan  # noqa: E402

pytestmark = pytest.mark.peers
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [1, 3, 6, 8, 16])
def test_row_sums(D, dtype):
    """The words of each row, filled up with zeros, added modulo 2^64: whatever the strides are."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, D).to(dtype)
    rows = x.view(torch.int16 if dtype != torch.float32 else torch.int32).numpy()
    words = np.pad(rows, [(0, 0)] * 3 + [(0, -D % (8 // rows.itemsize))]).view(np.uint64)
    expected = words.sum(-1, dtype=np.uint64).view(np.int64)
    wide = torch.zeros(2, 5, 3, 2 * D + 1, dtype=dtype)
    wide[..., 1 : D + 1] = x.transpose(1, 2)
    views = [
        x,
        wide[..., 1 : D + 1].transpose(1, 2),
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ]
    for view in views:
        assert torch.equal(view, x)
        np.testing.assert_array_equal(row_sums(view).numpy(), expected)


@given(st.data())
def test_any_bit_changes_a_sum(data):
    x = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    before = row_sums(x)
    h, t, d, bit = (data.draw(st.integers(0, n - 1)) for n in (2, 3, 8, 32))
    x.view(torch.int32)[0, h, t, d] ^= 1 << bit if bit < 31 else -(1 << 31)
    after = row_sums(x)
    assert (before != after).nonzero().tolist() == [[0, h, t]]


def test_written_once():
    x = torch.zeros(2, 2, 9, 4)
    first = memory(x)
    assert not written_once(first, memory(x))
    x[0].add_(1)
    assert written_once(first, memory(x))
    assert written_once(first, memory(x[:]))  # another view of the same place
    for other in (x[:1], x[:, :, 1:], x.clone(), x.transpose(1, 2), x.view(torch.int32)):
        assert not written_once(first, memory(other))
    x[1].add_(1)
    assert not written_once(first, memory(x))
    with torch.inference_mode():
        y = torch.zeros(3)
    assert memory(y) is None
    assert not written_once(first, None) and not written_once(None, first)


def test_memory_keeps_nothing_alive():
    x = torch.zeros(3)
    held = memory(x)
    assert not held.storage.expired()
    del x
    assert held.storage.expired()


@pytest.mark.parametrize("selection", [Selection(), Selection(tail=0), Selection(group=True)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_rows_that_changed_are_coded(monkeypatch, selection, dtype):
    """Equal to codes made anew, to the bit, from as few new tokens as can be."""
    torch.manual_seed(0)
    plan = Plan.of(10, selection, None, 0)
    k, v = torch.randn(2, 2, 3, 300, 16).to(dtype)
    held = Followed(k[:, :, :200], v[:, :, :200], plan)
    appended = []
    append = followed.KeyCodes.append
    monkeypatch.setattr(
        followed.KeyCodes, "append", lambda s, x: (appended.append(x.shape[2]), append(s, x))[1]
    )
    k2, v2 = k.clone(), v.clone()
    k2[1, 2, 150, 3] += 1
    v3 = v2.clone()
    v3[0, 1, 77, 2] += 1
    by_values = 300 - 77 if plan.selection.tail else 0
    for new_k, new_v, n, known, coded in [
        (k, v, 201, True, 1),
        (k, v, 230, False, 29),
        (k, v, 230, False, 0),
        (k, v, 190, False, 0),
        (k, v, 300, False, 110),
        (k2, v2, 300, False, 150),
        (k2, v3, 300, False, by_values),
        (k2.flip(0), v3.flip(0), 150, False, 150),
    ]:
        appended.clear()
        held.follow(new_k[:, :, :n], new_v[:, :, :n], known)
        assert sum(appended) == coded
        fresh = encode(new_k[:, :, :n], bits=plan.bits)
        for a, b in zip(arrays(held.codes), arrays(fresh), strict=True):
            np.testing.assert_array_equal(a, b)
        if held.values is not None:
            anew = encode_values(new_v[:, :, :n])
            for a, b in zip(held.values.record, anew.record, strict=True):
                np.testing.assert_array_equal(a, b)


def arrays(codes):
    return [codes.planes, *codes.centers, *(codes.fine or ())]


def test_fits():
    k = torch.zeros(2, 3, 50, 16)
    v = torch.zeros(2, 3, 50, 9)
    held = Followed(k, v, Plan.of(10, Selection(), None, 0))
    assert held.fits(k, v) and held.fits(k[:, :, :7], v[:, :, :7])
    for other in (k[:1], k[:, :2], k[..., :8], k.half()):
        assert not held.fits(other, v)
    assert not held.fits(k, v[..., :8])
