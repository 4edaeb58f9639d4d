"""Every kernel and template variant compiles for real architectures.

None spills registers, and none fuses or flushes where bits are promised.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from adamas_core.gpu import _nvrtc
from adamas_core.gpu._kernels import HADAMARD, KERNELS, Kernel, Variant
from adamas_core.gpu._nvrtc import (
    Binary,
    Resources,
    compile_variant,
    elf_size,
    options,
    resources,
    whole,
)

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


# In PTX: a multiplication that is fused with an addition, and operations without a rounding, which
# ptxas may fuse.
FUSED = re.compile(r"fma\..*|(add|sub|mul)(\.ftz|\.sat)*\.(b?f16(x2)?|f32|f64)")
# It sets subnormal numbers to 0. expf of CUDA calls it with numbers that are not subnormal.
FLUSHED, FROM_EXPF = re.compile(r".*\.ftz\b.*"), "ex2.approx.ftz.f32"
FROM_DIVISION = "rcp.approx.ftz.f64"  # a first estimate, which a division of float64 then corrects


def broken_promises(binary: Binary, exact: bool) -> set[str]:
    """Operations of a variant that may change promised bits.

    A correctly rounded division has fused steps too, but only in machine code.
    """
    operations = set(re.findall(r"(?<![.$%\w])[a-z]\w*(?:\.\w+)+", binary.ptx))
    flushed = {x for x in operations if FLUSHED.fullmatch(x)} - {FROM_DIVISION}
    if not exact:
        return flushed - {FROM_EXPF}
    return flushed | {x for x in operations if FUSED.fullmatch(x)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_variant(kernel: Kernel, architecture: str) -> None:
    assert_compiles(kernel, kernel.variants, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.rare], ids=lambda kernel: kernel.name)
def test_the_widest_rare_variants(kernel: Kernel, architecture: str) -> None:
    """The largest two sizes, which take the most registers; and on one architecture some others."""
    sizes = [max(x for x in variant if isinstance(x, int)) for variant in kernel.rare]
    wide = [v for v, n in zip(kernel.rare, sizes, strict=True) if 2 * n >= max(sizes)]
    others = kernel.rare[::7] if architecture == "sm_90" else ()
    assert_compiles(kernel, tuple(dict.fromkeys((*wide, *others))), architecture)


def assert_compiles(kernel: Kernel, variants: tuple[Variant, ...], architecture: str) -> None:
    """No register spills, the machine code is whole, and promised bits are kept."""

    def compiled(variant: Variant) -> tuple[Resources, set[str]]:
        binary = compile_variant(kernel, variant, architecture)
        assert elf_size(binary.code) == len(binary.code)
        return resources(binary), broken_promises(binary, kernel.exact)

    with ThreadPoolExecutor() as threads:  # NVRTC runs without the GIL
        found = list(threads.map(compiled, variants))
    for variant, (used, broken) in zip(variants, found, strict=True):
        assert used.spills == 0, f"{kernel.expression(variant)} on {architecture}: {used}"
        assert used.registers <= 255
        assert not broken, f"{kernel.expression(variant)} on {architecture}: {broken}"


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


@pytest.mark.parametrize(
    ("body", "exact", "flag", "expected"),
    [
        ("a * b + c", True, None, set()),
        ("a * b + c", False, None, set()),
        ("__fmaf_rn(a, b, c)", True, None, {"fma.rn.f32"}),
        ("a / b + expf(c)", True, None, {"ex2.approx.ftz.f32", "fma.rn.f32", "fma.rm.f32"}),
        ("a / b + expf(c) + logf(c)", False, None, set()),
        ("a * b + c", True, "--fmad=true", {"fma.rn.f32"}),
        ("a + b", True, "--fmad=true", {"add.f32"}),
        ("a + b", False, "--ftz=true", {"add.rn.ftz.f32"}),
        ("sqrtf(a)", False, "--ftz=true", {"sqrt.rn.ftz.f32"}),
    ],
)
def test_a_broken_promise_is_seen(
    body: str, exact: bool, flag: str | None, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(Kernel):
        source = f"__global__ void f(float a, float b, float c, float* x) {{ *x = {body}; }}"

    if flag:
        chosen = options(HADAMARD, "sm_90")
        name = flag.partition("=")[0]
        others = tuple(option for option in chosen if not option.startswith(name))
        monkeypatch.setattr(_nvrtc, "options", lambda kernel, architecture: (*others, flag))
    binary = compile_variant(Small("f.cu", "f", exact=exact), (), "sm_90")
    assert broken_promises(binary, exact) == expected


def test_a_cut_file_of_machine_code() -> None:
    """CuPy drops one byte. More missing bytes are an error."""
    code = compile_variant(HADAMARD, HADAMARD.variants[0], "sm_90").code
    assert whole(code) == whole(code[:-1]) == code
    with pytest.raises(RuntimeError, match="ELF header says 2 more"):
        whole(code[:-2])


def test_messages_of_another_kernel_are_not_taken() -> None:
    with pytest.raises(ValueError, match="no message of ptxas about g"):
        resources(Binary(b"", "g", "ptxas info : Compiling entry function 'f' for 'sm_90'", ""))


def test_a_file_that_does_not_compile() -> None:
    class Broken(Kernel):
        source = "__global__ void f() { nonsense(); }"

    with pytest.raises(RuntimeError, match=r"f\.cu: f for sm_90:\n.*nonsense"):
        compile_variant(Broken("f.cu", "f"), (), "sm_90")
