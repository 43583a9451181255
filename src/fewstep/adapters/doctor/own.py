"""Checks of our own models: the chain they were trained through, and the table of solvers beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fewstep.adapters.doctor.findings import Finding
from fewstep.adapters.doctor.subject import Own
from fewstep.calibration.table import Table, said_schedule
from fewstep.denoisers import PREDICTIONS
from fewstep.denoisers.predictions import Eps
from fewstep.errors import CheckpointError
from fewstep.noise import SCHEDULES

__all__ = ["own_findings", "usual_steps"]

_FEW = 4  # calls: below, an ordinary solver has too few of them


def usual_steps(own: Own) -> tuple[int, ...]:
    """Numbers of steps that the model was trained or fitted for; none if nothing says so."""
    if own.config.chain is not None:
        return own.config.chain.steps
    entries = own.table.get("entries") if isinstance(own.table, Mapping) else None
    return tuple(sorted(int(nfe) for nfe in entries if str(nfe).isdecimal())) if isinstance(entries, Mapping) else ()


def own_findings(own: Own, steps: int, guidance: float | None) -> Iterator[Finding]:
    """Examine a model folder.

    Args:
        own: what lies in it.
        steps: number of steps that it is to be sampled with.
        guidance: scale; None is none.

    Yields:
        What is found, in no order.
    """
    yield from _chain(own, steps, guidance)
    yield from _table(own, steps)
    yield from _prediction(own)


def _sampled(own: Own, steps: int) -> str:
    return f"fewstep sample --model {own.name} --steps {steps}"


def _chain(own: Own, steps: int, guidance: float | None) -> Iterator[Finding]:
    chain = own.config.chain
    if chain is None:
        return
    if steps not in chain.steps:
        near = min(chain.steps, key=lambda known: abs(known - steps))
        yield Finding(
            "D08",
            "warning",
            "The model was not trained for this number of steps",
            f"{steps} steps of a chain that was trained for {', '.join(map(str, chain.steps))}",
            _sampled(own, near),
        )
    if guidance is not None and guidance > 1:
        yield Finding(
            "D06",
            "warning",
            "Guidance on distilled weights, which have it inside already",
            f"guidance {guidance:g}; the model was trained through a chain of {', '.join(map(str, chain.steps))} steps "
            "without any",
            _sampled(own, steps if steps in chain.steps else chain.longest),
        )


def _table(own: Own, steps: int) -> Iterator[Finding]:
    fit = f"fewstep calibrate --model {own.name} --nfe {steps}"
    if own.table is None:
        if own.config.chain is None and steps <= _FEW:
            given = f"{steps} calls, no chain that it was trained through, and no calibration.json beside the weights"
            yield Finding("D08", "note", "Nothing was fitted to so few calls", given, fit)
        return
    try:
        if isinstance(own.table, CheckpointError):
            raise own.table
        table = Table.from_json(own.table, "calibration.json")
    except CheckpointError as error:
        yield Finding("D09", "error", "The calibrated table cannot be read", error.given, fit)
        return
    schedule = said_schedule(own.config.schedule.build(SCHEDULES, "schedule"))
    origin = table.origin
    known = ",".join(map(str, sorted(table.entries)))
    if origin.fingerprint and origin.fingerprint != own.fingerprint:
        given = f"It was fitted to the weights {origin.fingerprint}; these are {own.fingerprint}"
        yield Finding("D09", "error", "The calibrated table belongs to other weights", given, fit)
    elif origin.schedule and origin.schedule != schedule:
        given = f"It was fitted on {origin.schedule}; the model is on {schedule}"
        yield Finding("D09", "error", "The calibrated table was fitted on another schedule", given, fit)
    elif steps not in table.entries and own.config.chain is None:
        given = f"{steps} calls, of a table for {known}"
        yield Finding("D08", "note", "The calibrated table has no such number of calls", given, fit)


def _prediction(own: Own) -> Iterator[Finding]:
    """D07, as of any other model."""
    schedule = own.config.schedule.build(SCHEDULES, "schedule")
    prediction = own.config.prediction.build(PREDICTIONS, "prediction")
    noisiest, _ = schedule.lam_range()
    if isinstance(prediction, Eps) and noisiest == float("-inf"):
        yield Finding(
            "D07",
            "error",
            "The network predicts noise, and the schedule begins at zero signal",
            f"An estimate of the image out of predicted noise divides by alpha, which is 0 at the first level of "
            f"{said_schedule(schedule)}",
            "fewstep train diffusion.prediction.name=v",
        )
