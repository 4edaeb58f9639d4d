"""libadamas through its C interface, at every level of instructions that this machine can run.

Codes and indices are the reference's to the bit. Attention is within the tolerances that hold for
every backend.
"""

from __future__ import annotations

import ctypes as c
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import libadamas
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libadamas import Library, Made
from numpy.testing import assert_array_equal
from oracles import ATTEND, ROUNDING
from strategies import DTYPES, seeds

from adamas_core import Selection, Softmax, reference
from adamas_core.cpu import native
from adamas_core.cpu.native.levels import LEVELS
from adamas_core.reference.layout import TILE, Centers, Codes, Fine, Values, padded, tiles, words

NDArray = np.ndarray[Any, Any]

pytestmark = pytest.mark.skipif(
    isinstance(native.load(), str), reason=f"no library to test: {native.load()}"
)
THRESHOLDS = reference.center.CENTERED_THRESHOLDS
HEAD_DIMS = [1, 16, 33, 64, 80, 128, 200, 256]


@pytest.fixture(scope="module", params=list(LEVELS))
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Library:
    found = libadamas.at_level(request.param, tmp_path_factory.mktemp("libadamas"))
    if found is None:
        pytest.skip("not built for this level, or not for this processor")
    return found


class Case(NamedTuple):
    """Queries, keys and values of sequences of their own lengths."""

    q: NDArray
    k: NDArray
    v: NDArray
    lengths: NDArray


@st.composite
def cases(draw: st.DrawFn) -> Case:
    B, H_kv, G = (draw(st.sampled_from(x)) for x in ([1, 2], [1, 2, 3], [1, 2, 5]))
    L, D = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from(HEAD_DIMS))
    S = draw(st.sampled_from([2, 63, 64, 65, 130, 300, 1000, 4300]))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(seeds))
    k, v = (rng.standard_normal((B, H_kv, S, D)).astype(dtype) for _ in "kv")
    q = rng.standard_normal((B, H_kv * G, L, D)).astype(dtype)
    if draw(st.booleans()):  # as a stack that stores tokens first
        k, v, q = (np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (k, v, q))
    lengths = rng.integers(L, S + 1, B)
    lengths[0] = S
    return Case(q, k, v, lengths)


def empty_codes(case: Case, centered: bool) -> Codes:
    """Codes without tokens: centered ones with a third bit."""
    B, H_kv, S, D = case.k.shape
    T, P, Dt = tiles(S), words(D), padded(D)
    planes = np.zeros((2, B, H_kv, T, 8, P, 8), np.uint64)
    limits = THRESHOLDS if centered else np.float32([-0.9, 0.05, 1])
    limits = np.repeat(limits[None], H_kv, 0).astype(np.float32)
    if not centered:
        return Codes(planes, case.lengths, limits)
    centers = Centers(
        np.zeros((B, H_kv, T, Dt), np.float16),
        np.zeros((B, H_kv, T, TILE), np.uint8),
        np.zeros((B, H_kv, TILE, Dt), np.float32),
    )
    fine = Fine(np.zeros((B, H_kv, T, TILE, P), np.uint64), np.zeros_like(centers.scales))
    return Codes(planes, case.lengths, limits, centers, fine)


def arrays_of(codes: Codes) -> dict[str, NDArray]:
    found = {"planes": codes.planes}
    for part in (codes.centers, codes.fine):
        if part is not None:
            found |= part._asdict()
    return found


def reference_codes(case: Case, centered: bool) -> Codes:
    codes = empty_codes(case, centered)
    if codes.centers is None:
        for b, n in enumerate(case.lengths):
            one = codes.planes[:, b : b + 1]
            reference.encode(case.k[b : b + 1, :, :n], codes.thresholds, one, 0)
        return codes
    reference.encode_centered(
        case.k, codes.thresholds, codes.planes, codes.centers, 0, case.lengths, codes.fine
    )
    return codes


def coded_values(case: Case) -> Values:
    B, H_kv, S, D = case.v.shape
    T = tiles(S)
    codes = np.zeros((B, H_kv, T, TILE, 2, words(D)), np.uint64)
    bases = reference.values.bases_of(case.v, case.lengths)
    total = reference.values.total_of(case.v, case.lengths)
    return Values(codes, np.zeros((B, H_kv, T, TILE), np.uint8), bases, total)


