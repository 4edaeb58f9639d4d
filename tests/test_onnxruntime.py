"""The sparse operator in ONNX Runtime: its results are those of a KVCache, dense ones those of
GroupQueryAttention."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_graphs import attention, joined, lengths, needed, parted, session

from adamas_core import KVCache, Selection, decode_attention
from adamas_core.onnxruntime import code_bytes, library

H, H_KV, D, BUDGET = 4, 2, 32, 20
NDArray = np.ndarray[Any, Any]
# Of outputs of unit scale, against float64 or another order of sums.
TOLERANCE = {np.float32: 2e-5, np.float16: 4e-3}


def rows(B: int, S: int, seed: int = 0, dtype: Any = np.float32) -> list[NDArray]:
    """Queries (B, H, S, D), and keys and values (B, H_kv, S, D)."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((B, heads, S, D)).astype(dtype) for heads in (H, H_KV, H_KV)]


def named(q: NDArray, k: NDArray, v: NDArray) -> dict[str, NDArray]:
    return {"query": joined(q), "key": joined(k), "value": joined(v)}


def empty(B: int = 1, room: int = 0, code_room: int = 0, dtype: Any = np.float32) -> dict[str, Any]:
    """A cache without tokens, with room for some."""
    nothing = np.zeros((B, H_KV, room, D), dtype)
    codes = np.zeros((B, H_KV, code_bytes(code_room, D) if code_room else 0), np.uint8)
    return {"past_key": nothing, "past_value": nothing.copy(), "past_codes": codes}


def step(run: Any, inputs: dict[str, Any], cache: dict[str, Any], each: Any) -> tuple[Any, Any]:
    """The output (B, heads, S, D) of a session, and the cache after it."""
    given = {x.name for x in run.get_inputs()}
    feeds = {name: x for name, x in {**inputs, **cache}.items() if name in given}
    output, *present = run.run(None, {**feeds, **lengths(each)})
    names = ("past_key", "past_value", "past_codes")
    return parted(output, D), dict(zip(names, present, strict=False))


def expected(
    selection: Selection, parts: list[list[NDArray]], budget: int = BUDGET, **softmax: Any
) -> NDArray:
    """The output of the last part's queries over a KVCache that got the parts one by one."""
    cache = KVCache(selection=selection, backend="reference")
    for _, k, v in parts:
        cache.append(k, v)
    return np.asarray(decode_attention(parts[-1][0], cache, budget, **softmax))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tail": 0},
        {"tail": 7, "sinks": 3, "recent": 5},
        {"tail": 0, "refine": 2, "query_bits": 3},
        {"tail": 0, "group": 1},
    ],
)
def test_single_tokens_after_a_prompt(options: dict[str, int], dtype: Any) -> None:
    run = session(attention(H, H_KV, D, dtype, budget=BUDGET, **options))
    prompt = rows(1, 150, dtype=dtype)
    parts = [prompt]
    _, cache = step(run, named(*prompt), empty(dtype=dtype), [150])
    selection = Selection(**{**options, "group": bool(options.get("group"))})  # type: ignore[arg-type]
    for n in range(1, 50):
        parts.append(rows(1, 1, n, dtype))
        found, cache = step(run, named(*parts[-1]), cache, [150 + n])
        if n in (1, 42, 43, 49):  # a tile begins after 192 tokens
            wanted = expected(selection, parts)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE[dtype])
    for name, i in (("past_key", 1), ("past_value", 2)):
        np.testing.assert_array_equal(cache[name], np.concatenate([p[i] for p in parts], axis=2))


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_scale(scale: float) -> None:
    run = session(attention(H, H_KV, D, budget=BUDGET, scale=scale))
    parts = [rows(1, 100), rows(1, 1, 1)]
    _, cache = step(run, named(*parts[0]), empty(), [100])
    found, _ = step(run, named(*parts[1]), cache, [101])
    parts[1][0] *= np.float32(scale * D**0.5 if scale else 1)
    np.testing.assert_allclose(found, expected(Selection(), parts), rtol=0, atol=2e-5)


