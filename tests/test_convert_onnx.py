"""adamas-core convert-onnx: its options reach the nodes, and its errors are one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_graphs import attention, needed
from tiny_model import OutOf

from adamas_core.onnx_convert.graph import attributes

(onnx,) = needed("onnx")


def run(out_of: OutOf, *arguments: object) -> tuple[int, str, str]:
    return out_of(*map(str, arguments))


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    path = tmp_path / "dense.onnx"
    onnx.save(attention(4, 2, 16, sparse=False), path)
    return path


def test_options_reach_the_nodes(dense: Path, tmp_path: Path, out_of: OutOf) -> None:
    out = tmp_path / "sparse.onnx"
    status, said, errors = run(out_of, "convert-onnx", dense, "-o", out, "--budget=9", "--tail=3")
    assert (status, errors) == (0, "")
    assert said == f"{out}: 1 attention nodes choose 9 tokens per query head\n"
    (node,) = onnx.load(out).graph.node
    assert attributes(node).items() >= {"budget": 9, "tail": 3, "query_bits": 4}.items()


def test_what_stays_is_named(dense: Path, tmp_path: Path, out_of: OutOf) -> None:
    out = tmp_path / "sparse.onnx"
    _, said, _ = run(out_of, "convert-onnx", dense, "--out", out, "--dense-layers=1")
    assert "0 attention nodes" in said
    assert "1 as they were, because they are dense layers: GroupQueryAttention 'attention'" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plain"], "adamas-core convert-onnx: --plain"),
        (["--metric=manhattan"], "metric='manhattan'; expected 'weighted'"),
        (["--budget=2", "--sinks=3"], "budget"),
        (["--budget=0"], "--budget: 0; expected at least 1"),
    ],
)
def test_errors(options: list[str], message: str, dense: Path, out_of: OutOf) -> None:
    status, said, errors = run(out_of, "convert-onnx", dense, "-o", dense.with_name("x"), *options)
    assert (status, said, errors.count("\n")) == (2, "", 1)
    assert message in errors
    assert not dense.with_name("x").exists()


def test_a_model_that_is_missing_or_none(tmp_path: Path, out_of: OutOf) -> None:
    assert "No such file" in run(out_of, "convert-onnx", tmp_path / "none", "-o", "x")[2]
    (tmp_path / "text").write_text("text")
    status, _, errors = run(out_of, "convert-onnx", tmp_path / "text", "-o", "x")
    assert (status, errors.count("\n")) == (2, 1)
    assert "text is no ONNX model" in errors
