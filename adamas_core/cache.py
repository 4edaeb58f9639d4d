"""Keys, values and codes of a model's layers, the decode step over them, and their file."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import checks
from .codes import KeyCodes, encode
from .dispatch import (
    BACKENDS,
    DEFAULT_BACKEND,
    Array,
    array_module,
    backend_of,
    bfloat16,
    int_or_view,
    load,
    on_host,
    returner,
    views,
)
from .ops import thresholds_array
from .reference.center import Centers

NDArray = np.ndarray[Any, Any]

# Tokens from which the thresholds are estimated; fewer give a first estimate that is replaced
# as soon as so many are there.
CALIBRATION_TOKENS = 128

_MAGIC = b"ADAMASKV"
_VERSION = 1
_ALIGN = 64
_DIGEST = hashlib.sha256().digest_size


class KVCache:
    """The KV cache of a model: keys and values as they came, and 2-bit codes of the keys.

    Parameters
    ----------
    layers : int
        Attention layers.
    thresholds : array (3,) or (H_kv, 3), float32, or three numbers, optional
        Of the codes, for every layer. If not given each layer calibrates its own, a triple a
        head, from its first append; where that held fewer than 128 tokens it does so again once
        128 are there, and encodes them anew.
    metric : {"weighted", "manhattan"}
    query_bits : int
        Of the weighted metric.
    sinks, recent : int
        First and last tokens that every selection holds; they count towards the budget.
    prefilter : int
        As of `select_topk`: 8 reads about half the bytes of the codes, 0 reads them all.
    refine : int
        As of `select_topk`: 2 or 4 rank so many times the budget by the keys themselves.
    group : bool
        As of `select_topk`: one choice for the query heads of a KV head.
    centered : bool
        As of `encode`: codes relative to the mean of their tile, with a scale a token; thresholds
        are not given then and nothing is calibrated.
    dense_layers : collection of int
        Layers that keep no codes and always attend to every token.
    capacity : int
        Tokens to make room for at the first append. Room grows by doubling.
    backend : {"cpu", "gpu", "reference"}, optional
        If not given that of the first keys: "gpu" where they lie on a CUDA device, which then is
        the cache's, else "cpu".

    Attributes
    ----------
    backend, centered, dense_layers, group, metric, prefilter, query_bits, recent, refine, sinks
        As above; backend is None until it is settled.

    See Also
    --------
    decode_attention : attention of new queries over one layer.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas_core import KVCache, decode_attention
    >>> rng = np.random.default_rng(0)
    >>> k, v = rng.standard_normal((2, 8, 5000, 128), dtype=np.float32)  # each (H_kv, S, D)
    >>> q = rng.standard_normal((32, 1, 128), dtype=np.float32)  # (H, L, D)
    >>> cache = KVCache()
    >>> cache.append(k, v)
    >>> decode_attention(q, cache, budget=128).shape
    (32, 1, 128)
    """

    def __init__(
        self,
        layers: int = 1,
        *,
        thresholds: Array | Sequence[float] | None = None,
        metric: str = "weighted",
        query_bits: int = 4,
        sinks: int = 0,
        recent: int = 0,
        prefilter: int = 0,
        refine: int = 0,
        group: bool = False,
        centered: bool = False,
        dense_layers: Collection[int] = (),
        capacity: int = 0,
        backend: str | None = None,
    ) -> None:
        checks.at_least("KVCache", "layers", layers, 1)
        checks.metric("KVCache", metric)
        checks.query_bits("KVCache", "query_bits", query_bits, 1)
        counts = {"sinks": sinks, "recent": recent, "capacity": capacity}
        counts |= {"prefilter": prefilter, "refine": refine}
        for name, value in counts.items():
            checks.at_least("KVCache", name, value, 0)
        checks.together("KVCache", metric, centered, group, prefilter, refine)
        if centered:
            checks.no_thresholds("KVCache", thresholds)
        strangers = [i for i in dense_layers if i not in range(layers)]
        if strangers:
            raise ValueError(
                f"KVCache: dense_layers holds {strangers}; expected layers 0 to {layers - 1}"
            )
        if thresholds is not None:
            thresholds = thresholds_array(thresholds)
            checks.thresholds(
                "KVCache", thresholds, len(thresholds) if thresholds.ndim == 2 else None
            )
        if backend is not None:
            load(backend)
        self.metric = metric
        self.query_bits = int(query_bits)
        self.sinks = int(sinks)
        self.recent = int(recent)
        self.prefilter = int(prefilter)
        self.refine = int(refine)
        self.group = bool(group)
        self.centered = bool(centered)
        self.dense_layers = frozenset(int(i) for i in dense_layers)
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
            f"KVCache(layers={len(self)}, shape={self._layers[0].shape}, metric={self.metric!r}, "
            f"backend={self.backend!r})"
        )

    @property
    def nbytes(self) -> int:
        """Bytes in use by keys, values and codes of all layers."""
        return sum(layer.nbytes for layer in self._layers)

    def append(self, k: Array, v: Array, layer: int = 0, count: int | Array | None = None) -> None:
        """Append new tokens' keys and values to a layer.

        Parameters
        ----------
        k, v : array (B, H_kv, S, D)
            float16, bfloat16 or float32, kept in that dtype; B may be absent where it is 1. The
            first append settles B, H_kv, D, the dtype and the device. Another library's arrays
            on a GPU have to stay alive until CuPy's current stream has read them.
        layer : int
        count : array (B,) of integers, optional
            How many of the S tokens each sequence really has, the first ones.

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
        added = None if count is None else int_or_view("count", count)
        backend = self.backend or backend_of(a)
        self[layer]._append(a, b, added, backend)
        self.backend = backend

    def truncate(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens of every layer."""
        for layer in self._layers:
            layer._truncate(tokens)

    def attention(self, budget: int | None) -> Callable[[int, NDArray, NDArray, NDArray], NDArray]:
        """The attention that a decoder calls as ``f(layer, q, k, v)``: append, then attend.

        Several new tokens at once, which is prefill, attend densely; a single one attends to
        `budget` tokens, or to all with None.
        """

        def attend(layer: int, q: NDArray, k: NDArray, v: NDArray) -> NDArray:
            self.append(k, v, layer)
            L = q.shape[-2]
            return decode_attention(q, self, budget if L == 1 else None, layer)  # type: ignore[no-any-return]

        return attend

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one file.

        The file appears whole or not at all: it is written beside `path` and then renamed. It
        carries a version and a SHA-256 of all that precedes it.

        Raises
        ------
        OSError
            The file cannot be written; a file that was at `path` is then unharmed.
        """
        path = Path(path)
        arrays: dict[str, NDArray] = {}
        for i, layer in enumerate(self._layers):
            arrays.update({f"{i}.{name}": x for name, x in layer._arrays().items()})
        table, offset = {}, 0
        for name, x in arrays.items():
            table[name] = {"dtype": x.dtype.name, "shape": x.shape, "offset": offset}
            offset += -(-x.nbytes // _ALIGN) * _ALIGN
        header = {
            "layers": len(self),
            "metric": self.metric,
            "query_bits": self.query_bits,
            "sinks": self.sinks,
            "recent": self.recent,
            "prefilter": self.prefilter,
            "refine": self.refine,
            "group": self.group,
            "centered": self.centered,
            "dense_layers": sorted(self.dense_layers),
            "states": [layer._state() for layer in self._layers],
            "arrays": table,
        }
        text = json.dumps(header).encode()
        text += b" " * (-(len(_MAGIC) + 12 + len(text)) % _ALIGN)
        beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with open(beside, "xb") as file:
                out = _HashingWriter(file)
                out.write(_MAGIC + _VERSION.to_bytes(4, "little") + len(text).to_bytes(8, "little"))
                out.write(text)
                for x in arrays.values():
                    # A head's keys lie together in the buffer, so that few blocks need a copy.
                    blocks = [x[i] for i in np.ndindex(x.shape[:2])] if x.ndim > 2 else [x]
                    for block in blocks:
                        whole = np.ascontiguousarray(on_host(block))
                        out.write(whole.reshape(-1).view(np.uint8).data)
                    out.write(b"\0" * (-x.nbytes % _ALIGN))
                file.write(out.digest())
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str], backend: str = DEFAULT_BACKEND) -> KVCache:
        """Read what `save` wrote, onto the device of a backend.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            The file is none of KVCache's, of a later version, cut, or damaged.
        """
        raw = np.fromfile(path, np.uint8)
        header, start = _read_header(os.fspath(path), raw)
        cache = cls(
            header["layers"],
            metric=header["metric"],
            query_bits=header["query_bits"],
            sinks=header["sinks"],
            recent=header["recent"],
            prefilter=header.get("prefilter", 0),
            refine=header.get("refine", 0),
            group=header.get("group", False),
            centered=header.get("centered", False),
            dense_layers=header["dense_layers"],
            backend=backend,
        )
        arrays = {}
        for name, entry in header["arrays"].items():
            dtype = bfloat16(name) if entry["dtype"] == "bfloat16" else np.dtype(entry["dtype"])
            nbytes = int(np.prod(entry["shape"])) * dtype.itemsize
            first = start + entry["offset"]
            arrays[name] = raw[first : first + nbytes].view(dtype).reshape(entry["shape"])
        for i, (layer, state) in enumerate(zip(cache._layers, header["states"], strict=True)):
            prefix = f"{i}."
            own = {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}
            layer._restore(own, state, backend)
        return cache


