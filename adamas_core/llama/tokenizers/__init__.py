"""Text to token ids and back, with the tokenizer of a model.

Every tokenizer is an encoder and a table of the bytes of each token. Decoding joins those bytes.
The `tokenizers` package encodes byte-level BPE (GPT-2's kind) and tokenizer.json. `ScoreBPE`
encodes SentencePiece's BPE.
"""

from __future__ import annotations

from pathlib import Path

from ..gguf_file import is_gguf
from ..settings import CheckpointError
from . import gguf_tables, tokenizer_bin, tokenizer_json
from .stream import Stream
from .tokenizer import Tokenizer

__all__ = ["Stream", "Tokenizer", "load_tokenizer"]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer.

    Parameters
    ----------
    path : str or Path
        A GGUF file, a tokenizer.json or its folder, or a llama2.c tokenizer.bin.

    Returns
    -------
    Tokenizer

    Raises
    ------
    CheckpointError
        The file is damaged, or of a kind that is not supported.
    OSError
        The file cannot be opened, or it is no regular file.
    ImportError
        The kind needs a library of the extra "llama".
    """
    path = Path(path)
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.suffix == ".json":
        return tokenizer_json.load(path)
    if is_gguf(path):
        return gguf_tables.load(path)
    if path.suffix == ".bin":
        return tokenizer_bin.load(path)
    raise CheckpointError(
        f"{path}: not a tokenizer that can be read; "
        "give a GGUF file, a tokenizer.json or a llama2.c tokenizer.bin"
    )
