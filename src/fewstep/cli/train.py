"""What `fewstep train` does once it is parsed, and how a training is shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from fewstep.cli.shell import console, loud, progress, say
from fewstep.training import RunConfig, StepReport, train_steps, written_out

__all__ = ["noted", "run_train"]

# What stands beside the progress bar; log.jsonl has everything.
_SHOWN = ("loss", "steps", "contrast", "rho", "diversity", "grad_norm")


def run_train(config: RunConfig, out: Path, dry_run: bool) -> None:
    """Train a model, or print what would be trained."""
    if dry_run:
        console.print_json(json.dumps(written_out(config)))
        return
    last = None
    with console.status("preparing") as status, loud():
        reports = train_steps(config, out, tell=status.update)
    for report in progress(noted(reports), config.train.steps, f"training on {config.data}"):
        last = report.report
    if last is None:
        say(f"{escape(str(out))} already holds a finished run; train.steps above {config.train.steps} goes on with it")
    else:
        say(f"Step {last.step}, {last.images} images: {_losses(last)}. Model in {escape(str(out))}")


@dataclass(frozen=True)
class Noted:
    """A report with the line that stands beside the progress bar."""

    report: StepReport

    @property
    def note(self) -> str:
        """The most telling numbers."""
        return _losses(self.report)


def noted(reports: Iterator[StepReport]) -> Iterator[Noted]:
    """Put the line beside every report."""
    return (Noted(report) for report in reports)


def _losses(report: StepReport) -> str:
    """The generator's loss and gradient and, of whole chains, what the guard watches."""
    told = {name.split("/")[-1]: value for name, value in report.losses.items() if name != "critic/grad_norm"}
    shown = {name: value for name, value in told.items() if name in _SHOWN or name.endswith("accuracy")}
    return ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
