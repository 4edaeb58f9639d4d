"""Progress on stderr, through rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for the block; it is moved by calling what the block gets: (done, total)."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        raise ImportError('rich is missing: pip install "adamas-core[llama]"') from None

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def move(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield move
