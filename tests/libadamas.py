"""The C interface through ctypes: the structs of adamas.h, filled from NumPy's arrays."""

from __future__ import annotations

import ctypes as c
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from adamas_core.cpu import native
from adamas_core.reference.layout import Codes, Selection, Softmax, Values

NDArray = np.ndarray[Any, Any]
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
I64, P = c.c_int64, c.c_void_p
SOFTMAX = [("Dv", I64), ("soft_cap", c.c_double), ("sink_logits", P)]  # of a step or attention


class Rows(c.Structure):
    _fields_ = [("data", P), *((n, I64) for n in ("stride_b", "stride_h", "stride_token"))]


class Heads(c.Structure):
    _fields_ = [("data", P), ("stride_b", I64), ("stride_h", I64)]


class Keys(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        *((n, I64) for n in ("B", "H_kv", "T", "D")),
        *(("planes", Heads), ("to_low", I64), ("thresholds", P)),
        *((n, Heads) for n in ("means", "scales", "open_tile", "third", "third_scales")),
    ]


class CodedValues(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        *((n, I64) for n in ("B", "H_kv", "T", "D")),
        *(("codes", Heads), ("scales", Heads), ("bases", Heads), ("total", P), ("sums", Heads)),
    ]


class Options(c.Structure):
    _fields_ = [
        *(("size", c.c_size_t), ("query_bits", c.c_int), ("budget", I64), ("sinks", I64)),
        *(("recent", I64), ("refine", I64), ("group", c.c_int), ("tail", I64)),
    ]


class Step(c.Structure):
    _fields_ = [
        *(("size", c.c_size_t), ("H", I64), ("L", I64), ("keys", P), ("values", P)),
        *(("selection", P), ("lengths", P), ("q_dtype", c.c_int), ("kv_dtype", c.c_int)),
        *(("q", Rows), ("k", Rows), ("v", Rows), ("S", I64), ("scale", c.c_double)),
        *(("indices", P), ("out", P), ("lse", P), ("threads", c.c_int)),
        *(("workspace", P), ("workspace_bytes", c.c_size_t)),
        *SOFTMAX,
    ]


class Attention(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        *((n, I64) for n in ("B", "H", "H_kv", "L", "S", "D")),
        *(("q_dtype", c.c_int), ("kv_dtype", c.c_int), ("q", Rows), ("k", Rows), ("v", Rows)),
        *(("indices", P), ("K", I64), ("window", I64), ("scale", c.c_double)),
        *(("out", P), ("lse", P), ("threads", c.c_int)),
        *(("workspace", P), ("workspace_bytes", c.c_size_t)),
        *SOFTMAX,
    ]


def at(x: NDArray) -> int:
    """The address of the first element."""
    return int(x.__array_interface__["data"][0])


def rows(x: NDArray) -> Rows:
    return Rows(at(x), *x.strides[:3])


def heads(x: NDArray) -> Heads:
    return Heads(at(x), *x.strides[:2])


def keys_of(codes: Codes, D: int) -> Keys:
    """The struct of coded keys; the caller keeps the arrays alive."""
    planes = codes.planes
    _, B, H_kv, T = planes.shape[:4]
    own = Heads(at(planes), *planes.strides[1:3])
    keys = Keys(c.sizeof(Keys), B, H_kv, T, D, own, planes.strides[0], at(codes.thresholds))
    if codes.centers is not None:
        for name, x in codes.centers._asdict().items():
            setattr(keys, name, heads(x))
    if codes.fine is not None:
        keys.third, keys.third_scales = heads(codes.fine.bits), heads(codes.fine.scales)
    return keys


def values_of(values: Values) -> CodedValues:
    B, H_kv, T = values.codes.shape[:3]
    parts = (heads(x) for x in (values.codes, values.scales, values.bases))
    size, D = c.sizeof(CodedValues), values.bases.shape[-1]
    return CodedValues(size, B, H_kv, T, D, *parts, at(values.total))


def options_of(selection: Selection, budget: int) -> Options:
    bits = 0 if selection.metric == "manhattan" else selection.query_bits
    o = selection
    size = c.sizeof(Options)
    return Options(size, bits, budget, o.sinks, o.recent, o.refine, o.group, o.tail or 0)


def set_softmax(struct: Step | Attention, softmax: Softmax | None, v: NDArray) -> None:
    """Fill the fields of the softmax, and Dv; the caller keeps the softmax alive."""
    struct.Dv = v.shape[3]
    if softmax is not None:
        struct.scale, struct.soft_cap = softmax.scale or 0, softmax.soft_cap or 0
        if softmax.sink_logits is not None:
            struct.sink_logits = at(softmax.sink_logits)


