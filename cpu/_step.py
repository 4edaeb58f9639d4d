"""What a call asks for, as one record that every kernel and every part of one reads."""

from __future__ import annotations

from struct import Struct
from typing import Any

import numpy as np
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from ._jit import inlined
from ._simd import pointer

# Addresses and strides are in bytes.
_GIVEN = (
    # compiled parts, by their addresses
    *("score_tile", "collect", "choose", "rank_by_products", "attend_rows"),
    # queries (B, H, L, D)
    *("q", "q_dtype", "q_b", "q_h", "q_l", "B", "H", "L", "D", "Dt"),
    # codes: the planes of H_kv heads, with room for S tokens; the low plane is `plane` behind the
    # high one; lengths is 0 where all sequences have `length` tokens
    *("planes", "plane", "planes_b", "planes_h", "H_kv", "S", "P", "length", "lengths"),
    "thresholds",
    # of centered codes; scales is 0 where they are not
    *("means", "means_b", "means_h", "scales", "scales_b", "scales_h"),
    # the selection: planes of weights, 0 under the Manhattan metric; if not 0, `taken` tokens are
    # taken by their signs and then ranked again, and `kept` by their codes and then by products;
    # group is 1 where the query heads of a KV head choose together
    *("weights", "budget", "taken", "kept", "sinks", "recent", "group", "indices"),
    # keys and values; out is 0 where there is nothing to attend to
    *("k", "k_b", "k_h", "k_s", "v", "v_b", "v_h", "v_s", "kv_dtype", "out", "lse", "scale"),
)
# What kernels fill in: parts of the sequence; candidates a row in the search of one part, and of
# all; where these are.
_OWN = ("splits", "room", "held", "candidates", "ranks", "counts")

STEP = np.dtype([(n, np.float64 if n == "scale" else np.int64) for n in (*_GIVEN, *_OWN)])

_given = Struct("=" + "".join("d" if name == "scale" else "q" for name in _GIVEN))
_own = bytes(8 * len(_OWN))


def step_record(given: tuple[float, ...]) -> NDArray[Any]:
    """An array of one record, of what the caller gives."""
    # Packing takes a third of the time that NumPy takes to convert a tuple.
    return np.frombuffer(bytearray(_given.pack(*given) + _own), STEP)


@inlined
def step_at(address):
    """The record at an address."""
    return carray(pointer(address), 1, STEP)[0]
