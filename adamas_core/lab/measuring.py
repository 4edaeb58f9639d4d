"""The cost of a selector in quality: the last positions of a text, against full attention.

A window of a text is read densely, except for its last L tokens. These run as one causal block, in
which each query chooses its own tokens in every layer. The result equals decoding token by token
with the true text put in: errors travel through the layers and, through the block's own keys and
values, through the cache.

Letters: H query heads, H_kv KV heads, L positions of the block, S tokens, D head_dim, V
vocabulary, K budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..llama import Attention, Llama
from ..ops import attend
from .metrics import Captured, Choice, NextToken, next_token, recall
from .prefix import Prefix
from .selectors import Exact, Form, Method

Array = NDArray[np.float32]


@dataclass
class Oracle:
    """The exact top-k of the block's dense queries, for one budget."""

    budget: int
    indices: list[NDArray[np.int32]]  # one per layer without a window: (H, L, K)
    lse: list[Array]  # one per layer without a window: (H, L)


class Reading:
    """A window of a text, read densely, with which every selector is compared.

    Parameters
    ----------
    model : Llama
    tokens : sequence of ints
        S tokens, and one more, which is predicted but never read.
    positions : int
        L, the tokens of the block.
    on_prefill : callable, optional
        ``on_prefill(done, total)`` after each chunk.
    """

    def __init__(
        self,
        model: Llama,
        tokens: Sequence[int],
        positions: int,
        on_prefill: Callable[[int, int], object] | None = None,
    ) -> None:
        self.tokens = np.asarray(tokens)
        self.context = len(tokens) - 1
        self.start = self.context - positions
        if positions < 1 or self.start < 1:
            raise ValueError(
                f"a window of {self.context} tokens; expected more than the {positions} positions"
            )
        self.prefix = Prefix(model, self.tokens[: self.start], positions, on_prefill)

        # The block in the dense run, one array per layer without a window.
        self.q: list[Array] = []  # (H, L, D)
        self.k: list[Array] = []  # (H_kv, L, D)
        self.v: list[Array] = []
        self.out: list[Array] = []  # (H, L, D)
        self.lse: list[Array] = []  # (H, L)

        def block(place: int, q: Array, keys: Array, values: Array) -> NDArray[Any]:
            out: NDArray[Any]
            out, lse = attend(q, keys, values, None, return_lse=True)
            new = (q, keys[:, self.start :], values[:, self.start :], out, lse)
            for arrays, x in zip((self.q, self.k, self.v, self.out, self.lse), new, strict=True):
                arrays.append(np.array(x))
            return out

        self.logits = self._block(self.prefix.each(block))
        self._oracle: Oracle | None = None

    def full(self) -> NextToken:
        """The next token under full attention."""
        return next_token(self.logits, self.logits, self.tokens[self.start + 1 :])

    def next_token(self, fitted: Sequence[Method], budget: int, dense_layers: int = 0) -> NextToken:
        """The next token if all but the first `dense_layers` layers are sparse."""
        self.prefix.rewind()
        try:
            logits = self._block(self.prefix.sparse(fitted, budget, dense_layers))
        finally:
            self._restore()
        return next_token(self.logits, logits, self.tokens[self.start + 1 :])

    def captured(self, fitted: Sequence[Method], budget: int) -> Captured:
        """The output error of each layer, and the attention that its choice of tokens captures.

        Both are for the dense run's queries. Layers with a window are left out. A form chooses no
        tokens, so it has only the error.
        """
        errors, choices = [], []
        for place, q in enumerate(self.q):
            method = fitted[place]
            keys, values = self.prefix.keys_values(place)
            if isinstance(method, Form):
                out = method.attend(q, keys, values, budget)
            else:
                begin = time.process_time()
                indices = method(q, keys, budget)
                seconds = time.process_time() - begin
                out, lse = attend(q, keys, values, indices, return_lse=True)
                choices.append(self._choice(place, indices, lse, budget, seconds))
            full = self.out[place]
            distance = np.linalg.norm(out - full, axis=-1)
            errors.append(distance / np.linalg.norm(full, axis=-1))
        return Captured(np.stack(errors), Choice.of_layers(choices) if choices else None)

    def _choice(
        self, place: int, indices: NDArray[np.int32], lse: Array, budget: int, seconds: float
    ) -> Choice:
        """The figures of the tokens that were chosen in one layer."""
        oracle = self.oracle(budget)
        return Choice(
            np.exp(lse - self.lse[place]),
            np.exp(lse - oracle.lse[place]),
            recall(indices, oracle.indices[place], self.context),
            seconds,
        )

    def oracle(self, budget: int) -> Oracle:
        """The exact top-k of a budget; only the last one asked for stays in memory."""
        if self._oracle is None or self._oracle.budget != budget:
            self._oracle = None  # free its memory before more is taken
            exact = Exact()
            indices, lse = [], []
            for place, q in enumerate(self.q):
                keys, values = self.prefix.keys_values(place)
                indices.append(exact(q, keys, budget))
                lse.append(attend(q, keys, values, indices[-1], return_lse=True)[1])
            self._oracle = Oracle(budget, indices, lse)
        return self._oracle

    def _block(self, attention: Attention) -> Array:
        """The block's logits (L, V). The cache must hold the prefix and nothing else."""
        tokens = self.tokens[self.start : self.context]
        return self.prefix.model.forward(tokens, self.start, attention, last=False)

    def _restore(self) -> None:
        """Put the block's keys and values of the dense run back into the cache."""
        self.prefix.rewind()
        for place, (k, v) in enumerate(zip(self.k, self.v, strict=True)):
            self.prefix.cache.append(k, v, place)
