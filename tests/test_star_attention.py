import numpy as np
import pytest
from mechanism_checks import draws, is_causal, size_is, steps_equal_parallel

from adamas_core import attend, encode, merge, select_topk
from adamas_core.lab.mechanisms import softmax_attention
from adamas_core.lab.mechanisms import star_attention as m
from adamas_core.lab.selectors import Exact


def inputs():
    return draws(0, (4, 24, 8), (2, 24, 8), (2, 24, 8))


@pytest.mark.parametrize("block, context", [(5, 20), (6, 17), (1, 20), (30, 20), (5, 24)])
def test_forms_agree(block, context):
    whole = m.parallel(*inputs(), block, context)
    np.testing.assert_allclose(m.chunked(*inputs(), block, context), whole)
    q, k, v = inputs()
    if context < 24:
        start = m.start(k[:, :context], v[:, :context], block)
        out = m.step(start, q[:, context], k[:, context], v[:, context])
        np.testing.assert_allclose(out, whole[:, context])


def test_the_blocks_of_phase_1():
    """Token 8, in the block 6 .. 8 of 3 tokens each, sees the anchor 0 .. 2 and its own block."""
    assert np.nonzero(m.sees(12, 3, 9)[8])[0].tolist() == [0, 1, 2, 6, 7, 8]
    assert np.nonzero(m.sees(12, 3, 9)[1])[0].tolist() == [0, 1]
    assert m.sees(12, 3, 9)[10].tolist() == [True] * 11 + [False]


def test_one_host_is_softmax_attention():
    full = softmax_attention.parallel(*inputs())
    np.testing.assert_allclose(m.parallel(*inputs(), 20, 20), full)
    np.testing.assert_allclose(m.chunked(*inputs(), 20, 20), full)


def test_phase_2_is_softmax_attention():
    q, k, v = inputs()
    full = softmax_attention.parallel(q, k, v)
    start = lambda n: m.start(k[:, :n], v[:, :n], 5)  # noqa: E731
    steps_equal_parallel(m.step, start, full, (q, k, v))


def test_merged_is_merge_of_the_library():
    outs, lses = draws(1, (3, 4, 2, 8), (3, 4, 2))
    parts = [x.astype(np.float32) for x in outs], [x.astype(np.float32) for x in lses]
    np.testing.assert_allclose(m.merged([*outs], [*lses]), merge(*parts)[0], atol=1e-6)


def test_causality():
    is_causal(lambda *x: m.parallel(*x, 5, 20), inputs(), 11)


def test_kept():
    q, k, v = inputs()
    start = lambda n: m.start(k[:, :n], v[:, :n], 5)  # noqa: E731
    size_is(start, m.step, (q, k, v), lambda S: m.kept(S, 2, 8))


def test_selection_through_the_library():
    """Each host selects 16 tokens of its own shard by codes; `merge` puts the parts together."""
    q, k, v = (x.astype(np.float32) for x in draws(3, (4, 1, 32), (2, 512, 32), (2, 512, 32)))
    q = 3 * q
    full = attend(q, k, v, None)

    def error(choose):
        parts = []
        for i in range(0, 512, 128):
            shard = k[:, i : i + 128], v[:, i : i + 128]
            parts.append(attend(q, *shard, choose(shard[0]), return_lse=True))
        out = merge([out for out, _ in parts], [lse for _, lse in parts])[0]
        return np.linalg.norm(out - full) / np.linalg.norm(full)

    assert error(lambda keys: None) < 1e-5
    exact = error(lambda keys: Exact()(q, keys, 16))
    codes = error(lambda keys: select_topk(q, encode(keys), 16))
    first = error(lambda keys: np.broadcast_to(np.arange(16, dtype=np.int32), (4, 1, 16)).copy())
    assert exact < codes < 0.05 < 0.5 < first
