"""FAISS IndexBinaryFlat over thermometer codes, whose Hamming distance is the Manhattan distance.

A code of 0 to 3 becomes three bits, one for each threshold: 1 if the coordinate is above it. This
takes 3 D / 8 bytes per token, and two planes take D / 4. Each KV head has one index, which is
searched with the queries of its group.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray


def thermometer(transformed: NDArray[np.float32], thresholds: NDArray[np.float32]) -> NDArray[Any]:
    """Bits (heads, n, 3 D / 8) of transformed vectors (heads, n, D) and thresholds (heads, 3)."""
    above = [transformed > t[:, None, None] for t in thresholds.T]
    return np.packbits(np.concatenate(above, axis=-1), axis=-1)


def forms(
    queries: NDArray[np.uint8], keys: NDArray[np.uint8], budget: int, threads: int
) -> dict[str, Callable[[], list[Any]]]:
    """Searches of keys (H_kv, S, bytes) for queries (H_kv, G, bytes).

    A form returns a list with distances and indices (G, budget) for each KV head.
    """
    faiss.omp_set_num_threads(threads)
    found: dict[str, Callable[[], list[Any]]] = {}
    pool = ThreadPoolExecutor(threads)
    for how, use_heap in (("heap", True), ("counting", False)):
        indexes = []
        for codes in keys:
            index = faiss.IndexBinaryFlat(8 * codes.shape[-1])
            index.use_heap = use_heap
            index.add(codes)
            indexes.append(index)

        def search(i: int, indexes: list[Any] = indexes) -> Any:
            return indexes[i].search(queries[i], budget)

        def own_threads(search: Callable[[int], Any] = search) -> list[Any]:
            faiss.omp_set_num_threads(threads)
            return [search(i) for i in range(len(keys))]

        def head_per_thread(search: Callable[[int], Any] = search) -> list[Any]:
            return list(pool.map(search, range(len(keys))))

        found[f"{how}, its own threads"] = own_threads
        found[f"{how}, a KV head per thread"] = head_per_thread
    return found
