"""Libraries that come with the extra "llama"."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def needs_extra(module: str) -> Any:
    """Import a module of the extra; if it is missing, say how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f'{module} is missing: pip install "adamas-core[llama]"') from error
