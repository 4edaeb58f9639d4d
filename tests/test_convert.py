"""A whole model is converted: which layers, which files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_graphs import attention, needed, session
from tiny_model import (
    CONFIG,
    FAMILIES,
    TOKENS,
    DenseAttention,
    random_weights,
    shapes,
    write_huggingface,
)

from adamas_core import KVCache, Selection
from adamas_core.llama import generate, load
from adamas_core.llama.onnx_export import export
from adamas_core.onnx_convert import convert, convert_file

(onnx,) = needed("onnx")
DEEP = {"head_dim": 16, "num_hidden_layers": 4, "max_position_embeddings": 512}


def model_of(folder: Path, family: str = "llama") -> Any:
    pytest.importorskip("safetensors", reason='needs the extra "llama"')
    config = CONFIG | DEEP | FAMILIES[family]
    return load(write_huggingface(folder / "model", config, random_weights(shapes(config))))


def likeliest(run: Any, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens of a converted model, whose cache is copied from step to step."""
    cache, found, n = {}, [], 0
    for x in run.get_inputs():
        if x.name.startswith("past"):
            kind = np.uint8 if x.name.endswith("codes") else np.float32
            cache[x.name] = np.zeros([1, x.shape[1], 0, *x.shape[3:]], kind)
    names = [x.name.replace("present", "past_key_values") for x in run.get_outputs()]
    ids = prompt
    while len(found) < count:
        n += len(ids)
        lengths = {
            "seqlens_k": np.array([n - 1], np.int32),
            "total_sequence_length": np.array(n, np.int32),
        }
        inputs = {"input_ids": np.array([ids]), **lengths, **cache}
        out = dict(zip(names, run.run(None, inputs), strict=True))
        logits = out.pop("logits")
        cache, ids = out, [int(logits[0].argmax())]
        found += ids
    return found


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3 layer types"])
@pytest.mark.parametrize("options", [{}, {"tail": 0, "sinks": 2}], ids=str)
def test_the_text_of_the_numpy_decoder(
    family: str, options: dict[str, int], tmp_path: Path
) -> None:
    """Tokens of a converted model are those of a KVCache with the same options."""
    needed("onnxruntime")
    model, selection = model_of(tmp_path, family), Selection(**options)  # type: ignore[arg-type]
    export(model, tmp_path / "dense.onnx")
    convert_file(tmp_path / "dense.onnx", tmp_path / "sparse.onnx", 24, selection)
    prompt = np.random.default_rng(0).integers(0, 61, 150).tolist()
    cache = KVCache(model.config.layers, selection, windows=model.config.windows)
    wanted = list(generate(model, prompt, cache.attention(24), max_tokens=40))
    assert likeliest(session(tmp_path / "sparse.onnx"), prompt, 40) == wanted
    assert len(set(wanted)) > 3  # a text that repeats one token would hide a mistake


def test_a_budget_that_covers_the_context_is_dense(tmp_path: Path) -> None:
    needed("onnxruntime")
    model = model_of(tmp_path)
    export(model, tmp_path / "dense.onnx")
    convert_file(tmp_path / "dense.onnx", tmp_path / "sparse.onnx", 200)
    wanted = list(generate(model, TOKENS, DenseAttention(), max_tokens=40))
    assert likeliest(session(tmp_path / "sparse.onnx"), TOKENS, 40) == wanted


def test_layers_that_stay_dense(tmp_path: Path) -> None:
    export(model_of(tmp_path, "gemma3 layer types"), tmp_path / "model.onnx")
    made = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    done = convert(made, dense_layers=2)
    assert (done.replaced, done.causal) == (1, 0)
    assert [name.split()[1] for name in done.windows] == ["'0.attention'", "'2.attention'"]
    assert [name.split()[1] for name in done.dense] == ["'1.attention'"]
    codes = [x.name for x in made.graph.input if x.name.endswith("codes")]
    assert codes == ["past_key_values.3.codes"]


def test_weights_go_with_the_model(tmp_path: Path) -> None:
    """To another folder they are copied, and they replace no other file there."""
    needed("onnxruntime")
    model = model_of(tmp_path)
    export(model, tmp_path / "model.onnx")
    (tmp_path / "other").mkdir()
    convert_file(tmp_path / "model.onnx", tmp_path / "other" / "sparse.onnx", 200)
    found = session(tmp_path / "other" / "sparse.onnx")
    assert likeliest(found, TOKENS, 3)[0] == model.forward(TOKENS, 0, DenseAttention()).argmax()
    with pytest.raises(ValueError, match=r"model\.onnx\.data is there already"):
        convert_file(tmp_path / "model.onnx", tmp_path / "other" / "again.onnx")
    convert_file(tmp_path / "model.onnx", tmp_path / "beside.onnx")  # where the weights are


def test_other_attention_is_refused() -> None:
    made = attention(2, 2, 16, sparse=False)
    made.graph.node[0].op_type = "MultiHeadAttention"
    with pytest.raises(
        ValueError, match="MultiHeadAttention 'attention' is an attention that cannot"
    ):
        convert(made)


def test_a_model_without_attention_is_refused() -> None:
    made = attention(2, 2, 16, sparse=False)
    made.graph.node[0].op_type = "Other"
    with pytest.raises(ValueError, match="no attention that is known"):
        convert(made)


def test_a_model_is_converted_once() -> None:
    made = attention(2, 2, 16, sparse=False)
    convert(made)
    with pytest.raises(ValueError, match="the model is converted already"):
        convert(made)


def test_a_model_is_not_written_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(attention(2, 2, 16, sparse=False).SerializeToString())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.onnx is the model to convert; expected another file"):
        convert_file(path, tmp_path / "." / "a.onnx")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"budget": 0}, ValueError, "budget=0"),
        ({"dense_layers": -1}, ValueError, "dense_layers=-1"),
        (
            {"dense_layers": 2},
            ValueError,
            "convert: dense_layers=2; expected 0 to 1, the attention nodes of the model",
        ),
        ({"selection": 3}, TypeError, "a Selection"),
        ({"budget": 2, "selection": Selection(sinks=3)}, ValueError, "budget=2"),
        ({"selection": Selection(metric="manhattan")}, ValueError, "expected 'weighted'"),
    ],
)
def test_options_are_checked(arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        convert(attention(2, 2, 16, sparse=False), **arguments)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model, but a sentence")
    with pytest.raises(ValueError, match=r"x\.onnx"):
        convert_file(tmp_path / "x.onnx", tmp_path / "y.onnx")
    with pytest.raises(FileNotFoundError):
        convert_file(tmp_path / "z.onnx", tmp_path / "y.onnx")
