"""What the calibrated solver is measured on: exact targets and models, under one roof.

Noise is drawn on the host, once for all cells of a subject, and kept where the samples are. Test noise and calibration
noise have unlike seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.exact_targets import reference as exact_reference
from benchmarks.targets import GRIDS, PER_CHANNEL, SCHEDULE, Target
from fewstep._cond import placed, rows_of
from fewstep._files import output_dir, read_tensors, write_tensors
from fewstep.calibration import Problem, problem_of
from fewstep.data import load_data, seeded, to_unit
from fewstep.denoisers import Cond, Denoiser
from fewstep.errors import ConfigError
from fewstep.experiments.compare import judge_of
from fewstep.experiments.runs import GridChoice, conditions, make_grid
from fewstep.features import Features, load_features
from fewstep.metrics import Estimate, FeatureSet, Moments, fd, frechet_bias, image_moments, rmse, sliced_distance
from fewstep.metrics.images import image_features
from fewstep.models import Model, load_model
from fewstep.noise import Grid, Schedule
from fewstep.sampling import SeededNoise, grid_for, sample
from fewstep.sampling.noise import START
from fewstep.solvers import NoiseSource, Solver, UniPC

TRAJECTORIES = {"gaussian_cifar": 64, "kde_cifar": 384, "patches_cifar": 384}  # a seed; 1,000 on the others
_CHUNK = 64  # of an exact reference, whose 500 steps are all kept while it runs


def fresh_seeds(n: int, seeds: int) -> tuple[int, ...]:
    """Seeds of fresh noise, n of each set; none is a seed of calibration."""
    return tuple(10_000 * k + j for k in range(seeds) for j in range(n))


def fit_seeds(n: int, k: int) -> tuple[int, ...]:
    """Seeds of the calibration noise of set k."""
    return tuple(100_000 * (k + 1) + j for j in range(n))


class Noise:
    """The numbers of :class:`SeededNoise` for many samples, drawn once and kept on a device."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._source, self._device, self._kept = SeededNoise(tuple(seeds)), device, dict[int, Tensor]()
        self._like = torch.empty(len(seeds), *shape, dtype=dtype)

    def step(self, number: int) -> Tensor:
        """The numbers of one step, for all samples."""
        if number not in self._kept:
            self._kept[number] = self._source(number, self._like).to(self._device)
        return self._kept[number]

    def of(self, rows: slice) -> NoiseSource:
        """The source of some samples."""
        return lambda step, like: self.step(step)[rows]


@dataclass(frozen=True)
class Subject:
    """An exact target or a model, with its test noise.

    Args:
        name: of the target or the model.
        fingerprint: of the weights; empty for a target.
        schedule: of its denoiser.
        shape: of one sample.
        guided: guidance scale -> denoiser.
        grid: (solver, name of a spacing, calls) -> the longest grid within them.
        cond: seeds -> conditions.
        n: test samples a seed set.
        seeds: seed sets.
        dtype: of the samples.
        device: of the network.
        batch: samples per call.
        target: the exact one, if it is one.
    """

    name: str
    fingerprint: str
    schedule: Schedule
    shape: tuple[int, ...]
    guided: Callable[[float], Denoiser]
    grid: Callable[[Solver, str, int], Grid]
    cond: Callable[[Sequence[int]], Cond]
    n: int
    seeds: int
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    batch: int = 512
    target: Target | None = None

    @cached_property
    def noise(self) -> Noise:
        """The test noise."""
        return Noise(fresh_seeds(self.n, self.seeds), self.shape, self.dtype, self.device)

    def run(self, solver: Solver, grid: Grid, rule: str = "", guidance: float = 1.0) -> Tensor:
        """Sample all test noise, seed set after seed set, on the device; some rules see the channels of pictures."""
        return self.part(solver, grid, slice(0, self.n * self.seeds), rule, guidance)

    def part(self, solver: Solver, grid: Grid, rows: slice, rule: str = "", guidance: float = 1.0) -> Tensor:
        """The same for some of the test noise."""
        made, told = [], self.cond(fresh_seeds(self.n, self.seeds))
        for first in range(rows.start, rows.stop, self.batch):
            own = slice(first, min(first + self.batch, rows.stop))
            x = grid.at(0).sigma * self.noise.step(START)[own]
            if self.target is not None and self.target.pixels is not None and rule in PER_CHANNEL:
                made.append(self.target.pixels.run(solver, grid, x))
                continue
            cond = placed(rows_of(told, own), self.device)
            noise = self.noise.of(own) if solver.stochastic else None
            made.append(sample(self.guided(guidance), solver, grid, x, cond=cond, noise=noise).x)
        return torch.cat(made)

    def set_of(self, k: int) -> slice:
        """Rows of seed set k."""
        return slice(k * self.n, (k + 1) * self.n)

    def problem(self, k: int, trajectories: int, guidances: Sequence[float] = (1.0,)) -> Problem:
        """What a table is fitted to, on calibration noise of its own."""
        seeds = fit_seeds(trajectories, k)
        return problem_of(
            [self.guided(scale) for scale in guidances],
            self.schedule,
            self.shape,
            seeds=seeds,
            cond=self.cond(seeds),
            device=self.device,
            dtype=self.dtype,
            batch=128,
        )


def exact_subject(name: str, target: Target, part: float, seeds: int) -> Subject:
    """A target, in float64 on the host; `part` below 1 takes fewer trajectories."""

    def grid(solver: Solver, spacing: str, nfe: int) -> Grid:
        return grid_for(solver, GRIDS[spacing], SCHEDULE, nfe)

    return Subject(
        name,
        "",
        SCHEDULE,
        tuple(target.mean.shape),
        lambda scale: target.denoiser,
        grid,
        lambda seeds: None,
        max(2, round(part * TRAJECTORIES.get(name, 1000))),
        seeds,
        torch.float64,
        target=target,
    )


