"""Wrong input gives one clear error, which names the argument, its shape and dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import adamas_core as ac
from adamas_core import checks

F32, F16, F64 = np.float32, np.float16, np.float64
ones = np.ones


def codes(S: int = 100, D: int = 64) -> ac.KeyCodes:
    return ac.encode(ones((2, 3, S, D), F32), centered=False)


def rebuilt(**changed: Any) -> ac.KeyCodes:
    """Centered codes from their parts, some of them changed."""
    given = ac.encode(kv)
    assert given.centers is not None
    centers = given.centers._replace(**changed)
    return ac.KeyCodes(given.planes, 100, given.thresholds, 64, centers=centers)


def filled(D: int = 64, thresholds: Any = None, **options: Any) -> ac.KVCache:
    cache = ac.KVCache(2, ac.Selection(**options), thresholds=thresholds)
    x = np.random.default_rng(0).standard_normal((3, 40, D)).astype(F32)
    cache.append(x, x)
    return cache


def query(*shape: int) -> np.ndarray[Any, Any]:
    return ones(shape or (2, 6, 1, 64), F32)


def tail(q: Any = None, k: Any = None, backend: str = "reference", **given: Any) -> Any:
    """attend_tail on right arguments, some of them changed."""
    x = kv if k is None else k
    right = {
        "codes": ac.encode(kv, backend=backend, bits=3),
        "values": ac.encode_values(kv, backend=backend),
        "budget": 8,
        "tail": 5,
    }
    return ac.attend_tail(query() if q is None else q, x, kv, **{**right, **given})


planes = np.zeros((2, 2, 3, 2, 8, 1, 8), np.uint64)
words = np.zeros((2, 6, 1, 4), np.uint64)
kv = ones((2, 3, 100, 64), F32)
index = np.zeros((2, 6, 1, 8), np.int32)
distances = np.zeros((2, 6, 1, 100), np.uint16)
misaligned = np.zeros(33, np.uint8)[1:].view(F32)

CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # arrays of any function
    "a list": (lambda: ac.hadamard([1.0, 2.0]), TypeError, "x is a builtins.list; expected an arr"),
    "float64": (
        lambda: ac.hadamard(ones(3)),
        TypeError,
        r"hadamard: x is float64 \(3,\); expected",
    ),
    "big-endian": (lambda: ac.hadamard(ones(4, ">f4")), TypeError, "x is >f4|x is float32"),
    "integers": (lambda: ac.encode(ones((1, 2, 8), int)), TypeError, r"k is int64 \(1, 2, 8\)"),
    "no axis": (lambda: ac.hadamard(np.array(1.0, F32)), ValueError, r"x is float32 \(\)"),
    "head_dim 0": (lambda: ac.hadamard(ones((3, 0), F32)), ValueError, r"x is float32 \(3, 0\)"),
    "head_dim 4096": (lambda: ac.hadamard(ones(4096, F32)), ValueError, "1 to 2048"),
    "last axis strided": (
        lambda: ac.hadamard(ones((4, 8), F32).T),
        ValueError,
        r"x is float32 \(8, 4\) with strides \(4, 32\); expected the last axis contiguous",
    ),
    "misaligned": (lambda: ac.hadamard(misaligned), ValueError, "not a multiple of its itemsize 4"),
    # quantize
    "quantize float16": (
        lambda: ac.quantize(ones(8, F16), ac.PAPER),
        TypeError,
        "expected dtype fl",
    ),
    "quantize not transformed": (
        lambda: ac.quantize(ones((5, 80), F32), ac.PAPER),
        ValueError,
        r"x is float32 \(5, 80\); expected a power of two",
    ),
    "thresholds out of order": (
        lambda: ac.quantize(ones(8, F32), [1, 0, 2]),
        ValueError,
        r"thresholds is float32 \(3,\), \[1.0, 0.0, 2.0\]; expected finite numbers, ascending",
    ),
    "thresholds NaN": (lambda: ac.quantize(ones(8, F32), [0, 1, np.nan]), ValueError, "ascending"),
    "thresholds infinite": (
        lambda: ac.KVCache(thresholds=[0, 1, np.inf]),
        ValueError,
        r"KVCache: thresholds is float32 \(3,\), \[0.0, 1.0, inf\]; expected finite numbers",
    ),
    "thresholds beyond float32": (
        lambda: ac.encode(kv, np.array([0, 1, 1e39])),
        ValueError,
        r"encode: thresholds is float32 .* inf\]; expected finite numbers, ascending",
    ),
    "thresholds of bools": (
        lambda: ac.quantize(ones(8, F32), [False, True, True]),  # type: ignore[list-item]
        TypeError,
        r"quantize: thresholds is bool \(3,\); expected real numbers",
    ),
    "thresholds of text": (
        lambda: ac.KeyCodes(planes, 9, ["a", "b", "c"], 64),  # type: ignore[list-item]
        TypeError,
        r"KeyCodes: thresholds is <U1 \(3,\); expected real numbers",
    ),
    "thresholds of several lengths": (
        lambda: ac.encode(kv, [[1, 2, 3], [4]]),  # type: ignore[list-item]
        ValueError,
        r"encode: thresholds=\[\[1, 2, 3\], \[4\]\]; expected three numbers, or three per head",
    ),
    "thresholds of other heads": (
        lambda: ac.quantize(ones((2, 5, 8), F32), np.zeros((3, 3), F32)),
        ValueError,
        r"thresholds is float32 \(3, 3\); expected shape \(3,\) or \(2, 3\)",
    ),
    "encode thresholds out of order": (
        lambda: ac.encode(kv, [3, 2, 1]),
        ValueError,
        "encode: thresholds .* expected finite numbers, ascending",
    ),
    "query bits 1": (
        lambda: ac.quantize_query(ones(8, F32), 1),
        ValueError,
        "bits=1; expected 2 to 8",
    ),
    "query bits float": (lambda: ac.quantize_query(ones(8, F32), 4.0), TypeError, "bits=4.0"),
    "query bits too many": (
        lambda: ac.quantize_query(ones(2048, F32), 5),
        ValueError,
        "bits=5 at head_dim 2048 gives distances up to 92160",
    ),
    # Selection
    "refine below 0": (
        lambda: ac.Selection(refine=-2),
        ValueError,
        "Selection: refine=-2; expected at least 0",
    ),
    "recent below 0": (lambda: ac.Selection(recent=-1), ValueError, "recent=-1; expected at least"),
    "array for a layer": (
        lambda: filled().append(0, kv, kv),  # type: ignore[arg-type]
        TypeError,
        r"^KVCache: layer is float32 \(2, 3, 100, 64\); expected an integer$",
    ),
    "long text for a layer": (
        lambda: filled()["ab\n" * 1000],  # type: ignore[index]
        TypeError,
        r"^KVCache: layer='(ab\\n){19}\.\.\.; expected an integer$",
    ),
    "array for a scale": (
        lambda: filled().attention(8, scale=ones(100, F32)),
        TypeError,
        r"^Softmax: scale is float32 \(100,\); expected a number$",
    ),
    "sinks float": (lambda: ac.Selection(sinks=1.0), TypeError, "sinks=1.0; expected an integer"),
    "selection query bits": (
        lambda: ac.Selection(query_bits=9),
        ValueError,
        "Selection: query_bits=9; expected 2 to 8",
    ),
    "tail below 0": (lambda: ac.Selection(tail=-1), ValueError, "tail=-1; expected at least 0"),
    "tail float": (lambda: ac.Selection(tail=1.0), TypeError, "tail=1.0; expected an integer"),
    "tail by distances": (
        lambda: ac.Selection("manhattan", tail=5),
        ValueError,
        "Selection: tail=5 with metric='manhattan'; expected metric='weighted'",
    ),
    "tail of a group": (
        lambda: ac.Selection(group=True, tail=5),
        ValueError,
        "Selection: tail=5 with group=True; expected group=False",
    ),
    "tail of plain codes": (
        lambda: tail(codes=ac.encode(kv, [-1, 0, 1], backend="reference")),
        ValueError,
        "attend_tail: tail=5 with plain codes; expected tail=0, or centered codes",
    ),
    "select tail of plain codes": (
        lambda: ac.select_topk(query(), ac.encode(kv, [-1, 0, 1]), 8, tail=5),
        ValueError,
        "select_topk: tail=5 with plain codes; expected tail=0, or centered codes",
    ),
    "tail of a plain cache": (
        lambda: ac.KVCache(selection=ac.Selection(tail=5), centered=False),
        ValueError,
        "KVCache: tail=5 with plain codes; expected tail=0, or centered codes",
    ),
    "tail of a cache with thresholds": (
        lambda: filled(thresholds=[-1, 0, 1], tail=5),
        ValueError,
        "KVCache: tail=5 with plain codes; expected tail=0, or centered codes",
    ),
    # attend_tail, ValueCodes
    "tail of keys for values": (
        lambda: tail(values=ac.encode(kv)),
        TypeError,
        "attend_tail: values is of type KeyCodes; expected the ValueCodes that encode_values",
    ),
    "tail of values for keys": (
        lambda: tail(codes=ac.encode_values(kv)),
        TypeError,
        "attend_tail: codes is of type ValueCodes; expected the KeyCodes that encode",
    ),
    "tail of other tokens": (
        lambda: tail(values=ac.encode_values(kv, length=99, backend="reference")),
        ValueError,
        r"attend_tail: codes of \(2, 3, 100, 64\) .* values of \(2, 3, 99, 64\) .* same tokens",
    ),
    "tail of two backends": (
        lambda: tail(values=ac.encode_values(kv)),
        ValueError,
        "attend_tail: codes of .* on 'reference' with length 100, and values of .* on 'cpu'",
    ),
    "tail query of another head_dim": (
        lambda: tail(query(2, 6, 1, 32)),
        ValueError,
        r"attend_tail: q is float32 \(2, 6, 1, 32\); expected head_dim 64, as codes has",
    ),
    "tail of fewer keys": (
        lambda: tail(k=kv[:, :, :9]),
        ValueError,
        r"attend_tail: k is float32 \(2, 3, 9, 64\) and v is float32 \(2, 3, 100, 64\)",
    ),
    "tail with an option": (
        lambda: tail(sink=3),
        TypeError,
        "attend_tail: no option 'sink'; expected metric",
    ),
    "a tail that plain codes do not have": (
        lambda: tail(codes=ac.encode(kv, [-1, 0, 1], backend="reference"), tail=None),
        ValueError,
        "attend_tail: tail=256 with plain codes; expected tail=0, or centered codes",
    ),
    "a tail of codes of two bits": (
        lambda: tail(codes=ac.encode(kv, backend="reference")),
        ValueError,
        r"attend_tail: tail=5 with codes of 2 bits; expected encode\(k, bits=3\)",
    ),
    "a third bit of plain codes": (
        lambda: ac.encode(kv, [-1, 0, 1], bits=3),
        ValueError,
        "encode: bits=3 with plain codes; expected bits=2, or centered codes",
    ),
    "four bits": (lambda: ac.encode(kv, bits=4), ValueError, "encode: bits=4; expected 2 or 3"),
    "tail above the tokens": (
        lambda: tail(budget=101),
        ValueError,
        "attend_tail: budget=101 is above the 100 tokens",
    ),
    "tail on no token": (
        lambda: tail(
            codes=ac.encode(kv[:, :, :0], backend="reference"),
            values=ac.encode_values(kv[:, :, :0], backend="reference"),
        ),
        ValueError,
        "attend_tail: codes of shape .* are empty; append keys first",
    ),
    "values of another dtype": (
        lambda: ac.encode_values(ones((1, 2, 8))),
        TypeError,
        r"encode_values: v is float64 \(1, 2, 8\); expected dtype",
    ),
    "values longer than they are": (
        lambda: ac.encode_values(kv, length=101),
        ValueError,
        "encode_values: length=101; expected 0 to 100, the tokens of v",
    ),
    "values of no head": (
        lambda: ac.ValueCodes(1, 0, 64),
        ValueError,
        "ValueCodes: H_kv=0; expected at least 1",
    ),
    "values of no backend": (
        lambda: ac.ValueCodes(1, 1, 64, "tpu"),
        ValueError,
        "backend='tpu'; expected one of",
    ),
    "unknown option": (
        lambda: ac.select_topk(query(), codes(), 5, prefilter=8),
        TypeError,
        "select_topk: no option 'prefilter'; expected metric, query_bits, sinks, recent",
    ),
    "no selection": (
        lambda: ac.select_topk(query(), codes(), 5, "manhattan"),  # type: ignore[arg-type]
        TypeError,
        "select_topk: selection is of type str; expected a Selection",
    ),
    "cache without a selection": (
        lambda: ac.KVCache(1, 4),  # type: ignore[arg-type]
        TypeError,
        "KVCache: selection is of type int; expected a Selection",
    ),
    "topk without a selection": (
        lambda: ac.topk(distances, 8, 5),  # type: ignore[arg-type]
        TypeError,
        "topk: selection is of type int; expected a Selection",
    ),
    "query bits too many for the codes": (
        lambda: ac.select_topk(query(2, 6, 1, 1024), codes(D=1024), 5, query_bits=6),
        ValueError,
        "select_topk: query_bits=6 at head_dim 1024 gives distances up to 95232",
    ),
    "query bits too many for the cache": (
        lambda: ac.decode_attention(query(3, 1, 1024), filled(1024, query_bits=6), 8),
        ValueError,
        "decode_attention: query_bits=6 at head_dim 1024 gives distances up to 95232",
    ),
    # score
    "score query dtype": (
        lambda: ac.score(words.astype(np.int64), planes, 100),
        TypeError,
        r"query is int64 \(2, 6, 1, 4\); expected dtype uint64",
    ),
    "score planes shape": (
        lambda: ac.score(words, planes[..., :4], 9),
        ValueError,
        "planes is uint64",
    ),
    "score planes strided": (
        lambda: ac.score(words, np.repeat(planes, 2, axis=5)[..., ::2, :], 9),
        ValueError,
        "expected the last 4 axes contiguous",
    ),
    "score width": (
        lambda: ac.score(words, planes, 9, "manhattan"),
        ValueError,
        "expected 2 times P words for metric='manhattan'",
    ),
    "score batch": (lambda: ac.score(words[:1], planes, 9), ValueError, "expected the same batch"),
    "score heads": (
        lambda: ac.score(words[:, :4], planes, 9),
        ValueError,
        "multiple of the KV heads, 3",
    ),
    "score length": (
        lambda: ac.score(words, planes, 129),
        ValueError,
        "score: length=129; expected 0 to 128, the tokens of planes",
    ),
    "score length shape": (
        lambda: ac.score(words, planes, np.array([1, 2, 3])),
        ValueError,
        r"length is int64 \(3,\); expected shape \(2,\)",
    ),
    "score length float": (
        lambda: ac.score(words, planes, 9.0),
        TypeError,
        r"length=9.0; expected an integer or an array",
    ),
    "score metric": (
        lambda: ac.score(words, planes, 9, "l2"),
        ValueError,
        "metric='l2'; expected 'weigh",
    ),
    # topk
    "topk dtype": (lambda: ac.topk(distances.astype(int), 8), TypeError, "distances is int64"),
    "budget 0": (lambda: ac.topk(distances, 0), ValueError, "topk: budget=0; expected at least 1"),
    "budget above S": (
        lambda: ac.topk(distances, 101),
        ValueError,
        r"budget=101 is above the 100 tokens of shape \(2, 6, 1, 100\)",
    ),
    "budget float": (lambda: ac.topk(distances, 8.0), TypeError, "budget=8.0; expected an integer"),
    "budget bool": (
        lambda: ac.topk(distances, True),
        TypeError,
        "budget=True; expected an integer",
    ),
    "forced above budget": (
        lambda: ac.topk(distances, 8, ac.Selection(sinks=5, recent=4)),
        ValueError,
        "are 9 tokens; expected at",
    ),
    "sinks negative": (
        lambda: ac.topk(distances, 8, ac.Selection(sinks=-1)),
        ValueError,
        "sinks=-1; expected at least 0",
    ),
    # select_topk
    "select codes": (
        lambda: ac.select_topk(query(), planes, 8),
        TypeError,
        "codes is of type ndarray",
    ),
    "KeyCodes.empty of -1 sequences": (
        lambda: ac.KeyCodes.empty(-1, 2, 64),
        ValueError,
        "KeyCodes.empty: B=-1; expected at least 0",
    ),
    "KeyCodes.empty without heads": (
        lambda: ac.KeyCodes.empty(1, 0, 64),
        ValueError,
        "KeyCodes.empty: H_kv=0; expected at least 1",
    ),
    "KeyCodes.empty on no backend": (
        lambda: ac.KeyCodes.empty(1, 1, 64, backend="tpu"),
        ValueError,
        "backend='tpu'; expected one of",
    ),
    "attend with return_lse as text": (
        lambda: ac.attend(query(), query(), query(), None, return_lse="no"),
        TypeError,
        "attend: return_lse='no'; expected True or False",
    ),
    "append of keys of one sequence": (
        lambda: ac.KeyCodes.empty(2, 3, 64).append(np.ones((3, 1, 64), np.float32)),
        ValueError,
        r"KeyCodes.append: k is float32 \(3, 1, 64\); expected \(2, 3, S, 64\)",
    ),
    "select empty": (
        lambda: ac.select_topk(query(), ac.KeyCodes.empty(2, 3, 64, [-1, 0, 1]), 8),
        ValueError,
        r"codes of shape \(2, 3, 0, 64\) are empty",
    ),
    "select budget 0": (lambda: ac.select_topk(query(), codes(), 0), ValueError, "budget=0"),
    "select budget above S": (
        lambda: ac.select_topk(query(), codes(), 101),
        ValueError,
        "budget=101 is above the 100 tokens",
    ),
    "select head_dim": (
        lambda: ac.select_topk(query(2, 6, 1, 32), codes(), 8),
        ValueError,
        r"q is float32 \(2, 6, 1, 32\); expected head_dim 64",
    ),
    "select axes": (
        lambda: ac.select_topk(query(6, 64), codes(), 8),
        ValueError,
        "expected 3 or 4 axes",
    ),
    "select batch": (
        lambda: ac.select_topk(query(1, 6, 1, 64), codes(), 8),
        ValueError,
        "same batch",
    ),
    "select refine without k": (
        lambda: ac.select_topk(query(), codes(), 8, refine=2),
        ValueError,
        r"refine=2 without k; expected the keys of codes \(2, 3, 100, 64\)",
    ),
    "select refine negative": (
        lambda: ac.select_topk(query(), codes(), 8, refine=-1, k=kv),
        ValueError,
        "refine=-1; expected at least 0",
    ),
    "select refine no integer": (
        lambda: ac.select_topk(query(), codes(), 8, refine=1.5, k=kv),  # type: ignore[arg-type]
        TypeError,
        "refine=1.5; expected an integer",
    ),
    "select k of fewer tokens": (
        lambda: ac.select_topk(query(), codes(), 8, refine=2, k=kv[:, :, :99]),
        ValueError,
        r"k is float32 \(2, 3, 99, 64\); expected \(2, 3, S, 64\) with at least 100 tokens",
    ),
    "select k of other heads": (
        lambda: ac.select_topk(query(), codes(), 8, refine=2, k=kv[:, :2]),
        ValueError,
        r"k is float32 \(2, 2, 100, 64\); expected \(2, 3, S, 64\) with at least 100 tokens",
    ),
    "select k of another head_dim": (
        lambda: ac.select_topk(query(), codes(), 8, refine=2, k=kv[..., :32]),
        ValueError,
        r"k is float32 \(2, 3, 100, 32\); expected \(2, 3, S, 64\) with at least 100 tokens",
    ),
    "select k of another dtype": (
        lambda: ac.select_topk(query(), codes(), 8, refine=2, k=kv.astype(F64)),
        TypeError,
        r"k is float64 \(2, 3, 100, 64\)",
    ),
    "select group by distances": (
        lambda: ac.select_topk(query(), codes(), 8, metric="manhattan", group=True),
        ValueError,
        "Selection: group=True with metric='manhattan'; expected metric='weighted', because",
    ),
    "select centered by distances": (
        lambda: ac.select_topk(query(), ac.encode(kv), 8, metric="manhattan"),
        ValueError,
        "select_topk: metric='manhattan' with centered codes; expected metric='weighted', or plain "
        r"codes \(centered=False\)",
    ),
    "select group and refine": (
        lambda: ac.select_topk(query(), codes(), 8, refine=2, group=True, k=kv),
        ValueError,
        "Selection: group=True with refine=2; expected refine=0, because refine ranks tokens",
    ),
    "select group of three": (
        lambda: ac.select_topk(query(), codes(), 8, group=3),  # type: ignore[arg-type]
        TypeError,
        "group=3; expected True or False",
    ),
    "centered with thresholds": (
        lambda: ac.encode(kv, [-1, 0, 1], centered=True),
        ValueError,
        r"encode: thresholds=\[-1, 0, 1\] with centered=True.*; expected thresholds=None",
    ),
    "centered cache with thresholds": (
        lambda: ac.KVCache(thresholds=[-1, 0, 1], centered=True),
        ValueError,
        "KVCache: thresholds=.* with centered=True.*; expected thresholds=None",
    ),
    "centered cache by distances": (
        lambda: ac.KVCache(selection=ac.Selection("manhattan"), centered=True),
        ValueError,
        "KVCache: metric='manhattan' with centered codes",
    ),
    "centered of three": (
        lambda: ac.encode(kv, centered=3),  # type: ignore[arg-type]
        TypeError,
        "encode: centered=3; expected True or False",
    ),
    "centers of another shape": (
        lambda: rebuilt(scales=np.zeros((2, 3, 3, 64), np.uint8)),
        ValueError,
        r"centers.scales is uint8 \(2, 3, 3, 64\); expected \(2, 3, 2, 64\), as the planes have",
    ),
    "centers of another dtype": (
        lambda: rebuilt(means=np.zeros((2, 3, 2, 64), F32)),
        TypeError,
        r"centers.means is float32 \(2, 3, 2, 64\); expected dtype float16",
    ),
    "truncate into a full tile": (
        lambda: ac.encode(kv).truncate(40),
        ValueError,
        r"tokens=40 cuts a full tile of centered codes of shape \(2, 3, 100, 64\)",
    ),
    "truncate with other keys": (
        lambda: ac.encode(kv).truncate(40, kv[:, :, :39]),
        ValueError,
        r"k is float32 \(2, 3, 39, 64\); expected \(2, 3, S, 64\) with at least 40 tokens",
    ),
    # attend
    "attend k and v": (
        lambda: ac.attend(query(), kv, kv[:, :, :50], index),
        ValueError,
        r"k is float32 \(2, 3, 100, 64\) and v is float32 \(2, 3, 50, 64\)",
    ),
    "attend dtypes of k and v": (
        lambda: ac.attend(query(), kv, kv.astype(F16), index),
        ValueError,
        r"expected \(B, H_kv, S, D\) and \(B, H_kv, S, D_v\), of one dtype",
    ),
    "attend sinks": (
        lambda: ac.attend(query(), kv, kv, index, sink_logits=[1, 2, 3]),
        ValueError,
        r"attend: sink_logits is float32 \(3,\) and q \(2, 6, 1, 64\); expected .* head, 6",
    ),
    "decode sinks": (
        lambda: ac.decode_attention(query(6, 1, 64), filled(), 8, sink_logits=[1, 2, 3]),
        ValueError,
        r"decode_attention: sink_logits is float32 \(3,\) and q \(1, 6, 1, 64\); expected",
    ),
    "select sinks": (
        lambda: ac.select_topk(query(), codes(), 8, sink_logits=[1, 2, 3]),
        ValueError,
        r"select_topk: sink_logits is float32 \(3,\) and q \(2, 6, 1, 64\); expected",
    ),
    "tail sinks": (
        lambda: tail(sink_logits=[1, 2, 3]),
        ValueError,
        r"attend_tail: sink_logits is float32 \(3,\) and q",
    ),
    "append D_v": (
        lambda: filled().append(kv[0], kv[0, ..., :5]),
        ValueError,
        r"KVCache.append: v is float32 \(3, 100, 5\)|v is float32 \(1, 3, 100, 5\); expected \(1",
    ),
    "attend head_dim": (
        lambda: ac.attend(query(2, 6, 1, 32), kv, kv, index),
        ValueError,
        "expected head_dim 64",
    ),
    "attend heads": (
        lambda: ac.attend(query(2, 4, 1, 64), kv, kv, index),
        ValueError,
        "multiple of the",
    ),
    "attend indices dtype": (
        lambda: ac.attend(query(), kv, kv, index.astype(np.int64)),
        TypeError,
        r"indices is int64 \(2, 6, 1, 8\); expected dtype int32",
    ),
    "attend indices shape": (
        lambda: ac.attend(query(), kv, kv, index[:, :3]),
        ValueError,
        r"indices is int32 \(2, 3, 1, 8\); expected \(2, 6, 1, K\)",
    ),
    "attend index": (lambda: ac.attend(query(), kv, kv, index + 100), IndexError, "100"),
    "attend dense": (
        lambda: ac.attend(query(2, 6, 9, 64), kv[:, :, :5], kv[:, :, :5], None),
        ValueError,
        "has 9 tokens and k 5; expected at most as many queries as keys",
    ),
    "attend window 0": (
        lambda: ac.attend(query(), kv, kv, None, window=0),
        ValueError,
        "attend: window=0; expected at least 1",
    ),
    "attend window type": (
        lambda: ac.attend(query(), kv, kv, None, window=1.5),  # type: ignore[arg-type]
        TypeError,
        "attend: window=1.5; expected an integer",
    ),
    "attend window and indices": (
        lambda: ac.attend(query(), kv, kv, index, window=3),
        ValueError,
        "attend: window=3 with indices; expected window=None",
    ),
    # codes
    "calibrate nothing": (lambda: ac.calibrate(kv[:, :, :0]), ValueError, "at least one token"),
    "calibrate rule": (lambda: ac.calibrate(kv, "median"), ValueError, "rule='median'"),
    "calibrate NaN": (lambda: ac.calibrate(kv * np.nan), ValueError, "expected finite keys"),
    "encode axes": (
        lambda: ac.encode(kv[0, 0]),
        ValueError,
        r"k is float32 \(100, 64\); expected 3 or",
    ),
    "encode length": (
        lambda: ac.encode(kv, length=101),
        ValueError,
        "encode: length=101; expected 0 to 100, the tokens of k",
    ),
    "encode backend": (
        lambda: ac.encode(kv, backend="tpu"),
        ValueError,
        "backend='tpu'; expected one",
    ),
    "codes append": (
        lambda: codes().append(kv[:, :2]),
        ValueError,
        r"k is float32 \(2, 2, 100, 64\); expected \(2, 3, S, 64\)",
    ),
    "codes words": (
        lambda: ac.KeyCodes(planes, 9, [-1, 0, 1], 128),
        ValueError,
        "has P=1 words per plane; expected 2 for head_dim=128",
    ),
    "codes truncate": (lambda: codes().truncate(101), ValueError, "tokens=101; expected 0 to 100"),
    # cache
    "cache empty": (
        lambda: ac.decode_attention(query(6, 1, 64), ac.KVCache(), 8),
        ValueError,
        r"layer 0 of the cache is empty, and q is float32 \(6, 1, 64\); expected the keys and val",
    ),
    "cache k empty": (lambda: ac.KVCache()[0].k, ValueError, "the layer is empty and has no k"),
    "cache layer": (lambda: filled()[2], IndexError, "layer=2; expected 0 to 1"),
    "cache layers": (lambda: ac.KVCache(0), ValueError, "layers=0; expected at least 1"),
    "cache count": (
        lambda: ac.KVCache().append(kv[0], kv[0], count=np.array([101])),
        ValueError,
        r"KVCache.append: count=\[101\]; expected 0 to 100, the tokens of k",
    ),
    "cache count float": (
        lambda: ac.KVCache().append(kv[0], kv[0], count=3.5),  # type: ignore[arg-type]
        TypeError,
        "count=3.5; expected an integer or an array of integers",
    ),
    "cache scale": (
        lambda: ac.decode_attention(query(6, 1, 64), filled(), 8, scale="a"),
        TypeError,
        "Softmax: scale='a'; expected a number",
    ),
    "attend scale": (
        lambda: ac.attend(query(), kv, kv, index, scale="a"),
        TypeError,
        "Softmax: scale='a'; expected a number",
    ),
    "cache dense layer of no number": (
        lambda: ac.KVCache(2, dense_layers=[0.0]),  # type: ignore[list-item]
        TypeError,
        "an item of dense_layers=0.0; expected an integer",
    ),
    "codes reserve": (lambda: codes().reserve(-1), ValueError, "reserve: tokens=-1; expected at"),
    "codes centers": (
        lambda: ac.KeyCodes(planes, 9, [-1, 0, 1], 64, centers=3),  # type: ignore[arg-type]
        TypeError,
        "KeyCodes: centers is of type int; expected Centers",
    ),
    "cache dense layer": (lambda: ac.KVCache(2, dense_layers=[5]), ValueError, r"holds \[5\]"),
    "cache thresholds": (
        lambda: ac.KVCache(thresholds=[2, 1, 0]),
        ValueError,
        "expected finite numbers, ascending",
    ),
    "cache thresholds heads": (
        lambda: filled(thresholds=np.zeros((4, 3), F32)),
        ValueError,
        r"thresholds is float32 \(4, 3\); expected shape \(3,\) or \(3, 3\)",
    ),
    "metric": (lambda: ac.Selection("hamming"), ValueError, "metric='hamming'"),
    "cache budget 0": (
        lambda: ac.decode_attention(query(6, 1, 64), filled(), 0),
        ValueError,
        "budget=0",
    ),
    "cache budget forced": (
        lambda: ac.decode_attention(query(6, 1, 64), filled(sinks=5, recent=5), 8),
        ValueError,
        "are 10 tokens; expected at most budget=8",
    ),
    "cache head_dim": (
        lambda: ac.decode_attention(query(6, 1, 32), filled(), 8),
        ValueError,
        "expected head_dim 64, as the cache has",
    ),
    "cache dtype": (
        lambda: filled().append(ones((3, 1, 64), F16), ones((3, 1, 64), F16)),
        TypeError,
        r"k is float16 \(1, 3, 1, 64\); expected float32",
    ),
    "cache shape": (
        lambda: filled().append(ones((3, 1, 32), F32), ones((3, 1, 32), F32)),
        ValueError,
        r"k is float32 \(1, 3, 1, 32\); expected \(1, 3, S, 64\)",
    ),
    "cache queries": (
        lambda: ac.decode_attention(query(6, 41, 64), filled(), 8),
        ValueError,
        "has 41 tokens and the cache 40; expected the keys and values of these",
    ),
    "cache no cache": (
        lambda: ac.decode_attention(query(6, 1, 64), kv, 8),  # type: ignore[arg-type]
        TypeError,
        "cache is of type ndarray; expected KVCache",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_error(name: str) -> None:
    call, error, message = CASES[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("function", ["hadamard", "encode", "attend", "append"])
def test_nan_in_checked_mode(function: str) -> None:
    bad = kv.copy()
    bad[1, 2, 3, 4] = np.nan
    calls: dict[str, Callable[[], Any]] = {
        "hadamard": lambda: ac.hadamard(bad),
        "encode": lambda: ac.encode(bad, ac.PAPER),
        "attend": lambda: ac.attend(query(), bad, kv, index),
        "append": lambda: ac.KVCache(thresholds=[-1, 0, 1]).append(kv, bad),
    }
    calls[function]()
    with (
        ac.checked(),
        pytest.raises(ValueError, match=r"expected no NaN, found 1, .* \(1, 2, 3, 4\)"),
    ):
        calls[function]()


def test_checked_mode_from_the_environment() -> None:
    import os
    import subprocess
    import sys

    code = "import numpy as np, adamas_core as ac; ac.hadamard(np.array([np.nan], np.float32))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ADAMAS_CHECKED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "expected no NaN, found 1" in run.stderr


def test_more_tokens_than_an_index_can_name() -> None:
    k = np.broadcast_to(np.float32(0), (1, 1, 2**31, 1))  # one float in memory
    for use in (ac.encode, lambda x: ac.KVCache().append(x, x)):
        with pytest.raises(ValueError, match="2147483648 tokens; expected at most 2147483647"):
            use(k)
    codes = ac.encode(np.zeros((1, 1, 5, 8), np.float32))
    with pytest.raises(ValueError, match="2147483648 tokens"):
        codes.reserve(2**31)
    assert codes.tokens == 5


@pytest.mark.parametrize("empty", [[], (), range(0), np.array([], int)])
def test_no_sequence_is_an_order(empty: object) -> None:
    """As a list comprehension gives it where nothing is done."""
    found = checks.order("f", "sequences", empty, 2)
    assert (found.shape, found.dtype) == ((0,), np.int64)


SCALED: dict[str, Callable[[Any], Any]] = {
    "attend": lambda scale: ac.attend(query(), kv, kv, index, scale=scale),
    "select_topk": lambda scale: ac.select_topk(query(), codes(), 8, scale=scale),
    "decode_attention": lambda scale: ac.decode_attention(
        query(6, 1, 64), filled(), 8, 0, scale=scale
    ),
    "attend_tail": lambda scale: tail(scale=scale),
    "KVCache.attention": lambda scale: ac.KVCache().attention(8, scale=scale),
}


@pytest.mark.parametrize("function", SCALED)
def test_a_scale_is_a_finite_number(function: str) -> None:
    for scale in (np.nan, np.inf, -np.inf, F32(np.nan), 1e39, 10**400):
        with pytest.raises(ValueError, match=r"Softmax: scale=.*; expected a finite number"):
            SCALED[function](scale)
    for scale in (True, "1", 1j, np.complex64(1), np.ones(1)):
        with pytest.raises(TypeError, match=r"Softmax: scale=.*; expected a number"):
            SCALED[function](scale)
    for scale in (0, -1, -0.5, F16(2), np.int8(-3), F64(0.1), None):
        SCALED[function](scale)


@pytest.mark.parametrize("dtype", [F64, F16, ">f8", int, np.uint8])
def test_thresholds_of_any_real_dtype(dtype: Any) -> None:
    """As `np.quantile` gives them in float64; they are rounded to float32 everywhere."""
    given = np.array([1, 2, 4], dtype)
    if np.dtype(dtype).kind == "f":
        given = given / dtype(3) if callable(dtype) else given / 3
    same = given.astype(F32)
    x = np.random.default_rng(0).standard_normal((2, 3, 100, 64)).astype(F32)
    for thresholds in (given, np.tile(given, (3, 1)), given.tolist()):
        np.testing.assert_array_equal(ac.quantize(x, thresholds), ac.quantize(x, same))
        codes = ac.encode(x, thresholds)
        np.testing.assert_array_equal(codes.thresholds, np.tile(same, (3, 1)))
        cache = ac.KVCache(thresholds=thresholds)
        cache.append(x, x)
        held = cache[0].codes
        assert held is not None
        for other in (held, ac.KeyCodes(codes.planes, 100, thresholds, 64)):
            np.testing.assert_array_equal(other.planes, ac.encode(x, same).planes)
            np.testing.assert_array_equal(other.thresholds, codes.thresholds)
        empty = ac.KeyCodes.empty(2, 3, 64, thresholds)
        np.testing.assert_array_equal(empty.thresholds, codes.thresholds)
