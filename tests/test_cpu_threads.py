"""Limits of threads that others set."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from adamas_core.cpu.kernels import _jit, _threads


@_jit.kernel
def _threads_in_a_kernel(seen):
    for i in numba.prange(1):
        seen[i] = _threads.threads_allowed()


def test_limits_of_threadpoolctl_and_numba_hold():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    if numba.threading_layer() != "omp":
        pytest.skip("threadpoolctl limits OpenMP, and Numba runs on another threading layer here")
    before = numba.get_num_threads()
    seen = np.zeros(1, np.int64)
    _threads_in_a_kernel(seen)
    assert seen[0] == before
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        _threads_in_a_kernel(seen)
        assert seen[0] == 1
        assert numba.get_num_threads() == before
    _threads_in_a_kernel(seen)
    assert seen[0] == before
