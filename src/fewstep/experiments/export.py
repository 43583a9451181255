"""Our models as folders of diffusers: what ``fewstep export`` does, with :mod:`fewstep.pipelines`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fewstep._files import output_dir, read_json, write_atomic
from fewstep.adapters.diffusers_config import TIMESTEPS, described, need_diffusers, scheduler_config
from fewstep.calibration import Table, said_schedule
from fewstep.errors import ConfigError, OutputError, choose
from fewstep.experiments.ways import own_table, reads_data
from fewstep.models import Model
from fewstep.noise import Schedule
from fewstep.sampling import resolve

if TYPE_CHECKING:
    from fewstep.pipelines import FewstepPipeline

__all__ = ["SCHEDULERS", "export_pipeline", "pipeline_of"]

SCHEDULERS = ("auto", "evodiff", "calibrated", "stock")
_RHO = 7.0  # of the spacing of a table's levels: EDM's
# For DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True).
_SHIM = 'from fewstep.pipelines import FewstepPipeline\n\n__all__ = ["FewstepPipeline"]\n'


def export_pipeline(model: Model, folder: str | Path, scheduler: str = "auto") -> FewstepPipeline:
    """Write a model as a folder of diffusers, with safetensors weights and a card.

    Args:
        model: see :func:`pipeline_of`.
        folder: where to; created if missing.
        scheduler: see :func:`pipeline_of`.

    Returns:
        What ``FewstepPipeline.from_pretrained(folder)`` loads.

    Raises:
        OutputError: if it cannot be written, or holds anything but an earlier export of this model.
        FewstepError: for the reasons of :func:`pipeline_of`.
    """
    pipeline = pipeline_of(model, scheduler)
    _refuse_loss(Path(folder), model.config.name)
    path = output_dir(folder)
    pipeline.save_pretrained(path, safe_serialization=True)
    write_atomic(path / "pipeline.py", _SHIM.encode())
    write_atomic(path / "README.md", _card(model, pipeline).encode())
    return pipeline


def _refuse_loss(folder: Path, name: str) -> None:
    """Refuse to write over what is not ours."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    parts = [folder / "model_index.json", folder / "unet" / "config.json"]
    index, unet = (read_json(part) if part.is_file() else {} for part in parts)
    if index.get("_class_name") != "FewstepPipeline" or unet.get("model", {}).get("name") != name:
        raise OutputError(
            f"{folder} is there, and is no earlier export of {name!r}",
            "An export is written into a new folder, or over one of the same model",
            "Choose another folder",
        )


def pipeline_of(model: Model, scheduler: str = "auto") -> FewstepPipeline:
    """Make a pipeline of diffusers of a model.

    Args:
        model: with classes or without; of ordinary training, or a few-step one whose chain is DDIM.
        scheduler: "evodiff"; "calibrated" for the model's own table; "stock" for one of diffusers itself, DPM-Solver++
            or, for a flow, Euler; "auto" for the table if there is one, else EVODiff. A few-step model is sampled
            through its chain: "auto" or "stock".

    Returns:
        The pipeline, with weights of its own.

    Raises:
        MissingExtra: if diffusers is not installed.
        UnknownName: if there is no such scheduler.
        ConfigError: if the model reads captions, its chain is another one, or it has no table.
        CheckpointError: if its table cannot be read.
    """
    need_diffusers()
    from fewstep import pipelines

    config, network = model.config, model.denoiser.network
    _refuse(model)
    choose(scheduler, dict.fromkeys(SCHEDULERS), "scheduler")
    betas = _betas(model.denoiser.schedule)
    chain = _chain(model)
    if chain and scheduler in ("evodiff", "calibrated"):
        raise ConfigError(
            f"The scheduler {scheduler!r} for {config.name!r}, which was trained through a chain",
            "Its steps are Euler's, and any other rule makes noise of them",
            "Leave --scheduler out",
        )
    made = _euler() if chain else _scheduler(model, scheduler, scheduler_config(betas))
    unet = pipelines.FewstepModel({**asdict(config), "facts": {}}, betas)
    if isinstance(network, nn.Module):
        unet.network.load_state_dict(network.state_dict())
    steps = max(map(int, chain)) if chain else _steps(made)
    return pipelines.FewstepPipeline(unet.eval(), made, list(config.classes), steps, chain)


