"""Progress on stderr, through rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def steps() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar for the block, which moves it by calling (text, done, total or None)."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        raise ImportError('rich is missing: pip install "adamas-core[llama]"') from None

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def move(text: str, done: int, total: int | None) -> None:
            progress.update(task, description=text, completed=done, total=total)

        yield move


@contextmanager
def bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of one text for the block, which moves it by calling (done, total)."""
    with steps() as move:
        move(text, 0, None)
        yield lambda done, total: move(text, done, total)