class Library:
    """libadamas at one level."""

    def __init__(self, path: Path) -> None:
        self.c = c.CDLL(str(path))
        self.c.adamas_level.restype = c.c_char_p
        self.c.adamas_error.restype = c.c_char_p
        self.c.adamas_step_workspace.restype = c.c_size_t
        self.c.adamas_attend_workspace.restype = c.c_size_t
        self.c.adamas_place_keys.restype = c.c_size_t
        self.c.adamas_place_values.restype = c.c_size_t
        self.level = self.c.adamas_level().decode()

    def check(self, status: int) -> None:
        assert status == 0, self.c.adamas_error(status).decode()

    def append_keys(
        self, codes: Codes, k: NDArray, start: NDArray, count: NDArray, threads: int = 0
    ) -> None:
        keys = keys_of(codes, k.shape[-1])
        self.check(
            self.c.adamas_append_keys(
                c.byref(keys), DTYPES[k.dtype.name], rows(k), I64(k.shape[2]), P(at(start)),
                P(at(count)), threads,
            )
        )  # fmt: skip

    def append_values(
        self,
        values: Values,
        v: NDArray,
        start: NDArray,
        count: NDArray,
        threads: int = 0,
        sums: NDArray | None = None,
    ) -> None:
        own = values_of(values)
        if sums is not None:
            own.sums = heads(sums)
        self.check(
            self.c.adamas_append_values(
                c.byref(own), DTYPES[v.dtype.name], rows(v), I64(v.shape[2]), P(at(start)),
                P(at(count)), threads,
            )
        )  # fmt: skip

    def step(self, **arguments: Any) -> tuple[NDArray, NDArray, NDArray]:
        """Indices, output and lse of a step, as `made` takes its arguments."""
        made = Made(**arguments)
        self.check(self.c.adamas_step_run(c.byref(made.step)))
        return made.indices, made.out, made.lse

    def attend(
        self,
        q: NDArray,
        k: NDArray,
        v: NDArray,
        indices: NDArray | None = None,
        softmax: Softmax | None = None,
        **more: Any,
    ) -> tuple[NDArray, NDArray]:
        B, H, L, D = q.shape
        out, lse = np.empty((B, H, L, v.shape[3]), q.dtype), np.empty((B, H, L), np.float32)
        a = Attention(
            c.sizeof(Attention), B, H, k.shape[1], L, k.shape[2], D, DTYPES[q.dtype.name],
            DTYPES[k.dtype.name], rows(q), rows(k), rows(v), out=at(out), lse=at(lse), **more,
        )  # fmt: skip
        set_softmax(a, softmax, v)
        if indices is not None:
            indices = np.ascontiguousarray(indices)
            a.indices, a.K = at(indices), indices.shape[3]
        self.check(self.c.adamas_attend(c.byref(a)))
        return out, lse


class Made:
    """A step whose arrays live as long as it does."""

    def __init__(
        self,
        q: NDArray,
        codes: Codes,
        selection: Selection,
        budget: int,
        kv: tuple[NDArray, NDArray] | None = None,
        values: Values | None = None,
        threads: int = 0,
        select_only: bool = False,
        softmax: Softmax | None = None,
    ) -> None:
        B, H, L, D = q.shape
        self.keep = q, codes, kv, values, softmax
        self.keys, self.options = keys_of(codes, D), options_of(selection, budget)
        self.lengths = np.array(np.broadcast_to(codes.length, (B,)), np.int64)
        self.indices = np.full((B, H, L, budget), -9, np.int32)
        k, v = kv if kv is not None else (None, None)
        Dv = D if v is None else v.shape[3]
        self.out, self.lse = np.empty((B, H, L, Dv), q.dtype), np.empty((B, H, L), np.float32)
        self.step = Step(
            c.sizeof(Step), H, L, c.addressof(self.keys), None, c.addressof(self.options),
            at(self.lengths), DTYPES[q.dtype.name], 0 if k is None else DTYPES[k.dtype.name],
            rows(q), indices=at(self.indices), threads=threads,
        )  # fmt: skip
        if k is not None and v is not None:
            self.step.k, self.step.v, self.step.S = rows(k), rows(v), k.shape[2]
            set_softmax(self.step, softmax, v)
            if not select_only:
                self.step.out, self.step.lse = at(self.out), at(self.lse)
        if values is not None:
            self.values = values_of(values)
            self.step.values = c.addressof(self.values)


def at_level(level: str, folder: Path) -> Library | None:
    """The library at a level, or None where it or the processor has not got it.

    The level is chosen once per library. So each level has a copy of its own.
    """
    copy = Path(folder) / f"{level}-{native.path().name}"
    shutil.copyfile(native.path(), copy)
    os.environ["ADAMAS_ISA"] = level
    try:
        library = Library(copy)
    finally:
        del os.environ["ADAMAS_ISA"]
    return library if library.level == level else None
