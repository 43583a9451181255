r"""What the configuration of a diffusers scheduler says about a network: its noise levels, and what it predicts.

Two families meet here as one: networks trained on a table of betas, whose timestep k is the time ``k + 1`` of a
:class:`~fewstep.noise.Tabulated` schedule, and flows, whose timestep is ``num_train_timesteps * sigma`` on the straight
path :math:`\alpha = 1 - \sigma`. A flow's shift moves the levels that are visited and not the path, so it is no part of
the schedule (:mod:`fewstep.adapters.diffusers_levels` has it).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from fewstep._files import require
from fewstep.denoisers import PREDICTIONS
from fewstep.denoisers.predictions import Prediction
from fewstep.errors import ConfigError, MissingExtra, choose
from fewstep.noise import LinearFlow, Schedule, Tabulated

__all__ = [
    "OLDEST",
    "TESTED",
    "TIMESTEPS",
    "Described",
    "described",
    "explicit",
    "is_flow",
    "need_diffusers",
    "scheduler_config",
    "shift_of",
]

OLDEST, TESTED = (0, 35), (0, 42)  # versions of diffusers: the first and the last that the tests ran with
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
_SMALLEST = 2.0**-24  # alphas_cumprod of "pure noise" in diffusers: a network that predicts noise has an answer there
_MOST_BETA = 0.999
TIMESTEPS = 1000  # of what we export
_OF_TABLES = ("beta_schedule", "beta_start", "trained_betas")


class Described(NamedTuple):
    """What a network was trained on.

    Attributes:
        schedule: its noise levels: Tabulated, or LinearFlow.
        prediction: what its output means.
        flow: whether it is a flow.
    """

    schedule: Schedule
    prediction: Prediction
    flow: bool


def need_diffusers() -> Any:
    """Import diffusers, or say how to install a version that works; a newer one than was tested is used with a warning.

    Returns:
        The library.

    Raises:
        MissingExtra: if it is not installed, or older than what the tests run with.
    """
    diffusers = require("diffusers", "diffusers")
    found = tuple(int(part) for part in re.findall(r"\d+", diffusers.__version__)[:2])
    given, allowed = f"diffusers {diffusers.__version__}", f"fewstep is tested with {_said(OLDEST)} to {_said(TESTED)}"
    todo = f"pip install 'diffusers>={_said(OLDEST)},<{TESTED[0]}.{TESTED[1] + 1}'"
    if found < OLDEST:
        raise MissingExtra(f"{given} is installed", allowed, f"Run: {todo}")
    if found > TESTED:  # most releases change nothing here, so refusing all of them would help nobody
        warnings.warn(f"{given} is newer: {allowed}. If something breaks, {todo}", stacklevel=2)
    return diffusers


def _said(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def explicit(config: Mapping[str, Any]) -> dict[str, Any]:
    """Take what a configuration says itself, without what the class it comes from filled in."""
    filled = set(config.get("_use_default_values", ()))
    return {key: value for key, value in config.items() if key not in filled}


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of a flow: it says so, or is of a flow-matching scheduler."""
    if "prediction_type" not in config:  # a class is named in files only, not in the config of an object just made
        named = str(config.get("_class_name", "")).startswith("FlowMatch")
        return named or ("shift" in config and "beta_start" not in config)
    return config["prediction_type"] == "flow_prediction" or bool(config.get("use_flow_sigmas"))


def described(config: Mapping[str, Any]) -> Described:
    """Read the configuration of a scheduler.

    Args:
        config: of any of diffusers' KarrasDiffusionSchedulers, of FlowMatch* or of ours; missing keys take the values
            that diffusers gives them, but of betas it has to say something.

    Returns:
        Schedule, prediction and kind.

    Raises:
        ConfigError: if it is of another kind: continuous EDM models, inverted sigmas, no betas at all...
        UnknownName: if the prediction type or the kind of betas is unknown.
    """
    _refuse_foreign(config)
    flow = is_flow(config)
    name = choose(
        config.get("prediction_type", "flow_prediction" if flow else "epsilon"), _PREDICTIONS, "prediction type"
    )
    return Described(LinearFlow() if flow else _table(config), PREDICTIONS[name](), flow)


