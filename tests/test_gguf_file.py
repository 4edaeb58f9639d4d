"""GGUF files: the values of the gguf package, damaged headers, and files of another kind."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from tiny_model import CONFIG, FAMILIES, finish, write_gguf

from adamas_core.llama import CheckpointError
from adamas_core.llama.gguf_file import is_gguf, open_gguf

gguf = pytest.importorskip("gguf", reason='needs the extra "llama"')


def test_a_file_is_known_by_its_first_bytes(tmp_path):
    path = write_gguf(tmp_path / "x.bin", CONFIG | FAMILIES["llama"], {})
    assert is_gguf(path)
    (tmp_path / "x.gguf").write_bytes(path.read_bytes()[1:])
    assert not is_gguf(tmp_path / "x.gguf")


# Damaged headers


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def file_of(path, *entries, tensors=(), data=b""):
    """A GGUF file of packed metadata entries and packed infos of tensors."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    infos = b"".join([*entries, *tensors])
    path.write_bytes(head + infos + b"\0" * (-(len(head) + len(infos)) % 32) + data)
    return path


def tensor(name, offset, *shape, kind=0):
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


LISTS = {"float32": 6, "string": 8, "bool": 7, "uint8": 0}


@pytest.mark.parametrize("count", [1, 2**27, 2**40, 2**61, 2**64 - 1])
@pytest.mark.parametrize("kind", LISTS)
def test_a_count_above_the_bytes_of_the_file_is_refused(kind, count, tmp_path):
    entry = text("tokenizer.x") + struct.pack("<IIQ", 9, LISTS[kind], count)
    path = file_of(tmp_path / "x.gguf", entry)
    path.write_bytes(path.read_bytes()[: 24 + len(entry)])
    with pytest.raises(CheckpointError, match=r"x\.gguf: cut short.*tokenizer\.x"):
        open_gguf(path)


@pytest.mark.parametrize("tensors", [0, 2**40, 2**64 - 1])
def test_more_entries_and_tensors_than_the_file_holds_are_refused(tensors, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, 0 if tensors else 2**40))
    with pytest.raises(CheckpointError, match=r"x\.gguf: cut short, or damaged: the name of"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([text("a") + struct.pack("<IQ", 8, 2**62)], "a needs 4611686018427387904 bytes"),
        ([text("a") + struct.pack("<II", 4, 1)] * 2, "a is there twice"),
        ([text("a") + struct.pack("<IIQ", 9, 9, 1)], "a is of type 9"),
        ([text("a") + struct.pack("<I", 99)], "a is of type 99"),
        ([struct.pack("<Q", 2**20)], "the name of metadata entry 0 is 1048576 bytes long"),
        ([struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", 4, 1)], "entry 0: 'utf-8' codec"),
    ],
)
def test_a_damaged_entry_is_named(entries, message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as error:
        open_gguf(file_of(tmp_path / "x.gguf", *entries))
    assert "x.gguf" in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([tensor("a", 0, 8), tensor("b", 28, 8)], "tensors a and b overlap"),
        ([tensor("a", 0, 8), tensor("a", 32, 8)], "two tensors have the same name"),
        ([tensor("a", 0, 2**40, 2**40)], "tensor a ends at byte"),
        ([tensor("a", 2**63, 8)], "tensor a ends at byte"),
        ([tensor("a", 0, 0, 8)], r"tensor a has shape \(8, 0\)"),
        ([tensor("a", 0, 8, kind=2)], "tensor a has shape .*multiple of 32"),
        ([tensor("a", 0, 8, kind=999)], "tensor a has type 999"),
        ([tensor("a", 0, *[1] * 5)], "tensor a has 5 axes"),
    ],
)
def test_a_damaged_tensor_is_named(tensors, message, tmp_path):
    path = file_of(tmp_path / "x.gguf", tensors=tensors, data=b"\0" * 64)
    with pytest.raises(CheckpointError, match=message) as error:
        assert open_gguf(path)[0].tensors
    assert str(path) in str(error.value)


@pytest.mark.parametrize("align", [0, 48])
def test_an_alignment_that_is_no_power_of_two_is_refused(align, tmp_path):
    entry = text("general.alignment") + struct.pack("<II", 4, align)
    with pytest.raises(CheckpointError, match=f"general.alignment is {align}"):
        assert open_gguf(file_of(tmp_path / "x.gguf", entry))[0].tensors


@pytest.mark.parametrize("version", [1, 4, 3 << 24])
def test_another_version_is_named(version, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, 0))
    with pytest.raises(CheckpointError, match=f"version {version} is not 2 or 3"):
        open_gguf(path)


def test_every_value_is_that_of_the_gguf_package(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(kind, 100)
    writer.add_float32("float32", 0.1)
    writer.add_float64("float64", 0.1)
    writer.add_bool("bool", True)
    writer.add_string("string", "é漢")
    for name, values in {
        "strings": ["", "a", "é漢"],
        "integers": [-1, 2**31 - 1],
        "floats": [0.1, float("inf")],
        "bools": [True, False],
    }.items():
        writer.add_array(name, values)
    writer.add_tensor("x", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("y", np.arange(5, dtype=np.float16))
    path = finish(writer, tmp_path / "x.gguf")
    theirs, (ours, settings) = gguf.GGUFReader(path), open_gguf(path)
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            found, expected = settings.lookup(name), field.contents()
            assert found == expected
            assert type(found) is type(expected)
    for found, expected in zip(ours.tensors, theirs.tensors, strict=True):
        assert (found.name, found.tensor_type) == (expected.name, expected.tensor_type)
        assert found.shape == tuple(expected.shape)
        assert found.data.tobytes() == expected.data.tobytes()
