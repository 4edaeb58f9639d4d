"""The sets of instructions that the library is built for."""

from __future__ import annotations

import itertools
import platform
import re

import pytest

from adamas_core.cpu.native.levels import LEVELS, environment, levels_here, levels_of, symbol


def test_levels_of_a_machine() -> None:
    assert levels_of("x86_64") == levels_of("AMD64")
    assert levels_of("x86_64")[0] == "x86-64-v2"
    assert levels_of("arm64") == levels_of("aarch64") == ["aarch64"]
    assert levels_of("riscv64") == []


def test_each_level_tests_for_all_that_the_one_before_has() -> None:
    names = levels_of("x86_64")
    wanted = [set(re.findall(r'"(\w+)"', LEVELS[name].test)) for name in names]
    assert all(a < b for a, b in itertools.pairwise(wanted))


@pytest.mark.parametrize("name", LEVELS)
def test_kernels_find_features_by_name(name: str) -> None:
    """They look for "+name," in the list."""
    features = LEVELS[name].features
    assert features == "" or features.endswith(",")
    assert ("+avx512vbmi," in features) == name.endswith("vbmi")


def test_levels_here_are_the_first_ones() -> None:
    found, all_of_them = levels_here(), levels_of(platform.machine())
    assert found == all_of_them[: len(found)]
    assert found


def test_the_environment_names_the_processor() -> None:
    found = environment("x86-64-v3")
    assert (found["NUMBA_CPU_NAME"], found["NUMBA_CPU_FEATURES"]) == ("x86-64-v3", "")
    assert found["ADAMAS_CPU"] == "numba"


def test_symbols_are_names_of_c() -> None:
    symbols = [symbol(name, "topk_row") for name in LEVELS]
    assert len(set(symbols)) == len(LEVELS)
    assert all(re.fullmatch("[a-z_][a-z0-9_]*", name) for name in symbols)
