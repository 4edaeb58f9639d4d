"""The operator for ONNX Runtime: where its library lies, and how large its codes are."""

from __future__ import annotations

import ctypes
from pathlib import Path

from . import checks
from .library import get_library
from .selection import TAIL


def library() -> str:
    """Return the path of the operator's library.

    It has one operator, ``SparseGroupQueryAttention`` of the domain ``adamas``. Its page,
    docs/onnxruntime.md, lists inputs, outputs and attributes.

    Returns
    -------
    str
        For ``onnxruntime.SessionOptions.register_custom_ops_library``.

    Raises
    ------
    FileNotFoundError
        The package was installed without the library.

    Examples
    --------
    >>> import onnxruntime  # doctest: +SKIP
    >>> from adamas_core.onnxruntime import library
    >>> options = onnxruntime.SessionOptions()  # doctest: +SKIP
    >>> options.register_custom_ops_library(library())  # doctest: +SKIP
    """
    native = Path(get_library())
    path = native.with_name(native.name.replace("libadamas", "libadamas_onnxruntime"))
    if not path.is_file():
        raise FileNotFoundError(
            f"library: there is no {path.name} in {path.parent}; expected an installation that "
            "built it: install the package again"
        )
    return str(path)


def code_bytes(tokens: int, head_dim: int, tail: int = TAIL) -> int:
    """Return the length of the last axis of codes, uint8 (B, H_kv, code_bytes).

    Zeros are codes without tokens.

    Parameters
    ----------
    tokens : int
        Tokens to make room for: 0 to 2**31 - 1.
    head_dim : int
        A multiple of 8, at most 2048.
    tail : int
        The attribute of the operator. With 0 there are no codes of values.

    Returns
    -------
    int
        Bytes per sequence and KV head.

    Raises
    ------
    TypeError
        A number is not an integer.
    ValueError
        A number is out of range.
    FileNotFoundError
        The package was installed without the library.
    """
    where = "code_bytes"
    checks.tokens(where, checks.at_least(where, "tokens", tokens, 0))
    checks.at_least(where, "head_dim", head_dim, 8)
    checks.at_least(where, "tail", tail, 0)
    if head_dim % 8 or head_dim > 2048:
        raise ValueError(f"{where}: head_dim={head_dim}; expected a multiple of 8, at most 2048")
    function = ctypes.CDLL(library()).adamas_onnxruntime_code_bytes
    function.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    function.restype = ctypes.c_int64
    return int(function(tokens, head_dim, int(tail > 0)))
