"""adamas_core.jax: a cache as a pytree has the codes, indices and attention of KVCache."""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import with_jax
from numpy.testing import assert_array_equal

with_jax.skip_if_missing()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax import export  # noqa: E402
from oracles import ATTEND, ROUNDING  # noqa: E402
from processes import printed  # noqa: E402

from adamas_core import (  # noqa: E402
    PAPER,
    KVCache,
    Selection,
    Softmax,
    attend,
    decode_attention,
    merge,
    select_topk,
)
from adamas_core import jax as adamas  # noqa: E402
from adamas_core.jax import Cache, append, init  # noqa: E402

NDArray = np.ndarray[Any, Any]
pytestmark = pytest.mark.peers
B, H, H_KV, D, CAPACITY, BUDGET = 2, 6, 2, 48, 500, 24
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
CHOSEN_ALONE = Selection(tail=0)
SELECTIONS: dict[str, tuple[Selection, Any]] = {
    "the default": (Selection(), None),
    "a short tail, sinks, recent, refine": (Selection(tail=9, sinks=2, recent=3, refine=2), None),
    "no tail": (Selection(tail=0), None),
    "refine": (Selection(tail=0, sinks=3, recent=2, refine=3), None),
    "group": (Selection(group=True), None),
    "plain codes": (Selection(query_bits=3), [[-1, 0.1, 1], [-2, 0, 2]]),
    "the paper": (Selection(metric="manhattan"), PAPER),
}


