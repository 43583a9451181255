r"""What a scheduler really does: its own `set_timesteps` and `step`, run on a copy, as its pipeline runs them.

Levels are told as angles :math:`\varphi = \operatorname{atan2}(\sigma, \alpha)`: 0 is clean, a right angle pure noise.
Both of diffusers' conventions become the same angles: :math:`\arctan\kappa` of tables of betas, and
:math:`\operatorname{atan2}(\sigma, 1 - \sigma)` of flows.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.adapters.diffusers_config import is_flow
from fewstep.adapters.doctor.pipelines import Habits

__all__ = ["OURS", "Run", "quiet", "run_of", "samples_flow", "terminal_angle"]

OURS = ("EVODiffScheduler", "CalibratedScheduler")
_ENDS_CLEAN = ("LCMScheduler", "DDPMScheduler", "DDPMParallelScheduler")  # their last step returns the estimate itself
_SAME = 1e-9
_SEQUENCE = 4096  # tokens of an image of 1024 x 1024, the size that pipelines with a mu make by default


@dataclass(frozen=True)
class Run:
    """What a scheduler did with a number of steps.

    Args:
        steps: number of steps that were asked for.
        timesteps: what the network is told at each call.
        angles: of the level at each call, and of the end, radians; empty if the scheduler keeps them to itself, or
            does not go from noise to an image.
        failure: what `set_timesteps` or `step` raised, or made of an output of zeros; empty if all went well.
        draws: whether its steps draw noise.
    """

    steps: int
    timesteps: tuple[float, ...] = ()
    angles: tuple[float, ...] = ()
    failure: str = ""
    draws: bool = False

    @property
    def last_move(self) -> float:
        """How far the last call goes, radians; 0 if there are no levels to tell."""
        return self.angles[-2] - self.angles[-1] if len(self.angles) > 1 else 0.0

    @property
    def mean_move(self) -> float:
        """How far a step goes, radians; 0 if none goes anywhere."""
        pairs = zip(self.angles, self.angles[1:], strict=False)
        moved = sum(abs(here - there) > _SAME for here, there in pairs)  # the second call of a step is no move
        return (self.angles[0] - self.angles[-1]) / moved if moved else 0.0


@contextmanager
def quiet() -> Iterator[None]:
    """Keep log lines and warnings of libraries back: what matters of them is found, and said once."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def run_of(scheduler: Any, steps: int, habits: Habits, *, sigmas: Sequence[float] | None = None, begin: int = 0) -> Run:
    """Let a copy of a scheduler set its timesteps and take its steps.

    Args:
        scheduler: of diffusers, or like one; it is left as it is.
        steps: number of steps.
        habits: how the pipeline calls it.
        sigmas: levels that are passed to the pipeline, in place of a number of steps.
        begin: how many steps are left out at the start, as image-to-image does.

    Returns:
        What it did.
    """
    scheduler = copy.deepcopy(scheduler)
    if not any(hasattr(scheduler, name) for name in ("alphas_cumprod", "sigmas")):
        return Run(steps)  # of a kind of its own, such as SCM's
    with quiet():
        euler = type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
        even = habits.sigmas or (habits.even_euler and euler)
        given = _arguments(scheduler.config, steps, habits._replace(sigmas=even), sigmas)
        try:
            scheduler.set_timesteps(**given)
        except Exception as error:  # whatever it is, it is what the user would meet
            return Run(steps, failure=f"set_timesteps({', '.join(given)}) raises {_said(error)}")
        timesteps = tuple(float(t) for t in scheduler.timesteps)
        angles = _angles(scheduler)
        if not angles:
            return Run(steps, timesteps)
        ends = [_walked(copy.deepcopy(scheduler), begin, seed) for seed in (0, 1)]
    failure = next((end for end in ends if isinstance(end, str)), "")
    draws = not failure and not torch.equal(torch.as_tensor(ends[0]), torch.as_tensor(ends[1]))
    return Run(steps, timesteps, angles, failure, draws)


