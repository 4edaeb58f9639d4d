"""Decode with ONNX Runtime: its own attention, and the sparse operator in its place.

    python docs/examples/onnxruntime_decode.py [MODEL [TEXT]]

MODEL is what `adamas_core.llama.load` reads, a GGUF file for example, and TEXT a file that it
continues. Without them it is a small random decoder. The model is exported to ONNX and converted.
Then both graphs decode the same tokens, each with a cache that it grows in place.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

from adamas_core import llama
from adamas_core.llama.onnx_export import export
from adamas_core.llama.rope import scaled_rope
from adamas_core.llama.weights import Layer, Weights
from adamas_core.onnx_convert import convert_file
from adamas_core.onnxruntime import code_bytes, library

NEW, BUDGET = 40, 128


class Decoder:
    """A graph and its cache. Past and present share memory, so nothing is copied."""

    def __init__(self, path: Path, capacity: int) -> None:
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(library())
        # Its threads would keep spinning while the operator's own threads work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.tokens = 0
        self.cache = {}
        past = [x for x in self.session.get_inputs() if x.name.startswith("past")]
        _, H_kv, _, D = next(x.shape for x in past if x.name.endswith("key"))
        for x in past:
            if x.name.endswith("codes"):
                zeros = np.zeros((1, H_kv, code_bytes(capacity, D)), np.uint8)
            else:
                zeros = np.zeros((1, H_kv, capacity, D), np.float32)
            self.cache[x.name] = onnxruntime.OrtValue.ortvalue_from_numpy(zeros)

    def __call__(self, ids: list[int]) -> np.ndarray:
        """The logits after new tokens."""
        self.tokens += len(ids)
        binding = self.session.io_binding()
        binding.bind_output("logits")
        binding.bind_cpu_input("input_ids", np.array([ids]))
        binding.bind_cpu_input("seqlens_k", np.array([self.tokens - 1], np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array(self.tokens, np.int32))
        for name, value in self.cache.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()[0]


def decode(decoder: Decoder, prompt: list[int]) -> tuple[list[int], float]:
    """The likeliest tokens after a prompt, and the milliseconds per token."""
    logits, found, seconds = decoder(prompt), [], []
    for _ in range(NEW):
        found.append(int(logits.argmax()))
        start = time.perf_counter()
        logits = decoder(found[-1:])
        seconds.append(time.perf_counter() - start)
    return found, 1e3 * float(np.median(seconds))


def random_model() -> llama.Llama:
    """A small decoder with random weights."""
    rng = np.random.default_rng(0)
    E, F, H, H_kv, D, V = 256, 512, 8, 2, 64, 512

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 1.5 * shape[-1] ** -0.5).astype(np.float32)

    one, none = np.ones(E, np.float32), (None,) * 3
    layers = [
        Layer(one, weight((H + 2 * H_kv) * D, E), *none, weight(E, H * D), None, None, one,
              weight(2 * F, E), weight(E, F), None)
        for _ in range(2)
    ]  # fmt: skip
    rope = scaled_rope(D, 10000.0)
    config = llama.Config(2, E, F, H, H_kv, D, V, 2048, 1e-5, (rope,) * 2, (None,) * 2)
    return llama.Llama(config, Weights(weight(V, E), layers, one, weight(V, E)))


def main() -> None:
    if len(sys.argv) > 1:
        model, tokenizer = llama.load(sys.argv[1]), llama.load_tokenizer(sys.argv[1])
        text = Path(sys.argv[2] if len(sys.argv) > 2 else __file__).read_text(encoding="utf-8")
        prompt = tokenizer.encode(text)[: model.config.context - NEW]
    else:
        model, tokenizer = random_model(), None
        prompt = np.random.default_rng(1).integers(0, model.config.vocab, 1000).tolist()
    capacity = len(prompt) + NEW

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        export(model, graph)
        paths = {"GroupQueryAttention": graph}
        for name, budget in (("sparse, budget = context", capacity), ("sparse", BUDGET)):
            paths[name] = graph.with_name(f"{budget}.onnx")
            convert_file(graph, paths[name], budget)
        found = {}
        for name, path in paths.items():
            found[name], milliseconds = decode(Decoder(path, capacity), prompt)
            print(f"{name}: {milliseconds:.2f} ms per token after a prompt of {len(prompt)}")
    dense = found["GroupQueryAttention"]
    for name, tokens in found.items():
        same = sum(a == b for a, b in zip(tokens, dense, strict=True))
        print(f"{name}: {same} of {NEW} tokens as GroupQueryAttention")
    if tokenizer is not None:
        print(tokenizer.decode(found["sparse"]))
    assert found["sparse, budget = context"] == dense


main()