@pytest.fixture(autouse=True)
def on_the_cpu() -> Any:
    """JAX's programs run on the CPU, whatever else it finds."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield


def rows(seed: int, heads: int, tokens: int, dtype: Any = np.float32, batch: int = B) -> NDArray:
    made = np.random.default_rng(seed).standard_normal((batch, heads, tokens, D), np.float32)
    return made.astype(dtype)


def keys_values(seed: int, tokens: int, dtype: Any = np.float32) -> tuple[NDArray, NDArray]:
    return rows(seed, H_KV, tokens, dtype), rows(seed + 1000, H_KV, tokens, dtype)


def filled(tokens: int, selection: Selection = CHOSEN_ALONE, capacity: int = CAPACITY) -> Cache:
    cache = init(B, H_KV, D, capacity, selection=selection)
    return append(cache, *keys_values(1, tokens))


def assert_close(found: Any, expected: NDArray) -> None:
    """Two results that are each within the tolerance of the exact one."""
    wide = expected.astype(np.float64)
    bound = 2 * (ATTEND + ROUNDING[expected.dtype.name] * np.abs(wide)) + 2.0**-24
    assert (np.abs(np.asarray(found).astype(np.float64) - wide) <= bound).all()


def assert_same_codes(cache: Cache, held: KVCache) -> None:
    codes, T = held[0].codes, held[0].codes.planes.shape[3]
    pairs = [(cache.planes[:, :, :, :T], codes.planes)]
    if codes.centers is not None:
        centers = codes.centers
        pairs += [(cache.means[:, :, :T], centers.means), (cache.scales[:, :, :T], centers.scales)]
    if codes.fine is not None:
        pairs += [(cache.third[:, :, :T], codes.fine.bits)]
        pairs += [(cache.third_scales[:, :, :T], codes.fine.scales)]
    values = held._layers[0].values
    if values is not None:
        record = values.record()
        pairs += [(cache.value_codes[:, :, :T], record.codes)]
        pairs += [(cache.value_scales[:, :, :T], record.scales)]
        pairs += [(cache.value_bases, record.bases), (cache.value_total, record.total)]
    for found, expected in pairs:
        expected = np.ascontiguousarray(expected)
        if expected.dtype == np.uint64:
            expected = expected.view(np.uint32).reshape(*expected.shape, 2)
        assert_array_equal(np.asarray(found), expected)


@jax.jit
def attention_and_indices(q: Any, cache: Cache) -> Any:
    found = adamas.decode_attention(q, cache, BUDGET, return_lse=True, return_indices=True)
    return *found, adamas.select_topk(q, cache, BUDGET)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda x: np.dtype(x).name)
@pytest.mark.parametrize("name", SELECTIONS)
def test_equals_kvcache(name: str, dtype: Any) -> None:
    """Codes and indices to the bit, over a ragged prompt and steps that close a tile."""
    selection, thresholds = SELECTIONS[name]
    held = KVCache(selection=selection, thresholds=thresholds)
    cache = init(B, H_KV, D, CAPACITY, dtype, selection, thresholds)
    assert cache.selection == held.selection
    put = jax.jit(append, donate_argnums=0)
    for seed, tokens, count in ((1, 300, [300, 187]), (2, 9, [0, 9]), (3, 1, [1, 1]), (4, 70, 70)):
        k, v = keys_values(seed, tokens, dtype)
        cache = put(cache, k, v, np.array(count))
        held.append(k, v, count=np.broadcast_to(count, (B,)))
        q = rows(seed, H, 1, dtype)
        out, lse, exact, indices = attention_and_indices(q, cache)
        expected, expected_lse = decode_attention(q, held, BUDGET, return_lse=True)
        keys = held[0].k if selection.refine else None
        chosen = select_topk(q, held[0].codes, BUDGET, selection, keys)
        assert_same_codes(cache, held)
        assert_array_equal(np.asarray(cache.lengths), held[0].length)
        assert_array_equal(np.asarray(indices), chosen)
        if not cache.selection.tail:
            assert_array_equal(np.asarray(exact), chosen)
        assert out.dtype == dtype
        assert_close(out, expected)
        np.testing.assert_allclose(lse, expected_lse, rtol=4e-6, atol=8e-6)


@pytest.mark.parametrize("lengths", [[20, 20], [20, 7], [20, 0]])
@pytest.mark.parametrize("budget", [20, 33, None])
def test_a_budget_that_covers_the_cache_is_dense(lengths: list[int], budget: int | None) -> None:
    k, v = keys_values(5, 20)
    cache = append(init(B, H_KV, D, 40), k, v, count=jnp.array(lengths))
    L = 3
    q = rows(6, H, L)
    out, lse = adamas.decode_attention(q, cache, budget, return_lse=True)
    held = KVCache()
    held.append(k, v, count=np.array(lengths))
    expected, expected_lse = decode_attention(q, held, budget, return_lse=True)
    assert_close(out, expected)
    np.testing.assert_allclose(lse, expected_lse, rtol=4e-6, atol=8e-6)
    if budget is not None:
        indices = np.asarray(adamas.select_topk(q, cache, budget))
        for b, n in enumerate(lengths):
            for l in range(L):
                row = [i if i <= n - L + l else -1 for i in range(budget)]
                assert (indices[b, :, l] == row).all()


def test_queries_of_several_tokens() -> None:
    """Each sees the tokens up to itself."""
    cache = filled(300)
    held = KVCache(selection=Selection(tail=0))
    held.append(*keys_values(1, 300))
    q = rows(2, H, 4)
    indices = adamas.select_topk(q, cache, BUDGET)
    assert_array_equal(np.asarray(indices), select_topk(q, held[0].codes, BUDGET))
    assert_close(adamas.decode_attention(q, cache, BUDGET), decode_attention(q, held, BUDGET))
    assert_close(adamas.attend(q, cache.k, cache.v, indices), decode_attention(q, held, BUDGET))


def test_no_queries_have_no_results() -> None:
    cache, none = filled(9), rows(1, H, 1)[:, :, :0]
    assert adamas.select_topk(none, cache, 5).shape == (B, H, 0, 5)
    for budget in (5, None):
        out, lse = adamas.decode_attention(none, cache, budget, return_lse=True)
        assert (out.shape, lse.shape) == ((B, H, 0, D), (B, H, 0))
    indices = np.zeros((B, H, 0, 5), np.int32)
    assert adamas.attend(none, cache.k, cache.v, indices).shape == (B, H, 0, D)


def test_a_batch_axis_may_be_absent() -> None:
    k, v = (x[0] for x in keys_values(1, 90))
    cache = append(init(1, H_KV, D, 100), k, v)
    q = rows(2, H, 1)[0]
    out, lse, indices = adamas.decode_attention(q, cache, 9, return_lse=True, return_indices=True)
    assert (out.shape, lse.shape, indices.shape) == ((H, 1, D), (H, 1), (H, 1, 9))
    whole = adamas.decode_attention(q[None], cache, 9)
    assert_array_equal(out, whole[0])
    chosen = adamas.attend(q, k, v, indices, return_lse=True)
    assert [x.shape for x in chosen] == [(H, 1, D), (H, 1)]


SINKS = np.linspace(-2, 3, H, dtype=np.float32)
SOFTMAXES: dict[str, dict[str, Any]] = {
    "scale": {"scale": 0.3},
    "a scale of 0": {"scale": 0.0},
    "soft cap": {"soft_cap": 1.5},
    "sinks": {"sink_logits": SINKS},
    "all": {"scale": 0.2, "soft_cap": 2, "sink_logits": SINKS},
}


@pytest.mark.parametrize("tail", [0, 30])
@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("Dv", [D, 80])
def test_softmax_and_values_of_their_own_size(name: str, tail: int, Dv: int) -> None:
    """Sequences of 200 tokens and of none."""
    options, selection = SOFTMAXES[name], Selection(tail=tail)
    k = rows(1, H_KV, 200)
    v = np.random.default_rng(3).standard_normal((B, H_KV, 200, Dv), np.float32)
    q, count = rows(2, H, 1), np.array([200, 0])
    cache = init(B, H_KV, D, CAPACITY, selection=selection, value_dim=Dv)
    cache = append(cache, k, v, count)
    held = KVCache(selection=selection)
    held.append(k, v, count=count)
    for budget in (BUDGET, 200, None):
        found = adamas.decode_attention(q, cache, budget, return_lse=True, **options)
        expected = decode_attention(q, held, budget, return_lse=True, **options)
        assert_close(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], rtol=4e-6, atol=8e-6)
    indices = adamas.select_topk(q, cache, BUDGET, **options)
    found = adamas.attend(q, cache.k, cache.v, indices, Softmax(**options), return_lse=True)
    arrays = (np.asarray(x) for x in (cache.k, cache.v, indices))
    expected = attend(q, *arrays, return_lse=True, **options)
    assert_close(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=4e-6, atol=8e-6)


# ---- memory -------------------------------------------------------------------------------------


def pointers(cache: Cache) -> list[int]:
    arrays = jax.tree.leaves((cache.k, cache.v, cache._codes()))
    return [x.unsafe_buffer_pointer() for x in arrays]


def test_a_donated_cache_is_written_in_place() -> None:
    cache = init(B, H_KV, D, CAPACITY)
    step = jax.jit(append, donate_argnums=0)
    for seed in range(3):
        before = pointers(cache)
        old, cache = cache, step(cache, *keys_values(seed, 40))
        assert pointers(cache) == before
        assert old.k.is_deleted()
    assert (np.asarray(cache.lengths) == 120).all()


@pytest.mark.parametrize("loop", [False, True])
def test_a_step_copies_no_array_of_the_cache(loop: bool) -> None:
    """XLA asks for memory for a copy. The arrays of an open tile are the smallest."""
    cache = init(B, H_KV, D, 20_000)

    def program(cache: Cache, inputs: Any) -> Any:
        if loop:
            return jax.lax.scan(decode_step, cache, inputs)
        return decode_step(cache, tuple(x[0] for x in inputs))  # type: ignore[arg-type]

    compiled = jax.jit(program, donate_argnums=0).lower(cache, steps(3)).compile()
    large = [x.nbytes for x in (cache.k, cache.v, *cache._codes()) if x.nbytes > 50_000]
    assert len(large) == 10
    assert compiled.memory_analysis().temp_size_in_bytes < min(large)


def test_a_cache_that_is_not_donated_stays() -> None:
    cache = filled(100, Selection())
    before = [np.array(x) for x in jax.tree.leaves(cache)]
    for put in (append, jax.jit(append)):
        put(cache, *keys_values(2, 60))
        for x, expected in zip(jax.tree.leaves(cache), before, strict=True):
            assert_array_equal(np.asarray(x), expected)


# ---- transformations ----------------------------------------------------------------------------


def steps(count: int) -> tuple[Any, Any, Any]:
    """Queries, keys and values of steps (count, B, heads, 1, D)."""
    made = [(rows(i, H, 1), *keys_values(50 + i, 1)) for i in range(count)]
    return tuple(np.stack(x) for x in zip(*made, strict=True))  # type: ignore[return-value]


def decode_step(cache: Cache, x: tuple[Any, Any, Any]) -> tuple[Cache, Any]:
    q, k, v = x
    cache = append(cache, k, v)
    return cache, adamas.decode_attention(q, cache, BUDGET)


def test_scan_equals_single_steps() -> None:
    inputs = steps(6)
    cache = filled(125, Selection())
    end, outs = jax.jit(lambda c, xs: jax.lax.scan(decode_step, c, xs))(cache, inputs)
    for i in range(6):
        cache, out = decode_step(cache, tuple(x[i] for x in inputs))  # type: ignore[arg-type]
        assert_array_equal(outs[i], out)
    for x, y in zip(jax.tree.leaves(end), jax.tree.leaves(cache), strict=True):
        if x.shape != cache.open_tile.shape:
            assert_array_equal(x, y)


def test_vmap_is_one_call_after_another() -> None:
    """Over queries alone, and over a stack of caches."""
    inputs = steps(3)
    one = filled(125, Selection())
    found = jax.vmap(partial(adamas.decode_attention, budget=BUDGET), (0, None))(inputs[0], one)
    for i in range(3):
        assert_array_equal(found[i], adamas.decode_attention(inputs[0][i], one, BUDGET))

    caches = [filled(n, Selection()) for n in (66, 125, 300)]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *caches)
    ends, outs = jax.jit(jax.vmap(decode_step))(stack, inputs)
    for i, cache in enumerate(caches):
        end, out = decode_step(cache, tuple(x[i] for x in inputs))  # type: ignore[arg-type]
        assert_array_equal(outs[i], out)
        assert_array_equal(ends.planes[i], end.planes)
        assert_array_equal(ends.k[i], end.k)


def test_an_exported_program_runs_in_a_new_process(tmp_path: Any) -> None:
    cache, inputs = filled(125, Selection()), tuple(x[0] for x in steps(1))
    program = export.export(jax.jit(decode_step), disabled_checks=adamas.EXPORT_CHECKS)
    exported = program(cache, inputs)
    (tmp_path / "program").write_bytes(exported.serialize())
    leaves = jax.tree.leaves(cache)
    np.savez(tmp_path / "inputs", *leaves, *inputs)
    end, out = decode_step(cache, inputs)  # type: ignore[arg-type]
    expected = out, end.planes, end.value_total
    np.savez(tmp_path / "expected", *expected)
    code = f"""
