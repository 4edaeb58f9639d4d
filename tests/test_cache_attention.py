"""The attention of a decoder: a block of new tokens is as many single steps, a prompt is dense."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from cache_model import interrupted, same_layer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_same_bits

from adamas_core import KVCache, Selection, attend, cache_attention, decode_attention
from adamas_core.dispatch import load, on_host

Place = Callable[[NDArray[Any]], Any]
KINDS: dict[str, dict[str, Any]] = {
    "centered": {"centered": True},
    "plain": {"centered": False, "thresholds": [-1, 0, 1]},
    "calibrated": {"centered": False},
    "refine": {"centered": True, "selection": Selection(refine=3, sinks=1, recent=2)},
    "group": {"centered": True, "selection": Selection(group=True)},
    "window": {"windows": [30]},
    "tail": {"selection": Selection(tail=20, sinks=2)},
}


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Keys with a common part, so that a tile's mean changes its codes."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 3 * rng.standard_normal(shape[-1])).astype(np.float32)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(list(KINDS)),
    held=st.sampled_from([0, 1, 20, 62, 63, 64, 100, 126, 127, 128, 190]),
    L=st.sampled_from([1, 2, 5, 64, 65, 130]),
    budget=st.sampled_from([8, 40, None]),
)
def test_a_block_is_as_many_single_steps(
    place: Place, kind: str, held: int, L: int, budget: int | None
) -> None:
    """Each query chooses by the codes of its own step; the sums differ by rounding alone."""
    k, v = place(normal(2, 2, held, 32)), place(normal(2, 2, held, 32, seed=1))
    q, dk, dv = (normal(2, H, L, 32, seed=2 + H) for H in (4, 2, 2))
    block, single = KVCache(**KINDS[kind]), KVCache(**KINDS[kind])
    if held:
        block.append(k, v)
        single.append(k, v)
    out = on_host(block.attention(budget)(0, place(q), place(dk), place(dv)))
    step, parts = single.attention(budget), []
    for l in range(L):
        one = (place(x[:, :, l : l + 1]) for x in (q, dk, dv))
        parts.append(on_host(step(0, *one)))
    np.testing.assert_allclose(out, np.concatenate(parts, axis=2), atol=2e-5)
    at_once = kind == "calibrated" and budget is None  # dense, so one append with one sample
    if isinstance(place(k), np.ndarray) and not at_once:
        same_layer(block[0], single[0])


@pytest.mark.parametrize("kind", ["centered", "plain", "calibrated", "refine", "group"])
@pytest.mark.parametrize("held", [0, 60, 190])
def test_a_block_chooses_the_tokens_of_single_steps(
    kind: str, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to the bit."""
    chosen: list[list[int]] = []

    def recorded(where: str, q: Any, layer: Any, selection: Any, budget: Any, softmax: Any) -> Any:
        L, S = q.shape[2], layer.lengths.longest
        k, _ = layer.keys_values()
        found = load("cpu").select_topk(q, layer.codes.record(), min(budget, S), selection, k)
        every = np.arange(S)
        for l in range(L):
            rows = found[:, :, l].reshape(-1, found.shape[-1])
            if budget >= S:  # dense
                rows = np.broadcast_to(every[: S - L + 1 + l], (len(rows), S - L + 1 + l))
            chosen.append([int(i) for row in rows for i in (*row[row >= 0], -1)])
        return q, None

    monkeypatch.setattr(cache_attention, "attend_layer", recorded)
    k, q, new = normal(1, 2, held, 32), normal(1, 4, 140, 32, seed=6), normal(1, 2, 140, 32, seed=4)
    block, single = KVCache(**KINDS[kind]), KVCache(**KINDS[kind])
    for cache in (block, single):
        if held:
            cache.append(k, k)
    block.attention(8)(0, q, new, new)
    at_once, chosen = chosen, []
    for l in range(140):
        one = slice(l, l + 1)
        single.attention(8)(0, q[:, :, one], new[:, :, one], new[:, :, one])
    assert at_once == chosen


