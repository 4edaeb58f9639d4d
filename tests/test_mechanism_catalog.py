from pathlib import Path

import pytest

from adamas_core.lab import mechanisms
from adamas_core.lab.mechanism_catalog import ROWS
from adamas_core.lab.mechanism_costs import SIZES, STEPS

FOLDER = Path(mechanisms.__file__).parent


def test_no_mechanism_is_longer_than_150_lines():
    for file in FOLDER.glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 150, file.name


@pytest.mark.parametrize("name", mechanisms.__all__)
def test_every_mechanism_has_the_functions_of_the_protocol(name):
    module = getattr(mechanisms, name)
    for function in ("parallel", "start", "step", "kept"):
        assert callable(getattr(module, function)), f"{name}.{function}"
    assert "arXiv" in module.__doc__


def test_every_file_is_in_the_list():
    files = {file.stem for file in FOLDER.glob("*.py")} - {"__init__", "tokens"}
    assert files == set(mechanisms.__all__)


@pytest.mark.parametrize("name", ROWS)
def test_theory_grows_and_is_of_whole_caches(name):
    theory = ROWS[name].theory
    short, long = (SIZES._replace(S=S) for S in (STEPS[0], STEPS[-1]))
    for cost in (theory.operations, theory.read, theory.kept, theory.prefill):
        if cost(short) == cost(short):
            assert 0 < cost(short) <= 1.001 * cost(long)
    assert len(theory.order.split(", ")) == 3
