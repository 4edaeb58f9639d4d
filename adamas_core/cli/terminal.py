"""Tables and texts on the terminal, through rich."""

from __future__ import annotations

import shutil
import sys
from typing import Any

# rich fails below a few columns, and fills a line of any length with spaces.
LEAST, MOST = 40, 1000
FILE_COLUMNS = 200  # where the output is no terminal


def console(stderr: bool = False) -> Any:
    """A console of rich that takes every text as it is, and raises BrokenPipeError."""
    try:
        from rich.console import Console
    except ImportError:
        raise ImportError('rich is missing: pip install "adamas-core[llama]"') from None

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich calls this where it handles the BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    size = shutil.get_terminal_size()
    return Plain(
        stderr=stderr,
        width=min(max(size.columns, LEAST), MOST) if stream.isatty() else FILE_COLUMNS,
        height=max(size.lines, 2),
        markup=False,
        emoji=False,
        highlight=False,
    )


def show(content: Any) -> None:
    """Print a table or a text of rich."""
    console().print(content)
