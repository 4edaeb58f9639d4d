"""Keys, values and codes of a model's layers, and the decode step over them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import cache_file, checks
from .cache_attention import CacheAttention
from .cache_state import from_file, to_file
from .decode import attend_layer, check_queries, check_tokens
from .dispatch import (
    DEFAULT_BACKEND,
    Array,
    int_or_view_or_row,
    load,
    on_host_thresholds,
    returner,
    views,
)
from .layer_cache import Options
from .layers import LayerCache, Layers
from .options import softmax_with
from .positions import Positions, tokens_seen
from .selection import DEFAULT, Selection
from .softmax import PLAIN, Softmax

NDArray = np.ndarray[Any, Any]


class KVCache:
    """The KV cache of a model: keys and values as they came, and codes of both.

    A step drops no token: see `attend_tail`. With ``Selection(tail=0)`` it drops all tokens but the
    budget's. Then the cache keeps 2-bit codes of the keys alone: at head_dim 128, 37 bytes per
    token and KV head instead of 87.

    If an operation fails or is interrupted, Ctrl-C included, the cache is as before it.

    Parameters
    ----------
    layers : int
        Number of attention layers.
    selection : Selection
        The options of every selection over this cache. A tail that is not given is 256, or 0 for
        plain codes, for metric="manhattan" and for group=True.
    thresholds : array (3,) or (H_kv, 3), or three numbers, optional
        Thresholds of plain codes, for every layer. They are converted to float32.
    centered : bool, optional
        Centered or plain codes, as in `encode`. If not given: plain codes where thresholds are
        given or the selection's metric is "manhattan", else centered ones. Centered codes are never
        calibrated. For plain codes without thresholds, each layer calibrates its own, three per
        head, from its first append. If that append held fewer than 128 tokens, the layer calibrates
        again when it has 128, and encodes all its keys again.
    dense_layers : collection of int
        Layers that keep no codes and always attend to every token.
    windows : sequence of int or None
        One per layer, or empty. A query of a layer with a window sees that many tokens, the last
        ones up to itself. The layer keeps these tokens, the 128 before them, and some slack. It
        has no codes, and its attention to the window is dense.
    capacity : int
        Tokens to make room for at the first append. Room grows by doubling.
    backend : {"cpu", "gpu", "reference"}, optional
        If not given, the backend of the first keys: "gpu" where they are on a CUDA device, which
        then is the device of the cache, else "cpu".

    Attributes
    ----------
    backend, centered, dense_layers, selection, windows
        As above, read-only; backend is None until it is known, and centered is True or False.

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
    >>> from adamas_core import KVCache, decode_attention
    >>> rng = np.random.default_rng(0)
    >>> k, v = rng.standard_normal((2, 8, 5000, 128), dtype=np.float32)  # each (H_kv, S, D)
    >>> q = rng.standard_normal((32, 1, 128), dtype=np.float32)  # (H, L, D)
    >>> cache = KVCache()
    >>> cache.append(k, v)
    >>> decode_attention(q, cache, budget=128).shape
    (32, 1, 128)
    """

    __slots__ = ("_centered", "_dense_layers", "_layers", "_selection")

    def __init__(
        self,
        layers: int = 1,
        selection: Selection = DEFAULT,
        *,
        thresholds: Array | Sequence[float] | None = None,
        centered: bool | None = None,
        dense_layers: Collection[int] = (),
        windows: Sequence[int | None] = (),
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
        each = checks.windows(where, windows, layers)
        if thresholds is not None:
            thresholds = on_host_thresholds(where, thresholds)
            checks.thresholds(where, thresholds, len(thresholds) if thresholds.ndim == 2 else None)
        if backend is not None:
            load(backend)
        self._centered = checks.centered(where, centered, thresholds, selection)
        self._selection = selection = selection.settled(self._centered)
        self._dense_layers = frozenset(dense)
        options = [
            Options(
                thresholds=thresholds,
                centered=self._centered,
                dense=i in self._dense_layers,
                capacity=int(capacity),
                window=window,
                tail=bool(selection.tail),
            )
            for i, window in enumerate(each)
        ]
        self._layers = Layers(options, backend)

    @property
    def selection(self) -> Selection:
        return self._selection

    @property
    def centered(self) -> bool:
        return self._centered

    @property
    def dense_layers(self) -> frozenset[int]:
        return self._dense_layers

    @property
    def windows(self) -> tuple[int | None, ...]:
        return self._layers.windows

    @property
    def backend(self) -> str | None:
        return self._layers.backend

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, layer: int) -> LayerCache:
        return LayerCache(self._layers, checks.layer("KVCache", layer, len(self._layers)))

    def __repr__(self) -> str:
        return (
            f"KVCache(layers={len(self)}, shape={self[0].shape}, "
            f"selection={self.selection}, backend={self.backend!r})"
        )

    @property
    def nbytes(self) -> int:
        """Bytes in use by the keys, values and their codes, of all layers."""
        return sum(layer.nbytes() for layer in self._layers.all())

    def append(self, k: Array, v: Array, layer: int = 0, count: int | Array | None = None) -> None:
        """Append the keys and values of new tokens to a layer.

        Parameters
        ----------
        k : array (B, H_kv, S, D)
            float16, bfloat16 or float32, kept in that dtype; B may be absent where it is 1. The
            first append fixes B, H_kv, D, D_v, the dtype and the device. Keep arrays of another
            library on a GPU alive until CuPy's current stream has read them.
        v : array (B, H_kv, S, D_v)
            The dtype of k.
        layer : int
        count : int or array (B,) of integers, optional
            How many of the S tokens each sequence really has: its first ones.

        Raises
        ------
        TypeError
            k or v have another dtype than the cache.
        ValueError
            k and v do not fit each other, or differ in B, H_kv, D, D_v or device from the cache. k
            holds NaN or infinities, which have no code; or v does, and the selection has a tail.
        IndexError
            There is no such layer.
        """
        where = "KVCache.append"
        checks.layer("KVCache", layer, len(self._layers))
        self._layers.append(where, layer, k, v, count)

    def truncate(self, tokens: int | Sequence[int] | Array) -> None:
        """Forget all but the first `tokens` tokens, in every layer.

        Afterwards the cache equals one that never saw more than these tokens: thresholds and codes
        too. With 0 tokens it is a new cache. If a cut leaves no token that the thresholds of plain
        codes were calibrated from, the tokens that are left count as one append.

        Parameters
        ----------
        tokens : int, or (B,) integers
            One number for all sequences, of which shorter ones stay as they are. Or a number per
            sequence, at most its length. A layer with a window keeps the 128 tokens before its
            window. So it can go back by 128 tokens from the most that it has held, and to 0.

        Raises
        ------
        ValueError
            A layer has fewer tokens, or no longer keeps tokens that it would need. Then no layer
            changes.
        """
        where = "KVCache.truncate"
        kept = int_or_view_or_row("tokens", tokens)
        for i, layer in enumerate(self._layers.all()):
            holder = f", the tokens of layer {i}"
            each = layer.lengths.each
            if layer.lengths.longest == 0 and np.ndim(kept):  # it may become a batch of any size
                each = np.zeros(np.shape(kept), int)
            checked = checks.cut(where, kept, each, holder)
            if layer.lengths.longest == 0:
                continue
            after = np.minimum(each, checked)
            early = (after < layer.earliest()) & (after > 0) & (after < each)
            if early.any():
                b = int(np.flatnonzero(early)[0])
                raise ValueError(
                    f"{where}: tokens={tokens} for sequence {b}; layer {i} has a window of "
                    f"{layer.options.window} tokens and no longer keeps the tokens before it; "
                    f"expected 0, or {layer.earliest()[b]} to {each[b]}"
                )
        self._layers.cut([kept] * len(self))

    def reset(self, sequences: int | Sequence[int]) -> None:
        """Forget all tokens of some sequences. Their places in the batch stay, and are empty.

        New sequences join there: `append` with an array `count` that is 0 for all others. The
        attention of a query of an empty sequence is 0. If no sequence has a token left, the cache
        is a new one.

        Raises
        ------
        ValueError
            There is no such sequence in some layer.
        """
        kept: list[int | NDArray | None] = []
        for layer in self._layers.all():
            if layer.lengths.longest == 0:
                kept.append(None)
                continue
            tokens = layer.lengths.each.copy()
            tokens[checks.order("KVCache.reset", "sequences", sequences, len(tokens))] = 0
            kept.append(tokens)
        self._layers.cut(kept)

    def reorder(self, order: Sequence[int]) -> None:
        """Make the sequences `order` the batch: to leave some out, copy some, or change places.

        For beam search, `order` holds the parent of each new beam. -1 is a new sequence without
        tokens.

        Parameters
        ----------
        order : sequence of ints, -1 to B - 1
            One per sequence of the new batch, at least one.

        Raises
        ------
        ValueError
            There is no such sequence in some layer that has tokens.
        """
        where = "KVCache.reorder"
        layers = self._layers.all()
        for layer in layers:
            if layer.lengths.longest > 0:
                numbers = checks.order(where, "order", order, len(layer.lengths.each), -1)
                if len(numbers) == 0:
                    raise ValueError(f"{where}: order={order!r}; expected at least one sequence")
        self._layers.replace(
            [layer if layer.lengths.longest == 0 else layer.take(numbers) for layer in layers]
        )

    def remove(self, sequences: int | Sequence[int]) -> None:
        """Take sequences out of the batch, which becomes smaller. With none left it is new.

        Raises
        ------
        ValueError
            There is no such sequence in some layer that has tokens.
        """
        layers = []
        for layer in self._layers.all():
            if layer.lengths.longest > 0:
                B = len(layer.lengths.each)
                out = checks.order("KVCache.remove", "sequences", sequences, B)
                layer = layer.take(np.setdiff1d(np.arange(B), out))
            layers.append(layer)
        self._layers.replace(layers)

    def fork(self, sequence: int, copies: int = 1) -> None:
        """Add copies of a sequence at the end of the batch.

        Raises
        ------
        ValueError
            There is no such sequence in some layer that has tokens, or copies is below 1.
        """
        where = "KVCache.fork"
        checks.integer(where, "sequence", sequence)
        checks.at_least(where, "copies", copies, 1)
        layers = []
        for layer in self._layers.all():
            if layer.lengths.longest > 0:
                B = len(layer.lengths.each)
                one = checks.order(where, "sequence", sequence, B)
                layer = layer.take(np.concatenate([np.arange(B), np.repeat(one, copies)]))
            layers.append(layer)
        self._layers.replace(layers)

    def attention(
        self, budget: int | None, softmax: Softmax = PLAIN, **options: Any
    ) -> CacheAttention:
        """The function ``f(layer, q, k, v)`` that a decoder calls: append, then attend.

        Each new token attends as in `decode_attention`, or densely if budget is None. Several new
        tokens at once give what single steps give, so a call verifies a draft. Read a prompt with
        ``f.prefill(layer, q, k, v)``, which is dense.

        Parameters
        ----------
        budget : int or None
        softmax : Softmax
            How inner products become weights: the scale, a soft cap, and sinks.
        **options
            Fields of `softmax` to change, as in ``cache.attention(128, soft_cap=50)``.

        Examples
        --------
        >>> import numpy as np
        >>> from adamas_core import KVCache
        >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 1000, 64), dtype=np.float32)
        >>> attention = KVCache().attention(budget=32)
        >>> prompt = attention.prefill(0, q[:, :900], k[:, :900], v[:, :900])
        >>> attention(0, q[:, 900:905], k[:, 900:905], v[:, 900:905]).shape  # five at once
        (2, 5, 64)
        """
        softmax = softmax_with("KVCache.attention", softmax, options)
        return CacheAttention(self._layers, self._selection, budget, softmax)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one file.

        The file appears whole or not at all. It has a version and a SHA-256 of its contents. A file
        that is there already keeps its mode and owner. A symbolic link stays, and its target is
        written. If the process is killed, the next save to the same path takes the rest away.

        Raises
        ------
        OSError
            The file cannot be written, or `path` is a directory, a pipe or a device. What was at
            `path` before is unharmed.
        """
        header, arrays = to_file(self._selection, self._centered, self._layers.all())
        cache_file.write(Path(path), header, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str], backend: str = DEFAULT_BACKEND) -> KVCache:
        """Read a file that `save` wrote, onto the device of a backend.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            The file was not written by `save`, has another version, is cut or damaged, or its
            arrays do not fit each other.
        """
        load(backend)
        header, arrays = cache_file.read(path)
        try:
            selection, options, layers = from_file(header, arrays, backend)
            cache = cls(
                len(options),
                selection,
                centered=options[0].centered,
                dense_layers=[i for i, o in enumerate(options) if o.dense],
                windows=[o.window for o in options],
                backend=backend,
            )
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{os.fspath(path)} has contents that this release cannot take: {error}"
            ) from error
        cache._layers.replace(layers)
        return cache


