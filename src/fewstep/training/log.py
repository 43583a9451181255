"""The log of a run: log.jsonl in its folder, one line of JSON for every tenth step, that goes on where the run does."""

from __future__ import annotations

import json
from pathlib import Path

from fewstep._files import write_atomic
from fewstep.errors import CheckpointError
from fewstep.training.trainer import StepReport

__all__ = ["Log"]

_EVERY = 10


class Log:
    """What the reports of a run said.

    Args:
        folder: of the run.
        step: steps that are done; lines of later ones, which a killed run left, are forgotten.

    Raises:
        CheckpointError: if a line of an earlier part of the run cannot be read.
    """

    def __init__(self, folder: str | Path, step: int) -> None:
        self.path = Path(folder) / "log.jsonl"
        old = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.lines = [line for line in old if self._step_of(line) <= step]

    def note(self, report: StepReport) -> None:
        """Remember a report, if it is a tenth one."""
        if report.at_every(_EVERY):
            losses = {name: float(f"{value:.5g}") for name, value in report.losses.items()}
            self.lines.append(json.dumps({"step": report.step, "seconds": round(report.seconds, 4), **losses}))

    def _step_of(self, line: str) -> int:
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.path} has the line {line[:80]!r}",
                "Every line is a JSON object that says its step",
                "Delete that line, or the file: the run does not need it",
            ) from error

    def write(self) -> None:
        """Write all lines; OutputError if that cannot be done."""
        write_atomic(self.path, "".join(f"{line}\n" for line in self.lines).encode())
