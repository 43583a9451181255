"""Checks of the sigmas that are passed in the call, and of a flow's shift, which moves them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence

from fewstep.adapters.doctor.facts import Case, called, even, few, ours
from fewstep.adapters.doctor.findings import Finding

__all__ = ["SIGMAS"]

_FEW = 10  # steps; with more, the same mistake costs little
_CLOSE = 1e-4


def _foreign(case: Case) -> Iterator[Finding]:
    """D14: levels in the other convention, in the wrong order, or none at all."""
    if case.foreign and case.sigmas is not None:
        right = {"sigmas": even(case)} if case.passes else {"num_inference_steps": case.run.steps}
        yield Finding(
            "D14",
            "error",
            "The sigmas that are passed are none of this model",
            f"sigmas {few(case.sigmas)}. {case.foreign}",
            called(case, **right),
        )


def _double_shift(case: Case) -> Iterator[Finding]:
    """D02: a shift that is applied to levels that are shifted already."""
    shift, run = _shift(case), case.run
    if shift is None or not run.timesteps or len(run.angles) < 3:
        return
    found = _by_hand if case.sigmas is not None else _by_itself
    yield from found(case, shift, sorted({_sigma(angle) for angle in run.angles[:-1]}, reverse=True))


def _by_hand(case: Case, shift: float, real: Sequence[float]) -> Iterator[Finding]:
    """All levels, by the user and by the scheduler."""
    n, given = case.run.steps, [float(sigma) for sigma in case.sigmas or ()]
    once = [_unshifted(sigma, shift) for sigma in given]
    if _same(once, [1 - i / n for i in range(n)], 1e-3):
        yield Finding(
            "D02",
            "warning" if n <= _FEW else "note",
            "The shift of the flow is applied twice",
            f"Shift {shift:g} at {n} steps gives sigmas {few([*real, 0.0])}; applied once, {few([*given, 0.0])}",
            called(case, num_inference_steps=n, sigmas=[round(sigma, 4) for sigma in once]),
        )


def _by_itself(case: Case, shift: float, real: Sequence[float]) -> Iterator[Finding]:
    """The least level, out of which the scheduler makes the others and shifts them all; D04 is what comes of it."""
    n, scale = case.run.steps, case.config.get("num_train_timesteps", 1000)
    least = float(vars(case.subject.scheduler).get("sigma_min", 1 / scale))
    if least < 1.01 / scale or not _same(real, _line(least, shift, n), _CLOSE):
        return
    once = _line(1 / scale, shift, n)
    others = max(abs(a - b) for a, b in zip(real[:-1], once[:-1], strict=True))
    takes = "sigmas" in inspect.signature(case.subject.scheduler.set_timesteps).parameters
    yield Finding(
        "D02",
        "note",
        "The shift of the flow is applied twice to its last level",
        f"Shift {shift:g} at {n} steps puts the last call at sigma {real[-1]:.4g} instead of {once[-1]:.4g}; the other "
        f"calls move by {others:.2g} at most",
        called(case, num_inference_steps=n, sigmas=[round(1 - i / n, 4) for i in range(n)]) if takes else ours(),
    )


def _line(least: float, shift: float, n: int) -> list[float]:
    """Levels that are even from 1 to the least, shifted."""
    return [_shifted(1 + (least - 1) * i / (n - 1), shift) for i in range(n)]


def _shift(case: Case) -> float | None:
    """The fixed shift of a flow, where it is not 1."""
    if not case.flow or "shift" not in case.config or case.config.get("use_dynamic_shifting"):
        return None
    shift = float(vars(case.subject.scheduler).get("_shift", case.config["shift"]))
    return None if shift in (0.0, 1.0) else shift


def _sigma(angle: float) -> float:
    return round(math.sin(angle) / (math.sin(angle) + math.cos(angle)), 9)


def _shifted(sigma: float, shift: float) -> float:
    return shift * sigma / (1 + (shift - 1) * sigma)


def _unshifted(sigma: float, shift: float) -> float:
    return sigma / (shift - (shift - 1) * sigma)


def _same(one: Sequence[float], other: Sequence[float], close: float) -> bool:
    return len(one) == len(other) and all(abs(a - b) < close for a, b in zip(one, other, strict=True))


SIGMAS = (_foreign, _double_shift)