def decode_attention(
    q: Array,
    cache: KVCache,
    budget: int | None,
    layer: int = 0,
    softmax: Softmax = PLAIN,
    return_lse: bool = False,
    positions: Positions = None,
    **options: Any,
) -> Array:
    """One attention step: `budget` tokens per query by their keys and values, the others by codes.

    Parameters
    ----------
    q : array (B, H, L, D)
        float16, bfloat16 or float32; B may be absent where it is 1. The queries of the last L
        tokens of the cache: append their keys and values first. Each sees the tokens up to itself,
        by the codes as they are after all L tokens. `KVCache.attention` gives each query the codes
        of its own step. `positions` are for queries that see other tokens.
    cache : KVCache
        Its `selection` has the options.
    budget : int or None
        Tokens per query. Attention is dense where the budget covers the whole cache, with None, and
        in the dense layers of the cache. A layer with a window attends to its window. If the
        selection of the cache has a tail, all other tokens count too, as in `attend_tail`.
    layer : int
    softmax : Softmax
        How inner products become weights: the scale, a soft cap, and sinks.
    return_lse : bool
        Also return the log-sum-exp over the chosen tokens, or with a tail over all.
    positions : "all", or (L,) or (B, L) integers, optional
        The last token that each query sees, as in `select_topk`. A layer with a window takes none.
    **options
        Fields of `softmax` to change for this call, as in
        ``decode_attention(q, cache, 128, scale=0.1, soft_cap=50)``.

    Returns
    -------
    out : array (B, H, L, D_v), q's dtype
        0 for a sequence without tokens.
    lse : array (B, H, L), float32
        Only with `return_lse`.

    Raises
    ------
    TypeError
        q has another dtype, cache is not a KVCache, softmax is not a Softmax, or there is no such
        option.
    ValueError
        The layer is empty, shapes do not fit it, there are not H sinks, an option is out of range,
        or the budget is below 1 or below the sinks and recent tokens of the selection. Or a layer
        with a window gets positions.
    IndexError
        There is no such layer.
    """
    where = "decode_attention"
    checks.true_or_false(where, "return_lse", return_lse)
    checks.instance(where, "cache", cache, KVCache, "KVCache")
    softmax = softmax_with(where, softmax, options)
    (a,) = views(q=q)
    held = cache._layers[checks.layer("KVCache", layer, len(cache))]
    if held.lengths.longest == 0:
        checks.floats(where, "q", a, (3, 4))
        raise ValueError(
            f"{where}: layer {layer} of the cache is empty, and {checks.shown('q', a)}; expected "
            "the keys and values of these tokens to be appended first"
        )
    q4 = check_queries(where, a, held.k.shape, cache.selection, budget, softmax)
    checks.lies_on(where, "q", a, checks.device(held.k))
    check_tokens(where, a, held, positions)
    seen = tokens_seen(where, positions, q4.shape, held.lengths.each)
    out, lse = attend_layer(where, q4, held, cache.selection, budget, softmax, seen)
    give = returner(q)
    out = give(out.reshape(*a.shape[:-1], held.v.shape[-1]))
    return (out, give(lse.reshape(a.shape[:-1]))) if return_lse else out
