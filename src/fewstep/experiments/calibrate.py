"""Calibrating a model by names: from a model to what a solver is fitted to, and where its table goes."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

import fewstep
from fewstep._files import output_dir
from fewstep._part import Part
from fewstep.calibration import (
    FILE,
    Origin,
    Problem,
    Refinement,
    Settings,
    Table,
    load_table,
    problem_of,
    said_schedule,
)
from fewstep.calibration.grids import GITS
from fewstep.errors import CheckpointError, ConfigError, choose
from fewstep.experiments.runs import captions_of, check_batch, check_guidance, conditions, said_of
from fewstep.models import Model, bundled
from fewstep.noise import SPACINGS

__all__ = [
    "FIRST_SEED",
    "CalibratePlan",
    "Prepared",
    "again",
    "described",
    "place_of",
    "prepared",
    "settings_of",
    "stamped",
]

FIRST_SEED = 10**9  # far from those that images are made of: errors on these are of noise that no fit has seen
_PER_SCALE = 4  # trajectories that every guidance scale leads, at least: some to fit to, some held out


@dataclass(frozen=True)
class CalibratePlan:
    """What to fit, and what on.

    Args:
        settings: numbers of calls, teacher, bases, grids and refinement.
        guidance: scales that share the table, each leading an equal part of the trajectories; 1 is none.
        trajectories: how many.
        seed: of the first one.
        classes: classes to walk through; all of the model's if empty.
        captions: captions to walk through, likewise.
        kappa_max: first level, noise per unit of data; bounded by the schedule.
        kappa_min: last level, likewise.
        batch_size: images per call.

    Raises:
        ConfigError: if there are too few trajectories, no scale, or empty batches.
    """

    settings: Settings = Settings()
    guidance: tuple[float, ...] = (1.0,)
    trajectories: int = 160
    seed: int = FIRST_SEED
    classes: tuple[int, ...] = ()
    captions: tuple[str, ...] = ()
    kappa_max: float = 80.0
    kappa_min: float = 0.002
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_batch(self.batch_size)
        if not self.guidance:
            raise ConfigError("No guidance scale", "One or more; 1 is none", "Use --guidance 1")
        if self.trajectories < _PER_SCALE * len(self.guidance):
            raise ConfigError(
                f"{self.trajectories} trajectories for {len(self.guidance)} guidance scales",
                f"Every scale leads at least {_PER_SCALE} of them",
                "Use --trajectories 160",
            )


def settings_of(
    nfe: Sequence[int],
    *,
    teacher_steps: int = Settings.teacher_steps,
    bases: Sequence[str] = (),
    grids: Sequence[str] = (),
    first: str = Settings.first,
    match_variance: bool = False,
    iterations: int = Refinement.iterations,
    distribution: float = Refinement.distribution,
) -> Settings:
    """Collect settings as they are written on a command line; names are looked up now, not after the teacher's work.

    Args:
        nfe: numbers of calls.
        teacher_steps: of the reference ODE.
        bases: rules to fit around; the usual ones if empty.
        grids: levels to begin with; the usual ones if empty.
        first: "auto", "network" or "analytic".
        match_variance: whether the closed form matches the teacher's variance.
        iterations: of the refinement.
        distribution: weight of its energy score.

    Returns:
        The settings.

    Raises:
        UnknownName: if a base or a grid does not exist.
        ConfigError: if a value cannot be.
    """
    for grid in grids:
        choose(Part.spelled(grid).name, {**SPACINGS, GITS: None}, "grid")
    return Settings(
        tuple(dict.fromkeys(nfe)),
        teacher_steps,
        tuple(bases) or Settings.bases,
        tuple(grids) or Settings.grids,
        cast(Literal["network", "analytic", "auto"], first),  # Settings refuses what is none of them
        match_variance,
        Refinement(iterations, distribution=distribution),
    )


@dataclass(frozen=True)
class Prepared:
    """What a solver is fitted to.

    Attributes:
        problem: denoisers, noise and conditions.
        origin: names the model in the table.
    """

    problem: Problem
    origin: Origin


def prepared(model: Model, plan: CalibratePlan) -> Prepared:
    """Set a model up for calibration, as `sample` would call it.

    Args:
        model: what to fit to.
        plan: scales, conditions, seeds and levels.

    Returns:
        The problem, and what names the model.

    Raises:
        ConfigError: if the model cannot be guided so, does not have a class, or the levels do not descend.
        UnknownName: if it does not know a word of a caption.
    """
    for scale in plan.guidance:
        check_guidance(model, scale)
    schedule, n = model.denoiser.schedule, plan.trajectories
    problem = problem_of(
        [model.guided(scale) for scale in plan.guidance],
        schedule,
        model.shape,
        seeds=range(plan.seed, plan.seed + n),
        cond=_cond(model, plan),
        kappa_max=plan.kappa_max,
        kappa_min=plan.kappa_min,
        device=model.device,
        batch=plan.batch_size,
    )
    span = (min(plan.guidance), max(plan.guidance))
    return Prepared(problem, Origin(model.config.name, model.fingerprint, said_schedule(schedule), span))


def _cond(model: Model, plan: CalibratePlan) -> dict[str, Tensor] | None:
    """Conditions in turn: of several scales, each walks through all of them."""
    turns = [plan.seed + k // len(plan.guidance) for k in range(plan.trajectories)]
    labels, captions = conditions(model, turns, plan.classes), captions_of(model, turns, plan.captions)
    told = {} if labels is None else {"label": labels}
    return {**told, **({} if captions is None else model.cond_of_captions(captions))} or None


def described(table: Table, model: Model, plan: CalibratePlan) -> Table:
    """Write into a table how it was fitted, beyond what the fit knows."""
    chosen = [model.config.classes[c] for c in plan.classes] or list(plan.captions)
    in_turn = said_of(conditions(model, [0]), captions_of(model, [0], plan.captions))
    return stamped(table, plan, chosen or in_turn)


def stamped(table: Table, plan: CalibratePlan, told: Sequence[str] | str) -> Table:
    """Write seed, scales, versions, date and what the trajectories were told into a table."""
    facts = {
        "seed": plan.seed,
        "guidance": list(plan.guidance),
        "conditions": told,
        "fewstep": fewstep.__version__,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    return replace(table, facts={**table.facts, **facts})


def place_of(name_or_dir: str, origin: Origin, nfe: Sequence[int], out: str | Path | None) -> Path:
    """Choose the file of a table, before anything is fitted.

    Args:
        name_or_dir: of the model.
        origin: name and weights of what it was loaded as.
        nfe: numbers of calls that the table will have.
        out: a file, or a folder: one that is there, or a name with a slash at its end; None for the model's folder, or
            for this one where the model is bundled and its folder is the package's.

    Returns:
        The file. Its folder can be made and written, but is made with the table alone.

    Raises:
        ConfigError: if another file is in the way, the table of another model, or one with further numbers of calls.
        OutputError: if the folder cannot be written.
    """
    home = None if name_or_dir in bundled() else Path(name_or_dir)
    beside = (home or Path()) / FILE
    path = beside if out is None else _named(out)
    own = home is not None and path.resolve() == beside.resolve()
    if path.exists():
        _refuse_loss(path, origin, nfe, own=own)
    _probe(path.parent)
    return path


def again(name_or_dir: str, table: Table, nfe: Sequence[int], out: str = "") -> str:
    """Write the command that fits a table again with further numbers of calls.

    Args:
        name_or_dir: of the model.
        table: which numbers and scales are kept.
        nfe: numbers of calls that are added.
        out: the table's file; empty for where it goes by itself.

    Returns:
        The command, quoted for a shell.
    """
    words = ["fewstep", "calibrate", "--model", name_or_dir, "--nfe", _listed({*table.entries, *nfe})]
    scales = table.facts.get("guidance") or dict.fromkeys(table.origin.guidance or ())
    if list(scales) not in ([], [1.0]):
        words += ["--guidance", ",".join(f"{scale:g}" for scale in scales)]
    return shlex.join([*words, "--out", out] if out else words)


def _listed(nfe: Iterable[int]) -> str:
    return ",".join(map(str, sorted(nfe)))


def _named(out: str | Path) -> Path:
    folder = str(out).endswith(("/", os.sep)) or Path(out).is_dir()
    return Path(out) / FILE if folder else Path(out)


def _probe(folder: Path) -> None:
    """Prove that a folder can be made and written, and leave none that was not there."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    output_dir(folder)
    for part in missing:
        part.rmdir()


def _refuse_loss(path: Path, origin: Origin, nfe: Sequence[int], *, own: bool) -> None:
    """Refuse to write over what is not worthless; beside the weights, what does not serve them is."""
    try:
        earlier = load_table(path)
    except CheckpointError as error:
        if own:
            return
        raise ConfigError(
            f"A table to be written over {path}, which is none",
            "Only a table is written over",
            "Choose another name for --out, or remove the file first",
        ) from error
    if earlier.origin.fingerprint != origin.fingerprint:
        if own:
            return
        raise ConfigError(
            f"A table of the model {origin.model!r} to be written over {path}, which was fitted to "
            f"{earlier.origin.model or 'something'} with other weights",
            "A table is written over one of the same weights",
            "Choose another name for --out, or remove the file first",
        )
    lost = set(earlier.entries) - set(nfe)
    if lost:
        raise ConfigError(
            f"A table for {_listed(nfe)} calls to be written over {path}, which would lose {_listed(lost)}",
            "A table is written whole, with the numbers of calls that are named",
            f"Name all of them, --nfe {_listed({*earlier.entries, *nfe})}; or choose another --out",
        )
