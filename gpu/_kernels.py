"""Every kernel and the template arguments that it is compiled for: the one list of them.

The launchers name their variants by it, benchmarks/cuda_report.py compiles all of it for every
architecture, and the tests build all of it for the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

FOLDER = Path(__file__).parent / "kernels"

# What common.cuh calls the elements of an array, by the name of its dtype.
ELEMENTS = {"float16": "Half", "bfloat16": "BFloat16", "float32": "float"}

# What topk.cu calls distances: those of score, and ranks.
DISTANCES = {"uint16": "unsigned short", "uint32": "unsigned"}

# Coordinates a lane, N of rows.cuh: Dt / 32 for Dt up to 2048, and 1 for all below 32.
VALUES = (1, 2, 4, 8, 16, 32, 64)

# Template arguments of one variant, in the order of the template's parameters.
Variant = tuple[str | int, ...]


@dataclass(frozen=True)
class Kernel:
    """A __global__ function of one of the .cu files.

    `exact` says that its bits are promised: no multiplication and addition is fused.
    """

    file: str
    name: str
    variants: tuple[Variant, ...] = ((),)
    exact: bool = True

    def expression(self, variant: Variant) -> str:
        """The variant in C++: name<arguments>."""
        if variant not in self.variants:
            raise ValueError(f"{self.name}<{variant}> is no variant listed in gpu/_kernels.py")
        return f"{self.name}<{', '.join(map(str, variant))}>" if variant else self.name

    @property
    def source(self) -> str:
        """The text of its file."""
        return (FOLDER / self.file).read_text(encoding="utf-8")


def headers() -> dict[str, str]:
    """Name and text of what the .cu files include."""
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.cuh"))}


_ROWS = tuple(product(ELEMENTS.values(), VALUES))
_TRANSFORMED = tuple((n,) for n in VALUES)
_DISTANCES = tuple((name,) for name in DISTANCES.values())

HADAMARD = Kernel("hadamard.cu", "hadamard", _ROWS)
QUANTIZE = Kernel("quantize.cu", "quantize", _TRANSFORMED)
QUANTIZE_QUERY = Kernel("quantize.cu", "quantize_query", _TRANSFORMED)
ENCODE = Kernel("quantize.cu", "encode", _ROWS)
ENCODE_FULL = Kernel("center.cu", "encode_full", _ROWS)
ENCODE_LAST = Kernel("center.cu", "encode_last", _ROWS)

# PLANES, P, QUERIES of score.cuh: the paper's metric, and the weighted one with 3, 4 and up to 8
# bits. More than one query at once up to head_dim 256; 8 bits at P = 32 would not fit uint16.
PLANES = (2, 3, 4, 8)
_SCAN = tuple(
    (planes, P, queries)
    for planes, P, queries in product(PLANES, (1, 2, 4, 8, 16, 32), (1, 8))
    if (P <= 4 or queries == 1) and (planes, P) != (8, 32)
)

# TQ, TK, DT, VEC of attend.cu: vectors of 16 bytes where head_dim is usual and the rows are
# aligned, single elements elsewhere and where q is float32 and k is not.
_ATTEND = tuple(
    (q, k, DT, vector)
    for q, k, DT in product(
        ELEMENTS.values(), ELEMENTS.values(), (32, 64, 128, 256, 512, 1024, 2048)
    )
    for vector in (1, 4 if k == "float" else 8)
    if q == k or (q == "float" and vector == 1)
    if DT <= 256 or vector == 1
)

# TQ, TK, VEC of rerank.cu, as of attend.cu; head_dim needs no variants there.
_RERANK = tuple(
    (q, k, vector)
    for q, k in product(ELEMENTS.values(), ELEMENTS.values())
    for vector in (1, 4 if k == "float" else 8)
    if q in (k, "float")
)

SCORE = Kernel("score.cu", "score", _SCAN)
TOPK_CHUNKS = Kernel("topk.cu", "topk_chunks", _DISTANCES)
MERGE_CANDIDATES = Kernel("topk.cu", "merge_candidates", _DISTANCES)
SELECT_CHUNKS = Kernel("select.cu", "select_chunks", _SCAN)
# N, and what estimates become: ranks, or levels of a group's pool.
ESTIMATE = Kernel("estimate.cu", "estimate", tuple(product(VALUES, ("unsigned", "short"))))
WEIGH = Kernel("group.cu", "weigh")
POOL = Kernel("group.cu", "pool")
RERANK = Kernel("rerank.cu", "rerank", _RERANK)
APPEND = Kernel("append.cu", "append", tuple((name,) for name in ELEMENTS.values()))
ATTEND = Kernel("attend.cu", "attend", _ATTEND, exact=False)

KERNELS = (
    HADAMARD,
    QUANTIZE,
    QUANTIZE_QUERY,
    ENCODE,
    ENCODE_FULL,
    ENCODE_LAST,
    SCORE,
    TOPK_CHUNKS,
    MERGE_CANDIDATES,
    SELECT_CHUNKS,
    ESTIMATE,
    WEIGH,
    POOL,
    RERANK,
    ATTEND,
    APPEND,
)