class LayerCache:
    """Keys, values and codes of one layer, as ``cache[layer]``; `KVCache` appends to it.

    Attributes
    ----------
    dense : bool
        Whether the layer keeps no codes.
    codes : KeyCodes or None
        None before the first append and in a dense layer.
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
        self._backend = DEFAULT_BACKEND  # settled by the first append
        self._k: NDArray | None = None  # (B, H_kv, capacity, D)
        self._v: NDArray | None = None
        self._set_length(np.zeros(0, int))
        self._ragged = False

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
        return self._tokens

    def _set_length(self, length: NDArray) -> None:
        self._length = length.astype(int)  # (B,)
        self._tokens = int(self._length.max(initial=0))
        self._shortest = int(self._length.min(initial=self._tokens))

    @property
    def length(self) -> int | NDArray:
        """Tokens: an int, or (B,) where appends had a `count`."""
        return self._length.copy() if self._ragged else self.tokens

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
        if buffer is None:
            raise ValueError(f"KVCache: the layer is empty and has no {name}; append first")
        return buffer[:, :, : self.tokens]

    def _append(self, k: NDArray, v: NDArray, count: Any, backend: str) -> None:
        B, H_kv, S, D = k.shape
        place = BACKENDS[backend] if self._k is None else checks.device(self._k)
        checks.lies_on("KVCache.append", "k", k, place)
        if self._k is None or self._v is None:
            if self._thresholds is not None:
                checks.thresholds("KVCache.append", self._thresholds, H_kv)
            self._backend = backend
            xp = array_module(backend)
            self._k, self._v = (xp.empty((B, H_kv, self._capacity, D), k.dtype) for _ in "kv")
            self._set_length(np.zeros(B, int))
        held = self._k.shape
        if (B, H_kv, D) != (held[0], held[1], held[3]):
            raise ValueError(
                f"KVCache.append: {checks.shown('k', k)}; expected "
                f"({held[0]}, {held[1]}, S, {held[3]}), as the layer has"
            )
        if k.dtype != self._k.dtype:
            raise TypeError(
                f"KVCache.append: {checks.shown('k', k)}; expected {self._k.dtype}, as the "
                "layer has"
            )
        added = checks.length("KVCache.append", S if count is None else count, B, S)
        self._ragged = self._ragged or count is not None
        old = self.tokens
        checks.tokens("KVCache.append", old + S)
        xp = array_module(self._backend)
        self._k, self._v = _room(xp, self._k, old, old + S), _room(xp, self._v, old, old + S)
        if self._ragged:
            for b, n in enumerate(self._length):
                self._k[b, :, n : n + S] = k[b]
                self._v[b, :, n : n + S] = v[b]
        else:
            self._k[:, :, old : old + S] = k
            self._v[:, :, old : old + S] = v
        self._set_length(self._length + added)
        if not self.dense:
            self._append_codes(k, count)

    def _append_codes(self, k: NDArray, count: Any) -> None:
        enough = int(self._length.sum()) >= CALIBRATION_TOKENS
        if self.codes is not None and (self._calibrated or not enough):
            self.codes.append(k, count)
        elif self._length.any():
            # Without thresholds given, encode calibrates: a first estimate, or the lasting one.
            self.codes = encode(
                self.k, self._thresholds, self.length, self._backend, self._centered
            )
            self._calibrated = self._calibrated or enough

    def _truncate(self, tokens: int) -> None:
        if not 0 <= checks.integer("KVCache.truncate", "tokens", tokens) <= self.tokens:
            raise ValueError(f"KVCache.truncate: tokens={tokens}; expected 0 to {self.tokens}")
        self._set_length(np.minimum(self._length, tokens))
        if self.codes is not None:
            self.codes.truncate(tokens, self._k)

    def _arrays(self) -> dict[str, NDArray]:
        """What the file holds of the layer."""
        if self._k is None:
            return {}
        arrays = {"k": self.k, "v": self.v, "length": self._length.astype(np.int64)}
        if self.codes is not None:
            arrays |= {"planes": self.codes.planes, "codes_thresholds": self.codes.thresholds}
            if self.codes.centers is not None:
                arrays |= self.codes.centers._asdict()
        if self._thresholds is not None:
            arrays["thresholds"] = self._thresholds
        return arrays

    def _state(self) -> dict[str, bool]:
        return {"ragged": self._ragged, "calibrated": self._calibrated}

    def _restore(self, arrays: dict[str, NDArray], state: dict[str, bool], backend: str) -> None:
        self._thresholds = arrays.get("thresholds")
        self._ragged, self._calibrated = state["ragged"], state["calibrated"]
        if "k" not in arrays:
            return
        xp = array_module(backend)
        self._backend = backend
        self._k, self._v = xp.asarray(arrays["k"]), xp.asarray(arrays["v"])
        self._set_length(arrays["length"])
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
    """One attention step: select `budget` tokens a query by their codes and attend to those.

    Parameters
    ----------
    q : array (B, H, L, D)
        float16, bfloat16 or float32; B may be absent where it is 1. The queries of the last L
        tokens of the cache: append their keys and values first. Each sees the tokens up to
        itself.
    cache : KVCache
    budget : int or None
        Tokens a query. Where it covers the whole cache, as None always does, and in the cache's
        dense layers, attention is dense.
    layer : int
    scale : float, optional
        Of the inner products; D ** -0.5 if not given.
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
        q has another dtype, or cache is no KVCache.
    ValueError
        The layer is empty, shapes do not fit it, or the budget is below 1 or below the cache's
        sinks + recent.
    IndexError
        There is no such layer.
    """
    if not isinstance(cache, KVCache):
        raise TypeError(
            f"decode_attention: cache is a {type(cache).__qualname__}; expected KVCache"
        )
    (a,) = views(q=q)
    checks.floats("decode_attention", "q", a, (3, 4))
    q4 = a[None] if a.ndim == 3 else a
    held = cache[layer]
    if held.tokens == 0:
        raise ValueError(
            f"decode_attention: layer {layer} of the cache is empty; append the tokens of "
            f"{checks.shown('q', a)} first"
        )
    shape = held.k.shape
    checks.heads("decode_attention", "q and the cache", q4.shape, shape)
    checks.same_head_dim("decode_attention", a, "the cache", shape[-1])
    checks.lies_on("decode_attention", "q", a, checks.device(held.k))
    if budget is not None:
        checks.at_least("decode_attention", "budget", budget, 1)
        checks.forced("decode_attention", budget, cache.sinks, cache.recent)
    L = a.shape[-2]
    if held._shortest < L:
        raise ValueError(
            f"decode_attention: {checks.shown('q', a)} has {L} tokens and the cache "
            f"{held.length}; expected the queries' own tokens in the cache"
        )
    home = load(held._backend)
    if budget is None or held.codes is None or budget >= held.tokens:
        out, lse = _dense(home, q4, held, scale)
    else:
        checks.query_bits("decode_attention", "query_bits", cache.query_bits, a.shape[-1])
        options = cache.metric, cache.query_bits, cache.sinks, cache.recent
        more = cache.prefilter, cache.refine, cache.group, scale
        out, lse = home.attend_topk(q4, held.k, held.v, held.codes, int(budget), *options, *more)
    give = returner(q)
    out = give(out.reshape(a.shape))
    return (out, give(lse.reshape(a.shape[:-1]))) if return_lse else out


def _dense(home: Any, q: NDArray, held: LayerCache, scale: float | None) -> tuple[NDArray, NDArray]:
    """Attention to every token of a layer, a sequence at a time where their lengths differ."""
    if not held._ragged:
        return home.attend(q, held.k, held.v, None, scale, True)  # type: ignore[no-any-return]
    parts = [
        home.attend(
            q[b : b + 1], held.k[b : b + 1, :, :n], held.v[b : b + 1, :, :n], None, scale, True
        )
        for b, n in enumerate(held._length)
    ]
    xp = array_module(held._backend)
    return xp.concatenate([out for out, _ in parts]), xp.concatenate([lse for _, lse in parts])


def _room(xp: Any, buffer: NDArray, used: int, needed: int) -> NDArray:
    """The buffer, or one of at least twice its room that holds the same `used` tokens."""
    B, H_kv, capacity, D = buffer.shape
    if needed <= capacity:
        return buffer
    grown: NDArray = xp.empty((B, H_kv, max(needed, 2 * capacity), D), buffer.dtype)
    grown[:, :, :used] = buffer[:, :, :used]
    return grown


class _HashingWriter:
    """Writes bytes and keeps the digest of all that it wrote."""

    def __init__(self, file: BinaryIO | Any) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> None:
        self._hash.update(data)
        self._file.write(data)

    def digest(self) -> bytes:
        return self._hash.digest()


def _read_header(path: str, raw: NDArray) -> tuple[dict[str, Any], int]:
    """The header of a cache's file and where its arrays start, once the whole has been proved."""
    fixed = len(_MAGIC) + 12
    if raw[: len(_MAGIC)].tobytes() != _MAGIC:
        raise ValueError(f"{path} is no KVCache file: it does not begin with {_MAGIC!r}")
    if len(raw) < fixed + _DIGEST:
        raise ValueError(f"{path} is cut: it has {len(raw)} bytes, less than its fixed parts")
    version = int.from_bytes(raw[len(_MAGIC) : len(_MAGIC) + 4].tobytes(), "little")
    if version != _VERSION:
        raise ValueError(f"{path} has version {version}; this release reads version {_VERSION}")
    if hashlib.sha256(raw[:-_DIGEST].data).digest() != raw[-_DIGEST:].tobytes():
        raise ValueError(f"{path} is cut or damaged: its checksum does not match its contents")
    size = int.from_bytes(raw[fixed - 8 : fixed].tobytes(), "little")
    header: dict[str, Any] = json.loads(raw[fixed : fixed + size].tobytes())
    return header, fixed + size
