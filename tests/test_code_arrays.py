"""encode_into: codes in the caller's arrays are those of KeyCodes, and nothing else is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import assert_same_bits

from adamas_core import Codes, KeyCodes, encode, encode_into, select_topk
from adamas_core.dispatch import on_host

Place = Callable[[NDArray[Any]], Any]
KINDS = {"plain": ([-1, 0, 1], 2), "centered": (None, 2), "three bits": (None, 3)}
kinds = pytest.mark.parametrize("kind", KINDS)


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) + np.float32(1)


def arrays(codes: Codes) -> list[Any]:
    return [codes.planes, *(codes.centers or ()), *(codes.fine or ())]


def own(kind: str, B: int, H_kv: int, D: int, capacity: int, place: Place = np.asarray) -> Codes:
    """Arrays of a caller, full of noise."""
    thresholds, bits = KINDS[kind]
    backend = "cpu" if place is np.asarray else KeyCodes.from_arrays(
        encode(place(np.ones((1, 1, D), np.float32))).record, D
    ).backend  # fmt: skip
    codes = KeyCodes.empty(B, H_kv, D, thresholds, backend, capacity, bits).arrays()
    for x in arrays(codes):
        x[...] = 7
    return codes


def same_tokens(got: Codes, expected: Codes, D: int) -> None:
    """Equal codes of every token: they select alike, and their words are equal."""
    lengths = np.broadcast_to(expected.length, (expected.planes.shape[1],))
    np.testing.assert_array_equal(np.broadcast_to(got.length, lengths.shape), lengths)
    for b, n in enumerate(map(int, lengths)):
        T, slot = divmod(n, 64)
        for x, y in zip(_of_tokens(got), _of_tokens(expected), strict=True):
            assert_same_bits(np.ascontiguousarray(x[b, :, :n]), np.ascontiguousarray(y[b, :, :n]))
        if got.centers is not None and expected.centers is not None:
            last = T + (slot > 0)
            for x, y, end in (
                (got.centers.means, expected.centers.means, last),
                (got.centers.open_tile, expected.centers.open_tile, slot),
            ):
                assert_same_bits(on_host(x)[b, :, :end], on_host(y)[b, :, :end])


def _of_tokens(codes: Codes) -> list[NDArray[Any]]:
    """All arrays with one row per token, as (B, H_kv, tokens, ...)."""
    planes = on_host(codes.planes)
    _, B, H_kv, T, _, P, _ = planes.shape
    rows = [planes.transpose(1, 2, 3, 4, 6, 0, 5).reshape(B, H_kv, 64 * T, 2 * P)]
    if codes.centers is not None:
        rows.append(on_host(codes.centers.scales).reshape(B, H_kv, 64 * T))
    if codes.fine is not None:
        rows.append(on_host(codes.fine.bits).reshape(B, H_kv, 64 * T, P))
        rows.append(on_host(codes.fine.scales).reshape(B, H_kv, 64 * T))
    return rows


def expected_codes(kind: str, k: NDArray[Any], length: Any) -> Codes:
    thresholds, bits = KINDS[kind]
    return encode(k, thresholds, length, bits=bits, backend="reference").record


@kinds
@settings(max_examples=40)
@given(
    steps=st.lists(st.integers(0, 90), min_size=1, max_size=5),
    ragged=st.booleans(),
    D=st.sampled_from([8, 64, 80]),
    seed=st.integers(0, 99),
)
def test_appends_are_one_encoding(
    kind: str, steps: list[int], ragged: bool, D: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, np.array(steps)[:, None] + 1, (len(steps), 2))
    if not ragged:
        counts = np.repeat(np.array(steps)[:, None], 2, axis=1)
    total = counts.sum(axis=0)
    k = normal(2, 3, int(total.max(initial=1)), D, seed=seed)
    codes = own(kind, 2, 3, D, 64 * (-(-int(total.max()) // 64)) + 64)
    done = np.zeros(2, int)
    codes = codes._replace(length=0)
    for n, count in zip(steps, counts, strict=True):
        new = np.zeros((2, 3, n, D), np.float32)
        for b in range(2):
            new[b, :, : count[b]] = k[b, :, done[b] : done[b] + count[b]]
        codes = encode_into(new, codes, count=count if ragged else None)
        done += count
    assert isinstance(codes.length, np.ndarray if ragged else int)
    same_tokens(codes, expected_codes(kind, k, total), D)


@kinds
def test_on_each_device(place: Place, kind: str) -> None:
    k = normal(2, 3, 200, 80)
    codes = own(kind, 2, 3, 80, 320, place)
    buffers = arrays(codes)
    start, count = np.array([0, 64]), np.array([30, 100])
    encode_into(place(k[:, :, :64]), codes, 0)
    codes = encode_into(place(k[:, :, 64:164]), codes, start, place(count))
    assert all(x is y for x, y in zip(arrays(codes), buffers, strict=True))
    np.testing.assert_array_equal(codes.length, [30, 164])
    whole = [np.concatenate([k[0, :, 64:94], k[0, :, :134]], axis=1), k[1, :, :164]]
    same_tokens(codes, expected_codes(kind, np.stack(whole), np.array([30, 164])), 80)
    q = place(normal(2, 6, 1, 80, seed=3))
    wrapped = KeyCodes.from_arrays(codes, 80)
    got = on_host(select_topk(q, codes, 20))
    assert_same_bits(got, on_host(select_topk(q, wrapped, 20)))
    assert got[0].max() < 30
    wrapped.append(place(k[:, :, 164:165]))
    lengths = np.array([31, 165])
    whole = [np.concatenate([whole[0][:, :30], k[0, :, 164:165], k[0, :, :134]], axis=1),
             k[1, :, :165]]  # fmt: skip
    same_tokens(wrapped.arrays(), expected_codes(kind, np.stack(whole), lengths), 80)
    assert arrays(wrapped.arrays())[0] is buffers[0] or place is np.asarray


@kinds
def test_only_the_slots_of_new_tokens_are_written(kind: str) -> None:
    """Other sequences, and the slots before and after, keep their noise."""
    k = normal(2, 1, 40, 64)
    codes = own(kind, 2, 1, 64, 256)
    before = [x.copy() for x in _of_tokens(codes)]
    encode_into(k, codes, np.array([70, 128]), np.array([0, 20]))
    for x, y in zip(_of_tokens(codes), before, strict=True):
        assert_same_bits(x[0], y[0])
        assert_same_bits(x[1, :, :128], y[1, :, :128])
        assert_same_bits(x[1, :, 148:], y[1, :, 148:])
        assert (x[1, :, 128:148] != y[1, :, 128:148]).any()


@kinds
def test_tokens_are_written_over_in_the_open_tile_and_from_a_first_token_of_a_tile(
    kind: str,
) -> None:
    k, other = normal(1, 2, 200, 64), normal(1, 2, 200, 64, seed=1)
    codes = own(kind, 1, 2, 64, 256)
    codes = encode_into(k[:, :, :150], codes, 0)
    codes = encode_into(other[:, :, :30], codes, 140)  # the draft was refused
    codes = encode_into(k[:, :, 140:], codes, 140)
    same_tokens(codes, expected_codes(kind, k, 200), 64)
    codes = encode_into(other[:, :, 64:], codes, 64)
    codes = encode_into(other[:, :, :64], codes, 0)
    codes = encode_into(other[:, :, 64:], codes, 64)
    same_tokens(codes, expected_codes(kind, other, 200), 64)


@kinds
@pytest.mark.parametrize("dtypes", [("int8", "int8"), ("uint8", "uint8"), ("uint64", "int64")])
def test_numbers_of_every_integer_dtype(kind: str, dtypes: tuple[str, str]) -> None:
    k, codes = normal(2, 1, 260, 64), own(kind, 2, 1, 64, 320)
    codes = encode_into(k, codes, 0, 127)
    start, count = np.array([127, 64], dtypes[0]), np.array([127, 100], dtypes[1])
    codes = encode_into(k[:, :, 127:], codes, start, count)
    np.testing.assert_array_equal(codes.length, [254, 164], strict=True)


def test_arrays_of_a_key_codes_are_its_own() -> None:
    k = normal(1, 2, 100, 64)
    codes = KeyCodes.empty(1, 2, 64, capacity=256)
    record = codes.arrays()
    assert record.planes.shape[3] == 4
    codes.append(k)
    assert codes.arrays().planes is record.planes
    assert codes.planes.base is record.planes
    record = encode_into(k, record, start=100)
    assert codes.tokens == 100
    both = np.concatenate([k, k], axis=2)
    same_tokens(record, expected_codes("centered", both, 200), 64)


def test_a_torch_tensor_is_written() -> None:
    torch = pytest.importorskip("torch", reason='torch is in the extra "peers"')
    k = normal(1, 2, 100, 64)
    codes = own("centered", 1, 2, 64, 128)
    there = codes._replace(
        planes=torch.from_numpy(codes.planes.copy()),
        centers=type(codes.centers)(*(torch.from_numpy(x.copy()) for x in codes.centers)),
    )
    written = encode_into(torch.from_numpy(k), there, 0)
    assert written.planes is there.planes
    codes = encode_into(k, codes, 0)
    assert_same_bits(written.planes.numpy(), codes.planes)


KEYS = normal(2, 3, 50, 64)


@pytest.mark.parametrize(
    ("call", "kind", "told"),
    [
        (lambda c: encode_into(KEYS, encode(KEYS)), TypeError, "codes is of type KeyCodes; expec"),
        (
            lambda c: encode_into(KEYS[0], c),
            ValueError,
            r"k is float32 \(3, 50, 64\); expected \(2",
        ),
        (
            lambda c: encode_into(KEYS, c, 79),
            ValueError,
            "start=79 and 50 tokens; expected at most",
        ),
        (lambda c: encode_into(KEYS, c, -1), ValueError, "start=-1; expected 0 to 128"),
        (lambda c: encode_into(KEYS, c, 129), ValueError, "start=129; expected 0 to 128"),
        (lambda c: encode_into(KEYS, c, 0, 51), ValueError, "count=51; expected 0 to 50, the toke"),
        (lambda c: encode_into(KEYS, c, np.zeros(3, int)), ValueError, r"start is .*shape \(2,\)"),
        (
            lambda c: encode_into(KEYS, c, np.full(2, 100, np.int8), np.full(2, 50, np.int8)),
            ValueError,
            r"start=\[100 100\] and \[50 50\] tokens; expected at most 128",
        ),
        (lambda c: encode_into(KEYS[..., :32], c, 0), ValueError, "centers.means is float16"),
        (lambda c: encode_into(KEYS.astype(int), c, 0), TypeError, "k is int64"),
        (
            lambda c: encode_into(KEYS, c._replace(planes=c.planes[:, :, :, :1]), 0),
            ValueError,
            "expected .*, as the planes have",
        ),
        (
            lambda c: encode_into(KEYS, c._replace(planes=_read_only(c.planes)), 0),
            ValueError,
            r"planes is uint64 .* is read-only; expected an array that can be written",
        ),
        (
            lambda c: encode_into(
                KEYS, c._replace(centers=c.centers._replace(means=_read_only(c.centers.means))), 0
            ),
            ValueError,
            "means is float16 .* is read-only",
        ),
    ],
)
def test_errors_before_anything_is_written(
    call: Callable[[Codes], Any], kind: type[Exception], told: str
) -> None:
    codes = own("centered", 2, 3, 64, 128)._replace(length=0)
    with pytest.raises(kind, match=told):
        call(codes)
    assert all((x == 7).all() for x in arrays(codes))


def _read_only(x: NDArray[Any]) -> NDArray[Any]:
    x = x.view()
    x.setflags(write=False)
    return x
