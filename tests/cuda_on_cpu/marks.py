"""The marks of tests that build programs of the shim."""

from __future__ import annotations

import os

import pytest

from . import machine

# Under CI a missing compiler is a failure.
BUILDS_PROGRAMS = [
    pytest.mark.shim,
    pytest.mark.skipif(
        machine.missing() is not None and not os.environ.get("CI"), reason=str(machine.missing())
    ),
]
