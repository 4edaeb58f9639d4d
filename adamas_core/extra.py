"""Libraries that come with an extra of the package."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def needs_extra(module: str, extra: str = "llama") -> Any:
    """Import a module of an extra; if it is missing, say how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f'{module} is missing: pip install "adamas-core[{extra}]"') from error
