"""What `fewstep doctor` does once it is parsed: examine, then print a page or a JSON document."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import typer
from rich.markup import escape

from fewstep.adapters.doctor import SEVERITIES, Report, Run, examine
from fewstep.cli.shell import console, say
from fewstep.errors import ConfigError

__all__ = ["levels", "run_doctor"]

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}
_SHOWN = 12  # timesteps of a run


def levels(text: str) -> tuple[float, ...] | None:
    """Read a comma-separated list of sigmas; None if it is empty."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip()) or None
    except ValueError:
        raise ConfigError(
            f"--sigmas {text}", "Numbers, separated by commas", "Write for instance --sigmas 1,0.75,0.5,0.25"
        ) from None


def run_doctor(
    pipeline: str,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    strength: float | None = None,
    sigmas: Sequence[float] | None = None,
    as_json: bool = False,
) -> int:
    """Examine a pipeline and say what was found.

    Args:
        pipeline: folder, hub id or bundled name.
        steps: as in `examine`, like the next three.
        guidance: of the call.
        strength: of the call.
        sigmas: of the call.
        as_json: print one JSON document and nothing else.

    Returns:
        The exit code: 0 if there is nothing but notes, 1 if there are warnings or errors.
    """
    with console.status("examining"):
        report = examine(pipeline, steps=steps, guidance=guidance, strength=strength, sigmas=sigmas)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        _show(report)
    return 0 if report.healthy else 1


def _show(report: Report) -> None:
    subject = report.subject
    parts = (subject.get("pipeline"), subject.get("scheduler"), subject.get("network"), subject.get("fingerprint"))
    say(f"[bold]{escape(str(subject['name']))}[/]  [dim]{escape(', '.join(part for part in parts if part))}[/]")
    for run in report.runs:
        say(f"[dim]{_told(run)}[/]")
    for finding in report.findings:
        colour = _COLOURS[finding.severity]
        say(f"\n[{colour}]{finding.code} {finding.severity}[/]  {escape(finding.what)}")
        say(f"  [dim]seen[/]  {escape(finding.evidence)}")
        say(f"  [dim]fix[/]   {escape(finding.fix)}")
    counts = {name: sum(finding.severity == name for finding in report.findings) for name in SEVERITIES}
    said = ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count)
    say(f"\n{said}" if said else "Nothing to say.")


def _told(run: Run) -> str:
    shown = [f"{timestep:.4g}" for timestep in run.timesteps]
    if len(shown) > _SHOWN:
        shown = [*shown[: _SHOWN - 3], "...", *shown[-2:]]
    end = f"; ends at kappa {math.tan(run.angles[-1]):.3g}" if run.angles else ""
    what = f"timesteps {', '.join(shown)}{end}" if shown else escape(run.failure) or "not run"
    return f"{run.steps} step{'s' * (run.steps > 1)}: {what}"