@settings(max_examples=40)
@given(case=cases(), centered=st.booleans(), cut=st.floats(0, 1), threads=st.integers(0, 3))
def test_codes_of_keys(
    library: Library, case: Case, centered: bool, cut: float, threads: int
) -> None:
    """In two calls, the second of which begins anywhere."""
    codes = empty_codes(case, centered)
    first = (case.lengths * cut).astype(np.int64)
    library.append_keys(codes, case.k, np.zeros_like(first), first, threads)
    rest = np.zeros_like(case.k)
    for b, n in enumerate(first):
        rest[b, :, : case.lengths[b] - n] = case.k[b, :, n : case.lengths[b]]
    library.append_keys(codes, rest, first, case.lengths - first, threads)
    expected = arrays_of(reference_codes(case, centered))
    for name, x in arrays_of(codes).items():
        if name != "open_tile":  # of which only the tokens of an open tile count
            assert_array_equal(x, expected[name], err_msg=name)


@settings(max_examples=25)
@given(case=cases(), threads=st.integers(0, 3))
def test_codes_of_values(library: Library, case: Case, threads: int) -> None:
    values, expected = coded_values(case), coded_values(case)
    library.append_values(values, case.v, np.zeros_like(case.lengths), case.lengths, threads)
    reference.encode_values(
        case.v, expected.codes, expected.scales, expected.bases, 0, case.lengths
    )
    assert_array_equal(values.codes, expected.codes)
    assert_array_equal(values.scales, expected.scales)


@st.composite
def selections(draw: st.DrawFn, centered: bool, tail: bool) -> Selection:
    metric = "weighted" if centered or draw(st.booleans()) else "manhattan"
    group = metric == "weighted" and not tail and draw(st.booleans())
    return Selection(
        metric=metric,
        query_bits=draw(st.sampled_from([2, 3, 4, 5])),
        sinks=draw(st.integers(0, 3)),
        recent=draw(st.integers(0, 3)),
        refine=0 if group else draw(st.sampled_from([0, 0, 2, 4])),
        group=group,
        tail=draw(st.sampled_from([1, 20, 300])) if tail else 0,
    )


@settings(max_examples=60)
@given(case=cases(), centered=st.booleans(), data=st.data())
def test_indices(library: Library, case: Case, centered: bool, data: st.DataObject) -> None:
    selection = data.draw(selections(centered, False))
    budget = data.draw(st.integers(1, 70)) + selection.sinks + selection.recent
    budget = min(budget, case.k.shape[2])
    if selection.sinks + selection.recent > budget:
        return
    codes = reference_codes(case, centered)
    expected = reference.select_topk(case.q, codes, budget, selection, case.k)
    made = {"q": case.q, "codes": codes, "selection": selection, "budget": budget}
    threads = data.draw(st.integers(0, 8))
    indices, _, _ = library.step(**made, kv=(case.k, case.v), threads=threads, select_only=True)
    assert_array_equal(indices, expected)
    indices, out, lse = library.step(**made, kv=(case.k, case.v), threads=threads)
    assert_array_equal(indices, expected)
    assert_close(out, lse, reference.attend_topk(case.q, case.k, case.v, codes, budget, selection))


def assert_close(out: NDArray, lse: NDArray, expected: tuple[NDArray, NDArray]) -> None:
    """Two results that are each within the tolerance of the exact one."""
    dtype, wide = expected[0].dtype, expected[0].astype(np.float64)
    bound = 2 * (ATTEND + ROUNDING[dtype.name] * np.abs(wide)) + 2.0**-24
    assert (np.abs(out.astype(np.float64) - wide) <= bound).all()
    np.testing.assert_allclose(lse, expected[1], rtol=4e-6, atol=8e-6)


@st.composite
def softmaxes(draw: st.DrawFn, case: Case) -> Softmax:
    sinks = np.random.default_rng(draw(seeds)).standard_normal(case.q.shape[1])
    cap = draw(st.sampled_from([None, 0.5, 30.0]))
    return Softmax(draw(st.sampled_from([None, 0.2])), cap, draw(st.sampled_from([None, sinks])))


