"""Checks of the schedule: where it begins, how it moves, where it ends, and whether it runs at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress

from fewstep.adapters.diffusers_ramps import RAMPS
from fewstep.adapters.doctor.build import built, fitted
from fewstep.adapters.doctor.facts import Case, again, called, few, ours, trailing
from fewstep.adapters.doctor.findings import Finding
from fewstep.adapters.doctor.runs import OURS, run_of
from fewstep.errors import FewstepError

__all__ = ["SCHEDULE"]

_SIGNAL = {"error": 0.1, "warning": 0.04, "note": 0.005}  # share of the image that the network expects and is not given
_WASTED = 0.15  # of a mean move: a call that goes less far than this does nearly nothing
_COSTS = 20  # one call of more than so many is cheap
_NOISE_LEFT = 0.05  # kappa: more than this can be seen in smooth areas
_NOTHING = 5e-3  # kappa: less than this is nothing


def _first_not_terminal(case: Case) -> Iterator[Finding]:
    """D01: the first call's level is below the noisiest one, and pure noise is what it is given."""
    terminal, run = case.terminal, case.run
    if terminal is None or not run.angles:
        return
    signal = math.cos(run.angles[0]) - math.cos(terminal)
    severity = next((name for name in ("error", "warning", "note") if signal >= _SIGNAL[name]), None)
    if severity is None or (severity == "note" and case.config.get("calibration")):  # a fit had its reasons
        return
    first, last = math.tan(run.angles[0]), math.tan(terminal)
    spacing = f" (timestep_spacing={case.config['timestep_spacing']!r})" if "timestep_spacing" in case.config else ""
    yield Finding(
        "D01",
        severity,  # type: ignore[arg-type]
        "The first timestep is not the noisiest one, but the pipeline starts from pure noise",
        f"{run.steps} steps start at timestep {run.timesteps[0]:g}{spacing}, kappa {first:.4g}; the noisiest level has "
        f"{'pure noise' if last > 1e6 else f'kappa {last:.4g}'}. The network is told that alpha = "
        f"{math.cos(run.angles[0]):.3f} of an image is in its input, where training ended at {math.cos(terminal):.3f}",
        trailing(case),
    )


def _repeated(case: Case) -> Iterator[Finding]:
    """D03: calls that repeat a timestep: a level that the network is not told, or a step that goes nowhere."""
    run, scheduler = case.run, case.subject.scheduler
    asked = _beyond(case)
    if asked:
        yield asked
    if not run.angles or asked:
        return
    pairs = zip(run.timesteps, run.timesteps[1:], run.angles, run.angles[1:], strict=False)
    again_there = [abs(low - high) < 1e-9 for here, there, low, high in pairs if here == there]
    # Heun and PNDM call twice at one level on purpose.
    calls_twice = scheduler.order > 1 or type(scheduler).__name__ == "PNDMScheduler"
    twice = [same for same in again_there if not (same and calls_twice)]
    if not twice:
        return
    raised = f", and {run.failure}" if run.failure else ""
    options = [name for name in RAMPS if case.config.get(name)]
    because = f" with {case.config.get('beta_schedule')} betas and {options[0]}" if options else ""
    yield Finding(
        "D03",
        "error" if run.failure or len(twice) > run.steps // 4 else "warning",
        "The network is told one timestep more than once",
        f"{run.steps} steps of {type(scheduler).__name__}{because} visit timesteps {few(run.timesteps)}: "
        f"{len(twice)} of them repeat the one before{raised}",
        trailing(case) if options else _fewer(case),
    )


def _beyond(case: Case) -> Finding | None:
    """More steps than the scheduler has timesteps for, where it says so."""
    limit = case.config.get("original_inference_steps") or case.config.get("num_train_timesteps", math.inf)
    if not (case.run.failure.startswith("set_timesteps") and case.run.steps > limit):
        return None
    return Finding(
        "D03",
        "error",
        "More steps than there are timesteps",
        f"{case.run.steps} steps of {limit} timesteps: {case.run.failure}",
        _fewer(case),
    )


