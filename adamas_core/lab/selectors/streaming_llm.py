"""StreamingLLM: attention sinks and a sliding window.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453.
"""

from __future__ import annotations

from dataclasses import dataclass

from .largest import Array, Indices, checked
from .sliding_window import window


@dataclass(frozen=True)
class StreamingLLM:
    """The first 4 tokens, which get the attention that no other token needs, and the last ones.

    The paper gives the kept tokens new positions, as if there were no tokens between them. Here
    every key keeps its cached position, as with every other selector. A budget of 4 or less still
    includes the query's own token.
    """

    name: str = "StreamingLLM"
    sinks: int = 4  # the paper's

    def fit(self, q: Array, k: Array) -> StreamingLLM:
        return self

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        K = checked(self.name, q, k, budget)
        return window(q, k, K, min(self.sinks, K - 1))

    def bytes_kept(self, D: int) -> float:
        return 0.0

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        return 0.0
