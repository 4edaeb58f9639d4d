"""Read a JSON file that holds an object."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from .files import regular
from .settings import CheckpointError

# Python 3.11's parser calls itself for each level. If the recursion limit was raised, deep nesting
# overflows the C stack and ends the process. Real files have fewer than 10 levels.
MAX_NESTING = 100
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_STEP = np.zeros(256, np.int8)  # the change of the nesting by each byte
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        data = regular(path).read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    if nesting(data) > MAX_NESTING:
        raise CheckpointError(f"{path}: damaged: nested deeper than {MAX_NESTING} levels")
    try:
        values = json.loads(data.decode())
        if b"\\u" in data:  # an escape may be half of a surrogate pair, which no library takes
            json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, or cut short: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return values


def nesting(data: bytes) -> int:
    """The most brackets that are open at once in a JSON text, without those in strings."""
    outside = np.frombuffer(_STRING.sub(b"", data), np.uint8)
    return int(np.cumsum(_STEP[outside], dtype=np.int64).max(initial=0))
