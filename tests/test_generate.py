"""Sampling and generation, and the known greedy text of a trained model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_model import MODELS, DenseAttention, by_hand, needs_models, tiny

from adamas_core import KVCache, Selection
from adamas_core.llama import Sampling, generate, load, load_tokenizer

LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))


def draws(temperature, top_p, n=4000):
    """The share of each token among n draws."""
    sampling, rng = Sampling(temperature, top_p), np.random.default_rng(1)
    return np.bincount([sampling.choose(LOGITS, rng) for _ in range(n)], minlength=4) / n


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
    """All tokens that are generated; the options may be those of Sampling too."""
    names = [name for name in ("temperature", "top_p", "seed") if name in options]
    options["sampling"] = Sampling(**{name: options.pop(name) for name in names})
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
        ({"prompt": [1], "max_tokens": -1}, "max_tokens=-1"),
        ({"prompt": [1], "position": -1}, "position=-1"),
        ({"prompt": [1], "seed": -1}, "seed=-1"),
    ],
)
def test_bad_options_are_an_error(options, message):
    """When generate is called, before the first token is asked for."""
    names = [name for name in ("temperature", "top_p", "seed") if name in options]
    options = {"max_tokens": 12, **options}
    with pytest.raises(ValueError, match=message):
        chosen = Sampling(**{name: options.pop(name) for name in names})
        generate(tiny(), options.pop("prompt"), DenseAttention(), sampling=chosen, **options)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Sampling(temperature="1"),
        lambda: Sampling(top_p=None),
        lambda: Sampling(seed=1.5),
        lambda: generate(tiny(), [1], DenseAttention(), max_tokens=2.5),
        lambda: generate(tiny(), [1], DenseAttention(), max_tokens=2, sampling=3),
    ],
)
def test_a_wrong_type_is_an_error(call):
    with pytest.raises(TypeError, match="expected"):
        call()


BAD_LOGITS = {
    "nan": np.array([0, np.nan, 1], np.float32),
    "all nan": np.full(5, np.nan, np.float32),
    "all minus infinity": np.full(5, -np.inf, np.float32),
    "infinity": np.array([0, np.inf], np.float32),
    "empty": np.zeros(0, np.float32),
    "two axes": np.zeros((2, 3), np.float32),
}


@pytest.mark.parametrize("name", BAD_LOGITS)
@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1.0])
def test_logits_without_a_likeliest_token_are_an_error(name, temperature):
    with pytest.raises(ValueError, match=r"logits is float32 .* expected one row of numbers"):
        Sampling(temperature).choose(BAD_LOGITS[name], np.random.default_rng(0))


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-6, 1.0])
def test_a_token_of_minus_infinity_is_never_drawn(temperature):
    logits = np.array([-np.inf, 3, -np.inf], np.float32)
    rng = np.random.default_rng(0)
    assert {Sampling(temperature).choose(logits, rng) for _ in range(20)} == {1}


def test_random_numbers_come_from_a_generator():
    with pytest.raises(TypeError, match="rng is of type RandomState; expected a NumPy Generator"):
        Sampling(1.0).choose(LOGITS, np.random.RandomState(0))


def test_one_cache_does_not_serve_two_texts():
    """The second run would follow the first one's tokens, at wrong positions."""
    model, cache = tiny(), KVCache(tiny().config.layers)
    first = list(generate(model, [1, 2, 3], cache.attention(None), max_tokens=5))
    second = generate(model, [1, 2, 3], cache.attention(None), max_tokens=5)
    with pytest.raises(ValueError, match="holds 7 tokens and position=0; expected equal numbers"):
        next(second)
    cache.truncate(0)
    again = list(generate(model, [1, 2, 3], cache.attention(None), max_tokens=5))
    assert again == first


def test_a_prompt_is_read_by_prefill():
    """In chunks, the last of which may be a single token: all are dense."""
    model, cache = tiny(), KVCache(tiny().config.layers)
    sparse = cache.attention(1)
    got = next(generate(model, [1, 2, 3, 4, 5], sparse, max_tokens=1, chunk=4))
    assert got == next(generate(model, [1, 2, 3, 4, 5], DenseAttention(), max_tokens=1))


@pytest.mark.model
@needs_models
def test_a_trained_model_tells_its_story():
    model = load(MODELS / "stories260K.bin")
    tokenizer = load_tokenizer(MODELS / "tok512.bin")
    tokens = list(generate(model, [tokenizer.bos], DenseAttention(), max_tokens=200))
    expected = (MODELS / "stories260K.greedy.txt").read_bytes()
    assert tokenizer.decode(tokens).encode() == expected


@pytest.mark.model
@needs_models
@pytest.mark.parametrize("backend_name", ["cpu", "reference"])
@pytest.mark.parametrize("metric", ["weighted", "manhattan"])
@pytest.mark.parametrize("budget", [None, 201])
def test_stories(budget: int | None, metric: str, backend_name: str) -> None:
    """The known greedy text, byte for byte, densely and where the budget covers the context."""
    model = load(MODELS / "stories260K.bin")
    tokenizer = load_tokenizer(MODELS / "tok512.bin")
    cache = KVCache(model.config.layers, selection=Selection(metric), backend=backend_name)
    tokens = generate(model, [tokenizer.bos], cache.attention(budget), max_tokens=200)
    expected = (MODELS / "stories260K.greedy.txt").read_bytes()
    assert tokenizer.decode(tokens).encode() == expected


def test_two_generations_that_take_turns_on_one_cache() -> None:
    """The first one ends with an error: the cache does not hold its text any more."""
    model = tiny()
    attention = KVCache(2).attention(None)
    first = generate(model, [1, 2, 3], attention, max_tokens=9)
    next(first), next(first)
    held = attention.tokens
    next(generate(model, [4], attention, max_tokens=2, position=held))
    with pytest.raises(ValueError, match=rf"holds {held + 1} tokens and position={held}"):
        next(first)


def test_a_bad_id_leaves_no_half_read_prompt() -> None:
    model = tiny()
    attention = KVCache(2).attention(None)
    with pytest.raises(ValueError, match="ids from"):
        next(generate(model, [1, 2, 3, 10**6], attention, max_tokens=1, chunk=2))
    assert attention.tokens == 0
