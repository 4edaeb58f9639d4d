"""A layer of a cache that keeps all its tokens: keys, values and the codes of both.

`FullLayer` never changes. An operation returns another layer, and `KVCache` replaces the old one by
a single store. New keys and values are written into free slots, so the old layer stays whole until
then. `code_store` says the same of codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from . import checks, code_store, value_store
from .code_store import Coded, Guard, Kind, take_sequences
from .codes import encoded, sample_of, sample_thresholds
from .dispatch import BACKENDS, array_module
from .lengths import Lengths, taken
from .softmax import Softmax
from .value_store import CodedValues

NDArray = np.ndarray[Any, Any]

# Tokens that give lasting thresholds. Fewer tokens give a first estimate, which is replaced when
# this many are there.
CALIBRATION_TOKENS = 128


FINE = "fine_"  # how the names of arrays of third bits begin in a file


class Options(NamedTuple):
    """What a layer was made with."""

    thresholds: NDArray | None
    centered: bool
    dense: bool
    capacity: int
    window: int | None
    tail: bool = False  # whether the selection has a tail

    @property
    def kind(self) -> Kind:
        """What the codes of the keys hold."""
        return Kind(self.centered, self.tail)

    @property
    def coded_values(self) -> bool:
        """Whether the layer keeps codes of its values."""
        return self.tail and not self.dense and self.window is None


class Sample(NamedTuple):
    """The tokens of each sequence (B,) that thresholds were calibrated from."""

    first: NDArray  # for the estimate from the first append
    lasting: NDArray | None  # None while the layer has fewer than CALIBRATION_TOKENS

    @property
    def now(self) -> NDArray:
        """Those of the thresholds in use."""
        return self.first if self.lasting is None else self.lasting

    def of_kept(self, lengths: Lengths) -> Sample:
        """The sample that a layer would have that never saw more than `lengths`.

        Where no token of a sample is kept but others are, they count as one append.
        """
        first = np.minimum(self.first, lengths.each)
        first = first if first.sum() else sample_of(lengths)
        if lengths.each.sum() < CALIBRATION_TOKENS:
            return Sample(first, None)
        lasting = np.minimum(self.now, lengths.each)
        return Sample(first, lasting if lasting.sum() >= CALIBRATION_TOKENS else sample_of(lengths))

    def take(self, order: NDArray) -> Sample:
        """The sample of the sequences `order`; a copy of a sequence counts once."""
        once = np.full(len(order), -1)
        found, where = np.unique(order, return_index=True)
        once[where] = found
        lasting = self.lasting
        return Sample(taken(self.first, once), None if lasting is None else taken(lasting, once))


class FullLayer(NamedTuple):
    """Keys, values and codes of one layer. Before the first append most fields are None."""

    options: Options
    backend: str | None = None
    k: Any = None  # (B, H_kv, capacity, D)
    v: Any = None  # (B, H_kv, capacity, D_v)
    lengths: Lengths = Lengths.of(0, 0)
    codes: Coded | None = None
    sample: Sample | None = None  # None where nothing was calibrated
    values: CodedValues | None = None  # None unless the values are coded too

    def keys_values(self) -> tuple[Any, Any]:
        """Views (B, H_kv, S, D) and (B, H_kv, S, D_v) of the slots with tokens."""
        S = self.lengths.longest
        return self.k[:, :, :S], self.v[:, :, :S]

    def shown(self) -> tuple[Any, Any]:
        """The same views; copies where slots after a shorter sequence's last token are not 0.

        In the copies they are 0. In the layer they stay, because an append may be writing them.
        """
        k, v = self.keys_values()
        ends = [(b, n) for b, n in enumerate(map(int, self.lengths.each)) if n < k.shape[2]]
        if any(bool(x[b, :, n:].any()) for b, n in ends for x in (k, v)):
            k, v = k.copy(), v.copy()
            for b, n in ends:
                k[b, :, n:] = 0
                v[b, :, n:] = 0
        return k, v

    def nbytes(self) -> int:
        """Bytes of keys, values and codes, without free slots."""
        if self.k is None:
            return 0
        codes = sum(x.nbytes() for x in (self.codes, self.values) if x is not None)
        return codes + sum(int(x.nbytes) for x in self.keys_values())

    def with_room(self, S: int) -> Iterator[FullLayer]:
        """The same layer with room for S more tokens, in steps.

        Each step frees an old buffer, so that only one is there twice.
        """
        if self.k is not None:
            xp, old, layer = array_module(str(self.backend)), self.lengths.longest, self
            if layer.k.shape[2] < old + S:
                layer = layer._replace(k=_room(xp, layer.k, old, old + S))
                yield layer
            if layer.v.shape[2] < old + S:  # also where an earlier call ended after the first step
                yield layer._replace(v=_room(xp, layer.v, old, old + S))

    def appended(
        self, k: Any, v: Any, added: int | NDArray, backend: str, guard: Guard
    ) -> FullLayer:
        """The layer after checked keys and values of S tokens, for which it has room."""
        layer, S = self, k.shape[2]
        if self.k is None:
            B, H_kv, _, D = k.shape
            xp = array_module(backend)
            room = (B, H_kv, max(S, self.options.capacity))
            layer = self._replace(
                backend=backend,
                k=xp.zeros((*room, D), k.dtype),
                v=xp.zeros((*room, v.shape[3]), v.dtype),
                lengths=Lengths.of(0, B),
            )
        lengths = layer.lengths.plus(added)
        if lengths.ragged:
            write(layer.k, k, layer.lengths.each, lengths.each)
            write(layer.v, v, layer.lengths.each, lengths.each)
        else:
            first, end = layer.lengths.longest, lengths.longest
            layer.k[:, :, first:end] = k[:, :, : end - first]
            layer.v[:, :, first:end] = v[:, :, : end - first]
        layer = layer._replace(lengths=lengths)
        return layer._coded(k, added, layer.codes, guard)._coded_values(v, added, guard)

    def _coded(self, k: Any, added: int | NDArray, old: Coded | None, guard: Guard) -> FullLayer:
        """Encode new keys, or all keys where the thresholds are not settled yet."""
        if self.options.dense:
            return self
        settled = self.sample is None or self.sample.lasting is not None
        total = -1 if old is not None and settled else int(self.lengths.each.sum())
        if old is not None and total < CALIBRATION_TOKENS:
            codes = code_store.append(old, k, added, self.lengths, guard)
            return self._replace(codes=codes)
        if total == 0:
            return self
        sample = None
        if self.options.thresholds is None and not self.options.centered:
            now = sample_of(self.lengths)
            first = now if self.sample is None else self.sample.first
            sample = Sample(first, now if total >= CALIBRATION_TOKENS else None)
        return self._encoded(sample)

    def _encoded(self, sample: Sample | None) -> FullLayer:
        """Encode all keys, at the thresholds that the sample gives."""
        keys, _ = self.keys_values()
        t = self.options.thresholds
        if sample is not None:
            t = sample_thresholds(keys, sample.now)
        codes = encoded(keys, self.lengths, t, str(self.backend), self.options.kind)
        return self._replace(codes=codes, sample=sample)

    def _coded_values(self, v: Any, added: int | NDArray, guard: Guard) -> FullLayer:
        """Encode new values, once the layer has codes of keys."""
        if not self.options.coded_values or self.codes is None:
            return self
        if self.values is None:
            _, held = self.keys_values()
            values = value_store.encoded(held, self.lengths, str(self.backend))
        else:
            values = value_store.append(self.values, v, added, self.lengths, guard)
        return self._replace(values=values)

    def earliest(self) -> NDArray:
        """The least number of tokens (B,), apart from 0, that each sequence can be cut to."""
        return np.zeros(len(self.lengths.each), int)

    def cut(self, tokens: int | NDArray, guard: Guard) -> FullLayer:
        """The layer with at most `tokens` tokens: one number, or (B,)."""
        if self.lengths.longest == 0:
            return self
        lengths = self.lengths.cut(tokens)
        if (lengths.each == self.lengths.each).all():
            return self
        if lengths.longest == 0:
            return FullLayer(self.options)
        layer = self._replace(lengths=lengths)
        if self.codes is None:
            return layer
        if self.sample is not None:
            sample = self.sample.of_kept(lengths)
            if not np.array_equal(sample.now, self.sample.now):
                return layer._encoded(sample)
            layer = layer._replace(sample=sample)
        if self.values is not None:
            layer = layer._replace(values=value_store.cut(self.values, lengths, self.v, guard))
        return layer._replace(codes=code_store.cut(self.codes, lengths, self.k, guard))

    def take(self, order: NDArray) -> FullLayer:
        """The layer of the sequences `order`, in arrays of its own; -1 is an empty sequence."""
        if self.k is None:
            return self
        lengths = self.lengths.take(order)
        if lengths.longest == 0:
            return FullLayer(self.options)
        xp = array_module(str(self.backend))
        k, v = (take_sequences(xp, x, order) for x in self.keys_values())
        layer = self._replace(k=k, v=v, lengths=lengths)
        if self.codes is None:
            return layer
        if self.sample is not None:
            old = self.sample.take(order)
            sample = old.of_kept(lengths)
            dropped = np.setdiff1d(np.arange(len(self.lengths.each)), order)
            if self.sample.now[dropped].any() or not np.array_equal(sample.now, old.now):
                return layer._encoded(sample)
            layer = layer._replace(sample=sample)
        if self.values is not None:
            layer = layer._replace(values=value_store.take(self.values, order))
        return layer._replace(codes=code_store.take(self.codes, order))

    def dense(self, home: Any, q: Any, softmax: Softmax) -> tuple[Any, Any]:
        """Attention of q (B, H, L, D) to every token, a sequence at a time where lengths differ."""
        if not self.lengths.ragged:
            k, v = self.keys_values()
            return home.attend(q, k, v, None, softmax, True)  # type: ignore[no-any-return]
        xp, parts = array_module(str(self.backend)), []
        for b, n in enumerate(map(int, self.lengths.each)):
            one = slice(b, b + 1)
            k, v = self.k[one, :, :n], self.v[one, :, :n]
            parts.append(
                home.attend(q[one], k, v, None, softmax, True)
                if n
                else no_attention(xp, q[one], v.shape[3], softmax)
            )
        return joined(xp, parts)

    def arrays(self) -> dict[str, Any]:
        """The arrays of the layer for a file: none without tokens, as of a new layer."""
        if self.lengths.longest == 0:
            return {}
        k, v = self.shown()
        arrays = {"k": k, "v": v, "length": self.lengths.each.astype(np.int64)}
        if self.codes is not None:
            arrays |= _code_arrays(self.codes)
            arrays["codes_thresholds"] = self.codes.thresholds
        if self.values is not None:  # a reader adds up the sums again
            arrays["value_codes"], arrays["value_scales"] = self.values.used()
        if self.sample is not None:
            arrays["sample_first"] = self.sample.first.astype(np.int64)
            if self.sample.lasting is not None:
                arrays["sample_lasting"] = self.sample.lasting.astype(np.int64)
        return arrays


def _code_arrays(codes: Coded) -> dict[str, Any]:
    """Planes, centers and third bits for a file."""
    centers, fine = codes.used_centers(), codes.used_fine()
    own = {} if centers is None else centers._asdict()
    if fine is not None:
        own |= {FINE + name: x for name, x in fine._asdict().items()}
    return {"planes": codes.used(), **own}


def no_attention(xp: Any, q: Any, Dv: int, softmax: Softmax) -> tuple[Any, Any]:
    """The out (B, H, L, D_v) and lse of queries that see no token, but may see a sink."""
    lse = xp.full(q.shape[:3], -np.inf, np.float32)
    if softmax.sink_logits is not None:
        lse[:] = xp.asarray(softmax.sink_logits)[:, None]
    return xp.zeros((*q.shape[:3], Dv), q.dtype), lse


def joined(xp: Any, parts: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """The out and lse of all sequences, from those of each."""
    return xp.concatenate([out for out, _ in parts]), xp.concatenate([lse for _, lse in parts])


def write(buffer: Any, x: Any, first: NDArray, end: NDArray) -> None:
    """Copy x (B, H_kv, S, D) into the slots first to end - 1 of each sequence; all if S is less."""
    if len(first) and (first == first[0]).all() and (end == end[0]).all():
        buffer[:, :, first[0] : end[0]] = x[:, :, : end[0] - first[0]]
        return
    for b, (start, stop) in enumerate(zip(map(int, first), map(int, end), strict=True)):
        buffer[b, :, start:stop] = x[b, :, : stop - start]


def checked_append(
    where: str, layer: Any, k: Any, v: Any, added: int | NDArray, backend: str
) -> int | NDArray:
    """The count, after a check that keys and values of S tokens fit a layer."""
    B, H_kv, S, D = k.shape
    place = BACKENDS[backend] if layer.k is None else checks.device(layer.k)
    checks.lies_on(where, "k", k, place)
    added = checks.length(where, "count", added, B, S, "k")
    checks.tokens(where, layer.lengths.longest + S)
    if layer.k is None:
        if layer.options.thresholds is not None:
            checks.thresholds(where, layer.options.thresholds, H_kv)
    else:
        held = layer.k.shape
        if (B, H_kv, D) != (held[0], held[1], held[3]):
            raise ValueError(
                f"{where}: {checks.shown('k', k)}; expected "
                f"({held[0]}, {held[1]}, S, {held[3]}), as the layer has"
            )
        if v.shape[3] != layer.v.shape[3]:
            raise ValueError(
                f"{where}: {checks.shown('v', v)}; expected "
                f"({held[0]}, {held[1]}, S, {layer.v.shape[3]}), as the layer has"
            )
        if k.dtype != layer.k.dtype:
            raise TypeError(
                f"{where}: {checks.shown('k', k)}; expected {layer.k.dtype}, as the layer has"
            )
    checks.finite(where, "k", k)
    if layer.options.coded_values:
        checks.finite(where, "v", v)
    return added


def _room(xp: Any, buffer: Any, used: int, needed: int) -> Any:
    """A copy of the buffer's tokens, with room for `needed` and at least twice the room."""
    B, H_kv, capacity, D = buffer.shape
    grown = xp.zeros((B, H_kv, max(needed, 2 * capacity), D), buffer.dtype)
    grown[:, :, :used] = buffer[:, :, :used]
    return grown
