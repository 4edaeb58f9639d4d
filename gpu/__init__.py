"""The GPU backend: in this release only the sentence that says why there is none."""

from __future__ import annotations


def why_not() -> str:
    """Say in one sentence why the GPU backend cannot be used."""
    return (
        "the CUDA kernels are not part of adamas-core 0.1; "
        "give NumPy arrays to use the CPU backend instead"
    )
