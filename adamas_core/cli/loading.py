"""A model and its tokenizer, with errors that name the option."""

from __future__ import annotations

from pathlib import Path

from ..llama import CheckpointError, Llama, Tokenizer, fetch, load, load_tokenizer
from ..llama.fetch import FetchedModel
from .parser import existing
from .progress import bar

# What the option --model takes, as its help says.
MODEL = (
    "a GGUF file, a Hugging Face folder, a llama2.c .bin file, or the name of a model to fetch: "
    + " or ".join(fetch.MODELS)
)


def model_name(text: str) -> Path | FetchedModel:
    """The type of an option that is the path of a model, or the name of one to fetch."""
    if text in fetch.MODELS and not Path(text).exists():
        return fetch.MODELS[text]
    return existing(text)


def fetched(model: Path | FetchedModel) -> Path:
    """The path of a model, after its download if it is needed."""
    return fetch.fetch(model) if isinstance(model, FetchedModel) else model


def loaded(model: Path, tokenizer: Path | None) -> tuple[Llama, Tokenizer]:
    """The model and its tokenizer, which comes first because it takes less time."""
    with bar("Loading the model"):
        texts = tokenizer_of(model, tokenizer)
        decoder = load(model)
        return decoder, texts.padded(decoder.config.vocab)


def tokenizer_of(model: Path, given: Path | None) -> Tokenizer:
    """The tokenizer that was given, or the one that belongs to the model."""
    if given is not None:
        return load_tokenizer(given)
    path = beside(model)
    if not path.exists():
        raise ValueError(
            f"{path} is missing, the tokenizer of {model}; --tokenizer takes another file"
        )
    try:
        return load_tokenizer(path)
    except CheckpointError as error:
        raise ValueError(f"{error}; --tokenizer takes another tokenizer") from error


def beside(model: Path) -> Path:
    """The file with the tokenizer of a model: in its folder, beside it, or the same file."""
    if model.is_dir():
        return model / "tokenizer.json"
    return model.with_name("tokenizer.bin") if model.suffix == ".bin" else model
