"""Nodes of ComfyUI: samplers and sigmas for "SamplerCustom" and "SamplerCustomAdvanced".

A file in ComfyUI's ``custom_nodes`` with this line is the whole installation:

    from fewstep.adapters.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

Written against ComfyUI's interface; ComfyUI itself is imported when a sampler node runs, and by nothing else.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep._part import Part
from fewstep.adapters.kdiffusion import SAMPLERS, open_table, sample_calibrated, tabulated_way
from fewstep.adapters.sigma_loop import Sampler, sampler_of
from fewstep.adapters.sigmas import is_flow_model, sigma_of, sigma_range
from fewstep.errors import ConfigError, LevelError, MissingExtra, about, choose
from fewstep.noise import (
    AYS,
    Karras,
    PureNoise,
    Schedule,
    ShiftedFlow,
    Spacing,
    TableOfLevels,
    Tabulated,
    Trailing,
    UniformLam,
)
from fewstep.solvers import SOLVERS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "schedule_of", "sigmas_for"]

_SAMPLERS, _SCHEDULERS = "sampling/custom_sampling/samplers", "sampling/custom_sampling/schedulers"
_TABLE = ("STRING", {"default": "calibration.json", "tooltip": "file that `fewstep calibrate` wrote, with its folder"})
_NOISIEST = 80.0  # kappa of the second level at most, where a flow model's first is infinite; EDM's sigma_max
_FIT = 1e-4  # how far a flow model's levels may be from a shifted straight path
_REACH = 1e-3  # relative rounding of a model's noisy end that is forgiven


def _ksampler(function: Sampler, **options: Any) -> tuple[Any]:
    """A sampler as ComfyUI's nodes hand it on."""
    try:
        samplers = importlib.import_module("comfy.samplers")
    except ImportError as error:
        raise MissingExtra(
            f"A node of ComfyUI, outside ComfyUI ({error})",
            "Sampler nodes run inside ComfyUI, whose package is called comfy",
            "Put the file of docs/comfyui.md into custom_nodes; in Python call fewstep.adapters.kdiffusion instead",
        ) from error
    return (samplers.KSAMPLER(function, extra_options=options),)


def _stamp(table: str) -> float:
    """When a file last changed, by which ComfyUI sees that a node has to run again."""
    path = Path(table)
    return path.stat().st_mtime if path.is_file() else math.nan


class FewstepSampler:
    """A solver of fewstep as a sampler."""

    DESCRIPTION: ClassVar[str] = "Few-step solvers. Options of the solver are written eta=0.5, several with spaces."
    CATEGORY: ClassVar[str] = _SAMPLERS
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("SAMPLER",)
    FUNCTION: ClassVar[str] = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets, as ComfyUI asks for them."""
        return {
            "required": {
                "solver": (list(SAMPLERS), {"default": "evodiff"}),
                "options": ("STRING", {"default": "", "tooltip": "such as eta=0.5, or order=3 variant=bh1"}),
            }
        }

    def make(self, solver: str, options: str = "") -> tuple[Any]:
        """Build the sampler; UnknownName or ConfigError for options that the solver does not have."""
        choose(solver, SAMPLERS, "solver")
        part = Part.spelled(":".join([solver, *options.replace(",", " ").split()]))
        return _ksampler(sampler_of(part.build(SOLVERS, "solver")))


class FewstepCalibratedSampler:
    """The solver of a calibrated table as a sampler."""

    DESCRIPTION: ClassVar[str] = "A solver that was fitted to this model. Use it with 'fewstep table sigmas'."
    CATEGORY: ClassVar[str] = _SAMPLERS
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("SAMPLER",)
    FUNCTION: ClassVar[str] = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets, as ComfyUI asks for them."""
        return {"required": {"table": _TABLE}}

    @classmethod
    def IS_CHANGED(cls, table: str) -> float:
        """What differs when the file does."""
        return _stamp(table)

    def make(self, table: str) -> tuple[Any]:
        """Build the sampler; CheckpointError if the file is no table."""
        return _ksampler(sample_calibrated, table=open_table(table))  # type: ignore[arg-type]


