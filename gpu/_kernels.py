"""The registry of all kernels: their template arguments and their parameters.

The launchers name kernels, variants and parameters by it, benchmarks/cuda_report.py compiles all
variants for every architecture, and the tests build all of them for the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "kernels"

# The element types of common.cuh, by the name of the dtype.
ELEMENTS = {"float16": "Half", "bfloat16": "BFloat16", "float32": "float"}

# The types of distances in topk.cu: those of score, and ranks.
DISTANCES = {"uint16": "unsigned short", "uint32": "unsigned"}

# N of warp_row.cuh, coordinates per lane: Dt / 32 for Dt up to 2048, and 1 for all Dt below 32.
VALUES = (1, 2, 4, 8, 16, 32, 64)

# Template arguments of one variant, in the order of the template's parameters.
Variant = tuple[str | int, ...]


class Parameter(NamedTuple):
    """One parameter of a kernel."""

    name: str
    kind: str  # "pointer", "int" (64 bits) or "float" (32 bits)


# The value of an argument that is not given, by the kind of its parameter.
_MISSING = {"pointer": None, "int": 0, "float": 0.0}


@dataclass(frozen=True)
class Kernel:
    """A __global__ function of one of the .cu files.

    If `exact`, its bits are specified, so no multiplication and addition may be fused.

    `rare` are variants that few models need. They are built one by one, and not with the others of
    their file.
    """

    file: str
    name: str
    variants: tuple[Variant, ...] = ((),)
    exact: bool = True
    rare: tuple[Variant, ...] = ()

    def expression(self, variant: Variant) -> str:
        """The variant in C++: name<arguments>."""
        if variant not in self.variants and variant not in self.rare:
            raise ValueError(f"{self.name}<{variant}> is no variant listed in gpu/_kernels.py")
        return f"{self.name}<{', '.join(map(str, variant))}>" if variant else self.name

    @property
    def source(self) -> str:
        """The text of its file."""
        return (FOLDER / self.file).read_text(encoding="utf-8")

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The kernel's parameters in order, read from its signature in the source."""
        found = re.search(
            rf"__global__ void (?:__launch_bounds__\([^)]*\) )?{self.name}\(([^)]*)\)", self.source
        )
        if found is None:
            raise ValueError(f"no __global__ void {self.name}(...) in {self.file}")
        return tuple(_parameter(text) for text in found[1].split(","))

    @cached_property
    def _missing(self) -> dict[str, Any]:
        """The value of each argument if it is not given, in the order of the parameters."""
        return {name: _MISSING[kind] for name, kind in self.parameters}

    def ordered(self, arguments: Mapping[str, Any]) -> list[Any]:
        """The values of arguments by name, in the order of the parameters.

        A pointer that is not given is None and a number that is not given is 0. TypeError if the
        kernel has no parameter of a name.
        """
        values = {**self._missing, **arguments}
        if len(values) > len(self._missing):
            unknown = ", ".join(sorted(values.keys() - self._missing.keys()))
            raise TypeError(f"kernel {self.name} has no parameter {unknown}")
        return list(values.values())


def _parameter(text: str) -> Parameter:
    """`const float* x` or `Int n`, as in a signature."""
    kind, name = text.strip().rsplit(maxsplit=1)
    kinds = {"Int": "int", "float": "float"}
    return Parameter(name, "pointer" if kind.endswith("*") else kinds[kind])


def headers() -> dict[str, str]:
    """Name and text of each file that the .cu files include."""
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.cuh"))}


_ELEMENT_AND_LANE = tuple(product(ELEMENTS.values(), VALUES))
_LANE = tuple((n,) for n in VALUES)
_DISTANCE = tuple((name,) for name in DISTANCES.values())

HADAMARD = Kernel("hadamard.cu", "hadamard", _ELEMENT_AND_LANE)
QUANTIZE = Kernel("quantize.cu", "quantize", _LANE)
QUANTIZE_QUERY = Kernel("quantize.cu", "quantize_query", _LANE)
ENCODE = Kernel("quantize.cu", "encode", _ELEMENT_AND_LANE)
ENCODE_FULL = Kernel("center.cu", "encode_full", _ELEMENT_AND_LANE)
ENCODE_LAST = Kernel("center.cu", "encode_last", _ELEMENT_AND_LANE)
ENCODE_VALUES = Kernel("values.cu", "encode_values", _ELEMENT_AND_LANE)