def _refuse(model: Model) -> None:
    chain = model.config.chain
    given = "reads captions" if model.config.captions is not None else ""
    if chain is not None and (reads_data(model) or chain.learned or chain.solver.name != "ddim"):
        given = f"was trained through a chain of {'learned steps' if chain.learned else chain.solver}"
    if given:
        raise ConfigError(
            f"A pipeline of {model.config.name!r}, which {given}",
            "Models with classes or none; few-step ones with a chain of DDIM from pure noise, Euler's rule of a flow",
            "Sample it with fewstep itself",
        )


def _betas(schedule: Schedule) -> list[float] | None:
    """Rates of a table over the range of a schedule, in EDM's spacing; None for one that reaches pure noise."""
    noisy, clean = schedule.lam_range()
    if noisy == -math.inf:
        return None
    first, last = math.exp(-clean / _RHO), math.exp(-noisy / _RHO)
    kappa = [(first + (last - first) * k / (TIMESTEPS - 1)) ** _RHO for k in range(TIMESTEPS)]
    return [1 - after / before for before, after in pairwise([1.0, *(1 / (1 + k * k) for k in kappa)])]


def _chain(model: Model) -> dict[str, list[float]]:
    """Sigmas of the calls for each number of steps that a model was trained for; empty for ordinary ones."""
    chain = model.config.chain
    if chain is None:
        return {}
    levels = {n: resolve(chain, model.denoiser.schedule, n).grid.levels for n in chain.steps}
    return {str(n): (sigma / (alpha + sigma))[:-1].tolist() for n, (alpha, sigma) in levels.items()}


def _euler() -> Any:
    """Euler's rule for a flow, which is DDIM."""
    euler: Any = need_diffusers().FlowMatchEulerDiscreteScheduler
    return euler()


def _scheduler(model: Model, kind: str, config: Mapping[str, Any]) -> Any:
    from fewstep.schedulers import CalibratedScheduler, EVODiffScheduler

    if kind == "stock":
        stock: Any = need_diffusers().DPMSolverMultistepScheduler
        return stock(**config, timestep_spacing="trailing") if "trained_betas" in config else _euler()
    if kind == "calibrated" or (kind == "auto" and model.calibration is not None):
        return CalibratedScheduler(**config, calibration=_table(model, config).to_json())
    return EVODiffScheduler(**config)


def _table(model: Model, config: Mapping[str, Any]) -> Table:
    """The model's own table, told the schedule of the export: what it says is of the denoiser, whatever the clock."""
    table = own_table(model)
    low, _ = table.origin.guidance or (1.0, 1.0)
    table.check(model.fingerprint, model.denoiser.schedule, low)
    return replace(table, origin=replace(table.origin, schedule=said_schedule(described(config).schedule)))


def _steps(scheduler: Any) -> int:
    """How many steps are made if nobody says: the default, or what a table has nearest to it."""
    from fewstep.pipelines import DEFAULT_STEPS

    known: list[int] = getattr(scheduler, "steps", [DEFAULT_STEPS])
    return min(known, key=lambda steps: (abs(steps - DEFAULT_STEPS), steps))


def _card(model: Model, pipeline: Any) -> str:
    chain, steps = pipeline.config.chain, pipeline.config.steps
    trained = (
        f"trained end to end for {', '.join(chain)} steps, and for no other number" if chain else "of ordinary training"
    )
    return f"""---
library_name: diffusers
tags: [fewstep, few-step, diffusion]
---
# {model.config.name}

Exported by fewstep: weights {model.fingerprint}, {trained}. Sampled by {type(pipeline.scheduler).__name__}, in {steps}
steps unless told otherwise, without guidance unless told otherwise.

```python
from fewstep.pipelines import FewstepPipeline  # pip install 'fewstep[diffusers]'

pipe = FewstepPipeline.from_pretrained("THIS_FOLDER")
images = pipe(batch_size=4, num_inference_steps={steps}).images
```
"""
