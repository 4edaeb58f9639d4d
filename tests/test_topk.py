"""topk: the reference against a stable sort, and every backend to the bit."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_same_bits
from strategies import distances, selections

from adamas_core import Selection, reference


@given(d=distances(), data=st.data())
def test_bits(kernels: ModuleType, d: NDArray[np.uint16], data: st.DataObject) -> None:
    K, selection = data.draw(selections(d.shape[-1]))
    assert_same_bits(kernels.topk(d, K, selection), reference.topk(d, K, selection))


@given(d=distances(), data=st.data())
def test_is_the_head_of_a_stable_sort(
    backend: ModuleType, d: NDArray[np.uint16], data: st.DataObject
) -> None:
    """Newest first, sorted stably by distance: the first K are the K nearest."""
    K = data.draw(st.integers(1, d.shape[-1] + 5))
    got = backend.topk(d, K, Selection())
    for row in np.ndindex(d.shape[:-1]):
        newest_first = np.arange(d.shape[-1])[::-1]
        order = newest_first[np.argsort(d[row][newest_first], kind="stable")]
        chosen = [i for i in order if d[row][i] != 65535][:K]
        expected = sorted(chosen) + [-1] * (K - len(chosen))
        assert got[row].tolist() == expected


@given(d=distances(), data=st.data())
def test_forced_tokens(backend: ModuleType, d: NDArray[np.uint16], data: st.DataObject) -> None:
    K, selection = data.draw(selections(d.shape[-1]))
    sinks, recent = selection.sinks, selection.recent
    got = backend.topk(d, K, selection)
    for row in np.ndindex(d.shape[:-1]):
        visible = np.flatnonzero(d[row] != 65535)
        kept = set(visible[:sinks]) | set(visible[max(len(visible) - recent, 0) :])
        assert kept <= set(got[row])
        free = [i for i in visible if i not in kept]
        nearest = sorted(free, key=lambda i: (d[row][i], -i))[: K - len(kept)]
        assert set(got[row]) - {-1} == kept | set(nearest)


def test_golden(every: ModuleType) -> None:
    d = np.array([[[[5, 1, 7, 1, 1, 65535]]]], np.uint16)
    assert every.topk(d, 2, Selection()).tolist() == [[[[3, 4]]]]
    assert every.topk(d, 4, Selection()).tolist() == [[[[0, 1, 3, 4]]]]
    assert every.topk(d, 6, Selection()).tolist() == [[[[0, 1, 2, 3, 4, -1]]]]
    assert every.topk(d, 3, Selection(sinks=1, recent=1)).tolist() == [[[[0, 3, 4]]]]
    assert every.topk(d, 2, Selection(sinks=2)).tolist() == [[[[0, 1]]]]
