"""Words of 64 bits as pairs of 32 bits, for stacks without uint64: JAX as it starts, WebGPU, ONNX.

A pair is in the order of the memory of a little-endian machine: first the low half of the word, so
coordinates 0 to 31 of its 64, then the high half. Both directions are views of the same memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import checks
from .dispatch import Array, views


def as_pairs(words: Array) -> Array:
    """Words as pairs of uint32, without a copy.

    Parameters
    ----------
    words : array (..., n), uint64
        Of any shape, as the planes of `KeyCodes`, or rows of `quantize`. The last axis is
        contiguous.

    Returns
    -------
    array (..., n, 2), uint32
        A view of NumPy, or of CuPy on a GPU. [..., 0] is the low half of each word, and [..., 1]
        the high half. So coordinate i of a row of codes is bit i % 32 of the uint32 number i // 32.

    Raises
    ------
    TypeError
        words has another dtype.
    ValueError
        words has no axis, or its last axis is not contiguous.

    See Also
    --------
    as_words : the way back. `KeyCodes` and `encode_into` take pairs as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from adamas_core import as_pairs, as_words
    >>> as_pairs(np.array([1, 2**32], np.uint64))
    array([[1, 0],
           [0, 1]], dtype=uint32)
    >>> as_words(as_pairs(np.array([1, 2**32], np.uint64)))
    array([         1, 4294967296], dtype=uint64)
    """
    (x,) = views(words=words)
    checks.dtype("as_pairs", "words", x, "uint64")
    if x.ndim == 0:
        raise ValueError(f"as_pairs: {checks.shown('words', x)}; expected at least one axis")
    checks.contiguous("as_pairs", "words", x)
    return x.view(np.uint32).reshape(*x.shape, 2)


def as_words(pairs: Array) -> Array:
    """Pairs of uint32 as words, without a copy.

    Parameters
    ----------
    pairs : array (..., n, 2), uint32
        As `as_pairs` gives them. The last two axes are contiguous, and the address is a multiple
        of 8.

    Returns
    -------
    array (..., n), uint64
        A view of NumPy, or of CuPy on a GPU.

    Raises
    ------
    TypeError
        pairs has another dtype.
    ValueError
        The last axis is not of two, the last two axes are not contiguous, or the address is not a
        multiple of 8.
    """
    (x,) = views(pairs=pairs)
    return words_of("as_words", "pairs", x)


def words_of(where: str, name: str, x: Any) -> Any:
    """The words (..., n) of a view of pairs (..., n, 2)."""
    checks.dtype(where, name, x, "uint32")
    if x.ndim < 2 or x.shape[-1] != 2:
        raise ValueError(f"{where}: {checks.shown(name, x)}; expected (..., n, 2)")
    checks.contiguous(where, name, x, axes=2)
    words = x.reshape(*x.shape[:-2], 2 * x.shape[-2]).view(np.uint64)
    checks.contiguous(where, name, words)
    return words


def words_or_pairs(where: str, name: str, x: Any) -> Any:
    """A view of words as it is, and of pairs as words."""
    return words_of(where, name, x) if x.dtype.name == "uint32" else x