def with_values(case: Case, Dv: int) -> Case:
    """The case with values of another head_dim."""
    repeated = np.concatenate([case.v] * -(-Dv // case.v.shape[3]), axis=-1)
    return case._replace(v=np.ascontiguousarray(repeated[..., :Dv]))


value_dims = st.sampled_from([1, 5, 16, 64, 70, 144])


@settings(max_examples=60)
@given(case=cases(), Dv=value_dims, data=st.data())
def test_tail(library: Library, case: Case, Dv: int, data: st.DataObject) -> None:
    case = with_values(case, Dv)
    selection, softmax = data.draw(selections(True, True)), data.draw(softmaxes(case))
    budget = min(data.draw(st.integers(1, 40)) + 6, case.k.shape[2])
    if selection.sinks + selection.recent > budget:
        return
    codes, values = reference_codes(case, True), coded_values(case)
    reference.encode_values(case.v, values.codes, values.scales, values.bases, 0, case.lengths)
    _, out, lse = library.step(
        q=case.q, codes=codes, selection=selection, budget=budget, kv=(case.k, case.v),
        values=values, threads=data.draw(st.integers(0, 3)), softmax=softmax,
    )  # fmt: skip
    given_ = (case.q, case.k, case.v, codes, values, budget, selection, softmax)
    assert_close(out, lse, reference.attend_tail(*given_))


@settings(max_examples=30)
@given(case=cases(), Dv=value_dims, centered=st.booleans(), data=st.data())
def test_a_step_with_a_softmax(
    library: Library, case: Case, Dv: int, centered: bool, data: st.DataObject
) -> None:
    case = with_values(case, Dv)
    selection, softmax = data.draw(selections(centered, False)), data.draw(softmaxes(case))
    budget = min(10, case.k.shape[2])
    if selection.sinks + selection.recent > budget:
        return
    codes = reference_codes(case, centered)
    given_ = (case.q, case.k, case.v, codes, budget, selection, softmax)
    indices, out, lse = library.step(
        q=case.q, codes=codes, selection=selection, budget=budget, kv=(case.k, case.v),
        threads=data.draw(st.integers(0, 3)), softmax=softmax,
    )  # fmt: skip
    chosen = reference.select_topk(case.q, codes, budget, selection, case.k, softmax)
    assert_array_equal(indices, chosen)
    assert_close(out, lse, reference.attend_topk(*given_))


@settings(max_examples=40)
@given(case=cases(), Dv=value_dims, window=st.sampled_from([0, 1, 50]), data=st.data())
def test_dense_attention(
    library: Library, case: Case, Dv: int, window: int, data: st.DataObject
) -> None:
    if case.q.shape[2] > case.k.shape[2]:
        return
    case, softmax = with_values(case, Dv), data.draw(softmaxes(case))
    threads = data.draw(st.integers(0, 3))
    rows = (case.q, case.k, case.v, None, softmax)
    found = library.attend(*rows, window=window, threads=threads)
    assert_close(*found, reference.attend(*rows, True, window or None))


@settings(max_examples=40)
@given(case=cases(), Dv=value_dims, seed=seeds, data=st.data())
def test_attention_over_indices(
    library: Library, case: Case, Dv: int, seed: int, data: st.DataObject
) -> None:
    case, softmax = with_values(case, Dv), data.draw(softmaxes(case))
    rng = np.random.default_rng(seed)
    indices = rng.integers(-1, case.k.shape[2], (*case.q.shape[:3], 9)).astype(np.int32)
    rows = (case.q, case.k, case.v, indices, softmax)
    found = library.attend(*rows, threads=data.draw(st.integers(0, 3)))
    assert_close(*found, reference.attend(*rows, True))


# ---- what goes wrong, memory and threads: at the best level -------------------------------------


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(native.path())


def made_step(S: int = 700, H_kv: int = 2, tail: bool = False) -> Made:
    rng = np.random.default_rng(S)
    q, k, v = (rng.standard_normal((1, n, m, 64), np.float32) for n, m in
               ((2 * H_kv, 1), (H_kv, S), (H_kv, S)))  # fmt: skip
    case = Case(q, k, v, np.array([S]))
    codes = reference_codes(case, True)
    values = None
    if tail:
        values = coded_values(case)
        reference.encode_values(v, values.codes, values.scales, values.bases, 0, case.lengths)
    return Made(q, codes, Selection(sinks=1, tail=9 * tail), 32, (k, v), values)


ERRORS = {
    "size": ("step", {"size": 8}, -2),
    "no queries": ("step", {"q": libadamas.Rows()}, -1),
    "no lengths": ("step", {"lengths": None}, -1),
    "no keys": ("step", {"keys": None}, -1),
    "out without lse": ("step", {"lse": None}, -1),
    "no values": ("step", {"v": libadamas.Rows()}, -1),
    "heads": ("step", {"H": 3}, -3),
    "values below 1": ("step", {"Dv": -1}, -3),
    "values too wide": ("step", {"Dv": 2049}, -3),
    "cap below 0": ("step", {"soft_cap": -1}, -7),
    "cap nan": ("step", {"soft_cap": np.nan}, -7),
    "cap beyond float": ("step", {"soft_cap": 1e39}, -7),
    "cap that float makes 0": ("step", {"soft_cap": 1e-60}, -7),
    "no head": ("step", {"H": 0}, -3),
    "queries": ("step", {"L": -1}, -3),
    "dtype": ("step", {"q_dtype": 3}, -4),
    "dtype of keys": ("step", {"kv_dtype": -1}, -4),
    "room": ("step", {"S": 10}, -5),
    "head_dim": ("keys", {"D": 0}, -3),
    "large head_dim": ("keys", {"D": 2049}, -3),
    "tiles": ("keys", {"T": 0}, -3),
    "a shape that overflows": ("keys", {"B": 2**31 - 1, "T": 2**31 - 1}, -3),
    "queries that overflow": ("step", {"H": 2**31 - 2, "L": 2**31 - 1}, -3),
    "too few tiles": ("keys", {"T": 2}, -5),
    "means without scales": ("keys", {"scales": libadamas.Heads()}, -1),
    "thresholds": ("keys", {"thresholds": None}, -1),
    "budget": ("options", {"budget": 0}, -6),
    "large budget": ("options", {"budget": 701}, -6),
    "sinks and recent": ("options", {"sinks": 20, "recent": 13}, -6),
    "sinks that overflow": ("options", {"sinks": 2**63 - 1, "recent": 2**63 - 1}, -6),
    "query_bits": ("options", {"query_bits": 1}, -7),
    "Manhattan with centered codes": ("options", {"query_bits": 0}, -7),
    "a group that refines": ("options", {"group": 1, "refine": 2}, -7),
    "a tail without values": ("options", {"tail": 4}, -7),
    "refine": ("options", {"refine": -1}, -7),
    "workspace": ("step", {"workspace": 1 << 20, "workspace_bytes": 1}, -10),
}


@pytest.mark.parametrize("what", ERRORS)
def test_a_wrong_argument_is_an_error_and_nothing_is_written(best: Library, what: str) -> None:
    part, changes, status = ERRORS[what]
    made = made_step()
    for name, value in changes.items():
        setattr(getattr(made, part), name, value)
    before = made.indices.copy(), made.out.copy(), made.lse.copy()
    assert best.c.adamas_step_run(c.byref(made.step)) == status
    for x, y in zip((made.indices, made.out, made.lse), before, strict=True):
        assert x.tobytes() == y.tobytes()
    if what != "workspace":
        assert best.c.adamas_step_workspace(c.byref(made.step)) == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_sinks_that_are_no_numbers(best: Library, wrong: float) -> None:
    made, sinks = made_step(), np.float32([0, -np.inf, 1, wrong])
    made.step.sink_logits = libadamas.at(sinks)
    assert best.c.adamas_step_run(c.byref(made.step)) == -7
    x = np.ones((1, 4, 5, 8), np.float32)
    with pytest.raises(AssertionError, match="a sink is a number or -inf"):
        best.attend(x, x, x, softmax=None, sink_logits=libadamas.at(sinks))
    with pytest.raises(AssertionError, match="a soft cap is 0 or above"):
        best.attend(x, x, x, soft_cap=-1.0)


def test_coded_values_of_another_dim(best: Library) -> None:
    made = made_step(tail=True)
    made.step.Dv = 63
    assert best.c.adamas_step_run(c.byref(made.step)) == -3


def test_a_dim_of_values_of_0_is_that_of_the_keys(best: Library) -> None:
    made, other = made_step(tail=True), made_step(tail=True)
    made.step.Dv = 0
    for one in (made, other):
        best.check(best.c.adamas_step_run(c.byref(one.step)))
    assert_array_equal(made.out, other.out)


def test_every_status_has_a_text_of_its_own(best: Library) -> None:
    texts = [best.c.adamas_error(status).decode() for status in range(0, -12, -1)]
    assert len(set(texts)) == 12
    assert texts[11] == "an unknown status"


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_a_workspace_of_the_size_that_is_asked_for(best: Library, tail: bool, threads: int) -> None:
    made, other = made_step(9000, 3, tail), made_step(9000, 3, tail)
    best.check(best.c.adamas_step_run(c.byref(other.step)))
    made.step.threads = threads
    size = best.c.adamas_step_workspace(c.byref(made.step))
    memory = np.full(size + 64, 0xA5, np.uint8)
    made.step.workspace, made.step.workspace_bytes = libadamas.at(memory), size
    best.check(best.c.adamas_step_run(c.byref(made.step)))
    assert (memory[size:] == 0xA5).all()
    assert_array_equal(made.indices, other.indices)
    assert_close(made.out, made.lse, (other.out, other.lse))
    made.step.workspace_bytes = size - 1
    assert best.c.adamas_step_run(c.byref(made.step)) == -10


def test_an_index_out_of_range_is_an_error(best: Library) -> None:
    x = np.ones((1, 1, 5, 8), np.float32)
    with pytest.raises(AssertionError, match="an index is not below S"):
        best.attend(x[:, :, :1], x, x, np.array([[[[5]]]], np.int32))


def test_keys_are_placed_in_one_block(best: Library) -> None:
    keys = libadamas.Keys(c.sizeof(libadamas.Keys), 2, 3, 4, 80)
    assert best.c.adamas_place_keys(c.byref(keys), 0, 3, None) == 0
    assert best.c.adamas_place_keys(c.byref(keys), 1, 4, None) == 0
    size = best.c.adamas_place_keys(c.byref(keys), 1, 3, None)
    assert keys.planes.data is None
    memory = np.zeros(size, np.uint8)
    assert best.c.adamas_place_keys(c.byref(keys), 1, 3, libadamas.P(libadamas.at(memory))) == size
    limits = np.repeat(THRESHOLDS[None], 3, 0)
    keys.thresholds = libadamas.at(limits)
    k = np.random.default_rng(0).standard_normal((2, 3, 130, 80), np.float32)
    best.check(best.c.adamas_append_keys(c.byref(keys), 0, libadamas.rows(k), c.c_int64(130),
                                         None, None, 0))  # fmt: skip
    expected = reference_codes(Case(k[:, :, :1], k, k, np.array([130, 130])), True)
    planes = expected.planes
    assert keys.third.data - keys.planes.data < size
    own = memory[: planes.nbytes // 3 * 4].view(np.uint64).reshape(2, 2, 3, 4, 8, 2, 8)
    assert_array_equal(own[:, :, :, :3], planes)


def test_several_callers_at_once(best: Library) -> None:
    made = [made_step(5000 + i, 3) for i in range(4)]
    for one in made:
        best.check(best.c.adamas_step_run(c.byref(one.step)))
    expected = [(one.indices.copy(), one.out.copy()) for one in made]
    failures = []

    def calls(i: int) -> None:
        for _ in range(60):
            made[i].indices[:] = -9
            made[i].step.threads = 2 + i
            status = best.c.adamas_step_run(c.byref(made[i].step))
            if status or not (made[i].indices == expected[i][0]).all():
                failures.append(i)

    threads = [threading.Thread(target=calls, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_forked_process_calls_too(best: Library) -> None:
    made = made_step(5000, 3)
    made.step.threads = 4
    best.check(best.c.adamas_step_run(c.byref(made.step)))
    expected = made.indices.copy()
    for _ in range(3):
        child = os.fork()
        if child == 0:
            made.indices[:] = -9
            status = best.c.adamas_step_run(c.byref(made.step))
            os._exit(0 if status == 0 and (made.indices == expected).all() else 1)
        assert os.waitpid(child, 0)[1] == 0
        best.check(best.c.adamas_step_run(c.byref(made.step)))


def test_the_number_of_threads_comes_from_the_environment() -> None:
    from processes import printed

    code = f"import ctypes; print(ctypes.CDLL({str(native.path())!r}).adamas_threads())"
    unset = {"ADAMAS_NUM_THREADS": None, "OMP_NUM_THREADS": None}
    assert printed(code, **unset) == str(len(os.sched_getaffinity(0)))
    assert printed(code, **{**unset, "OMP_NUM_THREADS": "3"}) == "3"
    assert printed(code, ADAMAS_NUM_THREADS="5", OMP_NUM_THREADS="3") == "5"
    assert printed(code, ADAMAS_NUM_THREADS="nonsense", OMP_NUM_THREADS="3") == "3"


def test_python_is_not_part_of_the_library() -> None:
    from processes import printed

    code = f"""
import ctypes, subprocess, sys
print(subprocess.run(["nm", "-D", "--undefined-only", {str(native.path())!r}],
                     capture_output=True, text=True).stdout)"""
    undefined = printed(code)
    assert "Py" not in undefined
    assert "numba" not in undefined
    assert "NRT" not in undefined


def test_the_header_is_c_and_cpp(tmp_path: Path) -> None:
    import shutil
    import subprocess

    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    for suffix in (".c", ".cpp"):
        source = tmp_path / f"a{suffix}"
        source.write_text('#include "adamas.h"\nint main(void) { return ADAMAS_ABI != 1; }\n')
        flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]
        include = f"-I{native.HERE / 'include'}"
        subprocess.run([compiler, *flags, include, str(source)], check=True)
