"""Sparse decoding in Hugging Face transformers: ``attn_implementation="adamas"``.

It imports torch and transformers, so nothing else of the package imports it.
"""

from __future__ import annotations

try:
    import torch as _torch
    import transformers as _transformers
except ImportError as error:
    raise ImportError(
        'adamas_core.transformers needs torch and transformers: pip install "adamas-core'
        '[transformers]"'
    ) from error

from .attention import register

del _torch, _transformers

__all__ = ["register"]
