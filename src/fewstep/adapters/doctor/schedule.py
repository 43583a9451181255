"""Checks of the schedule: where it begins, how it moves, where it ends, and whether it runs at all."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence

from fewstep.adapters.doctor.facts import RAMPS, Case, again, called, few, ours, trailing
from fewstep.adapters.doctor.findings import Finding

__all__ = ["SCHEDULE"]

FEW = 10  # steps; with more, the same mistake costs little
_SIGNAL = {"error": 0.1, "warning": 0.04, "note": 0.005}  # share of the image that the network expects and is not given
_WASTED = 0.15  # of a mean move: a call that goes less far than this does nearly nothing
_COSTS = 20  # one call of more than so many is cheap
_NOISE_LEFT = 0.05  # kappa: more than this can be seen in smooth areas
_NOTHING = 5e-3  # kappa: less than this is nothing
_CLOSE = 1e-4


def _first_not_terminal(case: Case) -> Iterator[Finding]:
    """D01: the first call's level is below the noisiest one, and pure noise is what it is given."""
    terminal, run = case.terminal, case.run
    if terminal is None or not run.angles:
        return
    signal = math.cos(run.angles[0]) - math.cos(terminal)
    severity = next((name for name in ("error", "warning", "note") if signal >= _SIGNAL[name]), None)
    if severity is None:
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


def _double_shift(case: Case) -> Iterator[Finding]:
    """D02: a shift that is applied to levels that are shifted already."""
    shift, run = _shift(case), case.run
    if shift is None or not run.timesteps or len(run.angles) < 3:
        return
    n, scale = run.steps, case.config.get("num_train_timesteps", 1000)
    real = sorted({_sigma(angle) for angle in run.angles[:-1]}, reverse=True)
    if case.sigmas is not None:
        even = [_unshifted(sigma, shift) for sigma in case.sigmas]
        if not _same(even, [1 - i / n for i in range(n)], 1e-3):
            return
        once, fix = [float(sigma) for sigma in case.sigmas], [round(sigma, 4) for sigma in even]
    else:
        least = float(vars(case.subject.scheduler).get("sigma_min", 1 / scale))
        twice = [_shifted(1 + (least - 1) * i / (n - 1), shift) for i in range(n)]
        if least < 1.01 / scale or not _same(real, twice, _CLOSE):
            return
        once = [_shifted(1 + (1 / scale - 1) * i / (n - 1), shift) for i in range(n)]
        fix = [round(1 - i / n, 4) for i in range(n)]
    takes = "sigmas" in inspect.signature(case.subject.scheduler.set_timesteps).parameters
    yield Finding(
        "D02",
        "warning" if n <= FEW else "note",
        "The shift of the flow is applied twice",
        f"Shift {shift:g} at {n} steps gives sigmas {few([*real, 0.0])}; applied once it gives {few([*once, 0.0])}",
        called(num_inference_steps=n, sigmas=fix) if takes else ours(),
    )


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
    return called(num_inference_steps=min(int(limit), max(case.run.steps // 2, 1)))


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
    if "final_sigmas_type" not in case.config:
        return f"It is set by {there[0]}" if there else "This scheduler has no option for it"
    return (
        f"Three options overlap here, set to {', '.join(there)}: only the first decides where the run ends; the others "
        "make the last step one of first order, lower_order_final below 15 steps only"
    )


def _clean_end(case: Case) -> str:
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
    if not (run.failure or run.angles or case.subject.chain):
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
        ours(),
    )


def _draws(case: Case) -> Iterator[Finding]:
    """D12: an image depends on its place in the batch, unless every image has a generator."""
    if case.run.draws:
        seeds = "[torch.Generator().manual_seed(k) for k in range(len(prompts))]"
        yield Finding(
            "D12",
            "note",
            "Steps draw noise, so an image of a batch cannot be made again alone",
            f"Two runs of {case.subject.scheduler_name} from one start end apart where their generators differ",
            f"import torch; pipe(prompts, generator={seeds})",
        )


SCHEDULE = (
    _first_not_terminal,
    _double_shift,
    _repeated,
    _wasted,
    _noise_left,
    _noise_of_nothing,
    _does_not_run,
    _draws,
)
