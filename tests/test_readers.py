"""Every reader of files: damage gives one clear error, and no reader waits or asks for memory."""

from __future__ import annotations

import os
import random
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated
from readers import READERS

for library in ("gguf", "safetensors", "tokenizers"):
    pytest.importorskip(library, reason='needs the extra "llama"')

LLAMA = [name for name in READERS if name != "cache .kv"]


@pytest.fixture(scope="module", params=LLAMA)
def reader(request, tmp_path_factory):
    """A reader, the path of its file, and the bytes of the whole file."""
    found = READERS[request.param]
    path = found.write(tmp_path_factory.mktemp("reader"))
    return found, path, path.read_bytes()


def read(reader, path):
    reader.read(path.parent if reader.whole else path)


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
def test_damage_is_an_error_that_names_the_file(reader, seed):
    found, path, whole = reader
    path.write_bytes(mutated(found.kind, whole, random.Random(seed)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            read(found, path)
        except (ValueError, OSError) as error:
            assert str(path.parent) in str(error)


@pytest.mark.parametrize("kind", ["empty", "FIFO", "folder", "no text"])
def test_another_kind_of_file_is_an_error_that_names_it(reader, kind):
    found, path, whole = reader
    path.unlink()
    try:
        if kind == "FIFO":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.write_bytes(b"" if kind == "empty" else b"\xff\xfe" * 500)
        with pytest.raises((ValueError, OSError)) as error:
            read(found, path)
        assert str(path) in str(error.value)
    finally:
        path.rmdir() if kind == "folder" else path.unlink()
        path.write_bytes(whole)
