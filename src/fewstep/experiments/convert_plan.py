"""What a conversion is asked to do, and the end-to-end run that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fewstep.errors import ConfigError
from fewstep.experiments.presets import CHAINS
from fewstep.models import Part
from fewstep.objectives.checks import check_steps
from fewstep.training import E2EConfig, RunConfig

__all__ = ["ConvertPlan", "Sizes"]

_TERMS: Mapping[str, Mapping[str, Any]] = {
    "huber": {"weight": 1.0},
    "perceptual": {"weight": 1.0, "features": "random,self"},
    "energy": {"weight": 1.0, "features": "pixels,random"},
    "adversarial": {"weight": 1.0},
}
_TRAIN = replace(CHAINS, warmup=10, decay=0.5, ema=0.99, checkpoint_every=50)


@dataclass(frozen=True)
class Sizes:
    """What was planned from timing.

    Args:
        pairs: pairs of noise and teacher's sample.
        train_steps: steps of training.
        seconds: what both were estimated to take.
    """

    pairs: int
    train_steps: int
    seconds: float = 0.0


@dataclass(frozen=True)
class ConvertPlan:
    """What to convert, into what.

    Args:
        model: a bundled model or a model folder.
        steps: numbers of steps of the new model, each 1 to 8.
        minutes: for everything, on the machine it is planned on.
        data: a source of images; empty does without.
        solver: of the teacher, a deterministic one; empty for that of a few-step model's own chain, or evodiff.
        nfe: calls that the teacher makes per sample; None for those of that chain, or 10.
        guidance: of the teacher, which the new model has learned for good; 1 is none.
        batch: conditions per training step.
        seed: of noise, order and critic.

    Raises:
        ConfigError: if there is no time, or a number of steps, calls or images is outside its range.
    """

    model: str = "mnist"
    steps: tuple[int, ...] = (2,)
    minutes: float = 5.0
    data: str = ""
    solver: str = ""
    nfe: int | None = None
    guidance: float = 1.0
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.minutes < 1e6:
            raise ConfigError(f"A conversion in {self.minutes:g} minutes", "Some minutes", "Use --minutes 5")
        if self.nfe is not None and self.nfe < 1:
            raise ConfigError(f"A teacher of {self.nfe} calls", "One or more", "Use --nfe 10")
        check_steps(self.steps)
        if self.batch < 1:
            raise ConfigError(f"Batches of {self.batch} images", "One image or more", "Use --batch 64")

    def run(self, name: str, size: Sizes, captioned: bool, side: int = 0) -> RunConfig:
        """Write the training down.

        Args:
            name: of the new model.
            size: numbers of steps.
            captioned: whether the model reads captions, of which no two images have the same.
            side: of the images that pictures are made to fit; 0 takes them as they are.

        Returns:
            The end-to-end run.
        """
        told = {"solver": self.solver, "nfe": self.nfe or 0, "guidance": self.guidance}
        # Images are matched with pairs of their own condition; where that is a caption, pairs are made for each batch.
        pairs = Part("teacher", told) if self.data and captioned else Part("pairs", {"data_free": not self.data})
        return RunConfig(
            name=name,
            data=self.data or "samples of the teacher",
            size=side if self.data else 0,
            objective="e2e",
            e2e=E2EConfig(init=self.model, steps=self.steps, coupling=pairs, terms=_TERMS),
            train=replace(_TRAIN, steps=size.train_steps, batch=self.batch, seed=self.seed),
        )
