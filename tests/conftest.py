"""The backends that tests run over, and how many examples Hypothesis draws."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import wraps
from types import ModuleType
from typing import Any

import numpy as np
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


@pytest.fixture(
    scope="session", params=[name for name in (*BACKENDS, "gpu") if name != "reference"]
)
def kernels(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Every backend but the reference, to be held against it; all take and return NumPy arrays.

    The GPU backend runs on this machine's GPU, or where there is none on the CPU, through the shim
    in cuda_on_cpu. With ADAMAS_REQUIRE_GPU=1 a missing GPU is a failure.
    """
    yield from opened(request.param)


@pytest.fixture(scope="session", params=(*BACKENDS, "gpu"))
def every(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Every backend, as `kernels` has them, the reference included."""
    yield from opened(request.param)


def opened(name: str) -> Iterator[Any]:
    """A backend by its name, for as long as a fixture needs it."""
    if name != "gpu":
        yield load(name)
        return
    from cuda_on_cpu import machine

    from adamas_core import gpu

    reason = gpu.why_not()
    if reason is None:
        yield OnDevice(gpu)
        return
    if os.environ.get("ADAMAS_REQUIRE_GPU") == "1":
        pytest.fail(f"ADAMAS_REQUIRE_GPU=1: {reason}")
    no_compiler = machine.missing()
    if no_compiler is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(no_compiler)
    with machine.installed():
        yield gpu


class OnDevice:
    """The GPU backend's functions for NumPy arrays: copied to a GPU, and what comes of it back.

    An array that the function wrote into and gave back is copied into the caller's own.
    """

    def __init__(self, backend: ModuleType) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Callable[..., Any]:
        import cupy

        function = getattr(self._backend, name)

        @wraps(function)
        def call(*arguments: Any) -> Any:
            there = [moved(x) if isinstance(x, np.ndarray) else x for x in arguments]
            result = function(*there)
            for x, copy in zip(arguments, there, strict=True):
                if result is copy and isinstance(x, np.ndarray):
                    x[...] = cupy.asnumpy(copy)
                    return x
            if isinstance(result, tuple):
                return tuple(map(cupy.asnumpy, result))
            return cupy.asnumpy(result)

        return call


def moved(x: np.ndarray[Any, Any]) -> Any:
    """A device array of x's numbers at x's strides, in an allocation of its own."""
    import cupy
    from cuda_on_cpu.machine import extent

    at = extent(x)
    if x.size == 0:
        return cupy.empty(x.shape, x.dtype)
    raw = np.ndarray((at.end - at.first,), np.uint8, buffer=_bytes_at(at.first, at.end))
    memory = cupy.asarray(raw)
    first = x.__array_interface__["data"][0] - at.first
    return cupy.ndarray(x.shape, x.dtype, memory.data + first, x.strides)


def _bytes_at(first: int, end: int) -> memoryview:
    import ctypes

    return memoryview((ctypes.c_char * (end - first)).from_address(first))
