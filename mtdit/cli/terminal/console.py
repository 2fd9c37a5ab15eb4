"""Terminal output: lines and progress bars for people, JSON for scripts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtdit_runtime.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

MAX_LINE = 4000  # characters


class Terminal:
    """Prints for people: to standard output, or to standard error if `stderr` is set.

    rich is imported with the first line that is printed, so `--help` does not need it.
    """

    def __init__(self) -> None:
        self.stderr = False

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        class Escaping(Console):
            """Prints text with control characters escaped, whoever prints it."""

            def print(self, *parts: Any, **options: Any) -> None:
                shown = (escaped(part) if isinstance(part, str) else part for part in parts)
                super().print(*shown, **options)

        return Escaping(markup=False, highlight=False, soft_wrap=True)

    @property
    def rich(self) -> Console:
        """The rich console, for live displays."""
        self._console.stderr = self.stderr
        return self._console

    @property
    def is_terminal(self) -> bool:
        return self.rich.is_terminal

    def print(self, part: Any) -> None:
        """Print lines of text, or a table."""
        self.rich.print(part)


def escaped(text: str) -> str:
    """Text of one or more lines that cannot steer a terminal."""
    return "\n".join(printable(line, MAX_LINE) for line in text.split("\n"))


console = Terminal()


def progress(words: str = "{task.description}") -> Progress:
    """A progress bar with count, elapsed time and remaining time."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(words),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console.rich)


@contextmanager
def graph_progress() -> Iterator[Callable[[str, float, float], None]]:
    """A bar with the elapsed time per graph; nothing outside a terminal. Yields a function that
    takes graph, share done (0..1) and elapsed seconds.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console.rich, transient=True, disable=not console.is_terminal
    ) as bars:
        tasks: dict[str, Any] = {}

        def show(graph: str, share: float, elapsed_s: float) -> None:
            if graph not in tasks:
                tasks[graph] = bars.add_task(graph, total=1.0)
            bars.update(tasks[graph], completed=share)

        yield show


def write_json(where: Path | None, value: Any) -> None:
    """Write `value` as JSON to the file, to standard output for "-", or nowhere for None. NaN and
    infinity become null, because JSON has neither.
    """
    if where is None:
        return
    text = json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"
    if str(where) == "-":
        sys.stdout.write(text)
    else:
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