import jax, numpy as np
import adamas_core.jax as adamas
from adamas_core import Selection
program = jax.export.deserialize(open({str(tmp_path / "program")!r}, "rb").read())
inputs = list(np.load({str(tmp_path / "inputs.npz")!r}).values())
cache = adamas.init({B}, {H_KV}, {D}, {CAPACITY})
cache = jax.tree.unflatten(jax.tree.structure(cache), inputs[:-3])
end, out = program.call(cache, tuple(inputs[-3:]))
expected = np.load({str(tmp_path / "expected.npz")!r}).values()
for x, y in zip((out, end.planes, end.value_total), expected, strict=True):
    assert (np.asarray(x) == y).all()
assert end.selection == Selection(tail=256)
print("equal")"""
    assert printed(code, JAX_PLATFORMS="cpu") == "equal"


def test_64_bit_numbers_change_nothing() -> None:
    code = f"""
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
import adamas_core.jax as adamas
x = np.random.default_rng(0).standard_normal((1, 2, 90, {D}), np.float32)
cache = adamas.append(adamas.init(1, 2, {D}, 100), x, x, count=np.array([80]))
out, lse, indices = adamas.decode_attention(x[:, :, :1], cache, 9, return_lse=True,
                                            return_indices=True)
assert (out.dtype, lse.dtype, indices.dtype) == ("float32", "float32", "int32")
assert (cache.planes.dtype, cache.lengths.dtype) == ("uint32", "int32")
print(cache.lengths)"""
    assert printed(code, JAX_PLATFORMS="cpu") == "[80]"


def test_parts_of_a_sequence_on_four_devices() -> None:
    """Each device attends to its part, and `merge` joins them, inside shard_map."""
    code = f"""
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jax.sharding import Mesh, PartitionSpec as P
import adamas_core.jax as adamas
from adamas_core import KVCache, Selection, decode_attention

