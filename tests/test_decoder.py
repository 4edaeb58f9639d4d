"""The forward pass: against float64 loops, in chunks, and the arguments of attention."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import DenseAttention, assert_close, by_hand, tiny

from adamas_core import KVCache
from adamas_core.llama import rope
from adamas_core.llama.decoder import geglu, swiglu

SHAPES = {
    "MHA": {"heads": 4, "kv_heads": 4},
    "GQA": {"heads": 6, "kv_heads": 2},
    "MQA tied": {"heads": 4, "kv_heads": 1, "tied": True},
    "biases": {"bias": True},
    "q and k norm": {"qk_norm": True},
    "rope gain": {"ropes": (rope.Rope((1.0, 0.2, 0.05), 1.3),) * 2},
    "two ropes": {"ropes": (rope.Rope((1.0, 0.2, 0.05)), rope.Rope((2.0, 0.1, 0.01), 1.1))},
    "windows": {"windows": (3, None)},
    "one token's window": {"windows": (1, 4)},
    "post norms": {"post_norms": True},
    "gelu": {"activation": "gelu"},
    "scales": {"embedding_scale": 3.0, "query_scale": 0.7},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_are_those_of_float64_loops(shape):
    model = tiny(**shape)
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    found = model.forward(tokens, 7, DenseAttention(model.config.windows), last=False)
    assert found.dtype == np.float32
    assert_close(found, by_hand(model, tokens, 7))
    assert_close(model.forward(tokens, 7, DenseAttention(model.config.windows)), found[-1])


@given(cuts=st.sets(st.integers(1, 19)), seed=st.integers(0, 3))
def test_prefill_in_chunks_changes_nothing(cuts, seed):
    model = tiny(seed=seed)
    tokens = np.random.default_rng(seed).integers(0, 50, 20)
    attention = DenseAttention()
    found = [
        model.forward(part, start, attention, last=False)
        for start, part in zip([0, *sorted(cuts)], np.split(tokens, sorted(cuts)), strict=True)
    ]
    assert_close(np.concatenate(found), model.forward(tokens, 0, DenseAttention(), last=False))


def test_only_distances_between_positions_matter():
    model = tiny()
    near = model.forward([5, 6, 7], 0, DenseAttention())
    assert_close(model.forward([5, 6, 7], 1000, DenseAttention()), near, 1e-4)
    attention = DenseAttention()
    model.forward([5], 0, attention)
    apart = model.forward([6, 7], 3, attention)  # two positions left out
    assert np.abs(apart - near).max() > 1e-2 * np.abs(near).max()


def test_attention_sees_every_layer_with_the_new_tokens_alone():
    model = tiny(heads=6, kv_heads=2)
    seen = []

    def attention(layer, q, k, v):
        seen.append((layer, q.shape, k.shape, v.shape))
        assert {x.dtype for x in (q, k, v)} == {np.dtype(np.float32)}
        assert all(x.strides[-1] == 4 for x in (q, k, v))
        return np.zeros(q.shape, np.float16)

    assert model.forward([1, 2, 3], 0, attention).dtype == np.float32
    assert seen == [(i, (6, 3, 6), (2, 3, 6), (2, 3, 6)) for i in range(2)]


def test_an_attention_of_the_wrong_shape_is_an_error():
    with pytest.raises(ValueError, match=r"returned shape \(3, 4, 6\), expected \(4, 3, 6\)"):
        tiny().forward([1, 2, 3], 0, lambda layer, q, k, v: q.swapaxes(0, 1))


@pytest.mark.parametrize("tokens", [[-1], [50], [], [[1]], [1.0], "ab"])
def test_bad_tokens_are_an_error(tokens):
    with pytest.raises(ValueError, match="token"):
        tiny().forward(tokens, 0, DenseAttention())


@pytest.mark.parametrize("gated", [swiglu, geglu])
@pytest.mark.parametrize("large", [1e4, 1e20, 3e38])
def test_an_extreme_gate_does_not_warn(gated, large):
    gate, up = np.array([[-large, 0, large]], np.float32), np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(gated(gate, up), [[0, 0, np.float32(large)]])


def test_gelu_is_that_of_the_error_function():
    gate = np.linspace(-6, 6, 101, dtype=np.float32)[None]
    exact = [x / 2 * (1 + math.erf(x / math.sqrt(2))) for x in gate[0].tolist()]
    np.testing.assert_allclose(geglu(gate, np.ones_like(gate))[0], exact, atol=5e-4)


def test_a_cache_without_the_models_windows_is_refused():
    """It would read other tokens in silence; in a prefill too."""
    model = tiny(windows=(3, None))
    whole, right = KVCache(2).attention(None), KVCache(2, windows=(3, None)).attention(None)
    for attention in (whole, whole.prefill):
        with pytest.raises(
            ValueError, match=r"windows=\(None, None\) and the model has \(3, None\)"
        ):
            model.forward([1, 2], 0, attention)
    with pytest.raises(ValueError, match=r"windows=\(3, None\) and the model has \(None, None\)"):
        tiny().forward([1, 2], 0, right)
    model.forward([1, 2], 0, right.prefill)
    tiny().forward([1, 2], 0, whole)


def test_a_cache_of_other_layers_or_at_another_position_is_refused():
    model = tiny()
    attention = KVCache(2).attention(None)
    with pytest.raises(ValueError, match=r"the cache of attention has layers with windows"):
        model.forward([1], 0, KVCache(5).attention(None))
    model.forward([1, 2], 0, attention.prefill)
    for position in (0, 1, 99):
        with pytest.raises(ValueError, match=rf"holds 2 tokens and position={position}; expected"):
            model.forward([3], position, attention)
    with pytest.raises(ValueError, match=r"position=-3; expected at least 0"):
        model.forward([3], -3, attention)
    model.forward([3], 2, attention)
