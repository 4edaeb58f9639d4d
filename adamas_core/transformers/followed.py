"""Codes that follow the keys and values of a cache that somebody else owns.

transformers hands over the keys and values of all tokens with every call, and says nothing of what
happened to them since the last one: new tokens, a crop, beams that changed places, another
conversation. So each row has a fingerprint, the sum of its bits as 64-bit integers. Codes are kept
for the leading tokens whose rows are the same, and the tokens after them are encoded again. This
reads all keys and values once.

A cache that writes into the same memory, as a StaticCache does, is spared this. PyTorch counts the
writes to a tensor. If the memory is the same, was written once, and the tokens are more by just the
new ones, then the rows before them are the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ..codes import KeyCodes, encode
from ..values import ValueCodes, encode_values
from .plan import Plan


class Memory(NamedTuple):
    """Where a tensor lies, without keeping it alive, and how often it was written."""

    storage: Any
    place: tuple[Any, ...]
    writes: int


def memory(x: torch.Tensor) -> Memory | None:
    """The memory of a tensor; None under inference mode, which counts no writes."""
    if x.is_inference():
        return None
    place = (x.data_ptr(), tuple(x.shape), x.stride(), x.dtype)
    return Memory(StorageWeakRef(x.untyped_storage()), place, x._version)


def written_once(before: Memory | None, now: Memory | None) -> bool:
    """Whether exactly one write lies between two looks at one tensor."""
    return (
        before is not None
        and now is not None
        and before.storage == now.storage
        and before.place == now.place
        and before.writes + 1 == now.writes
    )


def row_sums(x: torch.Tensor) -> torch.Tensor:
    """Sums (B, H_kv, S) of the bits of rows (B, H_kv, S, D), as 64-bit integers modulo 2^64."""
    per_word = 8 // x.element_size()
    aligned = [x.shape[-1], x.storage_offset(), *x.stride()[:-1]]
    if x.stride(-1) != 1 or any(n % per_word for n in aligned):
        x = torch.nn.functional.pad(x, (0, -x.shape[-1] % per_word)).contiguous()
    return x.view(torch.int64).sum(-1)


class Rows:
    """Fingerprints of the rows that were coded."""

    def __init__(self, x: torch.Tensor) -> None:
        self.parts = [row_sums(x)]

    def same(self, x: torch.Tensor) -> int:
        """How many leading tokens of x (B, H_kv, S, D) have the coded rows, in all sequences."""
        old, new = self._all(), row_sums(x)
        n = min(old.shape[-1], new.shape[-1])
        differs = (old[..., :n] != new[..., :n]).flatten(0, 1).any(0)  # (n,)
        return int(differs.int().argmax()) if bool(differs.any()) else n

    def replace(self, kept: int, x: torch.Tensor) -> None:
        """Keep the rows of the first `kept` tokens, and add those of the tokens x after them."""
        if kept < sum(part.shape[-1] for part in self.parts):
            self.parts = [self._all()[..., :kept]]
        self.parts.append(row_sums(x))

    def _all(self) -> torch.Tensor:
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts, -1)]
        return self.parts[0]


class Followed:
    """Codes of the keys and values of some sequences, of as many tokens as were seen last."""

    def __init__(self, k: torch.Tensor, v: torch.Tensor, plan: Plan) -> None:
        self.kind = _kind(k, v)
        self.k_rows = Rows(k)
        self.codes: KeyCodes = encode(k, plan.thresholds, bits=plan.bits)
        self.v_rows: Rows | None = None
        self.values: ValueCodes | None = None
        if plan.selection.tail:
            self.v_rows, self.values = Rows(v), encode_values(v)

    def fits(self, k: torch.Tensor, v: torch.Tensor) -> bool:
        """Whether they have the sequences, heads, head_dims, dtype and device of the coded ones."""
        return self.kind == _kind(k, v)

    def follow(self, k: torch.Tensor, v: torch.Tensor, known: bool) -> None:
        """Make the codes those of k (B, H_kv, S, D) and v (B, H_kv, S, D_v).

        If `known`, the caller knows that the rows of all coded tokens are the same.
        """
        kept = self.codes.tokens
        if not known:
            kept = self.k_rows.same(k)
            if self.v_rows is not None:
                kept = min(kept, self.v_rows.same(v))
        cut = kept < self.codes.tokens
        if cut:
            self.codes.truncate(kept, k)
        if kept < k.shape[-2]:
            self.codes.append(k[:, :, kept:])
        self.k_rows.replace(kept, k[:, :, kept:])
        if self.values is not None and self.v_rows is not None:
            if cut:
                self.values.truncate(kept, v)
            if kept < v.shape[-2]:
                self.values.append(v[:, :, kept:])
            self.v_rows.replace(kept, v[:, :, kept:])


def _kind(k: torch.Tensor, v: torch.Tensor) -> tuple[Any, ...]:
    """What keys and values must share with the ones before them, so that codes are kept."""
    B, H_kv, _, D = k.shape
    return B, H_kv, D, v.shape[-1], k.dtype, k.device
