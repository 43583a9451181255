"""Real digits from nothing: train on scikit-learn's 1,797 images in the ordinary way, then end to end.

What it shows is the problem that fewstep exists for, and its cure. Ordinary training learns single denoising steps: a
chain of ten makes digits, one step makes the blurred mean of a class. The same network then learns whole chains of one,
two and four steps by what comes out of their ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data import Batch, ImageData, digits, to_unit
from fewstep.experiments.presets import PRESETS, configured
from fewstep.experiments.runs import GridChoice, conditions, draw, seeds_of
from fewstep.experiments.ways import Way, way_of
from fewstep.features import Pixels
from fewstep.metrics import frechet_distance, image_moments, round_to_8bit
from fewstep.models import Model, load_model
from fewstep.objectives import spread_of
from fewstep.training import RunConfig, StepReport, train_steps

__all__ = ["AFTER", "BEFORE", "DigitsAct", "Row"]

BEFORE, AFTER = "ordinary", "end to end"


@dataclass(frozen=True)
class Row:
    """A model at one number of steps.

    Attributes:
        training: BEFORE or AFTER.
        steps: intervals of the grid; DDIM makes as many calls.
        distance: Fréchet distance of pixels to the real digits.
        rho: variance of the pixels within classes over that of the real digits; 1 is as varied as they are.
        seconds: of sampling.
    """

    training: str
    steps: int
    distance: float
    rho: float
    seconds: float


class DigitsAct:
    """Train in the ordinary way, go on end to end, and sample both models with few steps.

    Args:
        folder: where the two models and their checkpoints go, in "digits" and "digits-e2e".
        steps: numbers of steps to sample with before and after; the end-to-end preset must train them.
        mark: steps of ordinary sampling that the few are held against.
        show: images of each kind that are kept for pictures.

    Attributes:
        rows: what was measured so far.
        pictures: the first images of each training and number of steps.
        real: as many real digits.
        floor: distance between two random halves of the real digits: what sampling noise alone makes.
    """

    def __init__(self, folder: Path, steps: tuple[int, ...] = (1, 2, 4), mark: int = 10, show: int = 10) -> None:
        self.before, self.after = folder / "digits", folder / "digits-e2e"
        self.steps, self.mark, self.show = steps, mark, show
        self.config, self.data = PRESETS["digits"], digits()
        self.rows: list[Row] = []
        self.pictures: dict[tuple[str, int], Tensor] = {}
        self.real = self._ordered(self.data)[:show]
        self._pixels = Pixels(self.data.shape)
        unit = to_unit(self.data.images)
        self._reference = image_moments(self._pixels, unit)
        # In random halves: the data set is ordered by writer, and its first half is not its second.
        order = torch.randperm(len(unit), generator=torch.Generator().manual_seed(0))
        self.floor = frechet_distance(*(image_moments(self._pixels, half) for half in unit[order].chunk(2)))

    @cached_property
    def chains(self) -> RunConfig:
        """The run that goes on from the ordinarily trained model."""
        return configured("digits-e2e", init=str(self.before))

    def train(self) -> Iterator[StepReport]:
        """Train the network in the ordinary way; yields after every step."""
        return train_steps(self.config, self.before, data=self.data)

    def train_chains(self) -> Iterator[StepReport]:
        """Train whole chains of it, to be called when `train` is exhausted; yields after every step."""
        return train_steps(self.chains, self.after, data=self.data)

    def __len__(self) -> int:
        """Count the rows that `sample` yields."""
        return 2 * len(self.steps) + 1

    def sample(self) -> Iterator[Row]:
        """Sample both models as many times as there are real digits; yields one row per number of steps."""
        model = load_model(self.before)
        for steps in (*self.steps, self.mark):
            yield self._row(BEFORE, model, way_of(model, "ddim", steps=steps, grid=GridChoice("uniform_flow")))
        model = load_model(self.after)
        for steps in self.steps:
            yield self._row(AFTER, model, way_of(model, steps=steps))

    def report(self) -> dict[str, Any]:
        """Everything that was measured, and how, JSON-able."""
        return {
            "data": self.data.name,
            "images": len(self.data),
            "run": self.config.to_json(),
            "chains": self.chains.to_json(),
            "measure": f"Fréchet distance of raw 8x8 pixels between {len(self.data)} images and all real digits",
            "floor": self.floor,
            "solver": "ddim",
            "rows": [asdict(row) for row in self.rows],
        }

    def _row(self, training: str, model: Model, way: Way) -> Row:
        seeds = seeds_of(0, len(self.data))
        labels = conditions(model, seeds)
        drawn = draw(model, way.rule, way.grid, seeds, labels=labels, batch_size=600)
        self.pictures[training, way.grid.steps] = drawn.images[: self.show]
        distance = frechet_distance(image_moments(self._pixels, drawn.images), self._reference)
        rho = _spread(round_to_8bit(drawn.images), labels) / self._spread
        row = Row(training, way.grid.steps, distance, rho, drawn.seconds)
        self.rows.append(row)
        return row

    @cached_property
    def _spread(self) -> float:
        """Variety of the real digits within their classes."""
        return _spread(to_unit(self.data.images), self.data.labels)

    @staticmethod
    def _ordered(data: ImageData) -> Tensor:
        """One real image of each class after the other, as the samples are."""
        if data.labels is None:
            return to_unit(data.images)
        firsts = [int((data.labels == c).nonzero()[0]) for c in range(data.n_classes)]
        return to_unit(data.images[firsts])


def _spread(images: Tensor, labels: Tensor | None) -> float:
    """Variance of all pixels within classes; of each class there are many images."""
    spread = spread_of(Batch(images, None if labels is None else {"label": labels}))
    assert spread is not None
    return spread
