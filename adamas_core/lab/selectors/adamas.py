"""Adamas as this library computes it, through the public `encode` and `select_topk`.

Yan et al., "Adamas: Hadamard Sparse Attention for Efficient Long-Context Inference",
arXiv 2510.18413. `simulated_codes` has the forms that the library does not offer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ...codes import PAPER, SAMPLE, calibrate, encode
from ...reference.layout import TILE
from ...select import select_topk
from ...selection import DEFAULT, Selection
from ..code_bytes import code_bytes
from .largest import Array, Indices, checked

RULES = (None, "rms", "quartiles", "published")


@dataclass(frozen=True)
class Adamas:
    """Tokens by the library's codes and one of its metrics.

    Parameters
    ----------
    name : str
    selection : Selection
        The options of `select_topk`.
    thresholds : {None, "rms", "quartiles", "published"}
        None: centered codes. Otherwise plain codes, with thresholds by this rule of `calibrate`, or
        with the constants of the paper's code.
    stretch : float
        Multiplies the thresholds of plain codes, to see what a wrong calibration costs.
    """

    name: str = "weighted, centered codes"
    selection: Selection = DEFAULT
    thresholds: str | None = None
    stretch: float = 1.0
    fitted: Array | None = field(default=None, repr=False, compare=False)  # thresholds (H_kv, 3)

    def __post_init__(self) -> None:
        if self.thresholds not in RULES:
            raise ValueError(
                f"{self.name}: thresholds={self.thresholds!r}; expected one of {RULES}"
            )
        if not 0 < self.stretch < math.inf:
            raise ValueError(
                f"{self.name}: stretch={self.stretch}; expected a finite number above 0"
            )
        if self.thresholds is None and self.stretch != 1:
            raise ValueError(
                f"{self.name}: thresholds=None with stretch={self.stretch}; expected stretch=1, "
                "because centered codes have thresholds of their own"
            )

    def fit(self, q: Array, k: Array) -> Adamas:
        """Take thresholds from the first tokens, as `encode` does; centered codes need none."""
        if self.thresholds is None:
            return self
        published = self.thresholds == "published"
        found = PAPER if published else calibrate(k[:, :SAMPLE], self.thresholds)
        return replace(self, fitted=np.broadcast_to(found * np.float32(self.stretch), (len(k), 3)))

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        K = checked(self.name, q, k, budget)
        if self.thresholds is None:
            return self._by_tiles(q, k, K)
        if self.fitted is None:
            raise ValueError(f"{self.name}: has no thresholds; fit it to a prefix first")
        found: Indices = select_topk(q, encode(k, self.fitted), K, self._within(K), k=k)
        return found

    def _by_tiles(self, q: Array, k: Array, K: int) -> Indices:
        """Indices (H, L, K) by centered codes, each query over the codes of its own step.

        When a tile becomes full, its tokens are coded again, relative to their mean. Earlier
        queries must not see these codes, because they depend on later tokens. So keys are appended
        until just before the next tile becomes full, and the queries up to there are searched
        together. They share all codes; only the number of visible tokens differs.
        """
        H, L, _ = q.shape
        S = k.shape[1]
        indices = np.full((H, L, K), -1, np.int32)
        codes = encode(k[:, : S - L])
        codes.reserve(S)
        start = S - L
        while start < S:
            full = (start + 1) // TILE  # full tiles at the step of the query `start`
            end = min((full + 1) * TILE - 1, S)
            codes.append(k[:, start:end])
            width = min(K, end)
            rows = slice(start - (S - L), end - (S - L))
            found = select_topk(q[:, rows], codes, width, self._within(width), k=k)
            indices[:, rows, :width] = found
            start = end
        return indices

    def _within(self, K: int) -> Selection:
        """The selection with no more sinks and recent tokens than K has room for, sinks first."""
        sinks = min(self.selection.sinks, K)
        return replace(self.selection, sinks=sinks, recent=min(self.selection.recent, K - sinks))

    def bytes_kept(self, D: int) -> float:
        return code_bytes(D, centered=self.thresholds is None)

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        """All codes, and the keys of the candidates of `refine` that are not chosen."""
        K = min(budget, S)
        candidates = min(max(self.selection.refine, 1) * K, S)
        return self.bytes_kept(D) * S + 2.0 * D * (candidates - K)