B, H, H_kv, D, S = {B}, {H}, {H_KV}, {D}, 150
rng = np.random.default_rng(0)
k, v = rng.standard_normal((2, 4 * B, H_kv, S, D), np.float32)
q = rng.standard_normal((B, H, 1, D), np.float32)
new = rng.standard_normal((2, B, H_kv, 1, D), np.float32)
mesh = Mesh(jax.devices(), ("part",))
selection = Selection(tail=0)
empty = partial(adamas.init, B, H_kv, D, 20_000, selection=selection)
specs = adamas.partition_specs(jax.eval_shape(empty), "part")

@jax.jit
@partial(jax.shard_map, mesh=mesh, in_specs=P("part"), out_specs=specs, check_vma=False)
def read(k, v):
    return adamas.append(empty(), k, v)

@partial(jax.jit, donate_argnums=0)
@partial(jax.shard_map, mesh=mesh, in_specs=(specs, P(), P(), P()), out_specs=(specs, P()),
         check_vma=False)
def step(cache, q, k, v):
    last = jax.lax.axis_index("part") == 3  # which has the newest tokens
    cache = adamas.append(cache, k, v, count=jnp.where(last, 1, 0))
    found = adamas.decode_attention(q, cache, 16, return_lse=True)
    outs, lses = jax.lax.all_gather(found, "part")
    return cache, adamas.merge(list(outs), list(lses))[0]

