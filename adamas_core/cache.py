"""Keys, values and codes of a model's layers, and the decode step over them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from . import cache_file, checks
from .codes import KeyCodes, encoded
from .dispatch import (
    BACKENDS,
    DEFAULT_BACKEND,
    Array,
    array_module,
    backend_of,
    int_or_view,
    load,
    on_host_thresholds,
    returner,
    views,
)
from .lengths import Lengths
from .reference.layout import Centers
from .selection import DEFAULT, Selection

NDArray = np.ndarray[Any, Any]

# Tokens that give lasting thresholds. Fewer tokens give a first estimate, which is replaced when
# this many are there.
CALIBRATION_TOKENS = 128


class KVCache:
    """The KV cache of a model: keys and values as they came, and 2-bit codes of the keys.

    Parameters
    ----------
    layers : int
        Number of attention layers.
    selection : Selection
        The options of every selection over this cache.
    thresholds : array (3,) or (H_kv, 3), float32, or three numbers, optional
        Thresholds of plain codes, for every layer.
    centered : bool, optional
        Centered or plain codes, as in `encode`. If not given: plain codes where thresholds are
        given or the selection's metric is "manhattan", else centered ones. Centered codes are never
        calibrated. For plain codes without thresholds, each layer calibrates its own, three per
        head, from its first append. If that append held fewer than 128 tokens, the layer calibrates
        again when it has 128, and encodes all its keys again.
    dense_layers : collection of int
        Layers that keep no codes and always attend to every token.
    capacity : int
        Tokens to make room for at the first append. Room grows by doubling.
    backend : {"cpu", "gpu", "reference"}, optional
        If not given, the backend of the first keys: "gpu" where they are on a CUDA device, which
        then is the device of the cache, else "cpu".

    Attributes
    ----------
    backend, dense_layers, selection
        As above; backend is None until it is known.
    centered : bool
        Whether the codes are centered.

    Raises
    ------
    TypeError
        An argument has another type.
    ValueError
        A value is out of range, or centered=True is given with thresholds or with
        metric="manhattan".

    See Also
    --------
    decode_attention : attention of new queries to one layer.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas_core import KVCache, Selection, decode_attention
    >>> rng = np.random.default_rng(0)
    >>> k, v = rng.standard_normal((2, 8, 5000, 128), dtype=np.float32)  # each (H_kv, S, D)
    >>> q = rng.standard_normal((32, 1, 128), dtype=np.float32)  # (H, L, D)
    >>> cache = KVCache(selection=Selection(sinks=4))
    >>> cache.append(k, v)
    >>> decode_attention(q, cache, budget=128).shape
    (32, 1, 128)
    """

    def __init__(
        self,
        layers: int = 1,
        selection: Selection = DEFAULT,
        *,
        thresholds: Array | Sequence[float] | None = None,
        centered: bool | None = None,
        dense_layers: Collection[int] = (),
        capacity: int = 0,
        backend: str | None = None,
    ) -> None:
        where = "KVCache"
        checks.at_least(where, "layers", layers, 1)
        checks.instance(where, "selection", selection, Selection, "a Selection")
        checks.at_least(where, "capacity", capacity, 0)
        dense = [checks.integer(where, "an item of dense_layers", i) for i in dense_layers]
        unknown = [i for i in dense if i not in range(layers)]
        if unknown:
            raise ValueError(
                f"{where}: dense_layers holds {unknown}; expected layers 0 to {layers - 1}"
            )
        if thresholds is not None:
            thresholds = on_host_thresholds(thresholds)
            checks.thresholds(where, thresholds, len(thresholds) if thresholds.ndim == 2 else None)
        if backend is not None:
            load(backend)
        self.selection = selection
        self.centered = checks.centered(where, centered, thresholds, selection)
        self.dense_layers = frozenset(dense)
        self.backend = backend
        self._layers = [
            LayerCache(thresholds, i in self.dense_layers, int(capacity), self.centered)
            for i in range(layers)
        ]

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, layer: int) -> LayerCache:
        if not 0 <= checks.integer("KVCache", "layer", layer) < len(self._layers):
            raise IndexError(f"KVCache: layer={layer}; expected 0 to {len(self._layers) - 1}")
        return self._layers[layer]

    def __repr__(self) -> str:
        return (
            f"KVCache(layers={len(self)}, shape={self._layers[0].shape}, "
            f"selection={self.selection}, backend={self.backend!r})"
        )

    @property
    def nbytes(self) -> int:
        """Bytes in use by the keys, values and codes of all layers."""
        return sum(layer.nbytes for layer in self._layers)

    def append(self, k: Array, v: Array, layer: int = 0, count: int | Array | None = None) -> None:
        """Append the keys and values of new tokens to a layer.

        Parameters
        ----------
        k, v : array (B, H_kv, S, D)
            float16, bfloat16 or float32, kept in that dtype; B may be absent where it is 1. The
            first append fixes B, H_kv, D, the dtype and the device. Keep arrays of another library
            on a GPU alive until CuPy's current stream has read them.
        layer : int
        count : int or array (B,) of integers, optional
            How many of the S tokens each sequence really has: its first ones.

        Raises
        ------
        TypeError
            k or v have another dtype than the cache.
        ValueError
            k and v differ in shape, or in B, H_kv, D or device from the cache.
        IndexError
            There is no such layer.
        """
        a, b = views(k=k, v=v)
        checks.keys_values("KVCache.append", a, b, (3, 4))
        if a.ndim == 3:
            a, b = a[None], b[None]
        added = a.shape[2] if count is None else int_or_view("count", count)
        backend = self.backend or backend_of(a)
        self[layer]._append(a, b, added, backend)
        self.backend = backend

    def truncate(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens of every layer.

        Raises
        ------
        ValueError
            A layer has fewer tokens. Then no layer changes.
        """
        checks.integer("KVCache.truncate", "tokens", tokens)
        for i, layer in enumerate(self._layers):
            if not 0 <= tokens <= layer.tokens:
                raise ValueError(
                    f"KVCache.truncate: tokens={tokens}; expected 0 to {layer.tokens}, the tokens "
                    f"of layer {i}"
                )
        for layer in self._layers:
            layer._truncate(int(tokens))

    def attention(self, budget: int | None) -> Callable[[int, NDArray, NDArray, NDArray], NDArray]:
        """The function ``f(layer, q, k, v)`` that a decoder calls: append, then attend.

        Several new tokens at once, as in prefill, attend to all tokens. A single new token attends
        to `budget` tokens, or to all if budget is None.
        """

        def attend(layer: int, q: NDArray, k: NDArray, v: NDArray) -> NDArray:
            self.append(k, v, layer)
            L = q.shape[-2]
            return decode_attention(q, self, budget if L == 1 else None, layer)  # type: ignore[no-any-return]

        return attend

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one file.

        The file appears whole or not at all. It has a version and a SHA-256 of its contents.

        Raises
        ------
        OSError
            The file cannot be written. A file that was at `path` before is unharmed.
        """
        arrays = {
            f"{i}.{name}": x
            for i, layer in enumerate(self._layers)
            for name, x in layer._arrays().items()
        }
        header = {
            "layers": len(self),
            "selection": asdict(self.selection),
            "centered": self.centered,
            "dense_layers": sorted(self.dense_layers),
            "states": [layer._state() for layer in self._layers],
        }
        cache_file.write(Path(path), header, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str], backend: str = DEFAULT_BACKEND) -> KVCache:
        """Read a file that `save` wrote, onto the device of a backend.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            The file was not written by `save`, has another version, is cut or damaged.
        """
        header, arrays = cache_file.read(path)
        try:
            cache = cls(
                header["layers"],
                Selection(**header["selection"]),
                centered=header["centered"],
                dense_layers=header["dense_layers"],
                backend=backend,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{os.fspath(path)} has a header that this release cannot read: {error!r}"
            ) from error
        for i, (layer, state) in enumerate(zip(cache._layers, header["states"], strict=True)):
            prefix = f"{i}."
            own = {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}
            layer._restore(own, state, backend)
        return cache


class LayerCache:
    """Keys, values and codes of one layer, as ``cache[layer]``. `KVCache` appends to it.

    Attributes
    ----------
    dense : bool
        Whether the layer keeps no codes.
    codes : KeyCodes or None
        None before the first append, and in a dense layer.
    """

    def __init__(
        self, thresholds: NDArray | None, dense: bool, capacity: int, centered: bool
    ) -> None:
        self.dense = dense
        self.codes: KeyCodes | None = None
        self._centered = centered
        self._thresholds = thresholds
        self._calibrated = thresholds is not None or centered
        self._capacity = capacity
        self._backend = DEFAULT_BACKEND  # the first append sets it
        self._k: NDArray | None = None  # (B, H_kv, capacity, D)
        self._v: NDArray | None = None
        self._lengths = Lengths.of(0, 0)

    @property
    def k(self) -> NDArray:
        """A view of the keys (B, H_kv, S, D)."""
        return self._filled("k", self._k)

    @property
    def v(self) -> NDArray:
        """A view of the values (B, H_kv, S, D)."""
        return self._filled("v", self._v)

    @property
    def tokens(self) -> int:
        """S, the largest length."""
        return self._lengths.longest

    @property
    def length(self) -> int | NDArray:
        """Tokens: an int, or (B,) where an append had an array `count`."""
        return self._lengths.given()

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(B, H_kv, S, D), or None before the first append."""
        if self._k is None:
            return None
        B, H_kv, _, D = self._k.shape
        return B, H_kv, self.tokens, D

    @property
    def nbytes(self) -> int:
        """Bytes in use by keys, values and codes."""
        if self._k is None:
            return 0
        return int(self.k.nbytes + self.v.nbytes + (self.codes.nbytes if self.codes else 0))

    def _filled(self, name: str, buffer: NDArray | None) -> NDArray:
        """The part of a buffer that holds tokens."""
        if buffer is None:
            raise ValueError(f"KVCache: the layer is empty and has no {name}; append first")
        return buffer[:, :, : self.tokens]

    def _append(self, k: NDArray, v: NDArray, added: int | NDArray, backend: str) -> None:
        """Append checked keys and values (B, H_kv, S, D), after a check that they fit the layer."""
        where = "KVCache.append"
        B, H_kv, S, D = k.shape
        place = BACKENDS[backend] if self._k is None else checks.device(self._k)
        checks.lies_on(where, "k", k, place)
        added = checks.length(where, "count", added, B, S, "k")
        checks.tokens(where, self.tokens + S)
        if self._k is None or self._v is None:
            if self._thresholds is not None:
                checks.thresholds(where, self._thresholds, H_kv)
            self._backend = backend
            xp = array_module(backend)
            self._k, self._v = (xp.empty((B, H_kv, self._capacity, D), k.dtype) for _ in "kv")
            self._lengths = Lengths.of(0, B)
        held = self._k.shape
        if (B, H_kv, D) != (held[0], held[1], held[3]):
            raise ValueError(
                f"{where}: {checks.shown('k', k)}; expected "
                f"({held[0]}, {held[1]}, S, {held[3]}), as the layer has"
            )
        if k.dtype != self._k.dtype:
            raise TypeError(
                f"{where}: {checks.shown('k', k)}; expected {self._k.dtype}, as the layer has"
            )
        lengths = self._lengths.plus(added)
        self._write(k, v, lengths.ragged)
        self._lengths = lengths
        if not self.dense:
            self._append_codes(k, added)

    def _write(self, k: NDArray, v: NDArray, ragged: bool) -> None:
        """Copy keys and values after the tokens that are there."""
        assert self._k is not None and self._v is not None
        S, old = k.shape[2], self.tokens
        xp = array_module(self._backend)
        self._k, self._v = _room(xp, self._k, old, old + S), _room(xp, self._v, old, old + S)
        if ragged:
            for b, n in enumerate(self._lengths.each):
                self._k[b, :, n : n + S] = k[b]
                self._v[b, :, n : n + S] = v[b]
        else:
            self._k[:, :, old : old + S] = k
            self._v[:, :, old : old + S] = v

    def _append_codes(self, k: NDArray, added: int | NDArray) -> None:
        """Encode the new keys, or all keys where the thresholds are not settled yet."""
        enough = int(self._lengths.each.sum()) >= CALIBRATION_TOKENS
        if self.codes is not None and (self._calibrated or not enough):
            self.codes._append(k, added, self._lengths)
        elif self.tokens > 0:
            self.codes = encoded(
                self.k, self._lengths, self._thresholds, self._backend, self._centered
            )
            self._calibrated = self._calibrated or enough

    def _truncate(self, tokens: int) -> None:
        self._lengths = self._lengths.cut(tokens)
        if self.codes is not None:
            self.codes.truncate(tokens, self._k)

    def _arrays(self) -> dict[str, NDArray]:
        """The arrays of the layer for a file."""
        if self._k is None:
            return {}
        arrays = {"k": self.k, "v": self.v, "length": self._lengths.each.astype(np.int64)}
        if self.codes is not None:
            arrays |= {"planes": self.codes.planes, "codes_thresholds": self.codes.thresholds}
            if self.codes.centers is not None:
                arrays |= self.codes.centers._asdict()
        if self._thresholds is not None:
            arrays["thresholds"] = self._thresholds
        return arrays

    def _state(self) -> dict[str, bool]:
        """The rest of the layer for a file."""
        return {"ragged": self._lengths.ragged, "calibrated": self._calibrated}

    def _restore(self, arrays: dict[str, NDArray], state: dict[str, bool], backend: str) -> None:
        """Take the arrays and the state of a file."""
        self._thresholds = arrays.get("thresholds")
        self._calibrated = state["calibrated"]
        if "k" not in arrays:
            return
        xp = array_module(backend)
        self._backend = backend
        self._k, self._v = xp.asarray(arrays["k"]), xp.asarray(arrays["v"])
        self._lengths = Lengths(arrays["length"], state["ragged"])
        if "planes" in arrays:
            planes, t = xp.asarray(arrays["planes"]), arrays["codes_thresholds"]
            centers = None
            if self._centered:
                centers = Centers(*(xp.asarray(arrays[name]) for name in Centers._fields))
            self.codes = KeyCodes(planes, self.length, t, self._k.shape[-1], backend, centers)


