"""The decoder alone: float64 loops, chunks, sampling, and a trained model's greedy text."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import DenseAttention, assert_close, by_hand, tiny

from adamas_core.llama import decoder, load, load_tokenizer
from adamas_core.llama.decoder import Config, generate, sample

MODELS = Path(__file__).resolve().parents[2] / "shared" / "data" / "models"


SHAPES = {
    "MHA": {"heads": 4, "kv_heads": 4},
    "GQA": {"heads": 6, "kv_heads": 2},
    "MQA tied": {"heads": 4, "kv_heads": 1, "tied": True},
    "biases": {"bias": True},
    "q and k norm": {"qk_norm": True},
    "rope gain": {"rope_gain": 1.3},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_are_those_of_float64_loops(shape):
    model = tiny(**shape)
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    found = model.forward(tokens, 7, DenseAttention(), last=False)
    assert found.dtype == np.float32
    assert_close(found, by_hand(model, tokens, 7))
    assert_close(model.forward(tokens, 7, DenseAttention()), found[-1])


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


def test_positions_stay_exact_far_out():
    model = tiny(frequencies=(1.0, 0.1, 0.01))
    cos, sin = model._rotation(10**6, 1)
    np.testing.assert_allclose(cos[0, 0, 0], math.cos(10**6), rtol=1e-6)
    np.testing.assert_allclose(sin[0, 0, 1], math.sin(10**5), rtol=1e-6)


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


def test_an_extreme_gate_does_not_warn():
    gate, up = np.array([[-1e4, 0, 1e4]], np.float32), np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(decoder.swiglu(gate, up), [[0, 0, 1e4]])


# RoPE scaling


def test_linear_scaling_stretches_positions():
    plain, _ = decoder.rope_frequencies(8, 10000.0)
    np.testing.assert_allclose(plain, [1, 0.1, 0.01, 0.001])
    scaled, gain = decoder.rope_frequencies(8, 10000.0, {"rope_type": "linear", "factor": 4.0})
    np.testing.assert_allclose(scaled, np.array(plain) / 4)
    assert gain == 1


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_llama3_scaling_keeps_fast_pairs_and_divides_slow_ones():
    plain = np.array(decoder.rope_frequencies(128, 500000.0)[0])
    scaled = np.array(decoder.rope_frequencies(128, 500000.0, LLAMA3)[0])
    turns = 8192 * plain / (2 * math.pi)
    np.testing.assert_allclose(scaled[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    share = (turns[between] - 1) / 3
    np.testing.assert_allclose(scaled[between], plain[between] * (share + (1 - share) / 8))
    assert between.any()


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def test_yarn_scaling_ramps_over_pairs_and_has_a_gain():
    plain = np.array(decoder.rope_frequencies(128, 1e6)[0])
    scaled, gain = decoder.rope_frequencies(128, 1e6, YARN)
    share = np.array(scaled) / plain
    # ln(32768 / (2 pi 32)) * 64 / ln 1e6 = 23.6, and 39.65 for one turn: pairs 23 to 40.
    np.testing.assert_allclose(share[:24], 1)
    np.testing.assert_allclose(share[40:], 0.25)
    np.testing.assert_allclose(np.diff(share[23:41]), -0.75 / 17)
    assert gain == pytest.approx(0.1 * math.log(4) + 1)
    assert decoder.rope_frequencies(128, 1e6, YARN | {"attention_factor": 1.5})[1] == 1.5


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' is not supported"),
        ({"rope_type": "linear"}, "'linear' needs 'factor'"),
        (LLAMA3 | {"mystery": 1}, "not known.*mystery"),
    ],
)
def test_a_scaling_that_is_not_known_is_an_error(scaling, message):
    with pytest.raises(ValueError, match=message):
        decoder.rope_frequencies(8, 10000.0, scaling)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 5}, "head_dim is 5.*even"),
        ({"kv_heads": 3}, "4 query heads cannot share 3 KV heads"),
        ({"layers": 0}, "layers is 0"),
    ],
)
def test_an_impossible_config_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**(vars(tiny().config) | change))


# Sampling and generation

LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))


def draws(temperature, top_p, n=4000):
    rng = np.random.default_rng(1)
    return np.bincount([sample(LOGITS, temperature, top_p, rng) for _ in range(n)], minlength=4) / n


def test_greedy_takes_the_largest():
    np.testing.assert_array_equal(draws(0.0, 1.0, 3), [0, 1, 0, 0])


def test_temperature_one_draws_from_the_softmax():
    np.testing.assert_allclose(draws(1.0, 1.0), [0.1, 0.5, 0.15, 0.25], atol=0.03)


def test_temperature_sharpens_and_flattens():
    squared = np.array([0.01, 0.25, 0.0225, 0.0625])
    np.testing.assert_allclose(draws(0.5, 1.0), squared / squared.sum(), atol=0.03)
    np.testing.assert_allclose(draws(1e6, 1.0), [0.25] * 4, atol=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, [1]), (0.6, [1, 3]), (0.8, [1, 2, 3])])
def test_top_p_keeps_the_fewest_likeliest_that_reach_it(top_p, kept):
    expected = np.zeros(4)
    expected[kept] = np.exp(LOGITS)[kept] / np.exp(LOGITS)[kept].sum()
    found = draws(1.0, top_p)
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert found[expected == 0].sum() == 0


def run(model, prompt, **options):
    return list(generate(model, prompt, DenseAttention(), **{"max_tokens": 12} | options))


def test_generate_is_argmax_after_argmax():
    model, tokens = tiny(), [1, 2, 3]
    for _ in range(5):
        tokens.append(int(by_hand(model, tokens)[-1].argmax()))
    assert run(model, [1, 2, 3], max_tokens=5) == tokens[3:]


def test_seed_decides():
    model = tiny()
    first = run(model, [1], temperature=1.5, seed=3)
    assert run(model, [1], temperature=1.5, seed=3, chunk=1) == first
    assert run(model, [1], temperature=1.5, seed=4) != first


def test_prefill_reports_its_chunks():
    seen = []
    prompt = list(range(10))
    tokens = run(tiny(), prompt, chunk=4, on_prefill=lambda *progress: seen.append(progress))
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert tokens == run(tiny(), prompt)


def test_a_stop_token_ends_and_is_not_yielded():
    tokens = run(tiny(), [1])
    stop = tokens[5]
    assert run(tiny(), [1], stop={stop}) == tokens[: tokens.index(stop)]


def test_max_tokens_and_context_end_generation():
    assert run(tiny(), [1], max_tokens=0) == []
    assert len(run(tiny(), [1] * 60, max_tokens=100)) == 5  # 4 read back, and one more
    assert len(run(tiny(), [1] * 64)) == 1


def test_generation_continues_where_the_cache_stands():
    model, attention = tiny(), DenseAttention()
    model.forward([1, 2, 3], 0, attention)
    tokens = list(generate(model, [4, 5], attention, max_tokens=6, position=3))
    assert tokens == run(model, [1, 2, 3, 4, 5], max_tokens=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "holds no token"),
        ({"prompt": [1] * 65}, "65 tokens do not fit the model's context of 64"),
        ({"prompt": [1], "position": 64}, "65 tokens do not fit"),
        ({"prompt": [1], "temperature": -1.0}, "temperature"),
        ({"prompt": [1], "temperature": math.nan}, "temperature"),
        ({"prompt": [1], "top_p": 0.0}, "top_p"),
        ({"prompt": [1], "chunk": 0}, "chunk"),
    ],
)
def test_bad_options_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        run(tiny(), **options)


@pytest.mark.model
@pytest.mark.skipif(not MODELS.is_dir(), reason=f"{MODELS} is absent")
def test_a_trained_model_tells_its_story():
    model = load(MODELS / "stories260K.bin")
    tokenizer = load_tokenizer(MODELS / "tok512.bin")
    tokens = list(generate(model, [tokenizer.bos], DenseAttention(), max_tokens=200))
    expected = (MODELS / "stories260K.greedy.txt").read_bytes()
    assert tokenizer.decode(tokens).encode() == expected
