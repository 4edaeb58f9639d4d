"""Sparse attention inside JAX's compiled programs, on the CPU.

A cache is a pytree of arrays whose shapes stay, and every function here is pure. They work under
jit, scan, vmap (one call after another), shard_map and jax.export. Their calls go from XLA to the
native library, without Python. If a program donates its cache, `append` writes in place; otherwise
XLA copies it first.

An argument whose shape, dtype or value is known while JAX traces is checked then. Lengths are known
only when the program runs. What is wrong with them ends it with a `jax.errors.JaxRuntimeError`, or
with a ValueError where JAX knows it before the call returns. A cache that was donated is gone then.

The import of this module loads JAX, and registers the calls. The first import of all compiles them
with the C++ compiler, for some seconds, unless the wheel has them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np

try:
    import jax
    import jax.numpy as jnp
    from jax import export
except ImportError as error:
    raise ImportError('adamas_core.jax needs JAX: pip install "adamas-core[jax]"') from error

from . import checks
from .code_store import head_thresholds
from .cpu.native import handler
from .dispatch import DEFAULT_BACKEND, on_host_thresholds
from .jax_gradient import append_gradient, attention_gradient
from .ops import merge
from .options import softmax_with
from .reference.center import CENTERED_THRESHOLDS
from .reference.layout import TILE, padded, tiles, words
from .selection import DEFAULT, Selection
from .softmax import PLAIN, Softmax

__all__ = [
    "Cache",
    "EXPORT_CHECKS",
    "append",
    "attend",
    "decode_attention",
    "init",
    "merge",
    "partition_specs",
    "select_topk",
]

Array = Any  # of JAX, or a tracer

# A program that was exported calls these by name. The number rises when the arguments change.
CALLS = {name: f"adamas_core_{name}_1" for name in ("append", "step", "select", "dense", "attend")}
for _name, _target in CALLS.items():
    _call = jax.ffi.pycapsule(getattr(handler.loaded(), f"adamas_jax_{_name}"))
    jax.ffi.register_ffi_target(_target, _call, platform="cpu")

# For jax.export, which otherwise refuses calls that it does not know:
# export.export(f, disabled_checks=EXPORT_CHECKS).
EXPORT_CHECKS = [export.DisabledSafetyCheck.custom_call(target) for target in CALLS.values()]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("lengths", "thresholds", "k", "v", "planes", "means", "scales", "open_tile", "third"),
        *("third_scales", "value_codes", "value_scales", "value_bases", "value_sums"),
        "value_total",
    ],
    meta_fields=["selection"],
)
@dataclass(frozen=True, eq=False)
class Cache:
    """Keys, values and codes of one attention layer, with room for `capacity` tokens.

    `init` makes one, and `append` another one with more tokens. The arrays are those of `KVCache`
    and of `adamas.h`. Words of 64 bits are pairs of uint32, the low half first, because JAX has no
    uint64 by default. A stack of caches is a cache whose arrays have one more axis.

    Attributes
    ----------
    lengths : array (B,), int32
        Tokens of each sequence.
    thresholds : array (H_kv, 3), float32
    k, v : array (B, H_kv, capacity, D) and (B, H_kv, capacity, D_v)
    planes : array (2, B, H_kv, T, 8, P, 8, 2), uint32
        T = ceil(capacity / 64).
    means, scales, open_tile : array
        Of centered codes: (B, H_kv, T, Dt), float16; (B, H_kv, T, 64), uint8;
        (B, H_kv, 64, Dt), float32. None for plain codes.
    third, third_scales : array
        For a tail: (B, H_kv, T, 64, P, 2), uint32; (B, H_kv, T, 64), uint8. Otherwise None.
    value_codes, value_scales, value_bases, value_sums, value_total : array
        For a tail: (B, H_kv, T, 64, 2, P_v, 2), uint32; (B, H_kv, T, 64), uint8;
        (B, H_kv, 2, D_v), (B, H_kv, 2, D_v) and (B, H_kv, D_v), float32. Otherwise None.
    selection : Selection
        Static.
    """

    lengths: Array
    thresholds: Array
    k: Array
    v: Array
    planes: Array
    means: Array
    scales: Array
    open_tile: Array
    third: Array
    third_scales: Array
    value_codes: Array
    value_scales: Array
    value_bases: Array
    value_sums: Array
    value_total: Array
    selection: Selection

    @property
    def capacity(self) -> int:
        """Tokens that each sequence has room for."""
        return int(self.k.shape[-2])

    def _codes(self) -> tuple[Array, ...]:
        """All arrays but lengths, thresholds, k and v, in the order of jax.cc."""
        held = (getattr(self, field.name) for field in fields(self)[4:-1])
        return tuple(x for x in held if x is not None)

    def _with(self, lengths: Array, k: Array, v: Array, codes: tuple[Array, ...]) -> Cache:
        names = (field.name for field in fields(self)[4:])
        held = dict(zip(names, codes, strict=False))
        return replace(self, lengths=lengths, k=k, v=v, **held)


export.register_pytree_node_serialization(
    Cache,
    serialized_name="adamas_core.jax.Cache",
    serialize_auxdata=lambda options: json.dumps([asdict(x) for x in options]).encode(),
    deserialize_auxdata=lambda data: tuple(Selection(**x) for x in json.loads(data)),
)


def init(
    B: int,
    H_kv: int,
    head_dim: int,
    capacity: int,
    dtype: Any = jnp.float32,
    selection: Selection = DEFAULT,
    thresholds: Any = None,
    value_dim: int | None = None,
) -> Cache:
    """A cache without tokens.

    Parameters
    ----------
    B, H_kv, head_dim : int
    capacity : int
        Tokens per sequence that it has room for. The room does not grow.
    dtype : dtype
        float16, bfloat16 or float32, of keys and values.
    selection : Selection
        The options of every selection over this cache. A tail that is not given is 256, or 0 for
        plain codes and for group=True, as in `KVCache`.
    thresholds : array (3,) or (H_kv, 3), or three numbers, optional
        For plain codes, which metric="manhattan" needs. They are not traced. If not given, codes
        are centered.
    value_dim : int, optional
        D_v, the coordinates of a value; head_dim if not given.

    Returns
    -------
    Cache

    Raises
    ------
    TypeError
        A number is not an integer, or dtype is another one.
    ValueError
        A number or a threshold is out of range, or the selection cannot be used with these codes.
    """
    where = "init"
    checks.at_least(where, "B", B, 1)
    checks.at_least(where, "H_kv", H_kv, 1)
    checks.head_dim(where, head_dim)
    Dv = head_dim if value_dim is None else value_dim
    checks.head_dim(where, Dv, "value_dim")
    checks.at_least(where, "capacity", capacity, 1)
    checks.tokens(where, capacity)
    checks.instance(where, "selection", selection, Selection, "a Selection")
    kind = _float_dtype(where, dtype)
    limits = CENTERED_THRESHOLDS
    if thresholds is not None:
        limits = on_host_thresholds(where, thresholds)
        checks.thresholds(where, limits, H_kv)
    centered = checks.centered(where, None, thresholds, selection)
    if thresholds is None and not centered:
        raise ValueError(
            f"{where}: metric={selection.metric!r} without thresholds; expected those of plain "
            "codes, as thresholds=PAPER"
        )
    selection = selection.settled(centered)
    checks.searchable(where, selection, head_dim, centered)
    T, Dt, P = tiles(capacity), padded(head_dim), words(head_dim)
    rows = (B, H_kv, T, TILE)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "k": ((B, H_kv, capacity, head_dim), kind),
        "v": ((B, H_kv, capacity, Dv), kind),
        "planes": ((2, B, H_kv, T, 8, P, 8, 2), jnp.uint32),
    }
    if centered:
        shapes |= {
            "means": ((B, H_kv, T, Dt), jnp.float16),
            "scales": (rows, jnp.uint8),
            "open_tile": ((B, H_kv, TILE, Dt), jnp.float32),
        }
    if selection.tail:
        shapes |= {
            "third": ((*rows, P, 2), jnp.uint32),
            "third_scales": (rows, jnp.uint8),
            "value_codes": ((*rows, 2, words(Dv), 2), jnp.uint32),
            "value_scales": (rows, jnp.uint8),
            "value_bases": ((B, H_kv, 2, Dv), jnp.float32),
            "value_sums": ((B, H_kv, 2, Dv), jnp.float32),
            "value_total": ((B, H_kv, Dv), jnp.float32),
        }
    held: dict[str, Any] = {field.name: None for field in fields(Cache)}
    held |= {name: jnp.zeros(*shape) for name, shape in shapes.items()}
    held["lengths"] = jnp.zeros(B, jnp.int32)
    held["thresholds"] = jnp.asarray(head_thresholds(limits, H_kv, DEFAULT_BACKEND))
    return Cache(**{**held, "selection": selection})


def partition_specs(cache: Cache, B: Any = None, H_kv: Any = None) -> Cache:
    """How the arrays of a cache lie on several devices, for `jax.shard_map`.

    Parameters
    ----------
    cache : Cache
        As a device has it. Only its form is read, so `jax.eval_shape` of `init` will do.
    B, H_kv : str, optional
        The axes of the mesh that the batch and the KV heads are spread over.

    Returns
    -------
    Cache
        With a `jax.sharding.PartitionSpec` in the place of each array.
    """
    checks.instance("partition_specs", "cache", cache, Cache, "the Cache that init returns")
    P = jax.sharding.PartitionSpec
    own: dict[str, Any] = {"lengths": P(B), "thresholds": P(H_kv), "planes": P(None, B, H_kv)}
    names = [field.name for field in fields(cache)[:-1]]
    held = [name for name in names if getattr(cache, name) is not None]
    return replace(cache, **{name: own.get(name, P(B, H_kv)) for name in held})


def append(cache: Cache, k: Array, v: Array, count: Array | int | None = None) -> Cache:
    """The cache with the keys and values of new tokens.

    Parameters
    ----------
    cache : Cache
    k, v : array (B, H_kv, S, D) and (B, H_kv, S, D_v)
        In the dtype of the cache; B may be absent where it is 1.
    count : int or array (B,) of integers, optional
        How many of the S tokens each sequence really has: its first ones.

    Returns
    -------
    Cache
        Its keys and values have gradients with respect to k and v, and to those of `cache`. Codes
        are constants.

    Raises
    ------
    TypeError
        k or v have another dtype than the cache, or count is not an integer.
    ValueError
        k or v have another shape than the cache needs, or a count that is no array of JAX is
        negative or above S.
    jax.errors.JaxRuntimeError
        When the program runs: a sequence would have more tokens than the capacity. A count is
        negative or above S. k holds NaN or infinities, or v does and the selection has a tail.
    """
    where = "append"
    checks.instance(where, "cache", cache, Cache, "the Cache that init returns")
    k4 = _new_rows(where, "k", k, cache.k)
    v4 = _new_rows(where, "v", v, cache.v)
    if k4.shape[2] != v4.shape[2]:
        raise ValueError(
            f"{where}: {checks.shown('k', k)} and {checks.shown('v', v)}; expected the same tokens"
        )
    B, _, S, _ = k4.shape
    added = jnp.asarray(_count(where, S if count is None else count, B, S))
    counts = jnp.broadcast_to(added.astype(jnp.int32), (B,))
    constants = cache.lengths, counts, cache.thresholds, cache._codes()
    kept_k, kept_v, codes = _append(k4, v4, cache.k, cache.v, *constants)
    return cache._with(cache.lengths + counts, kept_k, kept_v, codes)


def select_topk(
    q: Array, cache: Cache, budget: int, softmax: Softmax = PLAIN, **options: Any
) -> Array:
    """Indices of the tokens that matter most to queries, by the codes of a cache.

    Parameters
    ----------
    q : array (B, H, L, D)
        float16, bfloat16 or float32; B may be absent where it is 1. The queries of the last L
        tokens. Each sees the tokens up to itself.
    cache : Cache
    budget : int
        K, at most the capacity. It may be above the number of tokens: then all are taken.
    softmax : Softmax
        Only the choice of a group depends on it, by its scale.
    **options
        Fields of `softmax` to change for this call.

    Returns
    -------
    array (B, H, L, K), int32
        Ascending. Where fewer than K tokens are visible, the last places hold -1. It has no
        gradient.

    Raises
    ------
    TypeError
        q has another dtype, or budget is not an integer.
    ValueError
        Shapes do not fit, or the budget is out of range, or below the sinks and recent tokens.
    jax.errors.JaxRuntimeError
        When the program runs: a sequence has tokens, but fewer than L.
    """
    where = "select_topk"
    checks.at_least(where, "budget", budget, 1)
    softmax = softmax_with(where, softmax, options)
    q4, K = _queries(where, q, cache, budget, softmax)
    result = jax.ShapeDtypeStruct((*q4.shape[:3], K), jnp.int32)
    call = _call_of("select", result)
    q4, held = jax.lax.stop_gradient((q4, cache))
    arguments = q4, held.lengths, held.thresholds, held.k, held.v, *held._codes()
    indices = call(*arguments, **_options(cache.selection), **_numbers(softmax))
    return indices.reshape(*q.shape[:-1], K)


def decode_attention(
    q: Array,
    cache: Cache,
    budget: int | None,
    softmax: Softmax = PLAIN,
    return_lse: bool = False,
    return_indices: bool = False,
    **options: Any,
) -> Any:
    """One attention step: `budget` tokens per query by their keys and values, the others by codes.

    Parameters
    ----------
    q : array (B, H, L, D)
        float16, bfloat16 or float32; B may be absent where it is 1. The queries of the last L
        tokens of the cache: append their keys and values first. Each sees the tokens up to itself.
    cache : Cache
        Its `selection` has the options.
    budget : int or None
        Tokens per query, at most the capacity. Attention is dense where the budget covers the
        longest sequence, and with None.
    softmax : Softmax
        How inner products become weights: the scale, a soft cap, and sinks. It is not traced.
    return_lse, return_indices : bool
        Also return the log-sum-exp, and the tokens that count exactly. They follow `out` in this
        order. Indices need a budget.
    **options
        Fields of `softmax` to change for this call, as in
        ``decode_attention(q, cache, 128, scale=0.1)``.

    Returns
    -------
    out : array (B, H, L, D_v), q's dtype
        0 for a sequence without tokens. Without a tail it has gradients with respect to q, and to
        the keys and values of the chosen tokens. The choice is a constant.
    lse : array (B, H, L), float32
        Only with `return_lse`. With the same gradients.
    indices : array (B, H, L, K), int32
        Only with `return_indices`: ascending, -1 after the last.

    Raises
    ------
    TypeError
        q has another dtype, or budget is not an integer.
    ValueError
        Shapes do not fit, or an argument is out of range. Or a gradient is asked for with a tail,
        or with budget=None.
    jax.errors.JaxRuntimeError
        When the program runs: a sequence has tokens, but fewer than L.
    """
    where = "decode_attention"
    checks.true_or_false(where, "return_lse", return_lse)
    checks.true_or_false(where, "return_indices", return_indices)
    softmax = softmax_with(where, softmax, options)
    q4, K = _queries(where, q, cache, budget, softmax)
    constants = cache.lengths, cache.thresholds, cache._codes()
    if budget is None:
        if return_indices:
            raise ValueError(f"{where}: return_indices=True with budget=None; expected a budget")
        out, lse = _dense(softmax, q4, cache.k, cache.v, *constants)
    else:
        static = cache.selection, K, softmax
        out, lse, indices = _step(static, q4, cache.k, cache.v, *constants)
    results = [out.reshape(*q.shape[:-1], out.shape[-1])]
    if return_lse:
        results.append(lse.reshape(q.shape[:-1]))
    if return_indices:
        results.append(indices.reshape(*q.shape[:-1], K))
    return tuple(results) if len(results) > 1 else results[0]


def attend(
    q: Array,
    k: Array,
    v: Array,
    indices: Array,
    softmax: Softmax = PLAIN,
    return_lse: bool = False,
    **options: Any,
) -> Any:
    """Attention to given tokens.

    Parameters
    ----------
    q : array (B, H, L, D)
        float16, bfloat16 or float32; B may be absent.
    k, v : array (B, H_kv, S, D) and (B, H_kv, S, D_v)
        One dtype of the three, which may differ from q's; such as `k` and `v` of a cache.
    indices : array (B, H, L, K), int32
        Tokens of each query, -1 for none.
    softmax : Softmax
        How inner products become weights: the scale, a soft cap, and sinks. It is not traced.
    return_lse : bool
        Also return the log-sum-exp, which `merge` needs.
    **options
        Fields of `softmax` to change for this call.

    Returns
    -------
    out : array (B, H, L, D_v), q's dtype
        With gradients with respect to q, k and v.
    lse : array (B, H, L), float32
        Only with `return_lse`. With the same gradients.

    Raises
    ------
    TypeError
        An array has another dtype.
    ValueError
        Shapes do not fit, or an option is out of range.
    jax.errors.JaxRuntimeError
        When the program runs: an index is S or above.
    """
    where = "attend"
    checks.true_or_false(where, "return_lse", return_lse)
    softmax = softmax_with(where, softmax, options)
    _array(where, "indices", indices)
    for name, x in (("q", q), ("k", k), ("v", v)):
        _floats(where, name, x, (3, 4) if name == "q" else (q.ndim,))
    checks.same_tokens(where, k, v)
    each: list[Array] = [jnp.asarray(x) for x in (q, k, v, indices)]
    q4, k4, v4, i4 = (x[None] for x in each) if q.ndim == 3 else each
    checks.heads(where, "q and k", q4.shape, k4.shape)
    checks.same_head_dim(where, q, "k", k4.shape[-1])
    checks.query_heads(where, softmax.sink_logits, q4.shape)
    checks.dtype(where, "indices", indices, "int32")  # JAX would cut off the upper half of int64
    if i4.shape[:-1] != q4.shape[:-1] or i4.ndim != 4:
        raise ValueError(
            f"{where}: {checks.shown('indices', indices)}; expected "
            f"({', '.join(map(str, q.shape[:-1]))}, K), as q has"
        )
    out, lse = _attend(softmax, q4, k4, v4, i4)
    out = out.reshape(*q.shape[:-1], out.shape[-1])
    return (out, lse.reshape(q.shape[:-1])) if return_lse else out


# ---- arguments ----------------------------------------------------------------------------------


def _array(where: str, name: str, x: object) -> None:
    """Reject what has no dtype and no shape, as a list."""
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        raise TypeError(f"{where}: {checks.stated(name, x)}; expected an array")


def _floats(where: str, name: str, x: Any, ndims: tuple[int, ...]) -> None:
    _array(where, name, x)
    checks.float_shape(where, name, x, ndims)


def _float_dtype(where: str, dtype: Any) -> Any:
    """The dtype of keys and values, checked."""
    expected = f"expected {', '.join(checks.FLOATS)}"
    try:
        kind = jnp.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"{where}: {checks.stated('dtype', dtype)}; {expected}") from error
    if kind.name not in checks.FLOATS:
        raise TypeError(f"{where}: dtype={kind}; {expected}")
    return kind


def _count(where: str, count: Any, B: int, S: int) -> Any:
    """The count of `append`, checked. The values in an array of JAX are not known yet."""
    given = np.asarray(count) if isinstance(count, int) else count
    kind = given.dtype.kind if hasattr(given, "dtype") and not isinstance(count, bool) else ""
    if kind not in ("i", "u") or given.shape not in ((), (B,)):
        said = checks.shown if hasattr(count, "dtype") else checks.stated
        raise TypeError(f"{where}: {said('count', count)}; expected integers () or ({B},)")
    if not isinstance(given, jax.Array) and not ((given >= 0) & (given <= S)).all():
        raise ValueError(
            f"{where}: {checks.stated('count', count)}; expected 0 to {S}, the tokens of k"
        )
    return given


def _new_rows(where: str, name: str, x: Array, held: Array) -> Array:
    """New keys or values as (B, H_kv, S, D), checked against those of the cache."""
    _floats(where, name, x, (3, 4))
    B, H_kv, _, D = held.shape
    if x.dtype != held.dtype:
        raise TypeError(
            f"{where}: {checks.shown(name, x)}; expected {held.dtype}, as the cache has"
        )
    rows = x[None] if x.ndim == 3 else x
    if (*rows.shape[:2], rows.shape[3]) != (B, H_kv, D):
        raise ValueError(
            f"{where}: {checks.shown(name, x)}; expected ({B}, {H_kv}, S, {D}), as the cache has"
        )
    return jnp.asarray(rows)


def _queries(
    where: str, q: Array, cache: Cache, budget: int | None, softmax: Softmax
) -> tuple[Array, int]:
    """Queries as (B, H, L, D), checked against the cache, and the checked budget."""
    checks.instance(where, "cache", cache, Cache, "the Cache that init returns")
    _floats(where, "q", q, (3, 4))
    q4 = jnp.asarray(q[None] if q.ndim == 3 else q)
    checks.heads(where, "q and the cache", q4.shape, cache.k.shape)
    checks.same_head_dim(where, q, "the cache", cache.k.shape[-1])
    checks.query_heads(where, softmax.sink_logits, q4.shape)
    if budget is None:
        return q4, 0
    checks.budget(where, budget, cache.capacity, cache.k.shape)
    checks.forced(where, budget, cache.selection)
    return q4, int(budget)


def _options(selection: Selection) -> dict[str, Any]:
    """The selection as attributes of a call, as jax.cc reads them."""
    numbers: dict[str, Any] = {
        "query_bits": selection.query_bits if selection.metric == "weighted" else 0,
        "sinks": selection.sinks,
        "recent": selection.recent,
        "refine": selection.refine,
        "group": selection.group,
        "tail": selection.tail,
    }
    return {name: np.int64(x) for name, x in numbers.items()}


def _numbers(softmax: Softmax) -> dict[str, Any]:
    """The softmax as attributes. 0 stands for D ** -0.5 in adamas.h, so a true 0 becomes tiny."""
    scale = 0 if softmax.scale is None else softmax.scale or np.finfo(np.float64).tiny
    sinks = np.zeros(0, np.float32) if softmax.sink_logits is None else softmax.sink_logits
    cap = softmax.soft_cap or 0
    return {"scale": np.float64(scale), "soft_cap": np.float64(cap), "sink_logits": sinks}


def _call_of(name: str, results: Any, aliases: dict[int, int] | None = None) -> Any:
    return jax.ffi.ffi_call(
        CALLS[name], results, vmap_method="sequential", input_output_aliases=aliases
    )


def _outputs(q: Array, v: Array) -> tuple[Any, Any]:
    """The forms of out and lse."""
    rows = q.shape[:3]
    out = jax.ShapeDtypeStruct((*rows, v.shape[3]), q.dtype)
    return out, jax.ShapeDtypeStruct(rows, jnp.float32)


# ---- calls, and their gradients -----------------------------------------------------------------
# Constants have no gradient. None stands for that.


@jax.custom_vjp
def _append(
    k: Array, v: Array, kept_k: Array, kept_v: Array, lengths: Array, counts: Array,
    thresholds: Array, codes: tuple[Array, ...],
) -> tuple[Array, Array, tuple[Array, ...]]:  # fmt: skip
    state = kept_k, kept_v, *codes
    forms = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in state)
    call = _call_of("append", forms, {5 + i: i for i in range(len(state))})
    new_k, new_v, *new_codes = call(k, v, lengths, counts, thresholds, *state)
    return new_k, new_v, tuple(new_codes)


def _append_forward(*arguments: Any) -> tuple[Any, Any]:
    k, _, _, _, lengths, counts, _, _ = arguments
    return _append(*arguments), (jnp.arange(k.shape[2]), lengths, counts)


def _append_backward(kept: Any, given: Any) -> Any:
    (k, kept_k), (v, kept_v) = (append_gradient(x, *kept) for x in given[:2])
    return k, v, kept_k, kept_v, None, None, None, None


_append.defvjp(_append_forward, _append_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _step(
    static: Any, q: Array, k: Array, v: Array, lengths: Array, thresholds: Array,
    codes: tuple[Array, ...],
) -> tuple[Array, Array, Array]:  # fmt: skip
    selection, K, softmax = static
    forms = (*_outputs(q, v), jax.ShapeDtypeStruct((*q.shape[:3], K), jnp.int32))
    arguments = q, lengths, thresholds, k, v, *codes
    return tuple(_call_of("step", forms)(*arguments, **_options(selection), **_numbers(softmax)))


def _step_forward(static: Any, q: Array, k: Array, v: Array, *constants: Any) -> Any:
    selection = static[0]
    if selection.tail:
        raise ValueError(
            f"decode_attention: tail={selection.tail} has no gradient; expected a cache with "
            "Selection(tail=0), whose chosen tokens have one"
        )
    out, lse, indices = _step(static, q, k, v, *constants)
    return (out, lse, indices), (q, k, v, indices, lse)


def _step_backward(static: Any, kept: Any, given: Any) -> Any:
    out, lse, _ = given
    return *attention_gradient(kept, static[2], out, lse), None, None, None


_step.defvjp(_step_forward, _step_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(
    softmax: Softmax, q: Array, k: Array, v: Array, lengths: Array, thresholds: Array,
    codes: tuple[Array, ...],
) -> tuple[Array, Array]:  # fmt: skip
    arguments = q, lengths, thresholds, k, v, *codes
    return tuple(_call_of("dense", _outputs(q, v))(*arguments, **_numbers(softmax)))


def _dense_forward(*_: Any) -> Any:
    raise ValueError(
        "decode_attention: budget=None has no gradient; expected a budget, or "
        "jax.nn.dot_product_attention over the keys and values"
    )


_dense.defvjp(_dense_forward, lambda *_: ())


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(softmax: Softmax, q: Array, k: Array, v: Array, indices: Array) -> tuple[Array, Array]:
    call = _call_of("attend", _outputs(q, v))
    return tuple(call(q, k, v, indices, **_numbers(softmax)))


def _attend_forward(softmax: Softmax, *arguments: Array) -> Any:
    out, lse = _attend(softmax, *arguments)
    return (out, lse), (*arguments, lse)


def _attend_backward(softmax: Softmax, kept: Any, given: Any) -> Any:
    return *attention_gradient(kept, softmax, *given), None


_attend.defvjp(_attend_forward, _attend_backward)
