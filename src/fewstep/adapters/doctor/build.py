"""A scheduler out of its configuration: of diffusers or of ours, looked up by name. No code of a folder is run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fewstep.adapters.diffusers_config import need_diffusers
from fewstep.adapters.doctor.runs import OURS, quiet
from fewstep.errors import ConfigError, FewstepError, MissingExtra, UnknownName

__all__ = ["built", "fitted"]

_HOME = "fewstep.schedulers"  # a floor above: looked up by name, as diffusers itself does


def built(config: Mapping[str, Any], name: Any = None) -> tuple[Any, str]:
    """Make the scheduler that a configuration describes.

    Args:
        config: what scheduler_config.json holds.
        name: of its class, as in model_index.json; what the configuration says if None.

    Returns:
        The scheduler, and why ours refuses a calibrated table that does not belong there, in which case another one
        samples the same schedule; empty if it does not.

    Raises:
        UnknownName: if neither diffusers nor fewstep has such a class.
        ConfigError: if it cannot be built.
        MissingExtra: if it is one of ours and they are not to be had.
    """
    name = name or config.get("_class_name")
    kind = _class_of(name)
    try:
        with quiet():
            return kind.from_config(dict(config)), ""
    except FewstepError as error:
        if not config.get("calibration"):
            raise
        plain = {key: value for key, value in config.items() if key not in ("calibration", "_class_name")}
        return built(plain, OURS[0])[0], f"{error.given}. {error.allowed}"
    except Exception as error:  # ValueError, TypeError, NotImplementedError, ImportError... by kind of scheduler
        raise ConfigError(
            f"A {name} that cannot be built from its configuration ({(str(error).strip().splitlines() or [''])[0]})",
            "Options that this class knows and that do not exclude each other",
            "Correct scheduler_config.json, or build the scheduler anew and save the pipeline again",
        ) from error


def fitted(scheduler: Any) -> tuple[int, ...]:
    """Numbers of steps that a calibrated scheduler has levels for; empty for any other."""
    return tuple(scheduler.steps) if isinstance(vars(type(scheduler)).get("steps"), property) else ()


def _class_of(name: Any) -> Any:
    diffusers = need_diffusers()
    if name in OURS:
        with suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(_HOME), name)
        raise MissingExtra(
            f"The scheduler {name}, and no {_HOME} to take it from",
            "It comes with fewstep and needs diffusers",
            "Run: pip install --upgrade 'fewstep[diffusers]'",
        )
    with quiet():
        found = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(found, type) and hasattr(found, "set_timesteps") and hasattr(found, "from_config")):
        raise UnknownName(
            f"A scheduler of the class {name!r}",
            f"Classes of diffusers {diffusers.__version__}, and of fewstep: {', '.join(OURS)}",
            "Upgrade diffusers if it is a new one; examine the pipeline in Python if it is one of your own",
        )
    return found