CAPS_AND_SINKS = [(0.8, False), (0.0, True), (0.8, True)]
SINKS = [4.0, -np.inf, 6.0, -2.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("cap", "sunk"), CAPS_AND_SINKS)
def test_cap_and_sinks_as_group_query_attention(cap: float, sunk: bool, dtype: Any) -> None:
    """In a prompt, in more tokens at once, and in single ones with a budget that covers them."""
    make = {"dtype": dtype, "softcap": cap, "head_sink": sunk}
    run = session(attention(H, H_KV, D, budget=200, **make))
    peer = session(attention(H, H_KV, D, sparse=False, **make))
    more = {"head_sink": np.array(SINKS, dtype)} if sunk else {}
    caches: list[dict[str, Any]] = [empty(dtype=dtype), empty(dtype=dtype)]
    n = 0
    for S in (70, 6, 1, 1):
        n += S
        x = rows(1, S, n, dtype)
        inputs = {**named(4 * x[0], *x[1:]), **more}
        outs = []
        for i, one in enumerate((run, peer)):
            out, caches[i] = step(one, inputs, caches[i], [n])
            outs.append(out)
        np.testing.assert_allclose(*outs, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("tail", [256, 7, 0])
@pytest.mark.parametrize(("cap", "sunk"), CAPS_AND_SINKS)
def test_cap_and_sinks_of_a_sparse_step(cap: float, sunk: bool, tail: int, dtype: Any) -> None:
    make = {"dtype": dtype, "softcap": cap, "head_sink": sunk}
    run = session(attention(H, H_KV, D, budget=BUDGET, tail=tail, **make))
    more = {"head_sink": np.array(SINKS, dtype)} if sunk else {}
    parts = [rows(2, 150, dtype=dtype), rows(2, 1, 1, dtype)]
    _, cache = step(run, {**named(*parts[0]), **more}, empty(2, dtype=dtype), [150, 150])
    found, _ = step(run, {**named(*parts[1]), **more}, cache, [151, 151])
    softmax = {"soft_cap": cap or None, "sink_logits": SINKS if sunk else None}
    wanted = expected(Selection(tail=tail), parts, **softmax)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE[dtype])
    assert np.abs(wanted - expected(Selection(tail=tail), parts)).max() > 0.05


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("sinks", "message"),
    [
        ([1.0, 2.0], r"head_sink has shape \(2\); expected \(num_heads,\)"),
        ([[1.0, 2.0, 3.0, 4.0]], r"head_sink has shape \(1, 4\)"),
        ([1.0, 2.0, np.nan, 3.0], r"head_sink\[2\] is -?nan; expected a number, or -inf"),
        ([1.0, np.inf, 2.0, 3.0], r"head_sink\[1\] is inf"),
    ],
)
def test_wrong_sinks_are_named(sinks: Any, message: str, dtype: Any) -> None:
    model = attention(H, H_KV, D, dtype, budget=BUDGET, head_sink=True)
    model.graph.input[-1].type.tensor_type.ClearField("shape")
    inputs = {**named(*rows(1, 3, dtype=dtype)), **empty(dtype=dtype), **lengths([3])}
    with pytest.raises(Exception, match=f"SparseGroupQueryAttention: {message}"):
        session(model).run(None, {**inputs, "head_sink": np.array(sinks, dtype)})


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rotary", [None, (16, 0), (16, 1), (8, 0)])
def test_dense_as_group_query_attention(dtype: Any, packed: bool, rotary: Any) -> None:
    """A prompt, more tokens at once, and single ones with a budget that covers them."""
    half, interleaved = rotary or (0, 0)
    turned = {"do_rotary": 1, "rotary_interleaved": interleaved} if rotary else {}
    make = {"dtype": dtype, "packed": packed, **turned}
    run = session(attention(H, H_KV, D, budget=200, **make))
    peer = session(attention(H, H_KV, D, sparse=False, **make))
    angles = np.random.default_rng(3).standard_normal((90, half))
    turns = {"cos_cache": np.cos(angles).astype(dtype), "sin_cache": np.sin(angles).astype(dtype)}
    caches: list[dict[str, Any]] = [empty(dtype=dtype), empty(dtype=dtype)]
    n = 0
    for S in (70, 6, 1, 1):
        n += S
        inputs = named(*rows(1, S, n, dtype))
        if packed:
            inputs = {"query": np.concatenate(list(inputs.values()), axis=2)}
        outs = []
        for i, one in enumerate((run, peer)):
            out, caches[i] = step(one, {**inputs, **turns}, caches[i], [n])
            outs.append(out)
        np.testing.assert_allclose(*outs, rtol=0, atol=TOLERANCE[dtype])
        for name in ("past_key", "past_value"):
            found, wanted = (cache[name].astype(np.float64) for cache in caches)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE[dtype])


