"""Checks of how a pipeline is used: strength, guidance, and whether the scheduler suits the weights."""

from __future__ import annotations

from collections.abc import Iterator

from fewstep.adapters.doctor.facts import Case, called
from fewstep.adapters.doctor.findings import Finding

__all__ = ["USE", "kept_steps"]

_STRONG = 2.0  # guidance that distilled weights cannot take; a little is survived
_ROUNDING = 1e-9


def kept_steps(steps: int, strength: float, *, rounds_up: bool = False) -> int:
    """Count the steps that image-to-image leaves of a number of steps, as diffusers computes it.

    Args:
        steps: asked for.
        strength: 0 keeps the image, 1 begins at noise.
        rounds_up: which of the two ways of diffusers the pipeline has.

    Returns:
        ``int(steps * strength)``, or what ``int(steps - steps * strength)`` leaves.
    """
    if rounds_up:
        return steps - int(max(steps - min(steps * strength, steps), 0))
    return min(int(steps * strength), steps)


def _strength(case: Case) -> Iterator[Finding]:
    """D05: rounding takes a step away, or all of them."""
    steps, strength, up = case.run.steps, case.strength, case.habits.rounds_up
    if strength is None:
        return
    kept = kept_steps(steps, strength, rounds_up=up)
    if kept and not _loses(steps, strength, up):
        return
    left = f"{kept} steps are left, one less than was meant" if kept else "no step is left to change the image"
    yield Finding(
        "D05",
        "warning" if kept else "error",
        "Strength rounds a step away" if kept else "Strength rounds to no step at all",
        f"int({steps} * {strength:g}) = int({steps * strength!r}) = {kept}: {left}",
        _stronger(case, steps, strength, kept + 1 if kept else steps),
    )


def _loses(steps: int, strength: float, rounds_up: bool) -> bool:
    """Whether the product is a whole number on paper, and below it in the machine."""
    meant = round(steps * strength)
    return not rounds_up and abs(meant - steps * strength) < _ROUNDING and int(steps * strength) < meant


def _stronger(case: Case, steps: int, strength: float, wanted: int) -> str:
    """The call that leaves as many steps as are wanted."""
    up = case.habits.rounds_up
    if steps * strength == 0:
        return called(case, num_inference_steps=2 * steps, strength=0.5)
    least = int(wanted / strength)
    enough = (n for n in range(least, least + 100) if not _loses(n, strength, up))
    n = next(n for n in enough if kept_steps(n, strength, rounds_up=up) >= wanted)
    return called(case, num_inference_steps=n, strength=strength)


def _guidance(case: Case) -> Iterator[Finding]:
    """D06: distilled weights have their guidance inside."""
    scale, why = case.scale, case.distilled or case.perhaps
    if not (case.guided and why) or scale is None or case.keeps_guidance or (case.consistent and scale <= _STRONG):
        return
    whose = "is asked for" if case.guidance is not None else f"is what {case.subject.pipeline} takes unless told"
    fix = called(case, num_inference_steps=case.run.steps, guidance_scale=1.0)
    if case.distilled:
        yield Finding(
            "D06",
            "error" if scale > _STRONG else "warning",
            "Guidance on distilled weights, which have it inside already",
            f"guidance_scale={scale:g} {whose}; distilled, because of {'; '.join(why)}. Colours burn out, and every "
            "step costs two evaluations",
            fix,
        )
    else:
        yield Finding(
            "D06",
            "note",
            "Guidance on weights that may have it inside already",
            f"guidance_scale={scale:g} {whose}; {'; '.join(why)}. Weights that were distilled to few steps need none; "
            "a network that was distilled to a smaller one does",
            fix,
        )


def _calls(case: Case) -> Iterator[Finding]:
    """D10: what an image really costs."""
    run = case.run
    calls = len(run.timesteps)
    steps = case.run.steps if case.sigmas is None else calls  # the last of the sigmas may be the end
    evaluations = calls * (2 if case.guided else 1)
    if not calls or evaluations == steps:
        return
    doubled = f", and guidance {case.scale:g} doubles them to {evaluations} evaluations" if case.guided else ""
    more = f"{steps} steps are {calls} calls per image" if calls != steps else f"{calls} calls per image"
    yield Finding(
        "D10",
        "note",
        "An image costs more than its number of steps says",
        f"{more}{doubled}. State evaluations where methods are compared",
        called(case, num_inference_steps=max(1, steps * steps // evaluations)) + "  # for equal cost",
    )


USE = (_strength, _guidance, _calls)
