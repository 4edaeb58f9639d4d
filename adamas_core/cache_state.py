"""The contents of a cache's file: from layers to a header and arrays, and back.

A file is data of a stranger. Names, shapes, dtypes, lengths and values are held against each other
before a layer is made of them, so that no file makes a kernel read outside an array.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from . import checks, code_store, value_store
from .code_store import Coded, head_thresholds
from .codes import SAMPLE
from .dispatch import array_module
from .layer_cache import CALIBRATION_TOKENS, FINE, FullLayer, Options, Sample
from .layers import Layer
from .lengths import Lengths
from .reference.center import CENTERED_THRESHOLDS
from .reference.layout import TILE, Centers, Fine, padded, tiles, words
from .selection import Selection
from .value_store import CodedValues
from .window_layer import WindowLayer

NDArray = np.ndarray[Any, Any]

MAX_LAYERS = 4096
FIELDS = {"layers", "selection", "centered", "dense_layers", "windows", "ragged"}
WHERE = "KVCache.load"


def to_file(
    selection: Selection, centered: bool, layers: Sequence[Layer]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header and the arrays of a file."""
    arrays: dict[str, Any] = {}
    for i, layer in enumerate(layers):
        own = layer.arrays()
        if layer.options.thresholds is not None:
            own["thresholds"] = layer.options.thresholds
        arrays |= {f"{i}.{name}": x for name, x in own.items()}
    header = {
        "layers": len(layers),
        "selection": asdict(selection),
        "centered": centered,
        "dense_layers": [i for i, layer in enumerate(layers) if layer.options.dense],
        "windows": [layer.options.window for layer in layers],
        "ragged": [layer.lengths.ragged for layer in layers],
    }
    return header, arrays


def from_file(
    header: Mapping[str, Any], arrays: Mapping[str, NDArray], backend: str
) -> tuple[Selection, list[Options], list[Layer]]:
    """The contents of a file, checked; a ValueError, TypeError or IndexError says what is wrong."""
    if header.keys() != FIELDS:
        raise ValueError(f"header has {sorted(header)}; expected {sorted(FIELDS)}")
    count = header["layers"]
    if not 1 <= checks.integer(WHERE, "layers", count) <= MAX_LAYERS:
        raise ValueError(f"layers={count}; expected 1 to {MAX_LAYERS}")
    expect("selection", isinstance(header["selection"], dict), "a mapping")
    checks.option_names(WHERE, header["selection"], [field.name for field in fields(Selection)])
    selection = Selection(**header["selection"])
    centered, dense = header["centered"], header["dense_layers"]
    checks.true_or_false(WHERE, "centered", centered)
    if not centered:
        checks.tail_of_plain(WHERE, selection)
    selection = selection.settled(centered)
    expect("dense_layers", isinstance(dense, list), "a list")
    dense = {checks.layer(WHERE, i, count) for i in dense}
    windows = checks.windows(WHERE, header["windows"], count)
    ragged = header["ragged"]
    expect("ragged", isinstance(ragged, list) and len(ragged) == count, "one per layer")
    own: list[dict[str, NDArray]] = [{} for _ in range(count)]
    for name, x in arrays.items():
        layer, _, field = name.partition(".")
        expect(name, layer.isdecimal() and len(layer) < 5 and int(layer) < count, "a layer's name")
        own[int(layer)][field] = x
    options, layers = [], []
    for i, (held, window) in enumerate(zip(own, windows, strict=True)):
        checks.true_or_false(WHERE, "an item of ragged", ragged[i])
        t = held.pop("thresholds", None)
        if t is not None:
            checks.thresholds(WHERE, t, len(t) if t.ndim == 2 else None)
            expect("thresholds", not centered, "none for centered codes")
        options.append(Options(t, centered, i in dense, 0, window, bool(selection.tail)))
        try:
            layers.append(_layer(options[-1], held, ragged[i], backend))
        except (TypeError, ValueError) as error:
            raise ValueError(f"layer {i}: {error}") from error
    return selection, options, layers


def expect(name: str, right: object, expected: str) -> None:
    """Reject a part of the file."""
    if not right:
        raise ValueError(f"{name} is wrong; expected {expected}")


def _layer(options: Options, own: dict[str, NDArray], ragged: bool, backend: str) -> Layer:
    """A layer of arrays whose names and contents have been checked."""
    if not own:
        return FullLayer(options) if options.window is None else WindowLayer(options)
    for name in ("k", "v", "length"):
        expect(name, name in own, "to be there")
    k, v, length = own["k"], own["v"], own["length"]
    checks.keys_values(WHERE, k, v, (4,))
    B, H_kv, S, D = k.shape
    expect("k", H_kv > 0 and B > 0 and S > 0, "a batch, heads and tokens")
    counts(own, "length", B, np.full(B, checks.MAX_TOKENS))
    expect("length", ragged or (length == length[0]).all(), "equal numbers, or a ragged layer")
    expect("length", length.max() > 0, "a token")
    for row in k.reshape(B * H_kv, S, D):
        checks.finite(WHERE, "k", row)
    xp = array_module(backend)
    lengths = Lengths(length, bool(ragged))
    if options.window is not None:
        _only(own, {"k", "v", "length", "base"})
        base = counts(own, "base", B, length)
        held = length - base
        expect("base", ((base == 0) | (held >= options.window)).all(), "a whole window")
        expect("k", held.max() == S, f"{held.max()} tokens, as length and base say")
        return WindowLayer(options, backend, xp.asarray(k), xp.asarray(v), lengths, base)
    expect("k", length.max() == S, f"{length.max()} tokens, as length says")
    layer = FullLayer(options, backend, xp.asarray(k), xp.asarray(v), lengths)
    if options.dense:
        _only(own, {"k", "v", "length"})
        return layer
    return layer._replace(
        codes=_codes(options, own, lengths, k.shape, backend),
        sample=_sample(options, own, lengths),
        values=_values(layer, own) if options.coded_values else None,
    )


