"""The Llama decoder: weights and tokenizer from a file, logits and text out.

Importing it loads NumPy alone. The libraries that read files (the extra "llama") are imported when
a file needs them.
"""

from .checkpoints import CheckpointError
from .decoder import Attention, Config, Llama, generate, load
from .tokenizers import Tokenizer
from .tokenizers import load as load_tokenizer

__all__ = [
    "Attention",
    "CheckpointError",
    "Config",
    "Llama",
    "Tokenizer",
    "generate",
    "load",
    "load_tokenizer",
]
