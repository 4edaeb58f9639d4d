"""The Llama decoder in NumPy: a model and its tokenizer from a file, new tokens out.

Importing this package loads NumPy alone. `load` and `load_tokenizer` import the libraries of the
extra "llama" when a file needs them.
"""

from .config import Config
from .decoder import Attention, Llama
from .generate import Sampling, generate
from .load import load
from .settings import CheckpointError
from .tokenizers import Tokenizer, load_tokenizer

__all__ = [
    "Attention",
    "CheckpointError",
    "Config",
    "Llama",
    "Sampling",
    "Tokenizer",
    "generate",
    "load",
    "load_tokenizer",
]
