"""Sampling a model by names: what `sample`, `compare`, `demo` and the benchmarks have in common.

Image k of a run has the seed ``seed + k`` and, unless classes are asked for, the class ``(seed + k) mod n_classes``, or
the caption of scene number ``seed + k``: so any image of any run can be made again alone, by its own seed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep._cond import placed, rows_of
from fewstep._part import Part
from fewstep.data import Scenes
from fewstep.denoisers import Cond
from fewstep.errors import ConfigError, choose
from fewstep.models import Model
from fewstep.noise import SPACINGS, Grid, Karras, Schedule, Spacing, UniformLam
from fewstep.sampling import SeededNoise, grid_for, sample, start_noise
from fewstep.solvers import SOLVERS, Solver

__all__ = [
    "Drawn",
    "GridChoice",
    "SamplePlan",
    "captions_of",
    "check_batch",
    "check_guidance",
    "conditions",
    "draw",
    "make_grid",
    "said_of",
    "seeds_of",
]

_RANGED = ("karras", "uniform_lam")  # spacings whose ends are asked for


@dataclass(frozen=True)
class GridChoice:
    """Which grid to sample on, by name and range.

    Args:
        spacing: name in SPACINGS.
        kappa_max: first noise level of karras and uniform_lam, noise per unit of data; bounded by what the schedule
            has. The others have ranges of their own.
        kappa_min: last noise level, likewise.
    """

    spacing: str = "karras"
    kappa_max: float = 80.0
    kappa_min: float = 0.002

    @classmethod
    def given(
        cls, spacing: str = "", kappa_max: float | None = None, kappa_min: float | None = None
    ) -> GridChoice | None:
        """What a user gave, completed by the defaults; None if nothing was given."""
        if not spacing and kappa_max is None and kappa_min is None:
            return None
        noisiest = cls.kappa_max if kappa_max is None else kappa_max
        return cls(spacing or cls.spacing, noisiest, cls.kappa_min if kappa_min is None else kappa_min)

    def describe(self, steps: int) -> str:
        """Say in a protocol what the grid is."""
        if self.spacing not in _RANGED:
            return f"{self.spacing}, {steps} steps"
        return f"{self.spacing}, kappa {self.kappa_max:g} to {self.kappa_min:g}, {steps} steps"

    def rule(self, schedule: Schedule) -> Spacing:
        """Spacing on a schedule, with this range if it takes one."""
        spacing = choose(self.spacing, SPACINGS, "grid")
        if self.spacing not in _RANGED:
            self._refuse_range()
            return spacing()
        if not 0 < self.kappa_min < self.kappa_max:
            raise ConfigError(
                f"A grid from kappa {self.kappa_max:g} to {self.kappa_min:g}",
                "Noise decreases along a grid, and both ends are above 0",
                "Give a --kappa-max above --kappa-min, and both above 0",
            )
        noisiest, cleanest = schedule.lam_range()
        low, high = max(-math.log(self.kappa_max), noisiest), min(-math.log(self.kappa_min), cleanest)
        if spacing is UniformLam:
            return UniformLam(lam_min=low, lam_max=high)
        return Karras(kappa_max=math.exp(-low), kappa_min=math.exp(-high))

    def _refuse_range(self) -> None:
        if (self.kappa_max, self.kappa_min) != (GridChoice.kappa_max, GridChoice.kappa_min):
            raise ConfigError(
                f"A grid {self.spacing} from kappa {self.kappa_max:g} to {self.kappa_min:g}",
                f"Only {' and '.join(_RANGED)} take a range; {self.spacing} has its own",
                "Leave --kappa-max and --kappa-min out, or use --grid karras",
            )


def make_grid(model: Model, solver: Solver, choice: GridChoice, nfe: int) -> Grid:
    """Make the longest grid on a model's own schedule that a solver can run in `nfe` calls."""
    schedule = model.denoiser.schedule
    grid = grid_for(solver, choice.rule(schedule), schedule, nfe)
    solver.init(torch.zeros(1, *model.shape), grid)  # refuses a grid that it cannot run, before anything is sampled
    return grid


def check_guidance(model: Model, scale: float) -> None:
    """Refuse, before anything is sampled, a scale that is no number or that the model cannot use."""
    if not math.isfinite(scale):
        raise ConfigError(f"Guidance {scale}", "A finite scale, where 1 means none", "Use --guidance 1, or 2")
    model.guided(scale)


def check_batch(batch_size: int) -> None:
    """Refuse batches without an image."""
    if batch_size < 1:
        raise ConfigError(f"Batches of {batch_size} images", "One image or more", "Use --batch-size 64")


def seeds_of(seed: int, n: int) -> range:
    """Seeds of the n images of a run."""
    if n < 1:
        raise ConfigError(f"{n} images", "One image or more", "Ask for --n 1 or more")
    return range(seed, seed + n)


