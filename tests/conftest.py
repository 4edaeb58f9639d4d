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

import adamas_core.gpu
from adamas_core.dispatch import load, on_host
from adamas_core.reference.layout import Centers, Codes, Fine, Values

_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", max_examples=200, derandomize=True, **_common)
settings.register_profile("long", max_examples=12_500, **_common)
settings.load_profile("ci")

# A test over the GPU backend: without a GPU it runs the kernels through the shim in cuda_on_cpu.
GPU = pytest.param("gpu", marks=pytest.mark.shim)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that request `device`, directly or through `gpu`."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.shim)


@pytest.fixture(scope="session", params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> ModuleType:
    """A backend of NumPy's arrays, to be held against another oracle or a known answer."""
    return load(request.param)


@pytest.fixture(scope="session")
def device() -> Iterator[Any]:
    """The array module of the GPU backend: CuPy, on this machine's GPU.

    Long inputs are split at small sizes, so that small inputs reach every path. If there is no GPU,
    it is a stand-in, and the kernels run on the CPU through the shim in cuda_on_cpu: in all orders
    of threads in the profile "long", and in two otherwise. With ADAMAS_REQUIRE_GPU=1 a missing GPU
    is a failure.
    """
    from cuda_on_cpu import machine

    reason = adamas_core.gpu.why_not()
    if reason is None:
        with machine.small():
            yield adamas_core.gpu.array_module()
        return
    if os.environ.get("ADAMAS_REQUIRE_GPU") == "1":
        pytest.fail(f"ADAMAS_REQUIRE_GPU=1: {reason}")
    no_compiler = machine.missing()
    if no_compiler is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(no_compiler)
    long = settings().max_examples >= settings.get_profile("long").max_examples
    cpu = machine.Cpu(machine.ALL_ORDERS if long else machine.ORDERS)
    with machine.installed(cpu):
        yield cpu.xp


@pytest.fixture(scope="session")
def gpu(device: Any) -> Any:
    """The GPU backend, taking and returning NumPy arrays."""
    return OnDevice(adamas_core.gpu)


@pytest.fixture(scope="session", params=["cpu", GPU])
def place(request: pytest.FixtureRequest) -> Callable[[np.ndarray[Any, Any]], Any]:
    """A function that puts an array on the CPU or on the GPU; dispatch.on_host fetches it."""
    if request.param == "cpu":
        return lambda x: x
    request.getfixturevalue("device")
    return moved


@pytest.fixture(scope="session", params=["cpu", GPU])
def kernels(request: pytest.FixtureRequest) -> Any:
    """A backend other than the reference, to be held against the reference."""
    if request.param == "gpu":
        return request.getfixturevalue("gpu")
    return load(request.param)


@pytest.fixture(scope="session", params=["cpu", GPU, "reference"])
def every(request: pytest.FixtureRequest) -> Any:
    """Any backend: cpu, gpu or reference."""
    return request.getfixturevalue("gpu") if request.param == "gpu" else load(request.param)


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tokenizers of a small byte-level BPE, by the name of their patterns."""
    from tiny_tokenizer import load_byte_level

    return load_byte_level(tmp_path_factory.mktemp("byte_level"))


@pytest.fixture(scope="session")
def score_bpe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of a small SentencePiece BPE."""
    from tiny_tokenizer import load_score_bpe

    return load_score_bpe(tmp_path_factory.mktemp("score_bpe"))


class OnDevice:
    """The GPU backend for NumPy arrays: they go to the device, and changes come back.

    Arrays of int64 stay on the host. They are lengths and counts.
    """

    def __init__(self, backend: ModuleType) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._backend, name)

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            given = [x for x in (*arguments, *named.values()) if isinstance(x, np.ndarray)]
            given = [x for x in given if x.dtype != np.int64]
            groups = [x for x in (*arguments, *named.values()) if isinstance(x, (Centers, Fine))]
            given += [x for group in groups for x in group]
            there = {id(x): moved(x) for x in given}
            there |= {id(group): type(group)(*(there[id(x)] for x in group)) for group in groups}
            there |= {id(x): moved_codes(x) for x in arguments if isinstance(x, Codes)}
            there |= {id(x): moved_values(x) for x in arguments if isinstance(x, Values)}
            result = function(
                *(there.get(id(x), x) for x in arguments),
                **{name: there.get(id(x), x) for name, x in named.items()},
            )
            for x in given:
                if x.flags.writeable:
                    x[...] = on_host(there[id(x)])
            for x in given:
                if result is there[id(x)]:
                    return x
            if isinstance(result, tuple):
                return tuple(map(on_host, result))
            return on_host(result)

        return call


def moved(x: np.ndarray[Any, Any]) -> Any:
    """A device array with the numbers and strides of x, in an allocation of its own."""
    from cuda_on_cpu.arrays import XP, DeviceArray
    from cuda_on_cpu.machine import extent

    cupy = adamas_core.gpu.array_module()
    if cupy is XP:
        return DeviceArray(x)
    at = extent(x)
    if x.size == 0:
        return cupy.empty(x.shape, x.dtype)
    raw = np.ndarray((at.end - at.first,), np.uint8, buffer=_bytes_at(at.first, at.end))
    memory = cupy.asarray(raw)
    first = x.__array_interface__["data"][0] - at.first
    return cupy.ndarray(x.shape, x.dtype, memory.data + first, x.strides)


def moved_codes(codes: Codes) -> Codes:
    """Codes whose arrays are on the device; the length stays on the host."""
    centers = codes.centers and Centers(*map(moved, codes.centers))
    fine = codes.fine and Fine(*map(moved, codes.fine))
    return Codes(moved(codes.planes), codes.length, moved(codes.thresholds), centers, fine)


def moved_values(values: Values) -> Values:
    """Coded values whose arrays are on the device."""
    return Values(*map(moved, values))


def _bytes_at(first: int, end: int) -> memoryview:
    import ctypes

    return memoryview((ctypes.c_char * (end - first)).from_address(first))


@pytest.fixture(scope="session")
def letters_model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small random model and its tokenizer, as arguments of a command."""
    from tiny_model import write_letters_model

    model, tokenizer = write_letters_model(tmp_path_factory.mktemp("model"))
    return [f"--model={model}", f"--tokenizer={tokenizer}"]


@pytest.fixture
def out_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A function that runs a command: its status, and what it printed to stdout and stderr."""
    from adamas_core import cli

    def run(*args: str) -> tuple[int, str, str]:
        status = cli.main(args)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def reading() -> Any:
    """A window of 60 tokens that a small model has read, 20 of them as the block."""
    from tiny_model import tiny

    from adamas_core.lab.measuring import Reading

    tokens = np.random.default_rng(5).integers(0, 50, 61)
    return Reading(tiny(seed=2), [int(t) for t in tokens], 20)
