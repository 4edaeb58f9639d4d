"""Every reader of files: a small valid file, and the use of it once it is read."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tiny_model import (
    CONFIG,
    FAMILIES,
    GEMMA3,
    KINDS,
    LINEAR,
    LLAMA3,
    YARN,
    DenseAttention,
    random_weights,
    shapes,
    write_gguf,
    write_huggingface,
    write_llama2c,
)
from tiny_tokenizer import (
    CHATML,
    byte_level_tables,
    write_folder,
    write_score_bpe,
    write_tables,
    write_tokenizer_bin,
)

from adamas_core import KVCache, decode_attention
from adamas_core.llama import load, load_tokenizer

# A table of 256 empty entries: it changes nothing.
CHARSMAP = base64.b64encode((1024).to_bytes(4, "little") + bytes(1024)).decode()
SMALL = CONFIG | FAMILIES["llama"] | {"num_hidden_layers": 1, "rope_theta": 10000.0}

GEMMA = GEMMA3 | {"num_hidden_layers": 2, "layer_types": KINDS, "rope_scaling": LINEAR}


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    `write(folder)` makes a valid file and returns its path, `read` reads it, and `kind` says how
    it can be damaged, see `mutations`. `whole` is set if `read` takes the folder of the file.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], None]
    kind: str = "bytes"
    whole: bool = False


def use_model(path):
    model = load(path)
    # Damaged weights may be huge or NaN. That is no fault of the reader.
    with np.errstate(all="ignore"):
        model.forward([0], 0, DenseAttention())


def use_tokenizer(path):
    tokenizer = load_tokenizer(path)
    try:
        ids = tokenizer.encode("a b 12 é漢<s>", bos=False)
    except ValueError:  # a table that lacks these characters
        ids = []
    tokenizer.decode(ids[:20])
    tokenizer.decode(range(min(len(tokenizer.pieces), 300)), special=True)
    assert all(0 <= i < len(tokenizer.pieces) for i in tokenizer.stop)


def use_cache(path):
    cache = KVCache.load(path)
    if len(cache):
        _, H, _, D = cache[0].k.shape
        budget = max(8, cache.selection.sinks + cache.selection.recent)  # a file may ask for many
        decode_attention(np.ones((1, H, 1, D), cache[0].k.dtype), cache, budget)


def write_cache(folder):
    k = np.random.default_rng(0).standard_normal((1, 2, 70, 16)).astype(np.float32)
    cache = KVCache(layers=2)
    for layer in range(2):
        cache.append(k, k, layer=layer)
    cache.save(folder / "x.kv")
    return folder / "x.kv"


def huggingface(name, sharded=False, **changes):
    """The writer of a folder that returns the path of its file `name`."""

    def write(folder):
        config = SMALL | changes
        write_huggingface(folder, config, random_weights(shapes(config)))
        if sharded:
            tensors = dict.fromkeys(shapes(config), "model.safetensors")
            index = {"metadata": {"total_size": 1}, "weight_map": tensors}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder / name

    return write


def folder_file(name):
    return lambda folder: write_folder(folder) / name


def gguf_model(kind, **changes):
    config = SMALL | {"intermediate_size": 64} | changes  # rows of whole blocks
    return lambda folder: write_gguf(
        folder / "x.gguf", config, random_weights(shapes(config)), kind
    )


def sentencepiece_json(folder):
    """A tokenizer.json of the kind of Llama 2 and Gemma: normalizer, post-processor, decoder."""
    write_folder(folder)
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    steps = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Precompiled", "precompiled_charsmap": CHARSMAP},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    bos = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    names = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
    template = {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text]}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    spec |= {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "post_processor": template | {"special_tokens": names},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}]},
    }
    path.write_text(json.dumps(spec))
    return path


def byte_level_gguf(folder):
    tokens, types, merges = byte_level_tables()
    extra = {"token_merges": merges, "tokenizer_pre": "smollm", "chat_template": CHATML}
    extra |= {"bos_token_id": 1, "eos_token_id": 2}
    return write_tables(folder / "x.gguf", "gpt2", tokens, types, **extra)


READERS = {
    "gguf": Reader(gguf_model("F32"), use_model),
    "gguf Q8_0": Reader(gguf_model("Q8_0"), use_model),
    "gguf gemma3": Reader(gguf_model("F32", **GEMMA), use_model),
    "llama2.c": Reader(
        lambda f: write_llama2c(f / "x.bin", SMALL, random_weights(shapes(SMALL))), use_model
    ),
    "config.json": Reader(
        huggingface("config.json", rope_scaling=YARN), use_model, "json", whole=True
    ),
    "config.json llama3": Reader(
        huggingface("config.json", rope_scaling=LLAMA3), use_model, "json", whole=True
    ),
    "config.json gemma3": Reader(
        huggingface("config.json", **GEMMA), use_model, "json", whole=True
    ),
    "model.safetensors": Reader(huggingface("model.safetensors"), use_model, "headed", whole=True),
    "safetensors index": Reader(
        huggingface("model.safetensors.index.json", sharded=True), use_model, "json", whole=True
    ),
    "tokenizer.json": Reader(folder_file("tokenizer.json"), use_tokenizer, "json", whole=True),
    "tokenizer.json sentencepiece": Reader(sentencepiece_json, use_tokenizer, "json", whole=True),
    "tokenizer_config.json": Reader(
        folder_file("tokenizer_config.json"), use_tokenizer, "json", whole=True
    ),
    "gguf byte-level": Reader(byte_level_gguf, use_tokenizer),
    "gguf sentencepiece": Reader(lambda f: write_score_bpe(f / "x.gguf"), use_tokenizer),
    "tokenizer.bin": Reader(lambda f: write_tokenizer_bin(f / "x.bin"), use_tokenizer),
    "cache .kv": Reader(write_cache, use_cache, "kv"),
}
