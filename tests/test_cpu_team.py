"""Kernels in forked processes, and called by several threads at once."""

from __future__ import annotations

import ctypes.util

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from processes import printed

from adamas_core import cpu, reference
from adamas_core.cpu._array import address_of
from adamas_core.cpu.kernels import _jit, _threads

# Two cores are enough for four threads. `check` prints nothing and raises if a bit differs.
START = """
import os, signal, sys, threading
import numpy as np
signal.alarm(200)
x = np.random.default_rng(0).standard_normal((2, 3, 700, 64), np.float32)
def check(want=None):
    from adamas_core import cpu
    found = cpu.hadamard(x)
    assert want is None or (found == want).all()
    return found
def child_of(fork, work):
    pid = fork()
    if pid == 0:
        signal.alarm(100)
        try:
            work()
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(7)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""

FORKS = {
    "os.fork, and once more in the child": """
want = check()
child_of(os.fork, lambda: (check(want), child_of(os.fork, lambda: check(want))))
check(want)""",
    "in a thread, while other threads call": """
want, over = check(), threading.Event()
def calls():
    while not over.is_set():
        check(want)
def forks():
    for _ in range(5):
        child_of(os.fork, lambda: [check(want) for _ in range(5)])
others = [threading.Thread(target=calls) for _ in range(2)]
forker = threading.Thread(target=forks)
[t.start() for t in (*others, forker)]
forker.join(); over.set(); [t.join() for t in others]""",
    "by C, which tells Python nothing": """
import ctypes
want = check()
child_of(ctypes.PyDLL(None).fork, lambda: check(want))""",
    "before the first call": """
import adamas_core.cpu
child_of(os.fork, check)""",
    "with Numba's threads of another library, and the import in the child": """
import numba
@numba.njit(parallel=True)
def other(y):
    for i in numba.prange(len(y)):
        y[i] = i
other(np.zeros(9))
child_of(os.fork, check)""",
    "while another thread compiles": """
from numba.core.compiler_lock import global_compiler_lock
from adamas_core.cpu import hadamard
held = threading.Event()
def compiles():
    with global_compiler_lock:
        held.set()
        threading.Event().wait(0.3)
t = threading.Thread(target=compiles); t.start(); held.wait()
child_of(os.fork, check)
t.join()""",
    "pools": """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
want = check()
def work(_):
    return bool((check() == want).all())
fork = multiprocessing.get_context("fork")
with fork.Pool(2) as pool:
    assert pool.map_async(work, range(4)).get(100) == [True] * 4
with ProcessPoolExecutor(2, fork) as pool:
    assert list(pool.map(work, range(4))) == [True] * 4""",
    "the start method is still free": """
import multiprocessing
check()
multiprocessing.set_start_method("spawn")""",
}


@pytest.mark.parametrize("how", FORKS)
def test_forked(how):
    assert printed(START + FORKS[how] + '\nprint("end")', NUMBA_NUM_THREADS="4") == "end"


THREADS = """
want = check()
threads = [threading.Thread(target=lambda: [check(want) for _ in range(100)]) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
child_of(os.fork, lambda: check(want))
import numba
print(numba.threading_layer())"""


@pytest.mark.parametrize("layer, count", [("omp", "4"), ("workqueue", "4"), ("workqueue", "1")])
def test_several_threads_call_at_once(layer, count):
    found = printed(START + THREADS, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS=count)
    assert found == layer


@pytest.mark.skipif(ctypes.util.find_library("tbb") is None, reason="TBB is not installed")
def test_several_threads_call_tbb():
    assert printed(START + THREADS, NUMBA_THREADING_LAYER="tbb", NUMBA_NUM_THREADS="4") == "tbb"


@pytest.fixture
def own_threads(monkeypatch):
    """As in a forked process: loops start their own threads."""
    monkeypatch.setattr(_threads._layer_loop, "value", 0)


@pytest.mark.parametrize("L", [1, 64, 65, 1000])
def test_own_threads_give_the_same_bits(own_threads, L):
    x = np.random.default_rng(L).standard_normal((2, 3, L, 48)).astype(np.float32)
    assert_array_equal(cpu.hadamard(x), reference.hadamard(x))


@_jit.kernel
def _meet(counts):
    """Whether two pieces run at the same time: each waits for the other, but not for ever."""
    at = counts.ctypes.data
    for i in numba.prange(2):
        _threads.take_next(at)
        patience = 1_000_000_000
        while patience > 0 and _threads.load_shared(at) < 2:
            patience -= 1
        counts[1 + i] = patience
    return counts[1] > 0 and counts[2] > 0


@pytest.mark.skipif(_threads.MOST_THREADS < 2, reason="NUMBA_NUM_THREADS is 1")
def test_own_threads_run_at_the_same_time(own_threads):
    assert _meet(np.zeros(3, np.int64))


def test_own_threads_are_as_many_as_allowed(own_threads):
    before = _threads.get_num_threads()
    x = np.ones((1, 1, 1000, 16), np.float32)
    try:
        for count in range(1, before + 1):
            _threads.set_num_threads(count)
            assert_array_equal(cpu.hadamard(x), reference.hadamard(x))
    finally:
        _threads.set_num_threads(before)


def test_kernels_of_others_keep_the_loop_of_numba():
    import llvmlite.binding as llvm

    loop = llvm.address_of_symbol(_threads.PARALLEL_FOR)
    assert address_of(cpu.hadamard(np.ones((1, 1, 1, 4), np.float32)))
    assert llvm.address_of_symbol(_threads.PARALLEL_FOR) == loop
    assert loop != _jit._parallel_for()
