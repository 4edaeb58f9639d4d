# cython: language_level=3, freethreading_compatible=True
"""Where a NumPy array's memory lies, in a fifteenth of the time of __array_interface__."""

import numpy as np


cdef extern from *:
    """
    /* The first members of NumPy's PyArrayObject_fields, which its ABI has kept since 1.0. */
    typedef struct {
        PyObject_HEAD
        char *data;
    } AdamasArray;
    """
    ctypedef struct AdamasArray:
        char *data


def address(array):
    """Of the first element; the caller keeps the array alive."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"address of a {type(array).__qualname__}; expected a NumPy array")
    return <size_t>(<AdamasArray *><void *>array).data