def test_sequences_of_different_lengths() -> None:
    """A prompt with shorter sequences, and single tokens: each sequence as if it were alone."""
    run = session(attention(H, H_KV, D, budget=BUDGET))
    each = np.array([70, 0, 131])
    prompt = rows(3, 131)
    out, cache = step(run, named(*prompt), empty(3), each)
    alone = [step(run, named(*(x[b : b + 1, :, :n] for x in prompt)), empty(), [n])
             for b, n in enumerate(each) if n]  # fmt: skip
    for b, (one, _) in zip((0, 2), alone, strict=True):
        np.testing.assert_array_equal(out[b : b + 1, :, : each[b]], one)
        assert not out[b, :, each[b] :].any()
    states = [alone[0][1], empty(), alone[1][1]]
    for n in range(1, 4):
        new = rows(3, 1, n)
        out, cache = step(run, named(*new), cache, each + n)
        for b in range(3):
            inputs = named(*(x[b : b + 1] for x in new))
            one, states[b] = step(run, inputs, states[b], [each[b] + n])
            np.testing.assert_allclose(out[b : b + 1], one, rtol=0, atol=2e-6)


def test_rows_after_the_end_of_a_prompt_are_zero() -> None:
    """In memory that held something else."""
    run = session(attention(H, H_KV, D, budget=BUDGET))
    out = np.ones((2, 9, H * D), np.float32)
    (onnxruntime,) = needed("onnxruntime")
    binding = run.io_binding()
    for name, x in {**named(*rows(2, 9)), **empty(2), **lengths([9, 4])}.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("output", onnxruntime.OrtValue.ortvalue_from_numpy(out))
    for x in run.get_outputs()[1:]:
        binding.bind_output(x.name)
    run.run_with_iobinding(binding)
    assert out[0].any(-1).all()
    assert out[1, :4].any(-1).all()
    assert not out[1, 4:].any()


def test_memory_that_past_and_present_share() -> None:
    """Bound to the same memory they give the same results, and the rest of it stays as it was."""
    (onnxruntime,) = needed("onnxruntime")
    run = session(attention(H, H_KV, D, budget=BUDGET))
    cache = empty(room=300, code_room=300)
    held = {n: onnxruntime.OrtValue.ortvalue_from_numpy(x) for n, x in cache.items()}
    copied, n = empty(), 0
    for S in (190, 1, 1, 1, 1, 1):
        n += S
        inputs = named(*rows(1, S, n))
        binding = run.io_binding()
        binding.bind_output("output")
        for name, x in {**inputs, **lengths([n])}.items():
            binding.bind_cpu_input(name, x)
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past", "present"), value)
        run.run_with_iobinding(binding)
        wanted, copied = step(run, inputs, copied, [n])
        np.testing.assert_array_equal(parted(binding.get_outputs()[0].numpy(), D), wanted)
    for name in ("past_key", "past_value"):
        np.testing.assert_array_equal(held[name].numpy()[:, :, :n], copied[name])
        assert not held[name].numpy()[:, :, n:].any()
        assert held[name].numpy().ctypes.data == cache[name].ctypes.data


