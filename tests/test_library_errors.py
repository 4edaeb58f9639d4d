"""Errors of outside libraries: all become errors that name the file, but Ctrl-C passes."""

from __future__ import annotations

import pytest

from adamas_core.llama import CheckpointError
from adamas_core.llama.library_errors import library_errors

# pyo3's class for a panic of Rust code is a BaseException with this name.
PanicException = type("PanicException", (BaseException,), {})


@pytest.mark.parametrize("error", [TypeError("odd"), RecursionError("odd"), PanicException("odd")])
def test_an_error_of_a_library_names_the_file(error):
    with pytest.raises(CheckpointError, match=r"^x\.json: odd$"), library_errors("x.json"):
        raise error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError, FileNotFoundError])
def test_other_errors_pass(kind):
    with pytest.raises(kind), library_errors("x.json"):
        raise kind


def test_a_panic_of_the_tokenizers_package_is_caught():
    lib = pytest.importorskip("tokenizers", reason='needs the extra "llama"')
    with pytest.raises(CheckpointError, match=r"^x\.json: "), library_errors("x.json"):
        lib.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], continuing_subword_prefix="x" * 50)
