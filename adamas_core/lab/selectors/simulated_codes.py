"""Forms of Adamas that the library does not offer, simulated in NumPy.

Other numbers of bits, no transform, other distances, the queries' own thresholds, scales and means
in other combinations, and other ways to choose for a group. The library's own forms are measured
through the library, see `adamas`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import checks
from ...codes import SAMPLE
from ...reference.hadamard import hadamard
from .code_distance import METRICS, code_distance
from .key_coder import RULES, STEPS, KeyCoder, block_means, codes_of, edges_of
from .largest import Array, Indices, Own, by_scores, checked, hide, only
from .pooling import POOLINGS


@dataclass(frozen=True)
class Fitted:
    """The calibration that a prefix gives."""

    coder: KeyCoder
    query_edges: Array  # (H, n - 1)
    step: Array  # (H_kv,): the distance of two neighboring levels of the codes


@dataclass(frozen=True)
class SimulatedCodes:
    """Tokens by low-bit codes of their keys.

    Parameters
    ----------
    name : str
    metric : {"weighted", "l1", "l2", "xor"}
        "weighted" estimates the logit, q.k / sqrt(D), from the rounded query and the decoded key:
        x_i rounded to a multiple of max |x| / (2 ** (query_bits - 1) - 1), and
        (c_i - (n - 1) / 2) * step, n = 2 ** bits. The others are distances between the codes of
        query and key, see `code_distance`.
    bits : {1, 2, 3}
        Bits of a code. One bit is the high plane of two: the sign, where thresholds are symmetric.
    query_bits : int or None
        A sign and the bits of the weight; None does not round the query.
    transform : bool
        Whether queries and keys are transformed.
    thresholds : {"rms", "quartiles", "token", "published"}
        See `key_coder.edges_of`.
    own_thresholds : bool
        Only for distances. Cut each head's queries at thresholds from its own queries, not at
        those of the keys.
    scale : bool
        Only for "weighted". Multiply the codes of a token by its own scale, a byte per token.
    block : int
        Only for "weighted". 0, or the number of tokens per block. Codes are those of key - mean,
        where mean is a block's mean of transformed keys, kept in float16. The estimate gains
        q.mean / sqrt(D).
    recode : bool
        When a block is full, code its tokens a second time relative to their own block's mean.
        Until then, and always without `recode`, the mean is that of the block before. So no code
        waits for a later token.
    group : {None, "softmax", "nearest"}
        One choice for all heads of a KV head, see `pooling`. "softmax" only for "weighted".
    refine : int
        Take refine * budget tokens by code, and of these the ones of the largest exact q.k.
    """

    name: str = "simulated codes"
    metric: str = "weighted"
    bits: int = 2
    query_bits: int | None = 4
    transform: bool = True
    thresholds: str = "rms"
    own_thresholds: bool = False
    scale: bool = False
    block: int = 0
    recode: bool = False
    group: str | None = None
    refine: int = 0
    fitted: Fitted | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for option, known in (
            ("metric", ("weighted", *METRICS)),
            ("bits", tuple(STEPS)),
            ("thresholds", RULES),
            ("group", (None, *POOLINGS)),
        ):
            if getattr(self, option) not in known:
                raise ValueError(
                    f"{self.name}: {option}={getattr(self, option)!r}; expected one of {known}"
                )
        for option in ("block", "refine"):
            checks.at_least(self.name, option, getattr(self, option), 0)
        if self.metric != "weighted" and (self.scale or self.block or self.group == "softmax"):
            raise ValueError(
                f"{self.name}: scale, block and group={self.group!r} need estimated logits, and "
                f"metric={self.metric!r} gives distances; expected metric='weighted'"
            )
        if self.metric == "weighted" and self.own_thresholds:
            raise ValueError(
                f"{self.name}: own_thresholds cut queries, which metric='weighted' does not; "
                f"expected one of {METRICS}"
            )

    def fit(self, q: Array, k: Array) -> SimulatedCodes:
        """Take thresholds and steps from the first tokens, as many as the library takes."""
        sample = self._transformed(k[:, :SAMPLE])
        if self.block:
            pairs = [block_means(x, self.block) for x in sample]
            sample = sample - np.stack([own if self.recode else before for before, own in pairs])
        edges = edges_of(sample, self.thresholds, self.bits)
        coder = KeyCoder(edges, self.thresholds == "token", self.scale)
        query_edges = np.repeat(edges, len(q) // len(k), axis=0)
        if self.own_thresholds:
            query_edges = edges_of(self._transformed(q[:, :SAMPLE]), self.thresholds, self.bits)
        return replace(self, fitted=Fitted(coder, query_edges, coder.steps(sample)))

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        K = checked(self.name, q, k, budget)
        if not self.refine:
            return self._by_estimates(q, k, K)
        S = k.shape[1]
        candidates = self._by_estimates(q, k, min(self.refine * K, S))
        grouped = candidates.reshape(len(k), -1, *candidates.shape[1:])  # (H_kv, G, L, M)
        scale = np.float32(q.shape[-1] ** -0.5)

        def exact(g: int, x: Array, own: Own) -> NDArray[Any]:
            found = grouped[g][:, own - (S - q.shape[1])]  # (G, l, M)
            logits = only(scale * (x @ k[g].T), found)
            return only(self._pooled(logits), found[:1]) if self.group else logits

        return by_scores(self.name, q, k, K, exact)

    def _ready(self) -> Fitted:
        if self.fitted is None:
            raise ValueError(f"{self.name}: has no thresholds; fit it to a prefix first")
        return self.fitted

    def _by_estimates(self, q: Array, k: Array, K: int) -> Indices:
        def scores(g: int, x: Array, own: Own) -> NDArray[Any]:
            return self._pooled(self.estimates(g, x, k[g], own))

        return by_scores(self.name, q, k, K, scores)

    def estimates(self, g: int, queries: Array, keys: Array, own: Own) -> Array:
        """Estimated logits or negative distances (G, l, S); -inf for tokens that are not visible.

        Queries (G, l, D) and all keys (S, D) belong to KV head g. `own` (l,) are the queries' own
        tokens.
        """
        fitted = self._ready()
        x, y = self._transformed(queries), self._transformed(keys)
        if self.metric == "weighted":
            return hide(self._logits(g, x, y, own, np.float32(queries.shape[-1] ** -0.5)), own)
        first = g * len(x)
        edges = fitted.query_edges[first : first + len(x)]
        per_token = fitted.coder.per_token
        e = np.stack([codes_of(*head, per_token) for head in zip(x, edges, strict=True)])
        c = codes_of(y, fitted.coder.edges[g], per_token)
        return hide(-code_distance(self.metric, e, c, self.bits), own)

    def _logits(self, g: int, x: Array, y: Array, own: Own, scale: np.float32) -> Array:
        """Estimates (G, l, S) of scale * x.y from transformed x (G, l, Dt) and y (S, Dt)."""
        fitted = self._ready()
        weights, unit = self._weights(x)

        def against(mean: Array | None) -> Array:
            rest = y if mean is None else y - mean
            u, s = fitted.coder.read_back(g, rest, fitted.step[g])
            estimate: Array = scale * unit * s[:, 0] * (weights @ u.T)
            return estimate if mean is None else estimate + scale * (x @ mean.T)

        if not self.block:
            return against(None)
        before, within = block_means(y, self.block)
        estimate = against(before)
        if self.recode:
            # A query sees its own step's codes: a block that a later token fills is not full yet.
            full = (own + 1) // self.block * self.block  # (l,): tokens in full blocks
            estimate = np.where(np.arange(len(y)) < full[:, None], against(within), estimate)
        return estimate

    def _weights(self, x: Array) -> tuple[Array, Array]:
        """Signed integer weights (G, l, Dt) and their unit (G, l, 1); their product is about x.

        The same float32 operations as in `quantize_query`. A query of zeros has weights 0.
        """
        if self.query_bits is None:
            return x, np.ones((*x.shape[:-1], 1), np.float32)
        size = np.abs(x)
        top = size.max(axis=-1, keepdims=True)
        top[top == 0] = 1
        wmax = np.float32(2 ** (self.query_bits - 1) - 1)
        return np.copysign(np.rint(size / top * wmax), x), top / wmax

    def _pooled(self, scores: Array) -> NDArray[Any]:
        """One row (1, l, S) for the group, if it shares its choice."""
        return POOLINGS[self.group](scores) if self.group else scores

    def _transformed(self, x: Array) -> Array:
        return hadamard(x) if self.transform else x

    def bytes_kept(self, D: int) -> float:
        """The codes, the scale, and a share of the block's mean."""
        return self.bits * D / 8 + self.scale + (2 * D / self.block if self.block else 0)

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        """All that is kept, and the keys of the candidates of `refine` that are not chosen."""
        K = min(budget, S)
        candidates = min(max(self.refine, 1) * K, S)
        return self.bytes_kept(D) * S + 2.0 * D * (candidates - K)
