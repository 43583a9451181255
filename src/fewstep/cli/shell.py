"""What every command shares: how errors, progress and tables look."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fewstep.errors import FewstepError

__all__ = ["console", "numbers", "progress", "run", "table"]

T = TypeVar("T")
console = Console()
_errors = Console(stderr=True)


def run(app: typer.Typer) -> None:
    """Run the application; exit 2 for errors raised on purpose, 130 for Ctrl-C."""
    try:
        app()
    except FewstepError as error:
        if os.environ.get("FEWSTEP_DEBUG"):
            raise
        _errors.print(f"[bold red]{type(error).__name__}[/]")
        for title, part in (("given  ", error.given), ("allowed", error.allowed), ("to do  ", error.todo)):
            _errors.print(f"  [dim]{title}[/] ", end="")
            _errors.print(part, markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        _errors.print("Interrupted. What was finished is on disk; `fewstep train` goes on from its last checkpoint.")
        sys.exit(130)


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Walk through items behind a progress bar that goes away when it is done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, note="")
        for item in items:
            bar.update(task, advance=1, note=getattr(item, "note", ""))
            yield item


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table whose first column is text and whose others are numbers."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        made.add_row(*row)
    console.print(made)


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Read a comma-separated list of whole numbers."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of whole numbers such as 5,10,20", param_hint=option
        ) from None