def decode_attention(
    q: Array,
    cache: KVCache,
    budget: int | None,
    layer: int = 0,
    scale: float | None = None,
    return_lse: bool = False,
) -> Array:
    """One attention step: select `budget` tokens per query by their codes, and attend to those.

    Parameters
    ----------
    q : array (B, H, L, D)
        float16, bfloat16 or float32; B may be absent where it is 1. The queries of the last L
        tokens of the cache: append their keys and values first. Each sees the tokens up to
        itself.
    cache : KVCache
        Its `selection` has the options.
    budget : int or None
        Tokens per query. Attention is dense where the budget covers the whole cache, with None, and
        in the dense layers of the cache.
    layer : int
    scale : float, optional
        Factor of the inner products; D ** -0.5 if not given.
    return_lse : bool
        Also return the log-sum-exp over the chosen tokens.

    Returns
    -------
    out : array (B, H, L, D), q's dtype
    lse : array (B, H, L), float32
        Only with `return_lse`.

    Raises
    ------
    TypeError
        q has another dtype, or cache is not a KVCache.
    ValueError
        The layer is empty, shapes do not fit it, or the budget is below 1 or below the sinks and
        recent tokens of the selection.
    IndexError
        There is no such layer.
    """
    where = "decode_attention"
    checks.instance(where, "cache", cache, KVCache, "KVCache")
    (a,) = views(q=q)
    checks.floats(where, "q", a, (3, 4))
    q4 = a[None] if a.ndim == 3 else a
    held = cache[layer]
    if held.tokens == 0:
        raise ValueError(
            f"{where}: layer {layer} of the cache is empty, and {checks.shown('q', a)}; expected "
            "the keys and values of these tokens to be appended first"
        )
    shape = held.k.shape
    checks.heads(where, "q and the cache", q4.shape, shape)
    checks.same_head_dim(where, a, "the cache", shape[-1])
    checks.lies_on(where, "q", a, checks.device(held.k))
    checks.real(where, "scale", scale)
    if budget is not None:
        checks.at_least(where, "budget", budget, 1)
        checks.forced(where, budget, cache.selection)
    L = a.shape[-2]
    if held._lengths.shortest < L:
        raise ValueError(
            f"{where}: {checks.shown('q', a)} has {L} tokens and the cache {held.length}; expected "
            "the queries' own tokens in the cache"
        )
    home = load(held._backend)
    if budget is None or held.codes is None or budget >= held.tokens:
        out, lse = _dense(home, q4, held, scale)
    else:
        checks.searchable(where, cache.selection, a.shape[-1], cache.centered)
        out, lse = home.attend_topk(
            q4, held.k, held.v, held.codes.record, int(budget), cache.selection, scale
        )
    give = returner(q)
    out = give(out.reshape(a.shape))
    return (out, give(lse.reshape(a.shape[:-1]))) if return_lse else out


def _dense(home: Any, q: NDArray, held: LayerCache, scale: float | None) -> tuple[NDArray, NDArray]:
    """Attention to every token of a layer, one sequence at a time where their lengths differ."""
    if not held._lengths.ragged:
        return home.attend(q, held.k, held.v, None, scale, True)  # type: ignore[no-any-return]
    parts = [
        home.attend(
            q[b : b + 1], held.k[b : b + 1, :, :n], held.v[b : b + 1, :, :n], None, scale, True
        )
        for b, n in enumerate(held._lengths.each)
    ]
    xp = array_module(held._backend)
    return xp.concatenate([out for out, _ in parts]), xp.concatenate([lse for _, lse in parts])


def _room(xp: Any, buffer: NDArray, used: int, needed: int) -> NDArray:
    """The buffer; or, if it is too short, a copy of its tokens with at least twice the room."""
    B, H_kv, capacity, D = buffer.shape
    if needed <= capacity:
        return buffer
    grown: NDArray = xp.empty((B, H_kv, max(needed, 2 * capacity), D), buffer.dtype)
    grown[:, :, :used] = buffer[:, :, :used]
    return grown
