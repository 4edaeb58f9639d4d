"""Whether adamas_core.jax can run here, and its programs in processes of their own."""

from __future__ import annotations

import os
import shlex
import shutil
from importlib.util import find_spec

import pytest

from adamas_core.cpu import native


def missing() -> str | None:
    """What adamas_core.jax lacks here, for the reason of a skip."""
    if find_spec("jax") is None:
        return 'needs the extra "jax"'
    library = native.load()
    if isinstance(library, str):
        return f"needs the native library: {library}"
    compiler = shlex.split(os.environ.get("CXX", "c++"))[0]
    if shutil.which(compiler) is None:
        return f"needs a C++ compiler, and there is no {compiler}"
    return None


def skip_if_missing() -> None:
    """Skip a test module, before it imports JAX. The CPU is JAX's only platform from here on."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason, allow_module_level=True)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