def places(x):
    return [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]

cache = read(k, v)
before = places(cache.k), places(cache.planes)
memory = step.lower(cache, q, *new).compile().memory_analysis()
assert memory.temp_size_in_bytes < cache.open_tile.nbytes / 4  # of each device: no copy
cache, out = step(cache, q, *new)
assert (places(cache.k), places(cache.planes)) == before
assert len(set(before[0])) == len(cache.k.sharding.device_set) == 4
outs, lses = [], []
for i in range(4):
    held = KVCache(selection=selection)
    held.append(k[B * i :][:B], v[B * i :][:B])
    if i == 3:
        held.append(*new)
    part = decode_attention(q, held, 16, return_lse=True)
    outs.append(part[0])
    lses.append(part[1])
expected = adamas.merge(outs, lses)[0]
assert np.abs(np.asarray(out) - expected).max() < 1e-6
assert np.asarray(cache.lengths).tolist() == [S] * 6 + [S + 1] * 2
print("equal")"""
    flags = "--xla_force_host_platform_device_count=4"
    assert printed(code, JAX_PLATFORMS="cpu", XLA_FLAGS=flags) == "equal"


def test_heads_and_sequences_on_four_devices() -> None:
    """A cache that is spread over them gives the same, without a word between devices."""
    code = f"""
import jax, numpy as np
from functools import partial
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import adamas_core.jax as adamas

