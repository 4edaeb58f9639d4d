"""SmolLM2 as ONNX, exported from its GGUF: ONNX Runtime writes the text of the NumPy decoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_graphs import needed, session

from adamas_core import KVCache
from adamas_core.llama import Llama, fetch, generate, load, load_tokenizer
from adamas_core.llama.onnx_export import export
from adamas_core.onnx_convert import convert_file
from adamas_core.onnxruntime import code_bytes

pytestmark = pytest.mark.model
PROMPT, NEW = 1500, 40
ROOM = PROMPT + NEW


@pytest.fixture(scope="module")
def path() -> Path:
    path = fetch.cache_folder() / fetch.MODELS[fetch.DEFAULT].file
    if not path.is_file():
        pytest.skip(f"{path} is absent; adamas-core demo fetches it")
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> Llama:
    return load(path)


@pytest.fixture(scope="module")
def prompt(path: Path) -> list[int]:
    page = Path(__file__).resolve().parent.parent / "README.md"
    return load_tokenizer(path).encode(page.read_text(encoding="utf-8"))[:PROMPT]


@pytest.fixture(scope="module")
def dense(model: Llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed("onnx", "onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "dense.onnx"
    export(model, path)
    return path


def likeliest(run: Any, prompt: list[int]) -> Iterator[int]:
    """The likeliest tokens; past and present are bound to the same memory."""
    (onnxruntime,) = needed("onnxruntime")
    past = [x for x in run.get_inputs() if x.name.startswith("past")]
    _, H_kv, _, D = past[0].shape
    cache, n, ids = {}, 0, prompt
    for x in past:
        if x.name.endswith("codes"):
            zeros = np.zeros((1, H_kv, code_bytes(ROOM, D)), np.uint8)
        else:
            zeros = np.zeros((1, H_kv, ROOM, D), np.float32)
        cache[x.name] = onnxruntime.OrtValue.ortvalue_from_numpy(zeros)
    for _ in range(NEW):
        n += len(ids)
        binding = run.io_binding()
        binding.bind_output("logits")
        binding.bind_cpu_input("input_ids", np.array([ids]))
        binding.bind_cpu_input("seqlens_k", np.array([n - 1], np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array(n, np.int32))
        for name, value in cache.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        run.run_with_iobinding(binding)
        ids = [int(binding.get_outputs()[0].numpy()[0].argmax())]
        yield ids[0]


@pytest.mark.parametrize("budget", [96, ROOM], ids=["sparse", "covers the context"])
def test_the_text_of_the_numpy_decoder(
    budget: int, model: Llama, prompt: list[int], dense: Path
) -> None:
    sparse = dense.with_name(f"{budget}.onnx")
    assert convert_file(dense, sparse, budget).replaced == model.config.layers
    found = list(likeliest(session(sparse), prompt))
    cache = KVCache(model.config.layers, capacity=ROOM)
    wanted = list(generate(model, prompt, cache.attention(budget), max_tokens=NEW))
    assert found == wanted
    if budget == ROOM:
        assert found == list(likeliest(session(dense), prompt))
