"""Running the command line inside the test process, and what to expect of an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
from PIL import Image

TINY = ("network.width=8", "network.embedding=16", "train.batch=32", "train.warmup=5")


@dataclass(frozen=True)
class Ran:
    """How a command ended.

    Attributes:
        code: its exit code.
        out: what it printed.
        err: what it complained about.
    """

    code: int
    out: str
    err: str

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """Kind of the error and its three parts, each from its own line."""
        lines = self.err.splitlines()
        titles = [line.strip().split(maxsplit=1)[0] for line in lines[1:] if line.startswith("  ")]
        assert titles == ["given", "allowed", "to"], f"no error of three parts: {self.err!r}"
        given, allowed, todo = (line.strip().split(maxsplit=1)[1] for line in lines[1:4])
        return lines[0], given, allowed, todo.removeprefix("do").strip()


Cli = Callable[..., Ran]


def refuses(ran: Ran, kind: str, given: str, hint: str = "") -> None:
    """Check that a command ended with an error of three parts, and nothing but it."""
    assert ran.code == 2, f"exit code {ran.code}, stdout {ran.out!r}, stderr {ran.err!r}"
    assert "Traceback" not in ran.err
    name, said, allowed, todo = ran.parts
    assert name == kind, ran.err
    assert given in said, f"{given!r} is not in {said!r}"
    assert allowed
    assert todo
    assert hint in f"{allowed} / {todo}", f"{hint!r} is neither in {allowed!r} nor in {todo!r}"


def pixels(path: Path) -> numpy.ndarray:
    """Pixels of a picture, as integers that can be subtracted."""
    with Image.open(path) as picture:
        return numpy.asarray(picture).astype(int)


def files(folder: Path) -> list[str]:
    """Every file below a folder; none if it is missing."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