rng = np.random.default_rng(0)
k, v = rng.standard_normal((2, {B}, {H_KV}, 200, {D}), np.float32)
q = rng.standard_normal(({B}, {H}, 1, {D}), np.float32)
thresholds = [[-1, 0.1, 1], [-2, 0, 2]]
mesh = Mesh(np.reshape(jax.devices(), (2, 2)), ("batch", "heads"))
for limits in (thresholds, None):
    cache = adamas.init({B}, {H_KV}, {D}, 300, thresholds=limits)
    cache = adamas.append(cache, k[:, :, :150], v[:, :, :150], count=np.array([150, 90]))

    def step(cache, q, k, v):
        cache = adamas.append(cache, k, v)
        return cache, adamas.decode_attention(q, cache, 16)

    end, expected = step(cache, q, k[:, :, 150:], v[:, :, 150:])
    specs = adamas.partition_specs(cache, "batch", "heads")
    spread = jax.tree.map(lambda x, p: jax.device_put(x, NamedSharding(mesh, p)), cache, specs)
    rows = P("batch", "heads")
    ours = jax.shard_map(step, mesh=mesh, in_specs=(specs, rows, rows, rows),
                         out_specs=(specs, rows), check_vma=False)
    program = jax.jit(ours, donate_argnums=0).lower(spread, q, k[:, :, 150:], v[:, :, 150:])
    found, out = program.compile()(spread, q, k[:, :, 150:], v[:, :, 150:])
    assert not any(word in program.as_text() for word in ("all_gather", "all_reduce"))
    assert (np.asarray(out) == np.asarray(expected)).all()
    assert (np.asarray(found.planes) == np.asarray(end.planes)).all()
    assert (np.asarray(found.k) == np.asarray(end.k)).all()
