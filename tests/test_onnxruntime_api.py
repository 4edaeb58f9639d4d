"""onnxruntime_api.h names the positions that the functions have in the installed ONNX Runtime."""

from __future__ import annotations

import ctypes as c
import re
from pathlib import Path

import pytest
from onnx_graphs import needed

from adamas_core.cpu import native

HEADER = native.HERE / "onnxruntime_api.h"
# Functions that make what the header's functions read: positions in the same table.
MAKE_SHAPE, SET_TYPE, SET_AXES, MAKE_OPTIONS, FREE_OPTIONS = 57, 58, 59, 10, 100
FREE_DOMAIN, ERROR_CODE, ERROR_MESSAGE = 101, 1, 2
MAKE_TENSOR, DEFAULT_ALLOCATOR, FREE_VALUE = 48, 78, 96


def positions() -> dict[str, int]:
    """The functions of the header, each with the number in the comment after it."""
    text = HEADER.read_text(encoding="utf-8")
    found = re.findall(r"\(\*(\w+)\)\([^;]*;\s*/\* (\d+) \*/", text)
    return {name: int(number) for name, number in found}


class Table:
    """The installed library's table of functions, at the version that the operator asks for."""

    def __init__(self) -> None:
        (onnxruntime,) = needed("onnxruntime")
        folder = Path(onnxruntime.__file__).parent / "capi"
        files = sorted(folder.glob("libonnxruntime.so*")) or sorted(folder.glob("*pybind11*.so"))
        base_of = c.CDLL(str(files[0])).OrtGetApiBase
        base_of.restype = c.POINTER(c.c_void_p)
        text = HEADER.read_text(encoding="utf-8")
        (version,) = re.findall(r"ORT_VERSION = (\d+)", text)
        api = c.CFUNCTYPE(c.c_void_p, c.c_uint32)(base_of()[0])(int(version))
        assert api
        self.table = c.cast(api, c.POINTER(c.c_void_p))
        self.positions = positions()

    def at(self, function: str | int, *arguments: object, returns: object = c.c_void_p) -> object:
        """Call a function by its name in the header, or by its position."""
        place = self.positions[function] if isinstance(function, str) else function
        kinds = [type(a) for a in arguments]
        return c.CFUNCTYPE(returns, *kinds)(self.table[place])(*arguments)  # type: ignore[arg-type]

    def done(self, function: str | int, *arguments: object) -> None:
        assert self.at(function, *arguments) is None  # a status that is NULL

    def pointer(self, function: str | int, *arguments: object) -> c.c_void_p:
        """What a function gives through its last argument."""
        out = c.c_void_p()
        self.done(function, *arguments, c.c_void_p(c.addressof(out)))
        assert out.value
        return out


def test_the_header_has_all_positions() -> None:
    """Gaps of the struct and comments agree: the compiler asserts some of them too."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    body = text.split("typedef struct ort_api {")[1].split("} ort_api;")[0]
    place, found = 0, {}
    for line in filter(str.strip, body.split(";")):
        gap = re.search(r"void \*from_(\d+)(?:\[(\d+)\])?", line)
        if gap:
            assert int(gap[1]) == place
            place += int(gap[2] or 1)
        else:
            name = re.search(r"\(\*(\w+)\)\(", line)
            assert name
            found[name[1]] = place
            place += 1
    assert found == positions()


def test_errors() -> None:
    table = Table()
    status = c.c_void_p(table.at("create_status", c.c_int(2), c.c_char_p(b"a sentence")))  # type: ignore[arg-type]
    assert table.at(ERROR_CODE, status, returns=c.c_int) == 2
    assert table.at(ERROR_MESSAGE, status, returns=c.c_char_p) == b"a sentence"
    table.at("release_status", status, returns=None)


def test_shapes_and_tensors() -> None:
    table = Table()
    allocator = table.pointer(DEFAULT_ALLOCATOR)
    axes = (c.c_int64 * 3)(2, 5, 7)
    address = c.c_void_p(c.addressof(axes))
    value = table.pointer(MAKE_TENSOR, allocator, address, c.c_size_t(3), c.c_int(10))
    assert table.pointer("tensor_data", value).value
    shape = table.pointer("type_and_shape", value)
    kind, rank, read = c.c_int(), c.c_size_t(), (c.c_int64 * 3)()
    table.done("element_type", shape, c.c_void_p(c.addressof(kind)))
    table.done("dimensions_count", shape, c.c_void_p(c.addressof(rank)))
    table.done("dimensions", shape, c.c_void_p(c.addressof(read)), c.c_size_t(3))
    assert (kind.value, rank.value, list(read)) == (10, 3, [2, 5, 7])
    table.at("release_shape", shape, returns=None)
    table.at(FREE_VALUE, value, returns=None)


def test_domains() -> None:
    table = Table()
    domain = table.pointer("create_domain", c.c_char_p(b"a_domain"))
    options = table.pointer(MAKE_OPTIONS)
    table.done("add_domain", options, domain)
    table.at(FREE_OPTIONS, options, returns=None)
    table.at(FREE_DOMAIN, domain, returns=None)


@pytest.mark.parametrize("name", ["ORT_FLOAT32", "ORT_UINT8", "ORT_INT32", "ORT_FLOAT16"])
def test_dtypes(name: str) -> None:
    """ONNX and ONNX Runtime number them alike."""
    (onnx,) = needed("onnx")
    (number,) = re.findall(rf"{name} = (\d+)", HEADER.read_text(encoding="utf-8"))
    short = {"ORT_FLOAT32": "FLOAT"}.get(name, name.removeprefix("ORT_"))
    assert int(number) == getattr(onnx.TensorProto, short)
