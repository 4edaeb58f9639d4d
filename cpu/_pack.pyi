from typing import Any

import numpy as np
from numpy.typing import NDArray

def append(
    k: NDArray[Any],
    thresholds: NDArray[np.float32],
    planes: NDArray[np.uint64],
    start: int | NDArray[np.integer[Any]],
) -> None: ...
