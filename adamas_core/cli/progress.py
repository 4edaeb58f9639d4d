"""Progress on stderr, through rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .terminal import console


@contextmanager
def steps() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar for the block, which moves it by calling (text, done, total or None).

    Where stderr is no terminal, nothing is shown.
    """
    where = console(stderr=True)
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    hidden = not where.is_terminal
    with Progress(*columns, console=where, transient=True, disable=hidden) as progress:
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
