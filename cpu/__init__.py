"""The operations on a CPU: parallel, vectorised, on arrays as they lie in memory."""

from pkgutil import extend_path
from typing import TYPE_CHECKING

__path__ = extend_path(__path__, __name__)  # a compiled _pack may lie where the build put it

from ._engine import ENGINE, REFERENCE

if not TYPE_CHECKING and ENGINE.name == REFERENCE:
    from adamas_core.reference import (
        attend,
        attend_tail,
        attend_topk,
        encode,
        encode_centered,
        encode_values,
        hadamard,
        quantize,
        quantize_query,
        rerank,
        score,
        select_topk,
        topk,
    )
else:
    from .attend import attend
    from .center import encode_centered
    from .hadamard import hadamard
    from .quantize import encode, quantize, quantize_query
    from .rerank import rerank
    from .score import score
    from .select import attend_topk, select_topk
    from .tail import attend_tail
    from .topk import topk
    from .values import encode_values

__all__ = [
    "attend",
    "attend_tail",
    "attend_topk",
    "encode",
    "encode_centered",
    "encode_values",
    "hadamard",
    "quantize",
    "quantize_query",
    "rerank",
    "score",
    "select_topk",
    "topk",
]
