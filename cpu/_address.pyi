from typing import Any

from numpy.typing import NDArray

def address(array: NDArray[Any]) -> int: ...
