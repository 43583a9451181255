"""fewstep: few-step diffusion, end to end.

Three verbs: train, sample, measure. Names are loaded when they are first used, so that importing the package costs
nothing and the command line can answer before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep import denoisers, errors, noise, sampling, solvers
    from fewstep.adapters.wrap import wrap
    from fewstep.models import Model, load_model
    from fewstep.sampling import (
        Checkpointed,
        Full,
        LastSteps,
        NoGrad,
        Sample,
        SeededNoise,
        grid_for,
        inpaint,
        invert,
        sample,
        start_from,
        start_noise,
    )

__version__ = "0.6.0"

_HOMES = {
    "fewstep.sampling": (
        "Checkpointed",
        "Full",
        "LastSteps",
        "NoGrad",
        "Sample",
        "SeededNoise",
        "grid_for",
        "inpaint",
        "invert",
        "sample",
        "start_from",
        "start_noise",
    ),
    "fewstep.models": ("Model", "load_model"),
    "fewstep.adapters.wrap": ("wrap",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = (
    "adapters",
    "calibration",
    "data",
    "denoisers",
    "errors",
    "experiments",
    "features",
    "losses",
    "metrics",
    "models",
    "networks",
    "noise",
    "objectives",
    "pipelines",
    "sampling",
    "schedulers",
    "solvers",
    "training",
)

__all__ = [
    "Checkpointed",
    "Full",
    "LastSteps",
    "Model",
    "NoGrad",
    "Sample",
    "SeededNoise",
    "__version__",
    "denoisers",
    "errors",
    "grid_for",
    "inpaint",
    "invert",
    "load_model",
    "noise",
    "sample",
    "sampling",
    "solvers",
    "start_from",
    "start_noise",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"fewstep.{name}")
    raise AttributeError(f"module 'fewstep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