def _arguments(config: Any, steps: int, habits: Habits, sigmas: Sequence[float] | None) -> dict[str, Any]:
    """What the pipeline passes to `set_timesteps`."""
    given: dict[str, Any] = {"num_inference_steps": steps}
    if sigmas is not None:
        given = {"sigmas": list(sigmas)}
    elif habits.sigmas and not config.get("use_flow_sigmas"):
        given = {"sigmas": [1 - i / steps for i in range(steps)]}
    if habits.mu or config.get("use_dynamic_shifting"):
        given["mu"] = _mu(config)
    return given


def _mu(config: Any) -> float:
    """The line through both ends that pipelines draw, at an image of 1024 x 1024."""
    short, long = config.get("base_image_seq_len") or 256, config.get("max_image_seq_len") or 4096
    low, high = config.get("base_shift") or 0.5, config.get("max_shift") or 1.15
    return float(low + (high - low) * (_SEQUENCE - short) / (long - short))


def _said(error: Exception) -> str:
    """Kind and first line of an error, such as diffusers' own."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _walked(scheduler: Any, begin: int, seed: int) -> torch.Tensor | str:
    """Take all steps with a network that says 0, from noise of its own; where it ends, or what it raises."""
    noise_scale = float(getattr(scheduler, "init_noise_sigma", 1) or 1)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * noise_scale
    outputs = 2 if str(scheduler.config.get("variance_type")).startswith("learned") else 1  # a variance beside each
    takes = inspect.signature(scheduler.step).parameters
    if any(takes[name].default is inspect.Parameter.empty for name in [*takes][3:] if takes[name].kind.value < 2):
        return x  # it wants more than an output, a timestep and a sample, which only its own pipeline has
    noise = {"generator": torch.Generator().manual_seed(seed)} if "generator" in takes else {}
    begin *= int(getattr(scheduler, "order", 1))
    try:
        if begin and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        for t in scheduler.timesteps[begin:]:
            told = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(torch.zeros_like(told).repeat(1, outputs, 1, 1), t, x, return_dict=False, **noise)[0]
    except Exception as error:  # as above
        return f"step raises {_said(error)}"
    return x if bool(x.isfinite().all()) else "step makes NaN or infinity of a network's output of zeros"


def samples_flow(scheduler: Any) -> bool:
    """Whether a scheduler visits the levels of flows.

    A FlowMatch* does, whatever configuration it was made from; ours do if either of two options says so; of others that
    have a table of betas, `use_flow_sigmas` alone decides, whatever is predicted.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name.startswith("FlowMatch"):
        return True
    if name not in OURS and hasattr(scheduler, "alphas_cumprod"):
        return bool(config.get("use_flow_sigmas"))
    return is_flow(config)


def _angles(scheduler: Any) -> tuple[float, ...]:
    """Of every call and of the end; none of a scheduler of an unknown kind, or of one that inverts images."""
    found = _levels(scheduler)
    return found if found and found[0] >= max(found) - _SAME else ()


def _levels(scheduler: Any) -> tuple[float, ...]:
    calls = len(scheduler.timesteps)
    sigmas, bar = getattr(scheduler, "sigmas", None), getattr(scheduler, "alphas_cumprod", None)
    flow = samples_flow(scheduler)
    if sigmas is not None and len(sigmas) == calls + 1:
        levels = [float(sigma) for sigma in sigmas]
        if scheduler.config.get("invert_sigmas"):
            levels = [1 - level for level in levels]
        return tuple(math.atan2(level, 1 - level) if flow else math.atan(level) for level in levels)
    if bar is None or flow:
        return ()
    last = getattr(scheduler, "final_alpha_cumprod", 1.0)
    end = 1.0 if type(scheduler).__name__ in _ENDS_CLEAN else float(last)
    visited = [float(bar[min(int(t), len(bar) - 1)]) for t in scheduler.timesteps]
    return tuple(math.acos(math.sqrt(min(entry, 1.0))) for entry in [*visited, end])


def terminal_angle(scheduler: Any) -> float | None:
    """Angle of the noisiest level that the network knows; None if the scheduler does not say."""
    if samples_flow(scheduler):
        return math.pi / 2
    bar = getattr(scheduler, "alphas_cumprod", None)
    return None if bar is None else math.acos(math.sqrt(float(bar[-1])))
