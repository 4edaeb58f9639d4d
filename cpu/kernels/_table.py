"""The functions that are called by their addresses, by name."""

from __future__ import annotations

from . import (
    _dense,
    _schedule,
    attend,
    center,
    estimate,
    group,
    hadamard,
    quantize,
    rerank,
    score,
    select,
    tail,
    topk,
    values,
)
from ._jit import opaque

_MODULES = (
    *(_dense, _schedule, attend, center, estimate, group, hadamard, quantize, rerank, score),
    *(select, tail, topk, values),
)

FUNCTIONS = {
    name: value
    for module in _MODULES
    for name, value in vars(module).items()
    if isinstance(value, opaque)
}
