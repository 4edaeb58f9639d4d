"""The tail as a form, against single steps of the reference over caches of their own."""

from __future__ import annotations

import numpy as np
import pytest
from lab_oracles import normal

from adamas_core import KVCache, Selection, decode_attention
from adamas_core.lab.selectors import AdamasTail


@pytest.mark.parametrize(("S", "L"), [(200, 140), (130, 66), (64, 3), (63, 2), (128, 1), (70, 70)])
def test_a_block_is_single_steps_over_the_codes_of_each(S: int, L: int) -> None:
    """A full tile is coded again. A query must see the codes and the mean of its own step."""
    case = normal(S, 4, 2, S, L, 16)
    got = AdamasTail(8).fit(case.q0, case.k0).attend(case.q, case.k, case.v, 5)
    assert (got.dtype, got.shape) == (np.float32, (4, L, 16))
    for l in range(L):
        n = case.own(l) + 1
        cache = KVCache(selection=Selection(tail=8), backend="reference")
        cache.append(case.k[:, :n], case.v[:, :n])
        step = decode_attention(case.q[:, l : l + 1], cache, min(5, n))
        np.testing.assert_allclose(got[:, l], step[:, 0], rtol=1e-4, atol=1e-5)


def test_a_tail_has_a_token() -> None:
    with pytest.raises(ValueError, match="AdamasTail: tail=0; expected at least 1"):
        AdamasTail(0)
