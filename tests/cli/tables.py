"""Tables made by hand, whose samples are known without them: all weights 0 is DDIM on the levels of the table."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fewstep.calibration import FILE, Entry, Origin, Table, said_schedule
from fewstep.models import Model, load_model
from fewstep.noise import EDM, Grid, Karras
from fewstep.sampling import sample, start_noise
from fewstep.solvers import DDIM


def kappa(steps: int) -> tuple[float, ...]:
    return tuple(Karras(rho=5)(EDM(), steps).levels.sigma.tolist())


def zeros(*nfe: int, model: Model | None = None, guidance: tuple[float, float] = (1.0, 1.0)) -> Table:
    """DDIM on Karras levels of rho 5, which no default takes; of a model, or of anything."""
    entries = {
        n: Entry(kappa(n), tuple((0.0,) * i for i in range(1, n)), False, "ddim", "karras:rho=5", 0.1, 0.2, 0.3)
        for n in nfe
    }
    if model is None:
        return Table(Origin(guidance=guidance), entries)
    schedule = said_schedule(model.denoiser.schedule)
    return Table(Origin(model.config.name, model.fingerprint, schedule, guidance), entries)


def with_table(folder: Path, *nfe: int, guidance: tuple[float, float] = (1.0, 1.0)) -> Path:
    """Put such a table beside the weights of a folder."""
    zeros(*nfe, model=load_model(folder), guidance=guidance).save(folder / FILE)
    return folder


def ddim(model: Model, steps: int, seeds: list[int], guidance: float = 1.0) -> Tensor:
    """What sampling with the table must give."""
    schedule = model.denoiser.schedule
    t = schedule.t_of_lam(-torch.tensor(kappa(steps), dtype=torch.float64).log())
    grid = Grid(schedule.level(t), t)
    x = start_noise(grid, model.shape, seeds)
    cond = {"label": torch.tensor(seeds) % model.config.n_classes} if model.config.classes else None
    return sample(model.guided(guidance), DDIM(), grid, x, cond=cond).x
