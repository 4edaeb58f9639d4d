"""All layers of a cache, and the views of one layer that callers see.

Every change ends with a single store: of one layer after an append, of the list of all layers after
an operation on the whole cache. An exception at any moment before it, Ctrl-C too, leaves the old
layers. If codes have been written over by then, the next access puts them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn, TypeAlias

import numpy as np

from . import checks
from .code_store import Coded
from .codes import KeyCodes
from .dispatch import Array, backend_of, int_or_view, views
from .layer_cache import FullLayer, Options, checked_append
from .slot import Operation, Slot
from .value_store import CodedValues
from .values import ValueCodes
from .window_layer import WindowLayer

NDArray = np.ndarray[Any, Any]
Layer: TypeAlias = FullLayer | WindowLayer


class Layers:
    """The layers of a cache.

    Attributes
    ----------
    windows : tuple
        The window of each layer, or None.
    """

    __slots__ = ("_slots", "backend_given", "windows")

    def __init__(self, options: list[Options], backend: str | None) -> None:
        self.backend_given = backend
        self.windows = tuple(o.window for o in options)
        self.replace([(FullLayer if o.window is None else WindowLayer)(o) for o in options])

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, layer: int) -> Layer:
        return self._slots[layer].now()

    def replace(self, layers: list[Layer]) -> None:
        """Put other layers in the place of all, by one store."""
        self._slots: list[Slot[Layer]] = [Slot(layer) for layer in layers]

    def all(self) -> list[Layer]:
        return [slot.now() for slot in self._slots]

    @property
    def backend(self) -> str | None:
        """The backend given, or that of the first layer that has tokens."""
        if self.backend_given is None:
            return next((x.backend for slot in self._slots if (x := slot.now()).backend), None)
        return self.backend_given

    def append(self, where: str, layer: int, k: Array, v: Array, count: Any) -> None:
        """Append keys and values of a caller to one layer."""
        a, b = views(k=k, v=v)
        checks.keys_values(where, a, b, (3, 4))
        if a.ndim == 3:
            a, b = a[None], b[None]
        self.add(where, layer, a, b, a.shape[2] if count is None else int_or_view("count", count))

    def add(self, where: str, layer: int, k: Any, v: Any, added: int | NDArray) -> None:
        """Append floats (B, H_kv, S, D) and (B, H_kv, S, D_v) to one layer, if they fit it."""
        backend = self.backend or backend_of(k)
        slot = self._slots[layer]
        held = slot.now()
        if held.lengths.longest == 0:  # as a new layer: the shape may be another one
            held = type(held)(held.options)
        added = checked_append(where, held, k, v, added, backend)
        if k.shape[2] == 0 and held.k is not None:
            return
        for roomier in held.with_room(k.shape[2]):
            slot.put(roomier)
            held = roomier
        slot.change(lambda guard: held.appended(k, v, added, backend, guard))

    def cut(self, tokens: list[int | NDArray | None]) -> None:
        """Cut each layer to checked numbers of tokens; None leaves it as it is."""
        cut: list[Layer] = []
        operation = Operation()
        try:
            for slot, kept in zip(self._slots, tokens, strict=True):
                held = slot.now()
                cut.append(held if kept is None else held.cut(kept, slot.guard(operation)))
            self.replace(cut)
        finally:
            operation.runs = False

    def cut_one(self, layer: int, tokens: int | NDArray) -> None:
        """Cut one layer to a checked number of tokens."""
        slot = self._slots[layer]
        held = slot.now()
        slot.change(lambda guard: held.cut(tokens, guard))


class _OfLayer:
    """Codes of a layer of a cache, which alone changes them, so that they always fit its rows."""

    __slots__ = ()

    name: ClassVar[str]
    _layers: Layers
    _layer: int

    def _held(self) -> Layer:
        held = self._layers[self._layer]
        if held.codes is None:
            raise ValueError(f"{self.name}: layer {self._layer} of the cache has no codes any more")
        return held

    def _refuse(self, name: str) -> NoReturn:
        raise ValueError(
            f"{self.name}.{name}: the codes belong to a KVCache; expected KVCache.append and "
            "KVCache.truncate, which change keys, values and codes together"
        )

    def reserve(self, tokens: int) -> None:
        """Raise a ValueError: use ``KVCache(capacity=...)``."""
        self._refuse("reserve")


class LayerCodes(_OfLayer, KeyCodes):
    """The codes of the keys of a layer of a cache, as they are at each moment.

    They can be read and searched.
    """

    __slots__ = ("_layer", "_layers")

    def __init__(self, layers: Layers, layer: int) -> None:
        self._layers = layers
        self._layer = layer

    def _coded(self) -> Coded:
        coded = self._held().codes
        assert coded is not None
        return coded

    def append(self, k: Array, count: int | Array | None = None) -> None:
        """Raise a ValueError: use `KVCache.append`."""
        self._refuse("append")

    def truncate(self, tokens: int | Sequence[int] | Array, k: Array | None = None) -> None:
        """Raise a ValueError: use `KVCache.truncate`."""
        self._refuse("truncate")


class LayerValues(_OfLayer, ValueCodes):
    """The codes of the values of a layer of a cache, as they are at each moment."""

    __slots__ = ("_layer", "_layers")

    def __init__(self, layers: Layers, layer: int) -> None:
        self._layers = layers
        self._layer = layer

    def _coded(self) -> CodedValues:
        values = self._held().values
        assert values is not None
        return values

    def append(self, v: Array, count: int | Array | None = None) -> None:
        """Raise a ValueError: use `KVCache.append`."""
        self._refuse("append")

    def truncate(self, tokens: int | Sequence[int] | Array, v: Array) -> None:
        """Raise a ValueError: use `KVCache.truncate`."""
        self._refuse("truncate")


class LayerCache:
    """Keys, values and codes of one layer, as ``cache[layer]``: a view that can only be read.

    Attributes
    ----------
    window : int or None
        The number of tokens that a query of the layer sees; None is all.
    dense : bool
        Whether the layer keeps no codes.
    """

    __slots__ = ("_layer", "_layers")

    def __init__(self, layers: Layers, layer: int) -> None:
        self._layers = layers
        self._layer = layer

    def _now(self) -> Layer:
        return self._layers[self._layer]

    @property
    def window(self) -> int | None:
        return self._now().options.window

    @property
    def dense(self) -> bool:
        options = self._now().options
        return options.dense or options.window is not None

    @property
    def codes(self) -> KeyCodes | None:
        """The codes of the keys; None while the layer is empty, and in a dense layer."""
        return None if self._now().codes is None else LayerCodes(self._layers, self._layer)

    @property
    def value_codes(self) -> ValueCodes | None:
        """The codes of the values; None where `codes` is None, and without a tail."""
        return None if self._now().values is None else LayerValues(self._layers, self._layer)

    @property
    def k(self) -> Any:
        """The keys (B, H_kv, S, D), a view that is read-only in NumPy.

        Slots after the last token of a shorter sequence are 0: in a copy, where tokens were dropped
        from them. A layer with a window shows the last
        `window` tokens of each sequence, in a copy.
        """
        return self._shown("k", 0)

    @property
    def v(self) -> Any:
        """The values (B, H_kv, S, D_v), as `k`."""
        return self._shown("v", 1)

    @property
    def tokens(self) -> int:
        """S, the largest length."""
        return self._now().lengths.longest

    @property
    def length(self) -> int | NDArray:
        """Tokens: an int, or (B,) where the sequences were given lengths of their own."""
        return self._now().lengths.given()

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(B, H_kv, S, D), the shape of the keys, or None while the layer is empty."""
        layer = self._now()
        if layer.k is None:
            return None
        B, H_kv, _, D = layer.k.shape
        return B, H_kv, layer.lengths.longest, D

    @property
    def nbytes(self) -> int:
        """Bytes in use by keys, values and the codes of both."""
        return self._now().nbytes()

    def _shown(self, name: str, which: int) -> Any:
        """Keys or values, without free slots."""
        layer = self._now()
        if layer.k is None:
            raise ValueError(f"KVCache: the layer is empty and has no {name}; append first")
        x = layer.shown()[which]
        if isinstance(x, np.ndarray):
            x.setflags(write=False)
        return x