@pytest.mark.parametrize("held", [0, 64, 150, 170], ids="{} tokens".format)
@pytest.mark.parametrize("room", [0, 500])
def test_codes_of_other_tokens_are_made_again(held: int, room: int) -> None:
    """A cache from another operator, one that went back to fewer tokens, and a new prompt."""
    run = session(attention(H, H_KV, D, budget=BUDGET))
    parts = [rows(1, 150), rows(1, 1, 1)]
    _, right = step(run, named(*parts[0]), empty(), [150])
    _, other = step(run, named(*rows(1, held, 5)), empty(code_room=room), [held]) if held else (
        None, empty(code_room=room))  # fmt: skip
    if held == 150:  # the same number: nothing tells that the codes are others
        other = right
    found, _ = step(run, named(*parts[1]), {**right, "past_codes": other["past_codes"]}, [151])
    np.testing.assert_allclose(found, expected(Selection(), parts), rtol=0, atol=2e-5)


def test_a_second_prompt_in_the_same_memory() -> None:
    run = session(attention(H, H_KV, D, budget=BUDGET))
    _, used = step(run, named(*rows(1, 200, 7)), empty(), [200])
    parts = [rows(1, 150), rows(1, 1, 1)]
    _, cache = step(run, named(*parts[0]), used, [150])
    assert cache["past_key"].shape[2] == 200
    found, _ = step(run, named(*parts[1]), cache, [151])
    np.testing.assert_allclose(found, expected(Selection(), parts), rtol=0, atol=2e-5)


ROWS = named(*rows(1, 3))
ERRORS = {
    "3 axes": (
        {"query": np.ones((1, 1, 3, H * D), np.float32)},
        r"query has shape \(1, 1, 3, 128\)",
    ),
    "heads": (
        {"query": np.ones((1, 3, 60), np.float32)},
        r"query has shape \(1, 3, 60\); expected",
    ),
    "keys": ({"key": np.ones((1, 2, 64), np.float32)}, r"key has shape \(1, 2, 64\); expected"),
    "values": ({"value": np.ones((2, 3, 64), np.float32)}, r"value has shape \(2, 3, 64\)"),
    "past": (
        {"past_key": np.ones((1, 1, 0, D), np.float32)},
        r"past_key has shape \(1, 1, 0, 32\)",
    ),
    "past values": ({"past_value": np.ones((1, 2, 9, D), np.float32)}, "the shape of past_key"),
    "codes": (
        {"past_codes": np.zeros((1, 2, 100), np.uint8)},
        r"past_codes has shape \(1, 2, 100\)",
    ),
    "lengths": ({"seqlens_k": np.array([2, 2], np.int32)}, r"seqlens_k has shape \(2\)"),
    "more tokens than the total": ({"seqlens_k": np.array([3], np.int32)}, r"seqlens_k\[0\] is 3"),
    "below no token": ({"seqlens_k": np.array([-2], np.int32)}, r"seqlens_k\[0\] is -2"),
    "tokens that the past has not": (
        {"seqlens_k": np.array([9], np.int32), "total_sequence_length": np.array(10, np.int32)},
        "room for 0 in past_key",
    ),
    "total": ({"total_sequence_length": np.array([3, 3], np.int32)}, "total_sequence_length has"),
}


@pytest.mark.parametrize("fault", ERRORS)
def test_a_wrong_input_is_named(fault: str) -> None:
    model = attention(H, H_KV, D, budget=BUDGET)
    for value in model.graph.input:  # ONNX Runtime itself would refuse other shapes
        value.type.tensor_type.ClearField("shape")
    given, message = ERRORS[fault]
    inputs = {**ROWS, **empty(), **lengths([3]), **given}
    with pytest.raises(Exception, match=f"SparseGroupQueryAttention: .*{message}"):
        session(model).run(None, inputs)


