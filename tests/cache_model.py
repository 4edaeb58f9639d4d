"""Random sequences of operations on a KVCache, held against caches that never saw anything else.

A plain list of tokens per sequence says what the cache must hold. After every operation a fresh
cache is filled with these tokens, and all bits of both are compared. Operations fail, are
interrupted at a random bytecode, and go through a file.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas_core import KVCache, Selection, decode_attention

Tokens = NDArray[np.float32]  # (2, H_kv, n, D): keys and values
THRESHOLDS = np.array([-0.9, 0, 0.9], np.float32)
KINDS: dict[str, dict[str, Any]] = {
    "centered": {"centered": True},
    "tail": {"selection": Selection(tail=30)},
    "plain": {"thresholds": THRESHOLDS, "centered": False},
    "calibrated": {"centered": False},
}
LAYERS = 2
BUDGET = 24
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where fsync takes no time


class Model:
    """What a cache must hold, and the operations of a random run."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.kind = str(self.rng.choice(list(KINDS)))
        # Calibrated thresholds depend on all sequences and appends, so one sequence is modelled.
        self.B = 1 if self.kind == "calibrated" else int(self.rng.integers(1, 4))
        self.H_kv, self.D = int(self.rng.integers(1, 3)), int(self.rng.choice([8, 48, 64]))
        self.window = int(self.rng.choice([1, 20, 70]))
        self.options: dict[str, Any] = {
            **KINDS[self.kind],
            "windows": [None, self.window if self.rng.random() < 0.7 else None],
            "dense_layers": [1] if self.rng.random() < 0.3 else [],
        }
        self.cache = self.fresh()
        # Per layer and sequence: the tokens, and the most tokens since there were none.
        self.tokens: list[list[Tokens]] = [self._nothing() for _ in range(LAYERS)]
        self.most = [[0] * self.B for _ in range(LAYERS)]
        self.appends: list[list[int]] = [[] for _ in range(LAYERS)]  # lengths after each append
        self.done: Counter[str] = Counter()

    def fresh(self) -> KVCache:
        return KVCache(LAYERS, **self.options)

    def _nothing(self) -> list[Tokens]:
        return [np.zeros((2, self.H_kv, 0, self.D), np.float32) for _ in range(self.B)]

    # ---- running -------------------------------------------------------------------------------

    def step(self) -> None:
        """One operation, perhaps interrupted. Then the cache must be as before or as after it."""
        names = ["append", "append", "append", "truncate", "truncate", "verify", "refused", "file"]
        names += ["reset", "fork", "remove", "reorder"] if self.kind != "calibrated" else ["reset"]
        name = str(self.rng.choice(names))
        before = deepcopy((self.tokens, self.most, self.appends, self.B))
        call = getattr(self, f"_{name}")()
        if call is None:
            return
        if self.rng.random() < 0.4:
            self.done["interrupted" if interrupted(call, self._moment()) else "completed"] += 1
            try:
                self.check()
            except AssertionError:
                self.tokens, self.most, self.appends, self.B = before
                self.check()
                self.done["undone"] += 1
        else:
            call()
            self.check()
        self.done[name] += 1

    def _moment(self) -> int:
        """A number of bytecodes: small ones as often as large ones."""
        return int(2 ** self.rng.uniform(0, 13))

    def check(self) -> None:
        """Compare everything that can be seen with a fresh cache."""
        expected = self.fresh()
        for layer in range(LAYERS):
            self._fill(expected, layer)
            same_layer(self.cache[layer], expected[layer])

    def _fill(self, cache: KVCache, layer: int) -> None:
        """Append the tokens of the model: at once, or as they came if that makes a difference."""
        sequences = self.tokens[layer]
        lengths = [x.shape[2] for x in sequences]
        if max(lengths) == 0:
            return
        if self.kind == "calibrated":
            ends = [*self.appends[layer], lengths[0]]
            for first, end in zip([0, *ends], ends, strict=False):
                cache.append(*sequences[0][None, :, :, first:end].swapaxes(0, 1), layer)
            return
        both = np.zeros((2, self.B, self.H_kv, max(lengths), self.D), np.float32)
        for b, x in enumerate(sequences):
            both[:, b, :, : lengths[b]] = x
        cache.append(*both, layer, count=np.array(lengths))

    # ---- operations: each changes the model, and returns the call that does it to the cache ----

    def _new(self, S: int) -> NDArray[np.float32]:
        """Keys and values (2, B, H_kv, S, D) of new tokens."""
        shape = (2, self.B, self.H_kv, S, self.D)
        x = self.rng.standard_normal(shape) * self.rng.choice([0.3, 1, 3])
        return (x + self.rng.choice([0, 2])).astype(np.float32)

    def _amount(self) -> int:
        return int(self.rng.choice([1, 1, 2, 5, 30, 64, 90, 200]))

    def _add(self, layer: int, new: NDArray[np.float32], count: NDArray[np.integer]) -> None:
        for b, n in enumerate(map(int, count)):
            joined = np.concatenate([self.tokens[layer][b], new[:, b, :, :n]], axis=2)
            self.tokens[layer][b] = joined
            self.most[layer][b] = max(self.most[layer][b], joined.shape[2])
        self.appends[layer].append(self.tokens[layer][0].shape[2])

    def _append(self) -> Callable[[], Any]:
        layer, S = int(self.rng.integers(LAYERS)), self._amount()
        new = self._new(S)
        ragged = self.B > 1 and self.rng.random() < 0.5
        count = self.rng.integers(0, S + 1, self.B) if ragged else np.full(self.B, S)
        self._add(layer, new, count)
        return lambda: self.cache.append(*new, layer, count=count if ragged else None)

    def _verify(self) -> Callable[[], Any]:
        """A block of new tokens, which must give what single steps on a fresh cache give."""
        layer, L = int(self.rng.integers(LAYERS)), int(self.rng.integers(1, 8))
        new = self._new(L)
        q = self.rng.standard_normal((self.B, 2 * self.H_kv, L, self.D)).astype(np.float32)
        steps = self.fresh()
        self._fill(steps, layer)
        single = steps.attention(BUDGET)
        parts = [single(layer, q[:, :, l : l + 1], *new[:, :, :, l : l + 1]) for l in range(L)]
        for l in range(L):
            self._add(layer, new[:, :, :, l : l + 1], np.ones(self.B, int))

        def call() -> None:
            out = self.cache.attention(BUDGET)(layer, q, *new)
            np.testing.assert_allclose(out, np.concatenate(parts, axis=2), atol=5e-6)

        return call

    def _refused(self) -> Callable[[], Any]:
        layer, new = int(self.rng.integers(LAYERS)), self._new(self._amount())
        empty = not any(x.shape[2] for x in self.tokens[layer])
        kind = self.rng.integers(3 if empty else 4)
        count: Any = None
        if kind == 0:
            new[0, -1, -1, -1, -1] = self.rng.choice([np.nan, np.inf])
        elif kind == 1:
            count = np.full(self.B, new.shape[3] + 1)
        elif kind == 2:
            count = np.full(self.B + 1, 1)
        else:
            new = new[..., :-1]

        def call() -> None:
            try:
                self.cache.append(*new, layer, count=count)
            except (ValueError, TypeError):
                return
            raise AssertionError(f"a bad append of kind {kind} was taken")

        return call

    def _cut(self, kept: Callable[[int, int], int]) -> bool:
        """Cut the model; False if a layer with a window may lack tokens that it would need."""
        sure = True
        for layer in range(LAYERS):
            for b, x in enumerate(self.tokens[layer]):
                n = kept(layer, b)
                if n < x.shape[2]:
                    windowed = self.options["windows"][layer] is not None
                    sure &= not windowed or n == 0 or n >= self.most[layer][b] - 128
                    self.tokens[layer][b] = x[:, :, :n]
                    self.most[layer][b] = self.most[layer][b] if n else 0
            n = self.tokens[layer][0].shape[2]
            self.appends[layer] = [min(e, n) for e in self.appends[layer]] if n else []
        return sure

    def _truncate(self) -> Callable[[], Any] | None:
        lengths = np.array([[x.shape[2] for x in layer] for layer in self.tokens])  # (layers, B)
        kept: Any
        if self.rng.random() < 0.5 and self.B > 1:
            back = self.rng.integers(0, self._amount() + 1, self.B)
            kept = np.maximum(lengths.min(axis=0) - back, 0)
            if (lengths.max(axis=1) == 0).any():  # that layer does not know B
                kept = 0
        else:
            kept = max(int(lengths.max(axis=1).min()) - self._amount(), 0)
            kept = int(self.rng.choice([kept, kept, 0]))
        before = deepcopy((self.tokens, self.most, self.appends))
        each = np.broadcast_to(kept, (self.B,))
        sure = self._cut(lambda layer, b: min(int(each[b]), lengths[layer, b]))
        if not sure:
            try:
                self.cache.truncate(kept)
            except ValueError:
                self.tokens, self.most, self.appends = before
            return lambda: None
        return lambda: self.cache.truncate(kept)

    def _reset(self) -> Callable[[], Any]:
        out = int(self.rng.integers(self.B))
        self._cut(lambda layer, b: 0 if b == out else self.tokens[layer][b].shape[2])
        return lambda: self.cache.reset(out)

    def _take(self, order: list[int]) -> None:
        nothing = self._nothing()[0]
        for layer in range(LAYERS):
            self.tokens[layer] = [self.tokens[layer][b] if b >= 0 else nothing for b in order]
            most = [self.most[layer][b] if b >= 0 else 0 for b in order]
            self.most[layer] = most
        self.B = len(order)

    def _fork(self) -> Callable[[], Any] | None:
        if self.B > 4:
            return None
        one, copies = int(self.rng.integers(self.B)), int(self.rng.integers(1, 3))
        self._take([*range(self.B), *[one] * copies])
        return lambda: self.cache.fork(one, copies)

    def _remove(self) -> Callable[[], Any] | None:
        if self.B == 1:
            return None
        out = int(self.rng.integers(self.B))
        self._take([b for b in range(self.B) if b != out])
        return lambda: self.cache.remove(out)

    def _reorder(self) -> Callable[[], Any]:
        order = [int(b) for b in self.rng.integers(-1, self.B, self.rng.integers(1, 5))]
        self._take(order)
        return lambda: self.cache.reorder(order)

    def _file(self) -> Callable[[], Any]:
        def call() -> None:
            with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
                path = Path(folder) / "a.kv"
                self.cache.save(path)
                self.cache = KVCache.load(path, backend=self.options.get("backend", "cpu"))

        return call


