"""Whether the GPU backend can be used on this machine."""

from __future__ import annotations

from importlib.util import find_spec

MIN_CAPABILITY = 80  # compute capability 8.0, which the instructions of the kernels need


def why_not() -> str | None:
    """Say in one sentence why the GPU backend cannot be used, or None if it can."""
    if find_spec("cupy") is None:
        return 'CuPy is not installed: pip install "adamas-core[gpu]"'
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported: {' '.join(str(error).split())}"
    runtime = cupy.cuda.runtime
    driver, built_for = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if driver == 0:
        return "no NVIDIA driver is loaded on this machine"
    if driver // 1000 < built_for // 1000:
        return (
            f"the NVIDIA driver supports up to CUDA {_version(driver)} and CuPy is built for CUDA "
            f"{_version(built_for)}: update the driver, or install cupy-cuda{driver // 1000}x"
        )
    try:
        devices = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        return f"the NVIDIA driver is loaded, but gives no device: {error}"
    if devices == 0:
        return "the NVIDIA driver finds no device (CUDA_VISIBLE_DEVICES may hide it)"
    capability = int(cupy.cuda.Device().compute_capability)
    if capability < MIN_CAPABILITY:
        return (
            f"the device has compute capability {capability / 10} and the kernels need "
            f"{MIN_CAPABILITY / 10}, an A100 or later"
        )
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # the type of this error differs between releases of CuPy
        reason = " ".join(str(error).split())
        return f"NVRTC, which compiles the kernels, cannot be loaded: {reason}"
    return None


def _version(number: int) -> str:
    """CUDA's number of a version, 12080, as people write it: 12.8."""
    return f"{number // 1000}.{number % 1000 // 10}"
