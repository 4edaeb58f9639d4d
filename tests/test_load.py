"""A file of no known format, and damaged files: every one gives one clear error."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_model import CONFIG, FAMILIES, random_weights, shapes, write_gguf, write_llama2c

from adamas_core.llama import CheckpointError, load

pytest.importorskip("gguf", reason='needs the extra "llama"')


def test_another_kind_of_file_is_a_clear_error(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="not a checkpoint that can be read"):
        load(path)


FUZZ = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One small model in each format."""
    folder = tmp_path_factory.mktemp("whole")
    config = CONFIG | FAMILIES["llama"] | {"rope_theta": 10000.0, "num_hidden_layers": 1}
    weights = random_weights(shapes(config))
    return {
        "gguf": write_gguf(folder / "x.gguf", config, weights),
        "bin": write_llama2c(folder / "x.bin", config, weights),
    }


@pytest.mark.parametrize("kind", ["gguf", "bin"])
@given(share=st.floats(0, 1, exclude_max=True))
@FUZZ
def test_a_file_cut_anywhere_is_a_clear_error(whole, kind, share, tmp_path):
    data = whole[kind].read_bytes()
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError) as error:
        load(cut)
    assert str(cut) in str(error.value)


@pytest.mark.parametrize("kind", ["gguf", "bin"])
@given(place=st.integers(0, 3000), value=st.integers(0, 255))
@FUZZ
def test_a_damaged_byte_is_a_clear_error_or_another_model(whole, kind, place, value, tmp_path):
    data = bytearray(whole[kind].read_bytes())
    data[place] = value
    damaged = tmp_path / f"damaged.{kind}"
    damaged.write_bytes(data)
    try:
        load(damaged)
    except CheckpointError as error:
        assert str(damaged) in str(error)
