"""Amounts as people read them."""

from __future__ import annotations


def amount(nbytes: float) -> str:
    """A number of bytes as people read it."""
    if nbytes < 1024:
        return f"{nbytes:.0f} B"
    for unit in ("KiB", "MiB"):
        nbytes /= 1024
        if nbytes < 1024:
            return f"{nbytes:.1f} {unit}"
    return f"{nbytes / 1024:.1f} GiB"