def interrupted(call: Callable[[], Any], bytecodes: int) -> bool:
    """Run a call, and raise KeyboardInterrupt after so many bytecodes. False if it ended before."""
    left = bytecodes

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(old)
    return False


def same_layer(got: Any, expected: Any) -> None:
    """All that can be seen of two layers has the same bits."""
    assert got.tokens == expected.tokens
    if expected.tokens == 0:  # an append of no token may have fixed the shape
        assert got.codes is None
        return
    assert got.shape == expected.shape
    B = expected.shape[0]
    np.testing.assert_array_equal(
        np.broadcast_to(got.length, (B,)), np.broadcast_to(expected.length, (B,))
    )
    np.testing.assert_array_equal(got.k, expected.k)
    np.testing.assert_array_equal(got.v, expected.v)
    assert (got.codes is None) == (expected.codes is None)
    if expected.codes is not None:
        a, b = got.codes, expected.codes
        np.testing.assert_array_equal(a.thresholds, b.thresholds)
        np.testing.assert_array_equal(a.planes, b.planes)
        assert (a.centers is None, a.fine is None) == (b.centers is None, b.fine is None)
        own = ((*(c.centers or ()), *(c.fine or ())) for c in (a, b))
        for x, y in zip(*own, strict=True):
            np.testing.assert_array_equal(x, y)
    assert (got.value_codes is None) == (expected.value_codes is None)
    if expected.value_codes is not None:
        a, b = got.value_codes, expected.value_codes
        assert a.nbytes == b.nbytes
        for x, y in zip(a.record, b.record, strict=True):
            np.testing.assert_array_equal(x, y)


def decodes_as_fresh(model: Model) -> None:
    """The attention of the last tokens, sparse and dense, is that of a fresh cache."""
    expected = model.fresh()
    for layer in range(LAYERS):
        model._fill(expected, layer)
        if expected[layer].tokens == 0:
            continue
        shape = (model.B, 2 * model.H_kv, 1, model.D)
        q = model.rng.standard_normal(shape).astype(np.float32)
        for budget in (BUDGET, None):
            a, b = (decode_attention(q, c, budget, layer) for c in (model.cache, expected))
            np.testing.assert_allclose(a, b, atol=5e-6)


def run(seed: int) -> Counter[str]:
    """One random sequence of operations. Returns how often each was done."""
    model = Model(seed)
    for _ in range(int(model.rng.integers(4, 13))):
        model.step()
    decodes_as_fresh(model)
    return model.done
