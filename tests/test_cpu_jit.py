"""When kernels are compiled, and how that is announced."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamas_core import cpu


def test_no_layout_compiles_anew():
    rng = np.random.default_rng(0)
    from adamas_core.cpu.kernels._loop import run

    q = rng.standard_normal((1, 2, 1, 32)).astype(np.float32)
    k = rng.standard_normal((1, 40, 2, 32)).astype(np.float32)
    indices = np.zeros((1, 2, 1, 4), np.int32)
    for dtype in np.float32, np.float16:
        view = k.astype(dtype).swapaxes(1, 2)
        frozen = view.copy()
        frozen.flags.writeable = False
        out = [cpu.attend(q.astype(dtype), x, x, indices) for x in (view, frozen, frozen[:, :, 3:])]
        assert_array_equal(out[0], out[1])
    assert len(run.dispatcher.overloads) == 1


def test_a_kernel_is_compiled_for_its_first_argument_alone():
    assert_array_equal(cpu.hadamard(np.ones((1, 1, 1, 4), np.float32))[0, 0, 0], [2, 0, 0, 0])
    from adamas_core.cpu.kernels._loop import run

    with pytest.raises(TypeError, match="No matching definition"):
        run(np.zeros(1, np.float32))


def test_compilation_is_announced_for_this_package_alone(capfd):
    numba.njit(lambda x: x + 1)(1)
    assert "adamas" not in capfd.readouterr().err
