"""The number of threads of the native library, as threadpoolctl sees it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any


def register(library: Any) -> None:
    """Let threadpoolctl limit the threads of the library, if it is installed.

    Its limits hold for libraries that it knows by the names of their files.
    """
    if find_spec("threadpoolctl") is None:
        return
    import threadpoolctl

    if not hasattr(threadpoolctl, "register"):  # before version 3.3
        return

    class Controller(threadpoolctl.LibController):  # type: ignore[misc]
        """libadamas."""

        user_api = "openmp"  # whoever limits OpenMP means all loops of this kind
        internal_api = "adamas"
        filename_prefixes = ("libadamas",)

        def get_num_threads(self) -> int:
            return int(library.adamas_threads())

        def set_num_threads(self, num_threads: int) -> None:
            library.adamas_set_threads(num_threads)

        def get_version(self) -> str:
            return str(library.adamas_abi())

    threadpoolctl.register(Controller)
