"""Checks that all mechanisms share: their forms agree, and a later token changes nothing before."""

from __future__ import annotations

import numpy as np

from adamas_core.lab.mechanisms.tokens import Rows, recurrent


def draws(seed, *shapes):
    """Normal arrays of these shapes, float64."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def unit(x):
    """Rows of length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def size_of(state):
    """Numbers that a state holds: its own count, or that of its rows."""
    if hasattr(state, "size"):
        return state.size
    return sum(part.size for part in state if isinstance(part, Rows))


def steps_equal_parallel(step, start, whole, inputs, tolerance=1e-10):
    """Steps after a prefill of n tokens give the outputs `whole` from n on; start(n) prefills."""
    L = inputs[0].shape[1]
    for n in (0, 1, L // 2, L - 1):
        out = recurrent(step, start(n), *(x[:, n:] for x in inputs))
        np.testing.assert_allclose(out, whole[:, n:], rtol=tolerance, atol=tolerance)


def size_is(start, step, inputs, kept, first=0):
    """The state has kept(S) numbers: after a prefill of S tokens, and after S steps."""
    state = start(first)
    for t in range(first, inputs[0].shape[1]):
        assert size_of(start(t)) == kept(t)
        assert size_of(state) == kept(t)
        step(state, *(x[:, t] for x in inputs))


def is_causal(parallel, inputs, t):
    """Other inputs from token t on change the outputs from t on, and none before."""
    other = [np.concatenate([x[:, :t], -3 * x[:, t:] + 0.5], axis=1) for x in inputs]
    before, after = parallel(*inputs), parallel(*other)
    np.testing.assert_array_equal(before[:, :t], after[:, :t])
    assert not np.allclose(before[:, t:], after[:, t:])
