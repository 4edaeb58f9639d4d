"""The library runs the kernels, Numba where there is none, and NumPy without either."""

from __future__ import annotations

import pytest
from processes import printed, run

from adamas_core.cpu import native

WITHOUT = isinstance(native.load(), str)
CALL = """
import sys
import numpy as np
from adamas_core import cpu, hadamard, reference
from adamas_core.cpu._engine import ENGINE
x = np.random.default_rng(0).standard_normal((2, 3, 70, 48), np.float32)
assert (hadamard(x) == reference.hadamard(x)).all()
print(ENGINE.name, "numba" in sys.modules)"""
# Before the first import: as if a package were not installed.
HIDE_NUMBA = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "llvmlite"):
            raise ModuleNotFoundError(name)
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "numba" else found(name)
sys.meta_path.insert(0, Hidden())"""
HIDE_LIBRARY = """
from adamas_core import __path__
import sys, types, ctypes
def missing(*arguments, **named):
    raise OSError("hidden")
ctypes.CDLL = missing"""


@pytest.mark.skipif(WITHOUT, reason=f"no library: {native.load()}")
def test_the_library_needs_no_numba() -> None:
    assert printed(CALL, ADAMAS_CPU=None) == "library False"
    assert printed(HIDE_NUMBA + CALL, ADAMAS_CPU="library") == "library False"


def test_numba_on_request() -> None:
    assert printed(CALL, ADAMAS_CPU="numba") == "numba True"


def test_numpy_without_either() -> None:
    done = run(HIDE_NUMBA + CALL, ADAMAS_CPU="numba")
    assert (done.returncode, done.stdout) == (0, "reference False\n")
    told = "adamas-core: ADAMAS_CPU=numba, and Numba is not installed, so the reference computes"
    assert told in done.stderr


def test_a_library_that_cannot_be_loaded() -> None:
    if WITHOUT:
        pytest.skip(f"no library: {native.load()}")
    done = run(HIDE_LIBRARY + CALL, ADAMAS_CPU="library")
    assert done.returncode == 1
    assert "ADAMAS_CPU=library, but the library cannot be loaded: hidden" in done.stderr


def test_an_unknown_engine() -> None:
    done = run("import adamas_core.cpu", ADAMAS_CPU="fortran")
    assert "ADAMAS_CPU='fortran'; expected 'library', 'numba', or nothing" in done.stderr


@pytest.mark.skipif(WITHOUT, reason=f"no library: {native.load()}")
def test_a_library_of_other_sources_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "in_a_source_tree", lambda: True)
    monkeypatch.setattr(native, "stamp", lambda: "another")
    assert "was built from other sources" in str(native.load())
    monkeypatch.setattr(native, "in_a_source_tree", lambda: False)
    assert not isinstance(native.load(), str)


@pytest.mark.skipif(WITHOUT, reason=f"no library: {native.load()}")
def test_limits_of_threadpoolctl_hold() -> None:
    pytest.importorskip("threadpoolctl")
    code = (
        CALL
        + """
import threadpoolctl
threads = [ENGINE.threads()]
with threadpoolctl.threadpool_limits(1, user_api="openmp"):
    threads.append(ENGINE.threads())
threads.append(ENGINE.threads())
print(threads)"""
    )
    found = printed(code, ADAMAS_CPU="library", ADAMAS_NUM_THREADS="5").splitlines()[-1]
    assert found == "[5, 1, 5]"


@pytest.mark.skipif(WITHOUT, reason=f"no library: {native.load()}")
def test_both_engines_have_the_same_bits() -> None:
    code = """
import hashlib
import numpy as np
from adamas_core import KVCache, Selection, decode_attention, encode, select_topk
from adamas_core.cpu import attend
rng = np.random.default_rng(0)
digest = hashlib.sha256()
for D, dtype in ((64, np.float32), (80, np.float16)):
    k, v = rng.standard_normal((2, 2, 3, 5000, D), np.float32).astype(dtype)
    q = rng.standard_normal((2, 6, 1, D), np.float32).astype(dtype)
    for selection in (Selection(), Selection(tail=0, refine=2), Selection(tail=0, group=True)):
        cache = KVCache(selection=selection)
        cache.append(k, v)
        digest.update(np.asarray(decode_attention(q, cache, 64)).tobytes())
    digest.update(select_topk(q, encode(k), 64).tobytes())
    digest.update(attend(q, k, v, None).tobytes())
print(digest.hexdigest())"""
    same = {"ADAMAS_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2", "ADAMAS_ISA": None}
    found = {printed(code, ADAMAS_CPU=engine, **same) for engine in ("numba", "library")}
    assert len(found) == 1


def test_the_stamp_covers_the_sources_of_objects() -> None:
    assert native.stamp() != native.stamp(objects_alone=True)
    assert len(native.stamp()) == 64
