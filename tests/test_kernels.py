"""The registry of kernels: parameters by name, in the order of the sources."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from adamas_core.gpu._arrays import strides
from adamas_core.gpu._kernels import FOLDER, HADAMARD, KERNELS, MERGE_CANDIDATES, Kernel
from adamas_core.gpu._launch import _converted

KINDS = {"Int": "int", "float": "float"}


def parameters(kernel: Kernel) -> Iterator[tuple[str, str]]:
    """Name and kind of each parameter, from the words of the source and no regular expression."""
    head, _, rest = kernel.source.partition(f" {kernel.name}(")
    assert "__global__ void" in head.rpartition("}")[2] + head.rpartition("\n\n")[2]
    for parameter in rest[: rest.index(")")].split(","):
        *kind, name = parameter.split()
        yield name, "pointer" if "*" in kind[-1] else KINDS[" ".join(kind)]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_parameters_are_those_of_the_source_in_order(kernel: Kernel) -> None:
    assert [tuple(p) for p in kernel.parameters] == list(parameters(kernel))
    assert len({p.name for p in kernel.parameters}) == len(kernel.parameters)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_arguments_in_any_order(kernel: Kernel) -> None:
    values = {"pointer": np.zeros(1), "int": 7, "float": 0.5}
    given = {p.name: values[p.kind] for p in kernel.parameters}
    turned = dict(reversed(given.items()))
    assert all(a is b for a, b in zip(kernel.ordered(turned), given.values(), strict=True))


def test_a_missing_argument_is_null_or_0() -> None:
    assert MERGE_CANDIDATES.ordered({"K": 3}) == [None, None, 0, 0, 3, 0, 0, None]
    assert HADAMARD.ordered({})[-2:] == [0.0, None]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(TypeError, match="kernel hadamard has no parameter spam, x_heads"):
        HADAMARD.ordered({"x_heads": 1, "spam": 2, "x_head": 3})


def test_arguments_as_cupy_passes_them() -> None:
    """By the kind of the parameter: an int for a float becomes a float32."""
    x = np.zeros(1)
    passed = _converted(HADAMARD, {"x": x, "rows": np.int32(3), "hadamard_scale": 1})
    assert passed[0] is x
    assert [type(a) for a in passed[1:]] == [np.int64] * 8 + [np.float32, np.uint64]
    assert passed[6:] == (3, 0, 0, 1.0, 0)


def test_strides_under_the_names_of_the_kernels() -> None:
    k = np.zeros((2, 3, 5, 8), np.float16)
    assert strides("k", k)["k"] is k
    named = {name: step for name, step in strides("k", k).items() if name != "k"}
    assert named == {"k_batch": 120, "k_head": 40, "k_token": 8}
    assert list(strides("means", k, ("batch", "head"))) == ["means", "means_batch", "means_head"]


def test_a_kernel_that_is_not_in_its_file() -> None:
    with pytest.raises(ValueError, match=r"no __global__ void nothing\(\.\.\.\) in score.cu"):
        _ = Kernel("score.cu", "nothing").parameters


def test_a_variant_that_is_not_listed() -> None:
    with pytest.raises(ValueError, match="is no variant listed"):
        HADAMARD.expression(("double", 1))


def test_names_are_unique() -> None:
    """The device keeps compiled kernels by name and variant."""
    assert len({kernel.name for kernel in KERNELS}) == len(KERNELS)


def test_every_file_is_in_the_registry() -> None:
    assert {kernel.file for kernel in KERNELS} == {path.name for path in FOLDER.glob("*.cu")}