def test_head_dim_that_is_no_multiple_of_8() -> None:
    run = session(attention(1, 1, 12, budget=1))
    x, past = np.ones((1, 1, 12), np.float32), np.ones((1, 1, 0, 12), np.float32)
    with pytest.raises(Exception, match="a head_dim that is a multiple of 8"):
        run.run(None, {"query": x, "key": x, "value": x, "past_key": past, "past_value": past,
                       "past_codes": np.zeros((1, 1, 0), np.uint8), **lengths([1])})  # fmt: skip


@pytest.mark.parametrize(
    ("angles", "message"),
    [
        ((2, 16), "a position for each token"),
        ((3, 17), "up to half of head_dim"),
        ((3,), "up to half of head_dim"),
    ],
)
def test_angles_that_do_not_fit(angles: tuple[int, ...], message: str) -> None:
    model = attention(H, H_KV, D, budget=BUDGET, do_rotary=1)
    for value in model.graph.input:
        value.type.tensor_type.ClearField("shape")
    turns = {name: np.ones(angles, np.float32) for name in ("cos_cache", "sin_cache")}
    with pytest.raises(Exception, match=message):
        session(model).run(None, {**ROWS, **empty(), **lengths([3]), **turns})


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"budget": 0}, "budget is 0; expected at least 1"),
        ({"budget": 9, "sinks": 5, "recent": 5}, "sinks is 5 and recent 5"),
        ({"query_bits": 9}, "query_bits is 9; expected 2 to 8"),
        ({"tail": -1}, "refine is 0 and tail -1"),
        ({"group": 1}, "group is 1 with refine=0 and tail=256"),
        ({"softcap": -50.0}, "softcap is -50; expected a positive number, or 0 for none"),
        ({"softcap": float("inf")}, "softcap is inf"),
        ({"softcap": float("nan")}, "softcap is -?nan"),
        ({"local_window_size": 9}, "local_window_size is given; expected no window"),
    ],
)
def test_a_wrong_attribute_is_named(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=f"SparseGroupQueryAttention: {message}"):
        session(attention(H, H_KV, D, **attributes))


def test_heads_that_do_not_share() -> None:
    with pytest.raises(Exception, match="num_heads is 3 and kv_num_heads 2"):
        session(attention(3, 2, D))


def test_code_bytes() -> None:
    """87 bytes per token at head_dim 128, or 37 without a tail, beside a constant part."""
    for tail, each in ((256, 87), (0, 37)):
        assert code_bytes(128 * 64, 128, tail) - code_bytes(64, 128, tail) == 127 * 64 * each
    assert code_bytes(1, 64) == code_bytes(64, 64) < code_bytes(65, 64)
    with pytest.raises(ValueError, match="head_dim=12; expected a multiple of 8"):
        code_bytes(1, 12)
    with pytest.raises(ValueError, match="tokens"):
        code_bytes(-1, 16)
    with pytest.raises(ValueError, match="code_bytes: 4611686018427387904 tokens; expected"):
        code_bytes(2**62, 64)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libadamas.so").touch()
    monkeypatch.setattr(
        "adamas_core.onnxruntime.get_library", lambda: str(tmp_path / "libadamas.so")
    )
    with pytest.raises(FileNotFoundError, match=r"there is no libadamas_onnxruntime\.so"):
        library()


def test_the_library_stays_where_sessions_end(tmp_path: Path) -> None:
    """Its threads must find their code. The process has not loaded the library otherwise."""
    needed("onnxruntime", "onnx")
    model = tmp_path / "model.onnx"
    model.write_bytes(attention(H, H_KV, D, budget=2).SerializeToString())
    np.savez(tmp_path / "inputs.npz", **ROWS, **empty(), **lengths([3]))
    program = f"""
import gc, numpy, onnxruntime
for _ in range(3):
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library({library()!r})
    session = onnxruntime.InferenceSession({str(model)!r}, options)
    session.run(None, dict(numpy.load({str(tmp_path / "inputs.npz")!r})))
    del session, options
    gc.collect()
    assert "libadamas.so" in open("/proc/self/maps").read()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