def _only(own: dict[str, NDArray], names: set[str]) -> None:
    """Reject arrays that the layer does not have, and lacking ones."""
    if own.keys() != names:
        raise ValueError(f"arrays are {sorted(own)}; expected {sorted(names)}")


def _codes(
    options: Options,
    own: dict[str, NDArray],
    lengths: Lengths,
    shape: tuple[int, ...],
    backend: str,
) -> Coded:
    """The codes of keys of a shape (B, H_kv, S, D)."""
    _, H_kv, _, D = shape
    names = {"k", "v", "length", "planes", "codes_thresholds"}
    if options.centered:
        names |= set(Centers._fields)
        if options.coded_values:
            names |= {"value_codes", "value_scales"}
            names |= {FINE + name for name in Fine._fields}
    elif options.thresholds is None:
        names |= {"sample_first"}
        if lengths.each.sum() >= CALIBRATION_TOKENS:
            names |= {"sample_lasting"}
    _only(own, names)
    t = own["codes_thresholds"]
    checks.thresholds(WHERE, t, H_kv)
    expect("codes_thresholds", t.ndim == 2, "three of each head")
    given = CENTERED_THRESHOLDS if options.centered else options.thresholds
    if given is not None:
        if given.ndim == 2 and len(given) != H_kv:
            raise ValueError(f"{checks.shown('thresholds', given)}; expected ({H_kv}, 3)")
        expect("codes_thresholds", (t == given).all(), "the thresholds of the cache")
    planes, centers = _planes_centers(own, shape, options.centered)
    fine = None
    if options.coded_values:
        fine = Fine(*(own[FINE + name] for name in Fine._fields))
        checks.fine(WHERE, fine, planes)
        _only_coordinates(FINE + "bits", fine.bits, D)
    xp = array_module(backend)
    there = None if centers is None else Centers(*map(xp.asarray, centers))
    third = None if fine is None else Fine(*map(xp.asarray, fine))
    on_device = head_thresholds(t, H_kv, backend)
    codes = Coded(xp.asarray(planes), there, third, on_device, lengths, D, backend)
    code_store.clear(codes, lengths.each, np.full(len(lengths.each), checks.MAX_TOKENS))
    return codes


def _planes_centers(
    own: dict[str, NDArray], shape: tuple[int, ...], centered: bool
) -> tuple[NDArray, Centers | None]:
    """Planes and centers of keys of a shape (B, H_kv, S, D), checked."""
    B, H_kv, S, D = shape
    planes = own["planes"]
    checks.planes(WHERE, planes)
    _of_shape("planes", planes, (2, B, H_kv, tiles(S), 8, words(D), 8))
    _only_coordinates("planes", planes, D)
    if not centered:
        return planes, None
    centers = Centers(*(own[field] for field in Centers._fields))
    checks.centers(WHERE, centers, planes, D)
    expect("means", np.isfinite(centers.means).all(), "finite numbers")
    return planes, centers


def _of_shape(name: str, x: NDArray, expected: tuple[int, ...]) -> None:
    """Reject another shape."""
    if x.shape != expected:
        raise ValueError(f"{checks.shown(name, x)}; expected {expected}")


def _only_coordinates(name: str, words: NDArray, D: int) -> None:
    """Reject bits after the last coordinate."""
    if padded(D) < 64:
        unused = np.uint64(2**64 - 2 ** padded(D))
        expect(name, not (words & unused).any(), "zeros after the last coordinate")


def _values(layer: FullLayer, own: dict[str, NDArray]) -> CodedValues:
    """The codes of a layer's values, whose names have been checked."""
    v, codes, scales = own["v"], own["value_codes"], own["value_scales"]
    B, H_kv, S, D = v.shape
    for row in v.reshape(B * H_kv, S, D):
        checks.finite(WHERE, "v", row)
    checks.dtype(WHERE, "value_codes", codes, "uint64")
    checks.dtype(WHERE, "value_scales", scales, "uint8")
    _of_shape("value_codes", codes, (B, H_kv, tiles(S), TILE, 2, words(D)))
    _of_shape("value_scales", scales, (B, H_kv, tiles(S), TILE))
    _only_coordinates("value_codes", codes, D)
    backend = str(layer.backend)
    xp = array_module(backend)
    there = xp.asarray(codes), xp.asarray(scales)
    return value_store.of_arrays(*there, layer.v, layer.lengths, backend)


def _sample(options: Options, own: dict[str, NDArray], lengths: Lengths) -> Sample | None:
    """The tokens that thresholds were calibrated from."""
    if "sample_first" not in own:
        return None
    most = np.minimum(lengths.each, SAMPLE)
    first = counts(own, "sample_first", len(most), most)
    expect("sample_first", first.sum() > 0, "a token")
    if "sample_lasting" not in own:
        return Sample(first, None)
    lasting = counts(own, "sample_lasting", len(most), most)
    expect("sample_lasting", lasting.sum() >= CALIBRATION_TOKENS, f"{CALIBRATION_TOKENS} tokens")
    return Sample(first, lasting)


def counts(own: dict[str, NDArray], name: str, B: int, most: NDArray) -> NDArray:
    """An array of counts (B,), each from 0 to `most`."""
    expect(name, name in own, "to be there")
    x = own[name]
    checks.dtype(WHERE, name, x, "int64")
    if x.shape != (B,):
        raise ValueError(f"{checks.shown(name, x)}; expected ({B},)")
    expect(name, (x >= 0).all() and (x <= most).all(), f"0 to {most}")
    return x
