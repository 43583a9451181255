"""The doctor: names the mistakes of a few-step pipeline, with evidence and a line that mends them.

    from fewstep.adapters.doctor import examine

    for finding in examine("path/to/pipeline", steps=4).findings:
        print(finding.code, finding.what, finding.evidence, finding.fix)

It needs no weights. The pipeline's own scheduler is run, so what is reported is what it really does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from fewstep.adapters.diffusers_config import need_diffusers
from fewstep.adapters.doctor.facts import Case, distilled
from fewstep.adapters.doctor.findings import SEVERITIES, Finding, Report, Severity, worst_of_each
from fewstep.adapters.doctor.own import own_findings, usual_steps
from fewstep.adapters.doctor.pipelines import habits_of
from fewstep.adapters.doctor.runs import Run, quiet, run_of
from fewstep.adapters.doctor.schedule import SCHEDULE
from fewstep.adapters.doctor.sigmas import SIGMAS
from fewstep.adapters.doctor.subject import Own, Subject, subject_of
from fewstep.adapters.doctor.trained import TRAINED
from fewstep.adapters.doctor.use import USE, kept_steps
from fewstep.errors import ConfigError

__all__ = ["SEVERITIES", "Finding", "Report", "Run", "Severity", "examine"]

_FEW = (4, 10)  # numbers of steps that are examined where neither the caller nor the card says one
_OF_DISTILLED = (4,)


def examine(
    pipeline: Any,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    strength: float | None = None,
    sigmas: Sequence[float] | None = None,
) -> Report:
    """Examine a pipeline.

    Args:
        pipeline: a diffusers pipeline or scheduler, or the folder or hub id of one; a fewstep model, its folder or its
            bundled name.
        steps: `num_inference_steps` of the call; what the card's example says if omitted, else both 4 and 10 (4 of
            distilled weights); of a model of ours, those it was trained for.
        guidance: `guidance_scale` of the call; the pipeline's own if omitted.
        strength: `strength` of the call, for image-to-image.
        sigmas: `sigmas` of the call, in place of steps.

    Returns:
        What was found, the worst first.

    Raises:
        ConfigError: if an argument is out of range, or what is given is no pipeline.
        UnknownName: if its scheduler is of an unknown class.
        CheckpointError: if a file of it is damaged or missing.
        MissingWeights: if there is no such folder, or the hub does not have it.
        MissingExtra: if diffusers is needed, and missing or too old.
    """
    _refuse(steps, guidance, strength, sigmas)
    subject = subject_of(pipeline)
    if isinstance(subject, Own):
        return _own(subject, steps, guidance)
    with quiet():
        habits = habits_of(subject.pipeline)
    counts = _counts(steps, sigmas) or subject.steps or (_OF_DISTILLED if distilled(subject) else _FEW)
    runs = []
    findings: list[Finding] = []
    for n in counts:
        kept = n if strength is None else kept_steps(n, strength, rounds_up=habits.rounds_up)
        levels = sigmas if sigmas is not None else subject.chain.get(str(n))
        case = Case(subject, habits, Run(n), guidance, strength, sigmas)
        refused = bool(subject.chain) and levels is None
        if not (refused or case.foreign):
            run = run_of(subject.scheduler, n, habits, sigmas=levels, begin=n - kept)
            case = dataclasses.replace(case, run=run)
        runs.append(case.run)
        findings += _judged(case)
    return Report(_facts(subject, guidance, strength), tuple(runs), worst_of_each(findings))


def _counts(steps: int | None, sigmas: Sequence[float] | None) -> tuple[int, ...]:
    """Numbers of steps that were asked for; none if nothing was."""
    asked = steps if sigmas is None else len(sigmas)
    return () if asked is None else (asked,)


def _judged(case: Case) -> Iterator[Finding]:
    for check in (*SCHEDULE, *SIGMAS, *TRAINED, *USE):
        yield from check(case)


def _own(own: Own, steps: int | None, guidance: float | None) -> Report:
    counts = _counts(steps, None) or usual_steps(own) or _FEW
    found = [finding for n in counts for finding in own_findings(own, n, guidance)]
    facts = {"name": own.name, "kind": "fewstep", "fingerprint": own.fingerprint, "steps": list(counts)}
    return Report({**facts, "guidance": guidance}, (), worst_of_each(found))


def _facts(subject: Subject, guidance: float | None, strength: float | None) -> dict[str, Any]:
    return {
        "name": subject.name,
        "kind": "pipeline" if subject.pipeline else "scheduler",
        "diffusers": str(need_diffusers().__version__),
        "pipeline": subject.pipeline,
        "scheduler": subject.scheduler_name,
        "network": str(subject.network.get("_class_name") or ""),
        "guidance": guidance,
        "strength": strength,
    }


def _refuse(steps: int | None, guidance: float | None, strength: float | None, sigmas: Sequence[float] | None) -> None:
    """Refuse what no pipeline could be called with."""
    for holds, given, allowed, todo in (
        (
            steps is None or (type(steps) is int and steps >= 1),
            f"steps={steps}",
            "A whole number, 1 or more",
            "steps=4",
        ),
        (guidance is None or 0 <= guidance < math.inf, f"guidance={guidance}", "0 or more; 1 is none", "guidance=1.0"),
        (strength is None or 0 <= strength <= 1, f"strength={strength}", "From 0 to 1", "strength=0.5"),
        (
            sigmas is None or (len(sigmas) > 0 and all(map(math.isfinite, sigmas))),
            f"sigmas={sigmas}",
            "One finite level or more",
            "sigmas=[1.0, 0.5]",
        ),
        (
            sigmas is None or steps in (None, len(sigmas)),
            f"steps={steps} and sigmas={sigmas}",
            "As many",
            "Leave steps",
        ),
    ):
        if not holds:
            raise ConfigError(given, allowed, f"Use for instance {todo}")
