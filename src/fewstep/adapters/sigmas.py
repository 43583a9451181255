r"""What samplers of k-diffusion's kind call "sigma", and which of its two meanings a model has.

* Most models, Stable Diffusion and EDM among them: :math:`x = x_0 + \sigma\varepsilon`. Their sigma is our kappa.
* Flow models, such as SD3, Flux and Wan: :math:`x = (1 - \sigma) x_0 + \sigma\varepsilon`. Theirs is
  :math:`\tau = \kappa / (1 + \kappa)`, 1 at pure noise and 0 at clean data.

Nothing in a list of sigmas tells the two apart for certain, so the model is asked; where it cannot say (plain
k-diffusion has the first kind only), the first is meant.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import GridError
from fewstep.noise import Grid, NoiseLevel

__all__ = ["grid_of_sigmas", "is_flow_model", "refuse_shares", "sampling_of", "sigma_of", "sigma_range"]

# Where a model says how it is sampled, beside the patcher of ComfyUI.
_PLACES = (
    ("inner_model", "inner_model", "model_sampling"),  # ComfyUI's BaseModel
    ("inner_model", "predictor"),  # Forge
    ("inner_model", "forge_objects", "unet", "model", "predictor"),  # Forge, some versions
    ("inner_model", "inner_model", "model", "model_sampling"),  # A1111 with SD3
)
_FLOWS = {"CONST", "ModelSamplingDiscreteFlow"}  # names of the classes of ComfyUI, and of A1111's SD3
_ROUNDING = 1e-6  # past pure noise, that is forgiven


def sampling_of(model: Any) -> Any:
    """Find what describes the levels of a model: ComfyUI's ``model_sampling``, Forge's ``predictor``.

    Args:
        model: as a sampler is handed it.

    Returns:
        That object, or None where there is none, as in plain k-diffusion.
    """
    patcher = getattr(getattr(model, "inner_model", None), "model_patcher", None)
    if patcher is not None:
        return patcher.get_model_object("model_sampling")  # as nodes have patched it, for instance with a shift
    places = (reduce(lambda part, name: getattr(part, name, None), names, model) for names in _PLACES)
    return next((found for found in places if found is not None), None)


def is_flow_model(sampling: Any) -> bool:
    """Whether an object of :func:`sampling_of` describes a flow model; None does not."""
    named = any(kind.__name__ in _FLOWS for kind in type(sampling).__mro__)
    return named or getattr(sampling, "prediction_type", None) == "const"


def sigma_range(sampling: Any) -> tuple[float, float] | None:
    """Smallest and largest sigma of a model, as it tells them; None where it does not."""
    ends = getattr(sampling, "sigma_min", None), getattr(sampling, "sigma_max", None)
    return None if None in ends else (float(ends[0]), float(ends[1]))  # type: ignore[arg-type]


def sigma_of(level: NoiseLevel, flow: bool) -> Tensor:
    """Name any level as the model does: tau of a flow model, kappa of any other; shape of the level."""
    return level.sigma / (level.alpha + level.sigma if flow else level.alpha)


def grid_of_sigmas(sigmas: Tensor, flow: bool) -> Grid:
    r"""Make the grid that a list of sigmas means.

    .. math:: (\alpha, \sigma) = (1, s) \quad\text{or, of a flow model,}\quad (1 - s, s)

    Args:
        sigmas: s, shape (steps + 1,), falling; 0 may be last, and 1 first of a flow model.
        flow: whether the model is one.

    Returns:
        Grid of the same steps, float64 on the host; its clock is s.

    Raises:
        GridError: if they are in another convention.
    """
    s = _falling(sigmas)
    if flow and s[0] > 1 + _ROUNDING:
        raise GridError(
            f"Sigmas from {s[0]:.6g} to {s[-1]:.6g} for a flow model",
            "Its sigma is the share of noise, x = (1 - sigma) x0 + sigma eps: from 1 to 0",
            "Take the sigmas of a scheduler that was given this model, or pass flow=False if x = x0 + sigma eps",
        )
    if flow:
        s = s.clamp(max=1.0)
    return Grid(NoiseLevel(1 - s if flow else torch.ones_like(s), s), s)


def refuse_shares(sigmas: Tensor, sampling: Any) -> None:
    """Refuse the sigmas of a flow model, which begin at 1 exactly, where a model is known to have larger ones."""
    ends = sigma_range(sampling)
    if ends is not None and ends[1] > 1 + _ROUNDING and bool(sigmas[0] == 1):
        raise GridError(
            "Sigmas that begin at 1 exactly, as those of flow models do",
            f"This model is none: x = x0 + sigma eps, with sigma up to {ends[1]:.6g}",
            "Take the sigmas of a scheduler that was given this model; pass flow=False, or begin at 0.999, to mean it",
        )


def _falling(sigmas: Tensor) -> Tensor:
    """The sigmas in float64 on the host; refuses what is no falling list."""
    if not isinstance(sigmas, Tensor) or sigmas.ndim != 1 or not sigmas.is_floating_point():
        shape = f"of shape {tuple(sigmas.shape)} and {sigmas.dtype}" if isinstance(sigmas, Tensor) else repr(sigmas)
        raise GridError(
            f"Sigmas {shape}", "A list of floats, one more than there are steps", "Pass a float tensor (n,)"
        )
    s = sigmas.detach().to(device="cpu", dtype=torch.float64)
    if not bool((s.isfinite() & (s >= 0)).all() and (s.diff() < 0).all()):
        rises = bool((s.diff() > 0).all())
        raise GridError(
            f"Sigmas {[round(number, 6) for number in s.tolist()[:12]]}{' ...' if len(s) > 12 else ''}",
            "Finite, from the noisiest level to the cleanest, none twice, none negative; 0 may be last",
            "Turn them round: sigmas.flip(0)" if rises else "Take fewer steps, or another scheduler",
        )
    return s
