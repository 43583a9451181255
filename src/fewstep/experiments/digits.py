"""Real digits from nothing: train on scikit-learn's 1,797 images, then sample with few steps.

What it shows is the problem that fewstep exists for. Ordinary training learns single denoising steps; a chain of ten
makes digits, one step makes the blurred mean of a class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data import ImageData, digits, to_unit
from fewstep.experiments.presets import PRESETS
from fewstep.experiments.runs import conditions, draw, seeds_of
from fewstep.features import Pixels
from fewstep.metrics import frechet_distance, image_moments
from fewstep.models import Model, load_model
from fewstep.noise import UniformTime
from fewstep.solvers import DDIM
from fewstep.training import StepReport, train_steps

__all__ = ["DigitsAct", "Row"]


@dataclass(frozen=True)
class Row:
    """The model at one number of steps.

    Attributes:
        steps: intervals of the grid; DDIM makes as many calls.
        distance: Fréchet distance of pixels to the real digits.
        seconds: of sampling.
    """

    steps: int
    distance: float
    seconds: float


class DigitsAct:
    """Train, then sample at several numbers of steps.

    Args:
        folder: where checkpoints and the model go.
        steps: numbers of steps to sample with.
        show: images of each kind that are kept for pictures.

    Attributes:
        rows: what was measured so far.
        pictures: the first images at each number of steps.
        real: as many real digits.
        floor: distance between two random halves of the real digits: what sampling noise alone makes.
    """

    def __init__(self, folder: Path, steps: tuple[int, ...] = (1, 2, 4, 10), show: int = 10) -> None:
        self.folder, self.steps, self.show = folder, steps, show
        self.config, self.data = PRESETS["digits"], digits()
        self.rows: list[Row] = []
        self.pictures: dict[int, Tensor] = {}
        self.real = self._ordered(self.data)[:show]
        self._pixels = Pixels(self.data.shape)
        unit = to_unit(self.data.images)
        self._reference = image_moments(self._pixels, unit)
        # In random halves: the data set is ordered by writer, and its first half is not its second.
        order = torch.randperm(len(unit), generator=torch.Generator().manual_seed(0))
        self.floor = frechet_distance(*(image_moments(self._pixels, half) for half in unit[order].chunk(2)))

    def train(self) -> Iterator[StepReport]:
        """Train the network; yields after every step."""
        return train_steps(self.config, self.folder, data=self.data)

    def sample(self) -> Iterator[Row]:
        """Sample the trained model as many times as there are real digits; yields one row per number of steps."""
        model = load_model(self.folder)
        for steps in self.steps:
            yield self._row(model, steps)

    def report(self) -> dict[str, Any]:
        """Everything that was measured, and how, JSON-able."""
        return {
            "data": self.data.name,
            "images": len(self.data),
            "run": self.config.to_json(),
            "measure": f"Fréchet distance of raw 8x8 pixels between {len(self.data)} images and all real digits",
            "floor": self.floor,
            "solver": "ddim",
            "rows": [asdict(row) for row in self.rows],
        }

    def _row(self, model: Model, steps: int) -> Row:
        seeds = seeds_of(0, len(self.data))
        grid = UniformTime()(model.denoiser.schedule, steps)
        drawn = draw(model, DDIM(), grid, seeds, labels=conditions(model, seeds), batch_size=600)
        self.pictures[steps] = drawn.images[: self.show]
        row = Row(steps, frechet_distance(image_moments(self._pixels, drawn.images), self._reference), drawn.seconds)
        self.rows.append(row)
        return row

    @staticmethod
    def _ordered(data: ImageData) -> Tensor:
        """One real image of each class after the other, as the samples are."""
        if data.labels is None:
            return to_unit(data.images)
        firsts = [int((data.labels == c).nonzero()[0]) for c in range(data.n_classes)]
        return to_unit(data.images[firsts])