def _refuse_foreign(config: Mapping[str, Any]) -> None:
    """Refuse what would be read as something else."""
    tabled = any(config.get(key) is not None for key in _OF_TABLES)
    known = "Supported are tables of betas (Stable Diffusion, SDXL, PixArt, DDPM) and flows (SD3, Flux, Sana)"
    foreign = {
        "a continuous EDM model": config.get("timestep_type") == "continuous"
        or ("sigma_data" in config and not tabled),
        "inverted sigmas": bool(config.get("invert_sigmas")),
        "a shifted table, snr_shift_scale": config.get("snr_shift_scale", 1) != 1,
        "neither betas nor a flow": not (tabled or is_flow(config)),
    }
    for what, hit in foreign.items():
        if hit:
            named = config.get("_class_name", "of an unnamed class")
            raise ConfigError(f"A scheduler ({named}) of {what}", known, "Keep the pipeline's own scheduler")


def _table(config: Mapping[str, Any]) -> Tabulated:
    """The levels of a discrete model; zero terminal SNR stops short of alpha = 0, as in diffusers."""
    table = _whole_table(config)
    if not config.get("rescale_betas_zero_snr"):
        return table
    *entries, _ = table.zero_terminal_snr().alphas_cumprod
    return Tabulated((*entries, _SMALLEST if entries[-1] > _SMALLEST else entries[-1] / 4))


def _whole_table(config: Mapping[str, Any]) -> Tabulated:
    if config.get("trained_betas") is not None:
        return Tabulated.of_betas(config["trained_betas"])
    length = config.get("num_train_timesteps", 1000)
    ends = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    kinds: dict[str, Callable[[], Tabulated]] = {
        "linear": lambda: Tabulated.linear(*ends, length),
        "scaled_linear": lambda: Tabulated.scaled_linear(*ends, length),
        "squaredcos_cap_v2": lambda: Tabulated.of_betas(_cosine(length)),
    }
    return choose(config.get("beta_schedule", "linear"), kinds, "beta schedule")()


def _cosine(count: int) -> list[float]:
    """Rates of the cosine schedule, cut off at 0.999 (Nichol, Dhariwal 2021, arXiv:2102.09672, Eq. 17)."""
    bar = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
    return [min(1 - after / before, _MOST_BETA) for before, after in pairwise(bar)]


def shift_of(config: Mapping[str, Any], mu: float | None = None) -> float:
    """Find the one factor by which a flow's levels are shifted.

    Args:
        config: of the scheduler; flow-matching schedulers call it `shift`, the others `flow_shift`.
        mu: what pipelines compute from the size of the image; many pass it to every scheduler, and it counts only
            with `use_dynamic_shifting`, as in diffusers.

    Returns:
        The shift s in ``s * sigma / (1 + (s - 1) * sigma)``.

    Raises:
        ConfigError: if `mu` is needed and missing, its kind is unknown, or there are two different shifts.
    """
    if config.get("use_dynamic_shifting"):
        return _dynamic(config, mu)
    given = {float(config.get(name) or 1.0) for name in ("shift", "flow_shift")} - {1.0}
    if len(given) > 1:
        raise ConfigError(
            f"shift={config['shift']:g} and flow_shift={config['flow_shift']:g}",
            "Two names of one number, which is applied once",
            "Leave one of them out",
        )
    return given.pop() if given else 1.0


def _dynamic(config: Mapping[str, Any], mu: float | None) -> float:
    kind = config.get("time_shift_type", "exponential")
    if mu is None or kind not in ("exponential", "linear"):
        raise ConfigError(
            f"Dynamic shifting of kind {kind!r} with mu={mu}",
            "The kind is 'exponential' or 'linear', and the pipeline passes mu for the size of its image",
            "Call set_timesteps(..., mu=...), or set use_dynamic_shifting=False and shift=...",
        )
    return math.exp(mu) if kind == "exponential" else float(mu)


def scheduler_config(betas: Sequence[float] | None) -> dict[str, Any]:
    """Say what an exported model of ours predicts, and at which levels, as schedulers are told it.

    Args:
        betas: of a table; None for a flow.

    Returns:
        Configuration of a scheduler.
    """
    if betas is None:
        return {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": TIMESTEPS}
    return {"prediction_type": "sample", "trained_betas": list(betas), "num_train_timesteps": len(betas)}
