"""Every kernel and template variant compiles for real architectures, and none spills registers."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from adamas_core.gpu._kernels import HADAMARD, KERNELS, Kernel, Variant
from adamas_core.gpu._nvrtc import Binary, Resources, compile_variant, elf_size, resources, whole

# A100; H100 and H200; B200.
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]


@pytest.fixture(scope="module", autouse=True)
def nvrtc() -> None:
    """CuPy's NVRTC. It needs neither a GPU nor a driver. Under CI it must be there."""
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # CuPy absent, or the library that it loads
        reason = f"NVRTC cannot be loaded ({error}): pip install 'adamas-core[cuda-check]'"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_no_variant_spills(kernel: Kernel, architecture: str) -> None:
    """Nor does a file of machine code lack its last bytes."""

    def compiled(variant: Variant) -> Resources:
        binary = compile_variant(kernel, variant, architecture)
        assert elf_size(binary.code) == len(binary.code)
        return resources(binary)

    with ThreadPoolExecutor() as threads:  # NVRTC runs without the GIL
        found = list(threads.map(compiled, kernel.variants))
    for variant, used in zip(kernel.variants, found, strict=True):
        assert used.spills == 0, f"{kernel.expression(variant)} on {architecture}: {used}"
        assert used.registers <= 255


# .param types of PTX, by the kind of a parameter; an address has 64 bits.
PTX = {"pointer": "u64", "int": "u64", "float": "f32"}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_parameters_are_those_of_the_compiled_kernel(kernel: Kernel) -> None:
    binary = compile_variant(kernel, kernel.variants[0], "compute_80")
    entry = binary.code.decode().partition(f".entry {binary.symbol}(")[2].partition(")")[0]
    types = re.findall(r"\.param \.(\w+)", entry)
    assert types == [PTX[p.kind] for p in kernel.parameters]


def test_a_spill_is_seen() -> None:
    """A kernel with more live numbers than a thread has registers."""
    text = """
    template <int N> __global__ void __launch_bounds__(1024) f(float* x) {
      float v[N];
    #pragma unroll
      for (int i = 0; i < N; ++i) v[i] = x[i * 1024 + threadIdx.x];
      __syncthreads();
    #pragma unroll
      for (int i = 0; i < N; ++i) x[i * 1024 + threadIdx.x] = v[(i * 7) % N] * v[N - 1 - i];
    }
    """

    class Spilling(Kernel):
        source = text

    used = resources(compile_variant(Spilling("f.cu", "f", ((200,),)), (200,), "sm_90"))
    assert used.spills > 0


def test_promised_bits_are_compiled_without_fused_or_flushed_arithmetic() -> None:
    for kernel in KERNELS:
        if kernel.exact:
            ptx = compile_variant(kernel, kernel.variants[0], "compute_80").code.decode()
            assert ".ftz" not in ptx
            # A correctly rounded division has fused steps too, but only in machine code.
            assert "fma.rn.f32" not in ptx


def test_a_cut_file_of_machine_code() -> None:
    """CuPy drops one byte. More missing bytes are an error."""
    code = compile_variant(HADAMARD, HADAMARD.variants[0], "sm_90").code
    assert whole(code) == whole(code[:-1]) == code
    with pytest.raises(RuntimeError, match="ELF header says 2 more"):
        whole(code[:-2])


def test_messages_of_another_kernel_are_not_taken() -> None:
    with pytest.raises(ValueError, match="no message of ptxas about g"):
        resources(Binary(b"", "g", "ptxas info : Compiling entry function 'f' for 'sm_90'"))


def test_a_file_that_does_not_compile() -> None:
    class Broken(Kernel):
        source = "__global__ void f() { nonsense(); }"

    with pytest.raises(RuntimeError, match=r"f\.cu: f for sm_90:\n.*nonsense"):
        compile_variant(Broken("f.cu", "f"), (), "sm_90")
