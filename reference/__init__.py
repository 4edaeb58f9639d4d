"""The specification: every operation in NumPy, written to be read.

The functions have the names, arguments, dtypes and results of ``adamas_core.cpu`` and
``adamas_core.gpu``. They take valid NumPy arrays with their batch axis. They check nothing, because
``adamas_core`` has checked the arguments already.

Letters: B batch, H query heads, H_kv key/value heads, G = H / H_kv, L query tokens, S cached
tokens, D head_dim of queries and keys, D_v head_dim of values, Dt = D rounded up to a power of two,
P = ceil(Dt / 64) words per bit plane, P_v the same of D_v, T = ceil(S / 64) tiles, K budget.
"""

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