print("equal")"""
    flags = "--xla_force_host_platform_device_count=4"
    assert printed(code, JAX_PLATFORMS="cpu", XLA_FLAGS=flags) == "equal"


def test_merge_takes_tracers() -> None:
    cache, q = filled(100), rows(2, H, 1)
    parts = [adamas.decode_attention(q, cache, K, return_lse=True) for K in (9, 20)]
    outs, lses = zip(*parts, strict=True)
    for x, y in zip(jax.jit(merge)(outs, lses), merge(outs, lses), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


# ---- errors -------------------------------------------------------------------------------------

# The second, where JAX's call has not returned yet.
AT_RUN = jax.errors.JaxRuntimeError, ValueError
NAN = np.full((B, H_KV, 1, D), np.nan, np.float32)
TOKEN = np.ones((B, H_KV, 1, D), np.float32)
AT_RUN_TIME = {
    "capacity": (
        lambda: append(filled(95, capacity=100), *keys_values(2, 6)),
        "append: sequence 0 has 95 tokens and gets 6 more; expected at most 100 in all",
    ),
    "negative count": (
        lambda: append(filled(9), TOKEN, TOKEN, count=jnp.array([1, -1])),
        "append: sequence 1 has a count of -1; expected 0 to 1",
    ),
    "large count": (
        lambda: append(filled(9), TOKEN, TOKEN, count=jnp.array(2)),
        "append: sequence 0 has a count of 2; expected 0 to 1",
    ),
    "NaN": (lambda: append(filled(9), NAN, TOKEN), "append: sequence 0: k holds NaN or infinities"),
    "NaN in a value": (
        lambda: append(filled(9, Selection()), TOKEN, NAN),
        "append: sequence 0: v holds NaN or infinities, and the selection has a tail",
    ),
    "too few tokens": (
        lambda: adamas.decode_attention(rows(1, H, 3), filled(2), 1),
        "decode_attention: q has 3 tokens and sequence 0 of the cache 2; expected the keys",
    ),
    "too few tokens, dense": (
        lambda: adamas.decode_attention(rows(1, H, 3), filled(2), None),
        "decode_attention: q has 3 tokens",
    ),
    "too few tokens to select": (
        lambda: adamas.select_topk(rows(1, H, 3), filled(2), 1),
        "select_topk: q has 3 tokens",
    ),
    "index": (
        lambda: adamas.attend(
            rows(1, H, 1), *keys_values(1, 5), jnp.full((B, H, 1, 2), 5, jnp.int32)
        ),
        "attend: an index is not below S",
    ),
}


@pytest.mark.parametrize("what", AT_RUN_TIME)
def test_an_error_of_a_program(what: str) -> None:
    call, text = AT_RUN_TIME[what]
    with pytest.raises(AT_RUN, match=text):
        jax.block_until_ready(call())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda x: np.dtype(x).name)
def test_numbers_that_have_no_code(dtype: Any) -> None:
    """The largest number has one. Tokens that do not count may hold anything."""
    cache = init(B, H_KV, D, 10, dtype)
    for bad in (np.nan, np.inf, -np.inf):
        k = TOKEN.astype(dtype)
        k[1, 1, 0, D - 1] = bad
        with pytest.raises(AT_RUN, match="append: sequence 1: k holds NaN or infinities"):
            jax.block_until_ready(append(cache, k, TOKEN.astype(dtype)))
        assert (append(cache, k, k, count=np.array([1, 0])).lengths == np.array([1, 0])).all()
    k[1, 1, 0, D - 1] = ml_dtypes.finfo(dtype).max
    assert (append(cache, k, TOKEN.astype(dtype)).k[:, :, :1] == k).all()


def test_an_error_writes_nothing() -> None:
    cache = filled(95, Selection(), capacity=100)
    before = [np.array(x) for x in jax.tree.leaves(cache)]
    with pytest.raises(AT_RUN):
        jax.block_until_ready(append(cache, *keys_values(2, 6)))
    for x, expected in zip(jax.tree.leaves(cache), before, strict=True):
        assert_array_equal(np.asarray(x), expected)


def test_values_without_a_tail_may_be_infinite() -> None:
    cache = append(filled(9), TOKEN, np.inf * TOKEN)
    assert np.isinf(np.asarray(cache.v)[:, :, 9]).all()


Q = rows(1, H, 1)
WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "no cache": (lambda: append(KVCache(), TOKEN, TOKEN), TypeError, "append: cache is of type"),
    "dtype": (lambda: append(filled(3), TOKEN.astype(np.float16), TOKEN), TypeError,
              "k is float16 .*; expected float32, as the cache has"),
    "integers": (lambda: append(filled(3), TOKEN.astype(int), TOKEN), TypeError, "k is int64"),
    "heads": (lambda: append(filled(3), TOKEN[:, :1], TOKEN[:, :1]), ValueError,
              r"k is float32 \(2, 1, 1, 48\); expected \(2, 2, S, 48\), as the cache has"),
    "tokens": (lambda: append(filled(3), TOKEN, np.repeat(TOKEN, 2, 2)), ValueError, "same tokens"),
    "count": (lambda: append(filled(3), TOKEN, TOKEN, count=1.5), TypeError, "count=1.5"),
    "counts": (lambda: append(filled(3), TOKEN, TOKEN, count=np.ones(3, int)), TypeError,
               r"expected integers \(\) or \(2,\)"),
    "a word for a count": (lambda: append(filled(3), TOKEN, TOKEN, count="two"), TypeError,
                           r"append: count='two'; expected integers \(\) or \(2,\)"),
    "a count beyond int32": (lambda: append(filled(3), TOKEN, TOKEN, count=2**32), ValueError,
                             "append: count=4294967296; expected 0 to 1, the tokens of k"),
    "a list": (lambda: append(filled(3), [1, 2], TOKEN), TypeError,
               r"append: k=\[1, 2\]; expected an array"),
    "queries in a list": (lambda: adamas.decode_attention([1, 2], filled(3), 1), TypeError,
                          r"decode_attention: q=\[1, 2\]; expected an array"),
    "query heads": (lambda: adamas.select_topk(Q[:, :3], filled(3), 1), ValueError, "multiple"),
    "head_dim": (lambda: adamas.select_topk(Q[..., :5], filled(3), 1), ValueError, "head_dim 48"),
    "axes": (lambda: adamas.select_topk(Q[0, 0], filled(3), 1), ValueError, "3 or 4 axes"),
    "float64": (lambda: adamas.decode_attention(Q.astype(float), filled(3), 1), TypeError,
                "q is float64"),
    "budget": (lambda: adamas.decode_attention(Q, filled(3), 501), ValueError,
               "budget=501 is above the 500 tokens"),
    "no budget": (lambda: adamas.select_topk(Q, filled(3), 0), ValueError, "budget=0"),
    "None": (lambda: adamas.select_topk(Q, filled(3), None), TypeError, "budget=None"),
    "sinks": (lambda: adamas.select_topk(Q, filled(3, Selection(tail=0, sinks=4)), 3), ValueError,
              "sinks=4"),
    "scale": (lambda: adamas.decode_attention(Q, filled(3), 1, scale=np.inf), ValueError, "scale"),
    "number of sinks": (lambda: adamas.decode_attention(Q, filled(3), 1, sink_logits=[1, 2]),
                        ValueError, "expected one per query head, 6"),
    "sinks of attend": (
        lambda: adamas.attend(Q, TOKEN, TOKEN, np.zeros((B, H, 1, 1), np.int32), sink_logits=[1]),
        ValueError, "expected one per query head, 6"),
    "option": (lambda: adamas.select_topk(Q, filled(3), 1, tail=3), TypeError, "no option 'tail'"),
    "softmax": (lambda: adamas.select_topk(Q, filled(3), 1, 0.3), TypeError, "scale=... by its"),
    "value_dim": (lambda: init(1, 1, 8, 9, value_dim=0), ValueError, "value_dim=0"),
    "lse": (lambda: adamas.decode_attention(Q, filled(3), 1, return_lse=1), TypeError,
            "return_lse=1"),
    "indices of all": (
        lambda: adamas.decode_attention(Q, filled(3), None, return_indices=True), ValueError,
        "return_indices=True with budget=None"),
    "shape of indices": (
        lambda: adamas.attend(Q, TOKEN, TOKEN, np.zeros((B, H, 2, 1), np.int32)), ValueError,
        r"indices is int32 \(2, 6, 2, 1\); expected \(2, 6, 1, K\), as q has"),
    "dtype of indices": (
        lambda: adamas.attend(Q, TOKEN, TOKEN, np.zeros((B, H, 1, 1), np.int16)), TypeError,
        "indices is int16"),
    "indices of 64 bits": (
        lambda: adamas.attend(Q, TOKEN, TOKEN, np.full((B, H, 1, 1), 2**32)), TypeError,
        r"attend: indices is int64 \(2, 6, 1, 1\); expected dtype int32"),
    "no indices": (lambda: adamas.attend(Q, TOKEN, TOKEN, None), TypeError,
                   "attend: indices=None; expected an array"),
    "keys and values": (
        lambda: adamas.attend(Q, TOKEN, TOKEN[:, :1], np.zeros((B, H, 1, 1), np.int32)),
        ValueError, "of one dtype"),
    "capacity": (lambda: init(1, 1, 8, 0), ValueError, "init: capacity=0"),
    "dtype of a cache": (lambda: init(1, 1, 8, 9, jnp.int8), TypeError, "dtype=int8"),
    "no dtype": (lambda: init(1, 1, 8, 9, "float23"), TypeError,
                 "init: dtype='float23'; expected float16, bfloat16, float32"),
    "no thresholds": (lambda: init(1, 1, 8, 9, selection=Selection(metric="manhattan")), ValueError,
                      "metric='manhattan' without thresholds"),
    "thresholds": (lambda: init(1, 2, 8, 9, thresholds=[1, 0, 2]), ValueError, "ascending"),
    "a tail of plain codes": (
        lambda: init(1, 1, 8, 9, selection=Selection(tail=3), thresholds=PAPER), ValueError,
        "tail=3 with plain codes"),
    "selection": (lambda: init(1, 1, 8, 9, selection=None), TypeError, "a Selection"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_an_error_while_tracing(what: str) -> None:
    call, kind, text = WRONG[what]
    with pytest.raises(kind, match=text):
        call()
    with pytest.raises(kind, match=text):
        jax.jit(call)()
