"""Gradients of attention to chosen tokens, against those that JAX finds for the plain formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import with_jax

with_jax.skip_if_missing()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import ml_dtypes  # noqa: E402

from adamas_core import Selection, Softmax  # noqa: E402
from adamas_core import jax as adamas  # noqa: E402
from adamas_core.softmax import PLAIN  # noqa: E402

pytestmark = pytest.mark.peers
B, H, H_KV, L, S, D, K = 2, 6, 2, 3, 40, 24, 9


@pytest.fixture(autouse=True)
def on_the_cpu() -> Any:
    with jax.default_device(jax.devices("cpu")[0]):
        yield


def arrays(dtype: Any = np.float32) -> list[Any]:
    rng = np.random.default_rng(0)
    shapes = (B, H, L, D), (B, H_KV, S, D), (B, H_KV, S, D)
    return [jnp.asarray(rng.standard_normal(x, np.float32).astype(dtype)) for x in shapes]


def plain(q: Any, k: Any, v: Any, indices: Any, softmax: Softmax = PLAIN) -> tuple[Any, Any]:
    """Attention to tokens, as a mask on dense attention."""
    scale = D**-0.5 if softmax.scale is None else softmax.scale
    taken = (indices[..., None] == jnp.arange(S)).any(axis=-2)  # (B, H, L, S)
    k, v = (jnp.repeat(x, H // H_KV, axis=1) for x in (k, v))
    logits = scale * jnp.einsum("bhld,bhsd->bhls", q, k)
    if softmax.soft_cap is not None:
        logits = softmax.soft_cap * jnp.tanh(logits / softmax.soft_cap)
    logits = jnp.where(taken, logits, -jnp.inf)
    if softmax.sink_logits is not None:  # as one more token, whose value is 0
        sinks = jnp.broadcast_to(softmax.sink_logits[:, None, None], (*logits.shape[:3], 1))
        logits = jnp.concatenate([logits, sinks], axis=-1)
        taken = jnp.concatenate([taken, sinks > -jnp.inf], axis=-1)
        v = jnp.pad(v, [(0, 0), (0, 0), (0, 1), (0, 0)])
    some = taken.any(axis=-1)
    lse = jax.scipy.special.logsumexp(jnp.where(some[..., None], logits, 0), axis=-1)
    p = jnp.where(taken, jnp.exp(logits - lse[..., None]), 0)
    return jnp.einsum("bhls,bhsd->bhld", p, v), jnp.where(some, lse, 0)


def loss(out: Any, lse: Any) -> Any:
    """A number in which every output counts differently."""
    weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    lse = jnp.where(jnp.isfinite(lse), lse, 0)
    return (weight * out.astype(jnp.float32)).sum() + (jnp.sin(lse) * 0.7).sum()


SINKS = np.linspace(-2, 2, H)
SOFTMAXES = {
    "plain": PLAIN,
    "scale": Softmax(scale=0.6),
    "soft cap": Softmax(soft_cap=2),
    "sinks": Softmax(sink_logits=SINKS),
    "all": Softmax(scale=0.5, soft_cap=3, sink_logits=SINKS),
}


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("Dv", [D, 5])
def test_attend(name: str, Dv: int) -> None:
    """With missing indices, and a query without any."""
    softmax = SOFTMAXES[name]
    q, k, v = arrays()
    v = v[..., :Dv]
    rng = np.random.default_rng(1)
    indices = np.stack([rng.permutation(S)[:K] for _ in range(B * H * L)])
    indices = indices.reshape(B, H, L, K).astype(np.int32)
    indices[0, 1, 2, 4:] = -1
    indices[1, 0, 0] = -1

    def ours(*x: Any) -> Any:
        return loss(*adamas.attend(*x, indices, softmax, return_lse=True))

    found = jax.grad(ours, (0, 1, 2))(q, k, v)
    expected = jax.grad(lambda *x: loss(*plain(*x, indices, softmax)), (0, 1, 2))(q, k, v)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6)
    assert (np.asarray(found[0])[1, 0, 0] == 0).all()


@pytest.mark.parametrize("budget", [K, S])
def test_decode_attention_after_append(budget: int) -> None:
    """With respect to queries, new tokens, and those that the cache had."""
    q, k, v = arrays()
    count = np.array([4, 2])
    cache = adamas.init(B, H_KV, D, S, selection=Selection(tail=0))
    cache = adamas.append(cache, k[:, :, :25], v[:, :, :25])

    def ours(q: Any, k: Any, v: Any, held_k: Any) -> Any:
        held = adamas.append(replace(cache, k=held_k), k, v, count)
        return loss(*adamas.decode_attention(q, held, budget, return_lse=True))

    held = adamas.append(cache, k[:, :, 25:30], v[:, :, 25:30], count)
    indices = adamas.select_topk(q, held, budget)

    def theirs(q: Any, k: Any, v: Any, held_k: Any) -> Any:
        keys, values = held_k, cache.v
        for b, n in enumerate(count):
            keys = keys.at[b, :, 25 : 25 + n].set(k[b, :, :n])
            values = values.at[b, :, 25 : 25 + n].set(v[b, :, :n])
        return loss(*plain(q, keys, values, indices))

    inputs = q, k[:, :, 25:30], v[:, :, 25:30], cache.k
    found = jax.jit(jax.grad(ours, (0, 1, 2, 3)))(*inputs)
    expected = jax.grad(theirs, (0, 1, 2, 3))(*inputs)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6)
    assert (np.asarray(found[1])[1, :, 2:] == 0).all()


@pytest.mark.parametrize("counts", [[5, 0], [3, 2]])
def test_append(counts: list[int]) -> None:
    """Every slot of the cache counts here. The last new rows would not have room."""
    _, k, v = arrays()
    room, new = 28, 5
    cache = adamas.init(B, H_KV, D, room, selection=Selection(tail=0))
    cache = adamas.append(cache, k[:, :, :23], v[:, :, :23])
    weight = jnp.cos(jnp.arange(cache.k.size)).reshape(cache.k.shape)

    def ours(k: Any, v: Any, held_k: Any, held_v: Any) -> Any:
        after = adamas.append(replace(cache, k=held_k, v=held_v), k, v, np.array(counts))
        return (weight * after.k).sum() + jnp.square(weight * after.v).sum()

    def theirs(k: Any, v: Any, held_k: Any, held_v: Any) -> Any:
        for b, n in enumerate(counts):
            held_k = held_k.at[b, :, 23 : 23 + n].set(k[b, :, :n])
            held_v = held_v.at[b, :, 23 : 23 + n].set(v[b, :, :n])
        return (weight * held_k).sum() + jnp.square(weight * held_v).sum()

    inputs = k[:, :, :new], v[:, :, :new], cache.k, cache.v
    found, expected = (jax.grad(f, (0, 1, 2, 3))(*inputs) for f in (ours, theirs))
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_narrow_dtypes(dtype: Any) -> None:
    """Gradients have the dtypes of their arrays, and are those of float32, rounded."""
    narrow = arrays(dtype)
    indices = jnp.broadcast_to(jnp.arange(K, dtype=jnp.int32), (B, H, L, K))

    def ours(*x: Any) -> Any:
        return loss(*adamas.attend(*x, indices, return_lse=True))

    found = jax.grad(ours, (0, 1, 2))(*narrow)
    expected = jax.grad(ours, (0, 1, 2))(*(x.astype(jnp.float32) for x in narrow))
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == dtype
        np.testing.assert_allclose(x.astype(np.float32), y, rtol=0.01, atol=0.003)


@pytest.mark.parametrize(
    ("selection", "budget", "text"),
    [
        (Selection(), 4, r"tail=256 has no gradient; expected a cache with Selection\(tail=0\)"),
        (Selection(tail=0), None, "budget=None has no gradient; expected a budget"),
    ],
)
def test_attention_without_a_gradient_says_so(selection: Any, budget: Any, text: str) -> None:
    q, k, v = arrays()
    cache = adamas.append(adamas.init(B, H_KV, D, S, selection=selection), k, v)
    with pytest.raises(ValueError, match=text):
        jax.grad(lambda q: adamas.decode_attention(q, cache, budget).sum())(q)