# PLANES, P, QUERIES of score.cuh: the manhattan metric, and the weighted one with 3, 4 and up to 8
# bits. Several queries at once up to head_dim 256. 8 bits at P = 32 would not fit uint16.
MANHATTAN_PLANES = 2
PLANES = (MANHATTAN_PLANES, 3, 4, 8)
_SCORE = tuple(
    (planes, P, queries)
    for planes, P, queries in product(PLANES, (1, 2, 4, 8, 16, 32), (1, 8))
    if (P <= 4 or queries == 1) and (planes, P) != (8, 32)
)

# TQ, TK, DT, VEC of attend.cu and attend_tail.cu: vectors of 16 bytes up to head_dim 256, where the
# rows are aligned. Single elements elsewhere, and where q is float32 and k is not.
_ATTEND = tuple(
    (q, k, DT, vector)
    for q, k, DT in product(
        ELEMENTS.values(), ELEMENTS.values(), (32, 64, 128, 256, 512, 1024, 2048)
    )
    for vector in (1, 4 if k == "float" else 8)
    if q == k or (q == "float" and vector == 1)
    if DT <= 256 or vector == 1
)
# GENERAL of attend.cu: values of another head_dim than the keys, or a soft cap.
_GENERAL = tuple((*variant, "true") for variant in _ATTEND)

# TQ, TK, VEC of rerank.cu, as for attend.cu; any head_dim has the same variant.
_RERANK = tuple(
    (q, k, vector)
    for q, k in product(ELEMENTS.values(), ELEMENTS.values())
    for vector in (1, 4 if k == "float" else 8)
    if q in (k, "float")
)

SCORE = Kernel("score.cu", "score", _SCORE)
TOPK_CHUNKS = Kernel("topk.cu", "topk_chunks", _DISTANCE)
MERGE_CANDIDATES = Kernel("topk.cu", "merge_candidates", _DISTANCE)
SELECT_CHUNKS = Kernel("select.cu", "select_chunks", _SCORE)
SELECT_CENTERED = Kernel(
    "select_centered.cu", "select_centered", tuple(v for v in _SCORE if v[0] != MANHATTAN_PLANES)
)
ESTIMATE = Kernel("estimate.cu", "estimate", _LANE)
WEIGH = Kernel("group.cu", "weigh")
POOL = Kernel("group.cu", "pool")
RERANK = Kernel("rerank.cu", "rerank", _RERANK)
BEGIN_STEP = Kernel(
    "begin_step.cu",
    "begin_step",
    _ELEMENT_AND_LANE,
    # With coded values of another size, which are there up to head_dim 1024.
    rare=tuple(
        (element, n, values)
        for element, n, values in product(ELEMENTS.values(), VALUES[:-1], VALUES[:-1])
        if n != values
    ),
)
CHOOSE_TIERS = Kernel("tiers.cu", "choose_tiers")
DIVIDE = Kernel("tiers.cu", "divide")
ATTEND = Kernel("attend.cu", "attend", _ATTEND, exact=False, rare=_GENERAL)
ATTEND_TAIL = Kernel("attend_tail.cu", "attend_tail", _ATTEND, exact=False, rare=_GENERAL)

KERNELS = (
    HADAMARD,
    QUANTIZE,
    QUANTIZE_QUERY,
    ENCODE,
    ENCODE_FULL,
    ENCODE_LAST,
    ENCODE_VALUES,
    SCORE,
    TOPK_CHUNKS,
    MERGE_CANDIDATES,
    SELECT_CHUNKS,
    SELECT_CENTERED,
    ESTIMATE,
    WEIGH,
    POOL,
    RERANK,
    CHOOSE_TIERS,
    DIVIDE,
    ATTEND,
    ATTEND_TAIL,
    BEGIN_STEP,
)
