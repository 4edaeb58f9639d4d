"""Build the native library with the extension modules. All else is in pyproject.toml.

ADAMAS_LEVELS names the processors that the library is built for, see cpu/native/levels.py: "all",
"none" for no library, or some of them, separated by commas. Without it the library is for this
machine alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class BuildWithLibrary(build_ext):
    """Extension modules, and then the library, which goes where they go."""

    def run(self) -> None:
        super().run()
        levels = os.environ.get("ADAMAS_LEVELS", "")
        if levels == "none":
            return
        package = ROOT / "cpu" if self.inplace else Path(self.build_lib) / "adamas_core" / "cpu"
        command = [sys.executable, "-m", "adamas_core.cpu.native.build", package / "native"]
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        # The library that is being built cannot help to build itself.
        own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "ADAMAS_CPU": "numba"}
        arguments = [str(x) for x in (*command, *levels.split(",")) if x]
        subprocess.run(arguments, cwd=ROOT, env={**os.environ, **own}, check=True)


setup(cmdclass={"build_ext": BuildWithLibrary})