class FewstepSigmas:
    """Levels for a number of steps, on the model's own range."""

    DESCRIPTION: ClassVar[str] = (
        "Sigmas of this model, its shift included. 'trailing' begins at the noisiest level of any model."
    )
    CATEGORY: ClassVar[str] = _SCHEDULERS
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("SIGMAS",)
    FUNCTION: ClassVar[str] = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets, as ComfyUI asks for them."""
        return {
            "required": {
                "model": ("MODEL",),
                "steps": ("INT", {"default": 8, "min": 1, "max": 1000}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
                "spacing": (list(_SPACINGS), {"default": "trailing"}),
            }
        }

    def make(self, model: Any, steps: int, denoise: float, spacing: str) -> tuple[Tensor]:
        """Place the levels."""
        return (sigmas_for(model.get_model_object("model_sampling"), spacing, steps, denoise),)


class FewstepTableSigmas:
    """The levels of a calibrated table."""

    DESCRIPTION: ClassVar[str] = "The levels that the weights of a calibrated table belong to, for a number of calls."
    CATEGORY: ClassVar[str] = _SCHEDULERS
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("SIGMAS",)
    FUNCTION: ClassVar[str] = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets, as ComfyUI asks for them."""
        return {"required": {"model": ("MODEL",), "table": _TABLE, "calls": ("INT", {"default": 8, "min": 1})}}

    @classmethod
    def IS_CHANGED(cls, model: Any, table: str, calls: int) -> float:
        """What differs when the file does."""
        return _stamp(table)

    def make(self, model: Any, table: str, calls: int) -> tuple[Tensor]:
        """Read the levels; ConfigError if it has no such number of calls, LevelError if they are beyond the model."""
        sampling = model.get_model_object("model_sampling")
        flow = is_flow_model(sampling)
        sigmas = sigma_of(tabulated_way(open_table(table), calls, flow).grid.levels, flow)
        ends = sigma_range(sampling)
        if ends is not None and sigmas[0] > ends[1] * (1 + _REACH):
            raise LevelError(
                f"A table that begins at sigma = {sigmas[0]:.6g}, for a model that ends at {ends[1]:.6g}",
                "A table serves the model that it was fitted to",
                "Fit one to this model: fewstep calibrate",
            )
        return (sigmas.float(),)


def sigmas_for(sampling: Any, spacing: str, steps: int, denoise: float = 1.0) -> Tensor:
    """Place the levels of a model.

    Args:
        sampling: its ``model_sampling``.
        spacing: one of the node's names.
        steps: to be made.
        denoise: share of a longer run of ``steps / denoise`` steps, of which these are the last, as in ComfyUI.

    Returns:
        Sigmas, shape (steps + 1,), float32, the last 0; none for denoise 0.

    Raises:
        UnknownName: if there is no such spacing.
        ConfigError: if the spacing does not fit the model, or its levels follow no known rule.
        GridError: if there is no grid of so many steps.
        LevelError: if the model does not reach the levels of a table.
    """
    flow, make = is_flow_model(sampling), choose(spacing, _SPACINGS, "spacing")
    if denoise <= 0:
        return torch.empty(0)
    total = steps if denoise >= 1 else int(steps / denoise)
    return sigma_of(make(flow)(schedule_of(sampling), total).levels, flow)[-(steps + 1) :].float()


def schedule_of(sampling: Any) -> Schedule:
    """Rebuild the schedule of a model from the table of its levels, ``model_sampling.sigmas``.

    Args:
        sampling: its ``model_sampling``.

    Returns:
        The table itself, or the straight path on the clock that the model is shifted to.

    Raises:
        ConfigError: if the levels fall somewhere, or a flow model's are on no shifted clock.
    """
    sigmas = sampling.sigmas.detach().to(device="cpu", dtype=torch.float64)
    if not is_flow_model(sampling):
        with about("The levels of this model"):
            return Tabulated(tuple((1 / (1 + sigmas**2)).tolist()))
    clock = torch.arange(1, len(sigmas) + 1, dtype=torch.float64) / len(sigmas)
    middle = len(sigmas) // 2 - 1
    t, s = clock[middle].item(), sigmas[middle].item()
    schedule = ShiftedFlow(s / (1 - s) * (1 - t) / t, t_min=clock[0].item())
    error = (schedule.level(clock).sigma - sigmas).abs().max().item()
    if not error <= _FIT:
        raise ConfigError(
            f"A flow model whose levels are up to {error:.3g} from those of {schedule}",
            "Levels on a shifted clock, sigma = s t / (1 + (s - 1) t)",
            "Take the sigmas of a scheduler of ComfyUI; every sampler runs on them",
        )
    return schedule


def _finite(rule: Callable[..., Spacing], bound: str, value: float) -> Callable[[bool], Spacing]:
    """A rule that needs a finite first level; of a flow model it begins at pure noise all the same."""
    return lambda flow: PureNoise(rule(**{bound: value}, end="zero")) if flow else rule(end="zero")


def _ays(name: str) -> Callable[[bool], Spacing]:
    def make(flow: bool) -> Spacing:
        if flow:
            raise ConfigError(
                f"The levels of Align Your Steps for {name}, and a flow model",
                "They were optimised for one model of Stable Diffusion each",
                "Choose the spacing trailing",
            )
        return TableOfLevels(AYS[name])

    return make


_SPACINGS: dict[str, Callable[[bool], Spacing]] = {
    "trailing": lambda flow: Trailing(),
    "uniform_lam": _finite(UniformLam, "lam_min", -math.log(_NOISIEST)),
    "karras": _finite(Karras, "kappa_max", _NOISIEST),
    **{f"ays_{name}": _ays(name) for name in AYS},
}

NODE_CLASS_MAPPINGS: dict[str, type] = {
    "FewstepSampler": FewstepSampler,
    "FewstepCalibratedSampler": FewstepCalibratedSampler,
    "FewstepSigmas": FewstepSigmas,
    "FewstepTableSigmas": FewstepTableSigmas,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "FewstepSampler": "fewstep sampler",
    "FewstepCalibratedSampler": "fewstep calibrated sampler",
    "FewstepSigmas": "fewstep sigmas",
    "FewstepTableSigmas": "fewstep table sigmas",
}
