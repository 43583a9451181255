"""What every command shares: how errors, progress and tables look."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fewstep.errors import CollapseWarning, ConfigError, FewstepError, choose

__all__ = [
    "console",
    "lines",
    "loud",
    "names",
    "numbers",
    "progress",
    "protocol_metrics",
    "run",
    "say",
    "table",
    "ticking",
]

T = TypeVar("T")
console = Console(quiet=os.environ.get("RANK", "0") != "0")  # of several processes, the first one speaks
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
            # Unbroken, so that a path can be copied and a pipe gets one line a part.
            _errors.print(part, markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C, without a word
            _errors.print(
                "Interrupted. What was finished is on disk; `fewstep train` goes on from the last checkpoint, as do "
                "`fewstep convert` and `fewstep ablate`, `fewstep evaluate` from the last image. `fewstep calibrate` "
                "begins again."
            )
        raise


@contextmanager
def loud() -> Iterator[None]:
    """Show a warning about what is trained as a paragraph, every time; other warnings go their usual way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CollapseWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, CollapseWarning):
            _errors.print(f"[bold yellow]Warning[/] {escape(str(warning.message))}", soft_wrap=True)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def say(text: str) -> None:
    """Print a line that may hold rich's markup; names and paths in it have to be escaped."""
    console.print(text, soft_wrap=True)


def _bar() -> Progress:
    """A bar that goes away when it is done."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    return Progress(*columns, console=console, transient=True)


@contextmanager
def ticking(total: int, what: str) -> Iterator[Callable[..., None]]:
    """Show a bar for work that reports each of its pieces by a call."""
    with _bar() as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda *_: bar.update(task, advance=1)


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Walk through items behind a progress bar; one may bring a `note`, and say how far to `advance`."""
    with _bar() as bar:
        task = bar.add_task(what, total=total, note="")
        for item in items:
            bar.update(task, note=getattr(item, "note", ""))
            yield item
            bar.update(task, advance=getattr(item, "advance", 1))


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table whose first column is text and whose others are numbers."""
    made = Table(title=escape(title), title_justify="left", header_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        made.add_row(*map(escape, row))
    console.print(made)


def lines(texts: Iterable[str], option: str) -> tuple[str, ...]:
    """Read texts, some of which may be files of one text a line; empty lines are left out."""
    found: list[str] = []
    for text in texts:
        path = Path(text)
        try:
            found += path.read_text(encoding="utf-8").splitlines() if path.is_file() else [text]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{option} {text} ({error})", "A text, or a text file in UTF-8", "Check the file"
            ) from error
    kept = tuple(text.strip() for text in found if text.strip())
    if found and not kept:
        raise ConfigError(f"{option} with nothing but empty lines", "At least one caption", "Write one")
    return kept


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Read a comma-separated list of whole numbers."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(
            f"{option} {text}", "Whole numbers, separated by commas", f"Write for instance {option} 5,10,20"
        ) from None


def names(text: str) -> tuple[str, ...]:
    """Read a comma-separated list of names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def protocol_metrics(protocol: str, prompts: Path | None) -> tuple[str, ...]:
    """Look up the metrics of a protocol; those of none if there is none."""
    if not protocol:
        return ("fd", "kid", "prdc")
    metrics = choose(protocol, {"coco30k": ("fd", "clip")}, "protocol")
    if prompts is None:
        raise ConfigError(f"--protocol {protocol} without prompts", "It is about one image a prompt", "Pass --prompts")
    return metrics
