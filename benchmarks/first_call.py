"""How long the first call of a process takes: in the library, and in Numba.

    python benchmarks/first_call.py

Each figure is of a process of its own: encode, select_topk and attend once, with the import of the
engine, but not of NumPy. Numba first compiles the kernels, and later loads them from the disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec

CALL = """
import time
import numpy as np
from adamas_core import attend, encode, select_topk

rng = np.random.default_rng(0)
k = rng.standard_normal((8, 4096, 128), dtype=np.float32)
q = rng.standard_normal((32, 1, 128), dtype=np.float32)
begin = time.perf_counter()
attend(q, k, k, select_topk(q, encode(k), 128))
print(f"{time.perf_counter() - begin:.2f}")
"""


def main() -> None:
    print("SciPy, which Numba imports where it is there:", "yes" if find_spec("scipy") else "no")
    with tempfile.TemporaryDirectory() as folder:
        for what in (*["library"] * 3, "numba, compiling", *["numba, from disk"] * 3):
            own = {"NUMBA_CACHE_DIR": folder, "ADAMAS_CPU": what.split(",")[0]}
            environment = {**os.environ, **own}
            done = subprocess.run(
                [sys.executable, "-c", CALL],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            print(f"{what}: {done.stdout.strip()} s")


if __name__ == "__main__":
    main()
