"""Samplers of Forge and A1111: :func:`register` puts fewstep's into the list of the interface.

An extension is a folder with a script of two lines, ``from fewstep.adapters.forge import register`` and
``register()``. Written against the interface of both; their modules are imported when it is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from fewstep.adapters.kdiffusion import SAMPLERS, sample_dpmpp_2m_sde, sample_euler_ancestral
from fewstep.adapters.sigma_loop import Callback, Sampler
from fewstep.errors import MissingExtra

__all__ = ["register"]

# The interface sets eta of every function that has it, to 1 unless the user changes it: these two mean it so.
_WITH_ETA = {"dpmpp_2m_sde": sample_dpmpp_2m_sde, "euler_ancestral": sample_euler_ancestral}
_OPTIONS = {"heun": {"second_order": True}}  # counts two calls a step


def register() -> tuple[str, ...]:
    """Add fewstep's samplers to the interface that this runs in; those that are there already stay.

    Returns:
        Names of the samplers that were added, as the interface shows them.

    Raises:
        MissingExtra: outside of Forge and A1111.
    """
    samplers, common, kdiffusion = (_webui(f"modules.sd_samplers{name}") for name in ("", "_common", "_kdiffusion"))
    added = []
    for name in SAMPLERS:
        label, function = f"fewstep {name}", _function(name)
        if label not in samplers.all_samplers_map:
            data = common.SamplerData(label, _constructor(kdiffusion, function), [f"fewstep_{name}"], _options(name))
            samplers.all_samplers.append(data)
            samplers.all_samplers_map[label] = data
            added.append(label)
    samplers.set_samplers()
    return tuple(added)


def _options(name: str) -> dict[str, Any]:
    return dict(_OPTIONS.get(name, {}))


def _webui(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(
            f"fewstep's samplers for Forge and A1111, outside of both ({error})",
            "They are registered by a script of an extension, while the interface starts",
            "Put the two lines of docs/comfyui.md into extensions/fewstep/scripts/fewstep_forge.py",
        ) from error


def _constructor(kdiffusion: ModuleType, function: Any) -> Any:
    return lambda model: kdiffusion.KDiffusionSampler(function, model)


def _webui_noise(x: Tensor) -> Any:
    """Fresh noise as the interface hands it out: it replaces the torch of k-diffusion, so that every image has its own.

    Looked up at every draw, because every run replaces it.
    """
    return lambda sigma, following: _webui("k_diffusion.sampling").torch.randn_like(x)


def _function(name: str) -> Any:
    """A sampler with the parameters that the interface may fill in, and with its noise."""
    if name in _WITH_ETA:
        with_eta = _WITH_ETA[name]

        def ancestral(
            model: Any,
            x: Tensor,
            sigmas: Tensor,
            extra_args: Mapping[str, Any] | None = None,
            callback: Callback | None = None,
            disable: bool | None = None,
            *,
            eta: float = 1.0,
        ) -> Tensor:
            noise = _webui_noise(x)
            return with_eta(model, x, sigmas, extra_args, callback, disable, eta=eta, noise_sampler=noise)

        return ancestral
    run: Sampler = SAMPLERS[name]

    def plain(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        return run(model, x, sigmas, extra_args, callback, disable, noise_sampler=_webui_noise(x))

    return plain
