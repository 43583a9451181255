"""What an examination finds, and what is made of it: a code that stays, numbers as evidence, a line that helps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fewstep.adapters.doctor.runs import Run

__all__ = ["SEVERITIES", "Finding", "Report", "Severity", "worst_of_each"]

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")  # the worst first
_VERSION = 1  # of the JSON document: keys are added under the same number, and removed or renamed under a new one


@dataclass(frozen=True)
class Finding:
    """A mistake of a pipeline, or something about it that is easily taken for something else.

    Args:
        code: names the check and stays as it is: "D01"...
        severity: "error" spoils the images, "warning" costs quality or calls, "note" is good to know.
        what: what is wrong, a sentence.
        evidence: what was seen, with numbers.
        fix: a line of Python in which `pipe` is the pipeline; for a model of ours, a command.
    """

    code: str
    severity: Severity
    what: str
    evidence: str
    fix: str


@dataclass(frozen=True)
class Report:
    """What `examine` found.

    Args:
        subject: what was examined, key -> value.
        runs: what the scheduler did, for each number of steps; empty for a model of ours.
        findings: the worst first; one of each code.
    """

    subject: Mapping[str, Any]
    runs: tuple[Run, ...]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is nothing but notes."""
        return all(finding.severity == "note" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Write it as JSON can hold it."""
        return {
            "fewstep_doctor": _VERSION,
            "healthy": self.healthy,
            "subject": dict(self.subject),
            "runs": [_run(run) for run in self.runs],
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }


def _run(run: Run) -> dict[str, Any]:
    levels = [math.tan(angle) if angle < math.pi / 2 - 1e-9 else None for angle in run.angles]
    kappas, timesteps = ([_finite(number) for number in numbers] for numbers in (levels, run.timesteps))
    return {"steps": run.steps, "timesteps": timesteps, "kappa": kappas, "failure": run.failure}


def _finite(number: float | None) -> float | None:
    """JSON has neither infinity nor NaN."""
    return number if number is not None and math.isfinite(number) else None


def worst_of_each(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Keep one finding of each code, the worst and of several the first; the worst codes first."""
    kept: dict[str, Finding] = {}
    for finding in sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)):
        kept.setdefault(finding.code, finding)
    return tuple(sorted(kept.values(), key=lambda finding: (SEVERITIES.index(finding.severity), finding.code)))
