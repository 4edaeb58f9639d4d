"""A decoder from a checkpoint of any format."""

from __future__ import annotations

from pathlib import Path

from . import gguf, huggingface, llama2c
from .decoder import Llama
from .gguf_file import is_gguf
from .settings import CheckpointError


def load(path: str | Path) -> Llama:
    """Load a decoder from a checkpoint.

    All weights become float32.

    Parameters
    ----------
    path : str or Path
        A GGUF file, or the first of several; a Hugging Face folder (config.json and safetensors);
        or a llama2.c .bin file of the first version.

    Returns
    -------
    Llama

    Raises
    ------
    CheckpointError
        The file is damaged, a tensor is missing or has another shape than the config asks for, or
        the model needs a feature that this decoder does not have.
    OSError
        The file cannot be opened, or it is no regular file.
    ImportError
        The format needs a library of the extra "llama".
    """
    path = Path(path)
    if path.is_dir():
        return Llama(*huggingface.load(path))
    if is_gguf(path):
        return Llama(*gguf.load(path))
    if path.suffix == ".bin":
        return Llama(*llama2c.load(path))
    raise CheckpointError(
        f"{path}: not a checkpoint that can be read; "
        "give a GGUF file, a Hugging Face folder or a llama2.c .bin file"
    )
