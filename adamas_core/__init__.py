"""Adamas sparse attention for long-context decoding, outside PyTorch.

``__all__`` lists all public names. Each is loaded at its first use, so that ``import adamas_core``
loads neither Numba nor CuPy.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import extend_path
from typing import TYPE_CHECKING

# At the root of a source tree this folder hides the installed package. There cpu/, gpu/ and
# reference/ lie beside it, not inside, so the package spans both folders. An installed package
# stays as it is.
_root = Path(__file__).resolve().parent.parent
if (_root / "reference" / "hadamard.py").is_file() and (_root / "pyproject.toml").is_file():
    _own = [str(_root / "adamas_core"), str(_root)]
    try:
        _all = extend_path(__path__, __name__)
    except FileNotFoundError:  # the current folder, which Python searches, was deleted
        _all = []
    __path__ = [*_own, *(p for p in _all if p not in _own)]

__version__ = "0.1.0"

_HOME = {
    "hadamard": "ops",
    "quantize": "ops",
    "quantize_query": "ops",
    "score": "ops",
    "topk": "ops",
    "attend": "ops",
    "select_topk": "select",
    "Selection": "selection",
    "Softmax": "softmax",
    "merge": "ops",
    "merge_topk": "scores",
    "checked": "checks",
    "KeyCodes": "codes",
    "Codes": "reference.layout",
    "Centers": "reference.layout",
    "Fine": "reference.layout",
    "encode_into": "code_arrays",
    "as_pairs": "pairs",
    "as_words": "pairs",
    "encode": "codes",
    "calibrate": "codes",
    "ValueCodes": "values",
    "encode_values": "values",
    "attend_tail": "tail",
    "PAPER": "codes",
    "KVCache": "cache",
    "decode_attention": "cache",
    "get_include": "library",
    "get_library": "library",
}

__all__ = [
    "Centers",
    "Codes",
    "Fine",
    "KVCache",
    "KeyCodes",
    "PAPER",
    "Selection",
    "Softmax",
    "ValueCodes",
    "__version__",
    "as_pairs",
    "as_words",
    "attend",
    "attend_tail",
    "calibrate",
    "checked",
    "decode_attention",
    "encode",
    "encode_into",
    "encode_values",
    "get_include",
    "get_library",
    "hadamard",
    "merge",
    "merge_topk",
    "quantize",
    "quantize_query",
    "score",
    "select_topk",
    "topk",
]

if TYPE_CHECKING:
    from .cache import KVCache, decode_attention
    from .checks import checked
    from .code_arrays import encode_into
    from .codes import PAPER, KeyCodes, calibrate, encode
    from .library import get_include, get_library
    from .ops import attend, hadamard, merge, quantize, quantize_query, score, topk
    from .pairs import as_pairs, as_words
    from .reference.layout import Centers, Codes, Fine
    from .scores import merge_topk
    from .select import select_topk
    from .selection import Selection
    from .softmax import Softmax
    from .tail import attend_tail
    from .values import ValueCodes, encode_values


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
