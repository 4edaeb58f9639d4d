import numpy as np
import pytest
from mechanism_checks import draws, is_causal, size_is, steps_equal_parallel

from adamas_core import attend
from adamas_core.lab.mechanisms import softmax_attention
from adamas_core.lab.mechanisms import sparse_patterns as m

# Which tokens the query 11 sees, of 12.
SEEN = {
    m.Local(3): [9, 10, 11],
    m.Strided(4): [3, 7, 8, 9, 10, 11],
    m.Fixed(4): [3, 7, 8, 9, 10, 11],
    m.Fixed(5, 2): [3, 4, 8, 9, 10, 11],
}
PATTERNS = pytest.mark.parametrize("pattern", SEEN, ids=str)


@PATTERNS
def test_what_a_query_sees(pattern):
    s = np.arange(12)
    assert np.nonzero(pattern.sees(np.array(11), s))[0].tolist() == SEEN[pattern]


@PATTERNS
def test_forms_agree(pattern):
    q, k, v = draws(0, (4, 20, 8), (2, 20, 8), (2, 20, 8))
    start = lambda n: m.start(k[:, :n], v[:, :n], pattern)  # noqa: E731
    steps_equal_parallel(m.step, start, m.parallel(q, k, v, pattern), (q, k, v))


@PATTERNS
def test_causality(pattern):
    inputs = draws(0, (4, 20, 8), (2, 20, 8), (2, 20, 8))
    is_causal(lambda *x: m.parallel(*x, pattern), inputs, 11)


@PATTERNS
def test_kept_counts_the_tokens_that_a_later_query_sees(pattern):
    s = np.arange(30)
    for S in range(12):
        later = range(S, 30)
        needed = [i for i in range(S) if any(pattern.sees(np.array(t), s[i]) for t in later)]
        assert m.kept(S, 2, 8, pattern) == len(needed) * 2 * 2 * 8
    q, k, v = draws(0, (4, 20, 8), (2, 20, 8), (2, 20, 8))
    start = lambda n: m.start(k[:, :n], v[:, :n], pattern)  # noqa: E731
    size_is(start, m.step, (q, k, v), lambda S: m.kept(S, 2, 8, pattern))


def test_local_is_the_window_of_the_library():
    q, k, v = draws(1, (4, 30, 16), (2, 30, 16), (2, 30, 16))
    library = attend(*(x.astype(np.float32) for x in (q, k, v)), None, window=7)
    np.testing.assert_allclose(m.parallel(q, k, v, m.Local(7)), library, atol=3e-6)


@pytest.mark.parametrize("pattern", [m.Local(99), m.Strided(99), m.Strided(1), m.Fixed(99)])
def test_a_wide_pattern_is_full_attention(pattern):
    q, k, v = draws(0, (4, 20, 8), (2, 20, 8), (2, 20, 8))
    np.testing.assert_allclose(m.parallel(q, k, v, pattern), softmax_attention.parallel(q, k, v))
