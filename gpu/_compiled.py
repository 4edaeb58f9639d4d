"""Compiled kernels in CuPy's cache folder, so that each variant is compiled once per machine."""

from __future__ import annotations

import os
import tempfile
from hashlib import sha256
from pathlib import Path

from ._kernels import Kernel, Variant, headers
from ._nvrtc import compile_variant, options


def compiled(kernel: Kernel, variant: Variant, architecture: str) -> tuple[Path, str]:
    """The file of a compiled variant, and the name of the kernel in it."""
    from cupy.cuda import nvrtc

    key = repr(
        (
            nvrtc.getVersion(),
            options(kernel, architecture),
            kernel.source,
            kernel.expression(variant),
            headers(),
        )
    )
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    stem = f"adamas-{sha256(key.encode()).hexdigest()}"
    code = folder / f"{stem}.{'cubin' if architecture.startswith('sm_') else 'ptx'}"
    name = folder / f"{stem}.name"  # written last: if it exists, the code is complete
    if not name.is_file():
        binary = compile_variant(kernel, variant, architecture)
        folder.mkdir(parents=True, exist_ok=True)
        _write(code, binary.code)
        _write(name, binary.symbol.encode())
    return code, name.read_text()


def _write(path: Path, data: bytes) -> None:
    """Write the file in one step, because other processes read the folder at the same time."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
