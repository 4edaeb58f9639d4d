"""A model in several GGUF files: the logits of the whole one, and parts that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import CONFIG, FAMILIES, logits, random_weights, shapes, write_gguf

from adamas_core.llama import CheckpointError, load, load_tokenizer

gguf = pytest.importorskip("gguf", reason='needs the extra "llama"')

CONFIG_HERE = CONFIG | FAMILIES["llama"]
WEIGHTS = random_weights(shapes(CONFIG_HERE))


@pytest.fixture
def first(tmp_path):
    """The first part of a model in five parts, as the gguf package writes them."""
    write_gguf(tmp_path / "x.gguf", CONFIG_HERE, WEIGHTS, split_max_tensors=5)
    return tmp_path / "x-00001-of-00005.gguf"


def part(first, number):
    return first.with_name(f"x-{number:05}-of-00005.gguf")


def test_all_parts_are_the_model(first, tmp_path):
    assert len(list(tmp_path.glob("*.gguf"))) == 5
    whole = write_gguf(tmp_path / "whole.gguf", CONFIG_HERE, WEIGHTS)
    np.testing.assert_array_equal(logits(first), logits(whole))


@pytest.mark.parametrize("open_", [load, load_tokenizer])
def test_another_part_names_the_first(first, open_):
    with pytest.raises(CheckpointError, match=r"part 3 of 5; expected x-00001-of-00005\.gguf"):
        open_(part(first, 3))


def test_a_missing_part_is_named(first):
    part(first, 4).unlink()
    with pytest.raises(CheckpointError, match=r"x-00004-of-00005\.gguf: missing, part 4 of the 5"):
        load(first)


def test_a_part_in_the_place_of_another_is_named(first):
    part(first, 2).write_bytes(part(first, 3).read_bytes())
    with pytest.raises(CheckpointError, match=r"x-00002.*: part 3 of 5 by .*; expected part 2 of"):
        load(first)


def test_a_first_part_by_another_name_is_refused(first):
    with pytest.raises(CheckpointError, match=r"y\.gguf: part 1 of 5 .* -00001-of-00005\.gguf"):
        load(first.rename(first.with_name("y.gguf")))


def test_a_cut_part_is_named(first):
    data = part(first, 5).read_bytes()
    part(first, 5).write_bytes(data[: len(data) - 9])
    with pytest.raises(CheckpointError, match=r"x-00005-of-00005\.gguf: cut short"):
        load(first)


def test_tensors_of_all_parts_are_counted(first, tmp_path):
    """A part of another model has its place and its number, but other tensors."""
    other = tmp_path / "other"
    other.mkdir()
    more = CONFIG_HERE | {"num_hidden_layers": 3}
    weights = random_weights(shapes(more))
    write_gguf(other / "x.gguf", more, weights, split_max_tensors=7)
    assert len(list(other.iterdir())) == 5
    part(first, 5).write_bytes((other / "x-00005-of-00005.gguf").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"5 parts hold \d+ tensors; expected 21|is in x-0000"
    ):
        load(first)
