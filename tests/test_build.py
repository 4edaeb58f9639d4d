"""The library's header of kernels: records as structs of C, and tables of functions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from adamas_core.cpu import _records, native
from adamas_core.cpu._record import Record
from adamas_core.cpu.native.build import float_of, header, struct

RECORDS = {name: value for name, value in vars(_records).items() if isinstance(value, Record)}
NAMES = {"Step": "step", "EncodeCentered": "encode_centered", "TopK": "top_k", "Loop": "loop"}


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_structs(kind: str) -> None:
    assert struct(kind, RECORDS[kind]).startswith(f"struct record_{NAMES[kind]} {{\n")


def test_layouts_are_those_of_the_records(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    lines = ["#include <stddef.h>", "#include <stdint.h>"]
    for kind, record in RECORDS.items():
        text = struct(kind, record)
        name = text.split("{")[0].strip()
        lines += [text, f'_Static_assert(sizeof({name}) == {record.dtype.itemsize}, "");']
        for field in record.dtype.names or ():
            at = record.offset(field)
            assert record.dtype.fields is not None
            assert record.dtype.fields[field][1] == at
            lines += [f'_Static_assert(offsetof({name}, {field}) == {at}, "{field}");']
    (tmp_path / "a.c").write_text("\n".join([*lines, ""]))
    subprocess.run([compiler, "-fsyntax-only", "-std=c11", str(tmp_path / "a.c")], check=True)


def test_the_tables_have_every_level_and_function() -> None:
    text = header(["x86-64-v2", "x86-64-v3"], ["plan_step", "step_share"])
    assert "enum { LEVELS = 2, FUNCTIONS = 2 };" in text
    assert "F_plan_step,\n  F_step_share,\n" in text
    assert "extern char adamas_x86_64_v3_step_share[];" in text
    assert f'#define STAMP "{native.stamp()}"' in text


def test_numbers_keep_their_bits() -> None:
    assert float_of(0.996) == f"{(0.996).hex()}f"
    assert float.fromhex(float_of(-0.1)[:-1]) == -0.1
