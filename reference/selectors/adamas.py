"""Adamas: tokens by low-bit codes of their transformed keys; the paper's form, ours, and others.

Yan et al., "Adamas: Hadamard Sparse Attention for Efficient Long-Context Inference",
arXiv 2510.18413. What differs between the paper, its code and this library is an option here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas_core import checks
from adamas_core.codes import PAPER, calibrate, encode
from adamas_core.ops import select_topk
from adamas_core.reference.hadamard import hadamard

from .code_distance import METRICS, code_distance
from .group import GROUPS
from .key_coder import RULES, STEPS, KeyCoder, block_means, codes_of, edges_of
from .largest import Array, Indices, Own, by_scores, checked, hide, largest, only

SAMPLE = 1024  # tokens of the prefix that thresholds are calibrated from, as encode takes them


@dataclass(frozen=True)
class Fitted:
    """What a prefix gives."""

    thresholds: Array  # (H_kv, 3): those of the library's 2-bit codes
    coder: KeyCoder
    query_edges: Array  # (H, n - 1)
    step: Array  # (H_kv,): between the levels that codes stand for


@dataclass(frozen=True)
class Adamas:
    """Tokens by 2-bit codes and the weighted metric, as `adamas_core.select_topk`, or otherwise.

    Whatever the library offers goes through its `encode` and `select_topk`, so that what is
    measured is what people run: 2 bits, transformed, the weighted metric or "l1" at the keys'
    thresholds. All else is computed here.

    Parameters
    ----------
    name : str
    metric : {"weighted", "l1", "l2", "xor"}
        "weighted" estimates the logit, q.k / sqrt(D), with the query in `query_bits` and each key
        as its codes stand for: the inner product of x_i, rounded to a multiple of
        max |x| / (2 ** (query_bits - 1) - 1), and (c_i - (n - 1) / 2) * step, n = 2 ** bits. The
        others are distances between the codes of both, see `code_distance`.
    bits : {1, 2, 3}
        Of a coordinate's code. One bit is the high plane of two, the sign where thresholds are
        symmetric: half the bytes.
    query_bits : int or None
        A sign and the weight's bits; None leaves the query as it is.
    transform : bool
        Whether queries and keys are transformed at all.
    thresholds : {"rms", "quartiles", "token", "published"}
        See `key_coder.edges_of`.
    stretch : float
        Multiplies the thresholds: a calibration that is so far off.
    own_thresholds : bool
        Distances alone: queries are cut at thresholds from the prefix's queries, a head each, and
        not at the keys'.
    scale : bool
        A byte a token, by which its codes are multiplied; "weighted" alone.
    block : int
        0, or tokens a block. The mean of a block's transformed keys is kept in float16, and codes
        are those of key - mean; the estimate gains q.mean / sqrt(D). "weighted" alone.
    recode : bool
        The mean is that of the token's own block once the block is full, when its tokens are
        coded a second time; until then, and always without `recode`, it is that of the block
        before. Either way no code waits for a later token.
    group : {None, "softmax", "integers", "nearest"}
        One choice for all heads of a KV head, see `group`. The first two need logits, so
        "weighted".
    sinks, recent : int
        First and last tokens that are taken always, within the budget; the sinks first where
        it does not hold both.
    prefilter : int
        Only so many times the budget, the best by the high plane alone, are ranked by all bits.
    refine : int
        So many times the budget are taken by code, and of those the largest exact q.k.
    """

    name: str = "Adamas, weighted"
    metric: str = "weighted"
    bits: int = 2
    query_bits: int | None = 4
    transform: bool = True
    thresholds: str = "rms"
    stretch: float = 1.0
    own_thresholds: bool = False
    scale: bool = False
    block: int = 0
    recode: bool = False
    group: str | None = None
    sinks: int = 0
    recent: int = 0
    prefilter: int = 0
    refine: int = 0
    fitted: Fitted | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for option, known in (
            ("metric", ("weighted", *METRICS)),
            ("bits", tuple(STEPS)),
            ("thresholds", RULES),
            ("group", (None, *GROUPS)),
        ):
            if getattr(self, option) not in known:
                raise ValueError(
                    f"{self.name}: {option}={getattr(self, option)!r}; expected one of {known}"
                )
        for option in ("block", "sinks", "recent", "prefilter", "refine"):
            checks.at_least(self.name, option, getattr(self, option), 0)
        needs_logits = self.scale or self.block or self.group in ("softmax", "integers")
        if self.metric != "weighted" and needs_logits:
            raise ValueError(
                f"{self.name}: scale, block and group={self.group!r} need estimated logits, and "
                f"metric={self.metric!r} gives distances; expected metric='weighted'"
            )
        if self.metric == "weighted" and self.own_thresholds:
            raise ValueError(
                f"{self.name}: own_thresholds cut queries, which metric='weighted' does not; "
                f"expected one of {METRICS}"
            )

    def fit(self, q: Array, k: Array) -> Adamas:
        """Thresholds and steps, from the first 1024 tokens."""
        sample = self._rotated(k[:, :SAMPLE])
        if self.block:
            pairs = [block_means(x, self.block) for x in sample]
            sample = sample - np.stack([own if self.recode else before for before, own in pairs])
        stretch = np.float32(self.stretch)
        edges = edges_of(sample, self.thresholds, self.bits) * stretch
        coder = KeyCoder(edges, self.thresholds == "token", self.scale)
        query_edges = np.repeat(edges, len(q) // len(k), axis=0)
        if self.own_thresholds:
            query_edges = edges_of(self._rotated(q[:, :SAMPLE]), self.thresholds, self.bits)
            query_edges *= stretch
        rule = "quartiles" if self.thresholds == "quartiles" else "rms"
        library = PAPER if self.thresholds == "published" else calibrate(k[:, :SAMPLE], rule)
        thresholds = np.broadcast_to(library * stretch, (len(k), 3))
        return replace(self, fitted=Fitted(thresholds, coder, query_edges, coder.steps(sample)))

    def __call__(self, q: Array, k: Array, budget: int) -> Indices:
        K = checked(self.name, q, k, budget)
        if self._in_library():
            codes = encode(k, self._ready().thresholds)
            metric = "manhattan" if self.metric == "l1" else "weighted"
            options = metric, self.query_bits or 4, *self._forced(K), self.prefilter, self.refine
            indices: Indices = select_topk(q, codes, K, *options, k=k)
            return indices
        if not self.refine:
            return self._by_estimates(q, k, K)
        S = k.shape[1]
        candidates = self._by_estimates(q, k, min(self.refine * K, S))
        grouped = candidates.reshape(len(k), -1, *candidates.shape[1:])  # (H_kv, G, L, M)
        scale = np.float32(q.shape[-1] ** -0.5)

        def exact(g: int, x: Array, own: Own) -> NDArray[Any]:
            kept = grouped[g][:, own - (S - q.shape[1])]  # (G, l, M)
            logits = only(scale * (x @ k[g].T), kept)
            return only(self._pooled(logits), kept[:1]) if self.group else logits

        return by_scores(self.name, q, k, K, exact, *self._forced(K))

    def _ready(self) -> Fitted:
        if self.fitted is None:
            raise ValueError(f"{self.name}: has no thresholds; fit it to a prefix first")
        return self.fitted

    def _in_library(self) -> bool:
        """Whether `select_topk` has these options."""
        return (
            self.bits == 2
            and self.transform
            and self.thresholds != "token"
            and not (self.own_thresholds or self.scale or self.block or self.group)
            and (self.metric == "l1" or (self.metric == "weighted" and self.query_bits is not None))
        )

    def _by_estimates(self, q: Array, k: Array, K: int) -> Indices:
        """The same for all options, those of the library included."""
        forced = self._forced(K)

        def scores(g: int, x: Array, own: Own) -> NDArray[Any]:
            fine = self._pooled(self.estimates(g, x, k[g], own))
            if not self.prefilter:
                return fine
            coarse = self._pooled(self.estimates(g, x, k[g], own, high_plane=True))
            M = min(self.prefilter * K, k.shape[1])
            return only(fine, largest(coarse, own, M, *forced))

        return by_scores(self.name, q, k, K, scores, *forced)

    def estimates(
        self, g: int, queries: Array, keys: Array, own: Own, high_plane: bool = False
    ) -> Array:
        """Estimated logits, or negative distances, (G, l, S); -inf where a query does not see.

        Of queries (G, l, D) and all keys (S, D) of KV head g, own (l,) being the queries' tokens.
        With the high plane alone a code is 0 or n - 1.
        """
        fitted = self._ready()
        x, y = self._rotated(queries), self._rotated(keys)
        if self.metric != "weighted":
            first = g * len(x)
            e = np.stack(
                [
                    codes_of(head, fitted.query_edges[first + i], fitted.coder.per_token)
                    for i, head in enumerate(x)
                ]
            )
            c = codes_of(y, fitted.coder.edges[g], fitted.coder.per_token)
            if high_plane:
                c = np.where(c >= 2 ** (self.bits - 1), np.float32(2**self.bits - 1), 0)
            return hide(-code_distance(self.metric, e, c, self.bits), own)

        weights, unit = self._weights(x)
        scale = np.float32(queries.shape[-1] ** -0.5)

        def logits(mean: Array | None) -> Array:
            rest = y if mean is None else y - mean
            u, s = fitted.coder.read_back(g, rest, fitted.step[g])
            if high_plane:
                u = np.copysign(np.float32((2**self.bits - 1) / 2), u)
            estimate: Array = scale * unit * s[:, 0] * (weights @ u.T)
            return estimate if mean is None else estimate + scale * (x @ mean.T)

        if not self.block:
            return hide(logits(None), own)
        before, within = block_means(y, self.block)
        estimate = logits(before)
        if self.recode:
            full = (own + 1) // self.block * self.block  # tokens in blocks that are full by then
            estimate = np.where(np.arange(len(y)) < full[:, None], logits(within), estimate)
        return hide(estimate, own)

    def _weights(self, x: Array) -> tuple[Array, Array]:
        """Signed integer weights (G, l, D) and their unit (G, l, 1): together about x.

        The same float32 operations as in `quantize_query`. A query that is 0 weighs nothing.
        """
        if self.query_bits is None:
            return x, np.ones((*x.shape[:-1], 1), np.float32)
        size = np.abs(x)
        top = size.max(axis=-1, keepdims=True)
        top[top == 0] = 1
        wmax = np.float32(2 ** (self.query_bits - 1) - 1)
        return np.copysign(np.rint(size / top * wmax), x), top / wmax

    def _pooled(self, scores: Array) -> NDArray[Any]:
        """One row (1, l, S) for the group, where it shares its choice."""
        return GROUPS[self.group](scores) if self.group else scores

    def _rotated(self, x: Array) -> Array:
        return hadamard(x) if self.transform else x

    def _forced(self, K: int) -> tuple[int, int]:
        """Sinks and recent tokens that K has room for."""
        sinks = min(self.sinks, K)
        return sinks, min(self.recent, K - sinks)

    def bytes_kept(self, D: int) -> float:
        """The codes, a scale, and a share of the block's mean."""
        return self.bits * D / 8 + self.scale + (2 * D / self.block if self.block else 0)

    def bytes_read(self, D: int, S: int, budget: int) -> float:
        """All that is kept; or the high plane of all tokens and the rest of those that it passes.

        `refine` reads the keys of its candidates; those of the chosen are read anyway.
        """
        K = min(budget, S)
        kept = self.bytes_kept(D)
        taken = min(max(self.refine, 1) * K, S)
        read = kept * S
        if self.prefilter:
            low = (self.bits - 1) * D / 8  # a token's lower planes
            read = (kept - low) * S + low * min(self.prefilter * taken, S)
        return read + 2.0 * D * (taken - K)