def model_subject(name_or_dir: str, n: int, seeds: int, device: str, batch: int) -> tuple[Subject, Model]:
    """A model with classes in turn, or none."""
    model = load_model(name_or_dir, device)

    def cond(seeds: Sequence[int]) -> Cond:
        labels = conditions(model, seeds)
        return None if labels is None else {"label": labels}

    def grid(solver: Solver, spacing: str, nfe: int) -> Grid:
        return make_grid(model, solver, GridChoice(spacing), nfe)

    subject = Subject(
        Path(name_or_dir).name,
        model.fingerprint,
        model.denoiser.schedule,
        model.shape,
        model.guided,
        grid,
        cond,
        n,
        seeds,
        device=torch.device(device),
        batch=batch,
    )
    return subject, model


def reference(subject: Subject, steps: int, work: Path, guidance: float = 1.0) -> tuple[Tensor, float]:
    """The solution from the test noise, on its device, and how far a second way to it is; kept in a file."""
    said = f"{subject.fingerprint}-{guidance:g}-{steps}-{subject.n}x{subject.seeds}"
    path = output_dir(work) / f"fine-{subject.name}-{said}.safetensors"
    if not path.exists():
        made, gap = _solved(subject, steps, guidance)
        write_tensors(path, {"x": made.cpu(), "gap": torch.tensor(gap)})
    content = read_tensors(path)
    return content["x"].to(subject.device), float(content["gap"])


def _solved(subject: Subject, steps: int, guidance: float) -> tuple[Tensor, float]:
    if subject.target is not None:
        x = subject.grid(UniPC(order=3), "karras", 1).at(0).sigma * subject.noise.step(START)
        found = [exact_reference(subject.target, part, steps) for part in x.split(_CHUNK)]
        gap = math.sqrt(sum(gap**2 * len(part) for part, gap in found) / len(x))
        return torch.cat([part for part, _ in found]), gap
    rule = UniPC(order=3)
    fine = subject.run(rule, subject.grid(rule, "karras", steps), guidance=guidance)
    few = slice(0, min(64, subject.n))
    half = subject.part(rule, subject.grid(rule, "karras", steps // 2), few, guidance=guidance)
    return fine, rmse(half, fine[few])


@dataclass(frozen=True)
class Distance:
    """A distance of distributions, and what to say of it.

    Args:
        measure: how.
        what: the whole protocol.
        of: samples -> distance.
        bias: what a perfect generator would have; 0 where it is not known.
    """

    measure: str
    what: str
    of: Callable[[Tensor], Estimate]
    bias: float = 0.0


def sliced(subject: Subject, target: Target) -> Distance:
    """The sliced Wasserstein distance to draws of an exact target, as on the other exact targets."""
    data = target.denoiser.draw(max(1000, subject.n * subject.seeds), seeded(subject.name)).flatten(1)
    measure = "sliced Wasserstein distance to draws of the data"
    return Distance(measure, measure, lambda x: Estimate(sliced_distance(x.flatten(1), data)))


@dataclass(frozen=True)
class Judged:
    """Fréchet distances in the features of a network.

    Args:
        features: on the device of the pictures.
        moments: of the reference.
        words: of which images.
    """

    features: Features
    moments: Moments
    words: str

    def summary(self, images: Tensor) -> FeatureSet:
        """Features of pictures, numbered in their order."""
        found, first = FeatureSet(self.features.dim, keep=0), 0
        for rows in image_features(self.features, images, 1000):
            found.update(rows, torch.arange(first, first + len(rows)))
            first += len(rows)
        return found

    def distance(self, images: Tensor) -> Estimate:
        """The distance with its jackknife interval."""
        reference = FeatureSet.from_moments(self.moments.mean, self.moments.cov, self.moments.n)
        return fd(self.summary(images), reference, allow_singular=True)

    def measured(self, n: int) -> Distance:
        """What n pictures are measured by."""
        what = f"Fréchet distance in the features {self.features.name} between {n} images and {self.words}; not FID"
        bias = frechet_bias(self.moments, n, self.moments.n)
        return Distance("Fréchet distance in a judge's features", what, self.distance, bias)


def judged(model: Model, spec: str, data: Path | None, work: Path) -> Judged:
    """The judge that a model names, or features by name against CIFAR-10's test images, whose moments are kept."""
    own = judge_of(model)
    if own is not None:
        words = f"the {own.facts['split']} split of {own.facts['data']} (n = {own.reference.n})"
        return Judged(own.features.to(model.device), own.reference, words)
    features = load_features(spec, model.shape)
    path = output_dir(work) / f"reference-{features.name.replace('@', '-')}.safetensors"
    if not path.exists():
        if data is None:
            raise ConfigError(f"No images to judge {model.config.name!r} by", "CIFAR-10's test images", "--cifar10 DIR")
        moments = image_moments(features, to_unit(load_data(f"parquet:{data}", "test").images))
        write_tensors(path, {"mean": moments.mean, "cov": moments.cov, "n": torch.tensor(moments.n)})
    kept = read_tensors(path)
    moments = Moments.from_statistics(kept["mean"], kept["cov"], int(kept["n"]))
    moved = features.to(model.device) if isinstance(features, torch.nn.Module) else features
    return Judged(moved, moments, f"the test split of cifar10 (n = {moments.n})")
