"""The command ``adamas-core info``."""

from __future__ import annotations

from tiny_model import OutOf

from adamas_core.cpu._engine import ENGINE


def test_info(out_of: OutOf) -> None:
    status, out, _ = out_of("info")
    assert status == 0
    told = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert told["backends"].startswith(f"reference (NumPy), cpu ({ENGINE.about}")
    assert told["GPU"].startswith("none: ")
    assert int(told["threads"].split()[0]) >= 1
    assert set(told) >= {"adamas-core", "libraries", "SIMD", "llama"}
