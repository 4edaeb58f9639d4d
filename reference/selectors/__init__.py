"""Ways to choose the tokens that a query attends to, ours and those of other papers.

All have one signature, so that they run through the same decoder and are measured alike. A
selector sees queries and keys after RoPE, in float32, and is a frozen dataclass of options: what
it learns from a prefix, `fit` hands back in a selector of its own.
"""

from __future__ import annotations

from typing import Protocol

from .adamas import Adamas
from .adaptive import AdaptiveBudgets
from .double_sparsity import DoubleSparsity
from .exact import Exact
from .full import Full
from .h2o import H2O
from .largest import Array, Indices
from .loki import Loki
from .quest import Quest
from .sign_hash import SignHash
from .sliding_window import SlidingWindow
from .sparq import SparQ
from .streaming_llm import StreamingLLM

__all__ = [
    "SELECTORS",
    "Adamas",
    "AdaptiveBudgets",
    "DoubleSparsity",
    "Exact",
    "Full",
    "H2O",
    "Loki",
    "Quest",
    "Selector",
    "SignHash",
    "SlidingWindow",
    "SparQ",
    "StreamingLLM",
]


class Selector(Protocol):
    """Chooses tokens for queries."""

    @property
    def name(self) -> str:
        """As tables print it."""

    def fit(self, q: Array, k: Array) -> Selector:
        """A selector that has learned what it calibrates or keeps from a prefix.

        Parameters
        ----------
        q : array (H, S0, D), float32
        k : array (H_kv, S0, D), float32
        """

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        """Choose `budget` tokens for each query.

        Each query sees the tokens up to itself, and a block of L queries gives what L single
        steps would.

        Parameters
        ----------
        q : array (H, L, D), float32
            The queries of the last L of the S tokens.
        k : array (H_kv, S, D), float32
        budget : int
            Tokens a query, at least 1.

        Returns
        -------
        array (H, L, K), int32
            K = min(budget, S), except for `Full`, which takes all S. Ascending; -1 behind the
            last one where fewer than K tokens are visible or chosen.
        """

    def bytes_kept(self, D: int) -> float:
        """Bytes a token a KV head, beside K and V in float16."""

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        """Bytes that a KV head reads a step to choose, the chosen rows of K and V not counted."""


# From the name on the command line, in the order of tables.
SELECTORS: dict[str, Selector] = {
    "full": Full(),
    "exact": Exact(),
    "sliding-window": SlidingWindow(),
    "streaming-llm": StreamingLLM(),
    "h2o": H2O(),
    "quest": Quest(),
    "sparq": SparQ(),
    "double-sparsity": DoubleSparsity(),
    "double-sparsity-quarter": DoubleSparsity("Double Sparsity, D/4 channels", share=4),
    "loki": Loki(),
    "sign-hash": SignHash(),
    "paper": Adamas("Adamas as published", metric="l1", thresholds="published"),
    "paper-xor": Adamas("Adamas as published, XOR kernel", metric="xor", thresholds="published"),
    "paper-quartiles": Adamas("Adamas, L1, quartiles", metric="l1", thresholds="quartiles"),
    "paper-own-quartiles": Adamas(
        "Adamas, L1, own quartiles", metric="l1", thresholds="quartiles", own_thresholds=True
    ),
    "adamas": Adamas(),
    "adamas-prefilter": Adamas("weighted, prefilter 8", prefilter=8),
    "adamas-refine-2": Adamas("weighted, refine 2", refine=2),
    "adamas-refine-4": Adamas("weighted, refine 4", refine=4),
    "adamas-high-refine-4": Adamas("weighted, high plane, refine 4", bits=1, refine=4),
    "adamas-mean": Adamas(
        "weighted, scale, means of 64", thresholds="token", scale=True, block=64, recode=True
    ),
    "adamas-group": Adamas("weighted, group", group="softmax"),
    "adamas-adaptive": AdaptiveBudgets(),
}
