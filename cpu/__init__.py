"""The operations in Numba: parallel, vectorised, on arrays as they lie in memory."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)  # a compiled _pack may lie where the build put it

from .attend import attend
from .center import encode_centered
from .hadamard import hadamard
from .quantize import encode, quantize, quantize_query
from .rerank import rerank
from .score import score
from .select import attend_topk, select_topk
from .topk import topk

__all__ = [
    "attend",
    "attend_topk",
    "encode",
    "encode_centered",
    "hadamard",
    "quantize",
    "quantize_query",
    "rerank",
    "score",
    "select_topk",
    "topk",
]
