"""The ggml example of docs/examples: built and run wherever a ggml is found."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from adamas_core.cpu import native

SOURCE = Path(__file__).resolve().parent.parent / "docs" / "examples" / "ggml_graph.c"
LIBRARIES = ["-lggml-cpu", "-lggml-base"]

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler, cc, is here"),
    pytest.mark.skipif(isinstance(native.load(), str), reason=f"no library: {native.load()}"),
]


def of_prefix(prefix: Path) -> list[str]:
    """Options of the compiler for a ggml that is installed in `prefix`."""
    library = next(prefix / x for x in ("lib", "lib64") if any((prefix / x).glob("libggml-*")))
    return [f"-I{prefix / 'include'}", f"-L{library}", *LIBRARIES, f"-Wl,-rpath,{library}"]


def ggml() -> list[str]:
    """Options for the ggml of ADAMAS_GGML, of the package libggml-python, or of pkg-config."""
    prefix = os.environ.get("ADAMAS_GGML")
    if prefix:
        return of_prefix(Path(prefix))
    spec = find_spec("libggml")
    for place in (spec.submodule_search_locations or []) if spec else []:
        return of_prefix(Path(place))
    if shutil.which("pkg-config"):
        command = ["pkg-config", "--cflags", "--libs", "ggml"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return [*done.stdout.split(), *LIBRARIES]
    if os.environ.get("CI"):
        pytest.fail("no ggml is here")
    pytest.skip(
        'no ggml is here: pip install "adamas-core[ggml]", or set ADAMAS_GGML to its prefix'
    )


def built(source: Path, target: Path) -> Path:
    library = native.path()
    command = ["cc", "-std=c11", "-O1", "-Wall", "-Wextra", source, f"-I{native.HERE / 'include'}"]
    command += [library, f"-Wl,-rpath,{library.parent}", *ggml(), "-lm", "-o", target]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    return target


def run(program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program], capture_output=True, text=True, check=False, timeout=300)


def test_the_graph_is_close_to_dense(tmp_path: Path) -> None:
    done = run(built(SOURCE, tmp_path / "ggml_graph"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("100 steps after 4096 tokens")


@pytest.mark.parametrize(
    "right, wrong",
    [
        pytest.param(".budget = node->budget", ".budget = 1", id="another budget"),
        pytest.param(".stride_token = (int64_t)x->nb[1]", ".stride_token = 2 * D", id="strides"),
        pytest.param("&start, NULL, 0)", "&(int64_t){0}, NULL, 0)", id="codes at another place"),
    ],
)
def test_a_wrong_program_ends_with_1(tmp_path: Path, right: str, wrong: str) -> None:
    text = SOURCE.read_text(encoding="utf-8")
    assert text.count(right) == 1
    source = tmp_path / "wrong.c"
    source.write_text(text.replace(right, wrong), encoding="utf-8")
    done = run(built(source, tmp_path / "wrong"))
    assert done.returncode == 1
    assert "the differences are too large" in done.stderr