def conditions(model: Model, seeds: Sequence[int], classes: Sequence[int] = ()) -> Tensor | None:
    """Choose the class of each image.

    Args:
        model: says how many classes there are.
        seeds: of the images.
        classes: classes to walk through; all of the model's, in order, if empty.

    Returns:
        Class indices, shape (n,), int64; None for a model without classes.

    Raises:
        ConfigError: if a class is asked of a model that does not have it.
    """
    n_classes = model.config.n_classes
    wrong = [c for c in classes if not 0 <= c < n_classes]
    if wrong:
        raise ConfigError(
            f"Class {wrong[0]} of the model {model.config.name!r}",
            f"It has classes 0 to {n_classes - 1}" if n_classes else "It has no classes",
            "Choose among them" if n_classes else "Leave the classes out",
        )
    if n_classes == 0:
        return None
    menu = list(classes) or list(range(n_classes))
    return torch.tensor([menu[seed % len(menu)] for seed in seeds])


def captions_of(model: Model, seeds: Sequence[int], captions: Sequence[str] = ()) -> list[str] | None:
    """Choose the caption of each image.

    Args:
        model: says whether it reads captions, and which words.
        seeds: of the images.
        captions: captions to walk through; if empty, those of the scenes, for a model with their vocabulary.

    Returns:
        One caption per image; None for a model that reads none.

    Raises:
        ConfigError: if captions are asked of a model that reads none or the reverse, or one is empty or too long.
        UnknownName: if the model does not know a word.
    """
    vocabulary, test_bed = model.config.captions, Scenes()
    if captions:
        model.cond_of_captions(captions)
        return [captions[seed % len(captions)] for seed in seeds]
    if vocabulary is None:
        return None
    if vocabulary != test_bed.vocabulary:
        raise ConfigError(
            f"No captions for the model {model.config.name!r}",
            "It reads captions, and other ones than those of the scenes, which could be taken by themselves",
            "Give --captions, or --prompts to evaluate it",
        )
    return [str(scene) for scene in test_bed.shown(torch.tensor(seeds))]


def said_of(labels: Tensor | None, captions: Sequence[str] | None) -> str:
    """Say in a protocol what images were asked for when nobody chose it."""
    return "captions of its data in turn" if captions else "none" if labels is None else "classes in turn"


@dataclass(frozen=True)
class SamplePlan:
    """What to sample.

    Args:
        solver: a name in SOLVERS, or a calibrated table; None leaves it to the model, as the three below do: see
            ways.py.
        nfe: calls that may be made.
        n: number of images.
        seed: of the first image.
        classes: classes to walk through; all if empty.
        guidance: scale; 1 is none.
        grid: levels.
        batch_size: images per call.
        captions: captions to walk through; see :func:`captions_of`.
        steps: steps of the grid.
        force: take a table that was fitted to something else.
    """

    solver: str | None
    nfe: int | None
    n: int
    seed: int = 0
    classes: tuple[int, ...] = ()
    guidance: float = 1.0
    grid: GridChoice | None = None
    batch_size: int = 64
    captions: tuple[str, ...] = ()
    steps: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_batch(self.batch_size)


@dataclass(frozen=True)
class Drawn:
    """Images and what they cost.

    Attributes:
        images: shape (n, c, h, w), in [-1, 1] but for what the solver overshoots.
        nfe: calls of the guided denoiser per image, counted.
        network_evals: evaluations of the network per image, counted.
        seconds: wall time of the sampling.
    """

    images: Tensor
    nfe: int
    network_evals: int
    seconds: float


def draw(
    model: Model,
    solver: str | Solver,
    grid: Grid,
    seeds: Sequence[int],
    *,
    labels: Tensor | None = None,
    cond: Cond = None,
    guidance: float = 1.0,
    batch_size: int = 256,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Drawn:
    """Sample a model, in batches.

    Args:
        model: what to sample.
        solver: a name in SOLVERS, or a solver.
        grid: levels, of any schedule.
        seeds: one per image.
        labels: class of each image, shape (n,); None without classes.
        cond: conditions other than classes, n rows each.
        guidance: scale; 1 is none.
        batch_size: images per call.
        watch: called with (step, x) after every step of every batch.

    Returns:
        Images on the host, counts and time.
    """
    rule = Part.spelled(solver).build(SOLVERS, "solver") if isinstance(solver, str) else solver
    denoiser, start = model.guided(guidance), time.perf_counter()
    wanted = {**({} if labels is None else {"label": labels}), **(cond or {})}
    images, nfe, network_evals = [], 0, 0
    for first in range(0, len(seeds), batch_size):
        chosen = slice(first, first + batch_size)
        x = start_noise(grid, model.shape, seeds[chosen]).to(model.device)
        some = placed(rows_of(wanted, chosen), model.device)
        noise = SeededNoise(tuple(seeds[chosen])) if rule.stochastic else None
        run = sample(denoiser, rule, grid, x, cond=some or None, watch=watch, noise=noise)
        # Only the end is kept: the trajectories of all batches would fill the memory.
        images.append(run.x.cpu())
        nfe, network_evals = run.nfe, run.network_evals
    return Drawn(torch.cat(images), nfe, network_evals, time.perf_counter() - start)
