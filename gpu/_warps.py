"""Launches in which one warp takes one row of head_dim coordinates, see kernels/warp_row.cuh."""

from __future__ import annotations

from adamas_core.reference.layout import padded

from ._kernels import VALUES

LANES = 32
THREADS = 128  # per block, so four rows; with small blocks few rows wait for a slow one


def per_lane(D: int) -> int:
    """N of warp_row.cuh: coordinates per lane."""
    n = max(padded(D) // LANES, 1)
    assert n in VALUES, f"head_dim {D} is above 2048"
    return n


def blocks(rows: int) -> tuple[int]:
    """The grid for `rows` rows."""
    return (-(-rows * LANES // THREADS),)


def hadamard_scale(D: int) -> float:
    """The factor of the transform. A launch rounds it to float32."""
    return float(padded(D) ** -0.5)