def _fewer(case: Case) -> str:
    limit = case.config.get("original_inference_steps") or case.config.get("num_train_timesteps", 1000)
    return called(case, num_inference_steps=min(int(limit), max(case.run.steps // 2, 1)))


def _wasted(case: Case) -> Iterator[Finding]:
    """D04: a last call that hardly moves."""
    run = case.run
    # EDM-style schedulers, which say no noisiest level, end with a short step on purpose; a fitted one had its reasons.
    on_purpose = case.terminal is None or case.config.get("calibration")
    if len(run.angles) < 3 or not run.mean_move or on_purpose:
        return
    share = run.last_move / run.mean_move
    if share < 2 * _WASTED:
        yield Finding(
            "D04",
            "warning" if share < _WASTED and run.steps <= _COSTS else "note",
            "The last call hardly moves the sample",
            f"Of {run.steps} steps the last goes from timestep {run.timesteps[-1]:.4g} to the end, "
            f"{math.degrees(run.last_move):.2g} degrees of atan2(sigma, alpha), {100 * share:.2g} % of a mean step",
            trailing(case),
        )


def _noise_left(case: Case) -> Iterator[Finding]:
    """D13: the run ends above sigma = 0."""
    end = math.tan(max(case.run.angles[-1], 0.0)) if case.run.angles else 0.0
    if end > _NOTHING:
        yield Finding(
            "D13",
            "warning" if end > _NOISE_LEFT else "note",
            "Noise is left in the image at the end",
            f"The last step ends at kappa {end:.3g} instead of 0. {_flags(case)}",
            _clean_end(case),
        )


def _flags(case: Case) -> str:
    """The options that decide on the last step, and how they are set."""
    named = ("final_sigmas_type", "lower_order_final", "euler_at_final", "set_alpha_to_one")
    there = [f"{name}={case.config[name]!r}" for name in named if name in case.config]
    if case.sigmas is not None:
        return "The last of the sigmas that are passed is where the run ends"
    if case.config.get("calibration"):
        return "It is the last level of the calibrated table, and no option moves it"
    if "final_sigmas_type" not in case.config:
        return f"It is set by {there[0]}" if there else "This scheduler has no option for it"
    return (
        f"Three options overlap here, set to {', '.join(there)}: only the first decides where the run ends; the others "
        "make the last step one of first order, lower_order_final below 15 steps only"
    )


def _clean_end(case: Case) -> str:
    if case.sigmas is not None:
        return called(case, sigmas=[*case.sigmas, 0.0])
    if case.config.get("calibration"):
        return ours()
    if "final_sigmas_type" in case.config:
        return again(final_sigmas_type="zero")
    return again(set_alpha_to_one=True) if "set_alpha_to_one" in case.config else ours()


def _noise_of_nothing(case: Case) -> Iterator[Finding]:
    """D07: noise is predicted at a level where the sample is nothing but noise."""
    zero = bool(case.config.get("rescale_betas_zero_snr"))
    if case.flow or not zero or case.config.get("prediction_type", "epsilon") != "epsilon":
        return
    bar = float(case.subject.scheduler.alphas_cumprod[-1])
    divides = f"which divides by alpha = {math.sqrt(bar):.2g}" if bar > 0 else "which divides by alpha = 0"
    yield Finding(
        "D07",
        "error",
        "The network predicts noise, and the schedule begins at zero signal",
        f"rescale_betas_zero_snr=True makes the last entry of alphas_cumprod {bar:.2g}; an estimate of the image "
        f"out of predicted noise is (x - sigma * eps) / alpha, {divides}. Such weights are trained with v_prediction",
        again(rescale_betas_zero_snr=False),
    )


def _does_not_run(case: Case) -> Iterator[Finding]:
    """D11: the scheduler raises, or makes NaN out of zeros; or nobody can tell."""
    run = case.run
    if not (run.failure or run.angles or case.subject.chain or case.foreign):
        yield Finding(
            "D11",
            "note",
            "The levels of this scheduler cannot be read",
            f"{case.subject.scheduler_name} is of a kind of its own, so most checks had nothing to look at",
            f"pipe.scheduler.set_timesteps({run.steps}); print(pipe.scheduler.timesteps)",
        )
    if not run.failure or any(True for _ in _repeated(case)):
        return
    yield Finding(
        "D11",
        "error",
        "The scheduler cannot take these steps",
        f"{run.steps} steps of {case.subject.scheduler_name}: {run.failure}",
        _runs(case),
    )


def _runs(case: Case) -> str:
    """A line after which the steps are taken: our scheduler, where it takes them."""
    if case.sigmas is not None and not case.passes:
        return called(case, num_inference_steps=case.run.steps)
    if case.subject.scheduler_name not in OURS:
        with suppress(FewstepError):
            other, _ = built(case.config, OURS[0])
            if not run_of(other, case.run.steps, case.habits, sigmas=case.sigmas).failure:
                return ours()
    known = fitted(case.subject.scheduler)
    if known:
        return called(case, num_inference_steps=min(known, key=lambda steps: abs(steps - case.run.steps)))
    return again(prediction_type="epsilon") + "  # or 'v_prediction' or 'sample': what the weights predict"


def _draws(case: Case) -> Iterator[Finding]:
    """D12: an image depends on its place in the batch, unless every image has a generator."""
    if case.run.draws:
        prompts, count = ("prompts", "len(prompts)") if case.habits.prompt else ("batch_size=4", "4")
        seeds = f"[torch.Generator().manual_seed(k) for k in range({count})]"
        yield Finding(
            "D12",
            "note",
            "Steps draw noise, so an image of a batch cannot be made again alone",
            f"Two runs of {case.subject.scheduler_name} from one start end apart where their generators differ",
            f"import torch; pipe({prompts}, generator={seeds})",
        )


SCHEDULE = (
    _first_not_terminal,
    _repeated,
    _wasted,
    _noise_left,
    _noise_of_nothing,
    _does_not_run,
    _draws,
)
