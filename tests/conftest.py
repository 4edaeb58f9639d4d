"""The backends that tests run over, and how many examples Hypothesis draws."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

from adamas_core.dispatch import BACKENDS, load

_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", max_examples=200, derandomize=True, **_common)
settings.register_profile("long", max_examples=12_500, **_common)
settings.load_profile("ci")


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> ModuleType:
    """Every backend, held against an oracle from elsewhere or a known answer."""
    return load(request.param)


@pytest.fixture(scope="session", params=[name for name in BACKENDS if name != "reference"])
def kernels(request: pytest.FixtureRequest) -> ModuleType:
    """Every backend but the reference, to be held against it."""
    return load(request.param)