def test_the_codes_of_a_later_token_are_not_seen() -> None:
    """decode_attention after the whole block would see them: its indices differ."""
    k, q = normal(1, 1, 700, 64), normal(1, 1, 10, 64, seed=3)
    late = KVCache(centered=True)
    late.append(k[:, :, :700], k[:, :, :700])
    block = KVCache(centered=True)
    block.append(k[:, :, :697], k[:, :, :697])
    new = normal(1, 1, 10, 64, seed=9)
    out = block.attention(16)(0, q, new, new)
    late.truncate(697)
    late.append(new, new)
    assert (out[:, :, :6] != decode_attention(q, late, 16)[:, :, :6]).any()
    assert_same_bits(out[:, :, 7:], decode_attention(q, late, 16)[:, :, 7:])


def test_a_prompt_is_read_densely(place: Place) -> None:
    q, k, v = (place(normal(1, 2, 300, 32, seed=s)) for s in range(3))
    cache = KVCache()
    attention = cache.attention(16)
    out = attention.prefill(0, q, k, v)
    assert_same_bits(on_host(out), on_host(attend(q, k, v, None)))
    assert attention.tokens == 300


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda q, k, v: (q[:, :, :-1], k, v), "expected the same tokens and as many axes"),
        (lambda q, k, v: (q[:, :3], k, v), "multiple of the KV heads"),
        (lambda q, k, v: (q[..., :-1].copy(), k, v), "head_dim"),
        (lambda q, k, v: (q, k, v[:, :, :-1]), "of one dtype"),
        (lambda q, k, v: (q, k * np.float32(np.nan), v), "finite"),
        (lambda q, k, v: (q[0], k, v), "the same batch|as many axes"),
    ],
)
def test_a_refused_call_changes_nothing(change: Callable[..., Any], told: str) -> None:
    cache = KVCache()
    k = normal(2, 2, 70, 32)
    cache.append(k, k)
    before = KVCache()
    before.append(k, k)
    with pytest.raises(ValueError, match=told):
        cache.attention(8)(0, *change(normal(2, 4, 5, 32), k[:, :, :5], k[:, :, :5]))
    same_layer(cache[0], before[0])


@pytest.mark.parametrize("kind", ["centered", "calibrated"])
def test_an_interrupted_call_changes_nothing(kind: str) -> None:
    """Also between the runs of a block, where some tokens have been appended already."""
    k, q = normal(1, 2, 190, 32), normal(1, 2, 140, 32, seed=1)
    before = KVCache(**KINDS[kind])
    before.append(k[:, :, :50], k[:, :, :50])
    moment, stopped = 1, True
    while stopped:
        cache = KVCache(**KINDS[kind])
        cache.append(k[:, :, :50], k[:, :, :50])
        call = partial(cache.attention(8), 0, q, k[:, :, 50:], k[:, :, 50:])
        stopped = interrupted(call, moment)
        if cache[0].tokens == 50:
            same_layer(cache[0], before[0])
        else:
            assert cache[0].tokens == 190
        moment += 1 + moment // 4


def test_layers_of_different_lengths_have_no_position() -> None:
    cache = KVCache(2)
    cache.append(normal(1, 5, 8), normal(1, 5, 8))
    with pytest.raises(ValueError, match=r"hold from 0 to 5 tokens; .* call truncate\(0\)"):
        cache.attention(4).tokens  # noqa: B018


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="budget=0"):
        KVCache().attention(0)
    with pytest.raises(ValueError, match="sinks=4 and recent=0 are 4 tokens"):
        KVCache(selection=Selection(sinks=4)).attention(3)
    with pytest.raises(TypeError, match="scale='x'"):
        KVCache().attention(3, scale="x")
    with pytest.raises(IndexError, match="layer=1"):
        KVCache().attention(3)(1, *np.zeros((3, 1, 1, 8), np.float32))
