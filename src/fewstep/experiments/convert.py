"""Turn any denoiser into a few-step model within minutes, with images or without any.

1. The denoiser, sampled well, is its own teacher: pairs of noise and sample are made for a share of the time.
2. Its chain is trained end to end on them: Huber and perceptual losses pull each sample to the teacher's of the same
   noise, the energy score and a critic hold the distribution to the teacher's samples or, if there are any, to images.

The time is planned once, from a timed batch of pairs and a few timed steps. What came out, numbers of pairs and steps,
is written down before the work begins, and from then on it alone counts: a conversion that was stopped goes on, and one
that is run again from its plan gives the same weights.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep._files import output_dir, read_json, write_json
from fewstep.data import Batch, ImageData, Images, indices_of_step, load_data, to_uint8, to_unit
from fewstep.errors import ConfigError
from fewstep.experiments.compare import judge_of
from fewstep.experiments.few_steps import Row, Yardstick, chain_of, sampled, told
from fewstep.experiments.runs import seeds_of
from fewstep.models import Part, load_model
from fewstep.networks import Vocabulary
from fewstep.objectives.couplings import Pairs, join_pairs, make_pairs, read_pairs, write_pairs
from fewstep.sampling import Chained
from fewstep.training import E2EConfig, RunConfig, StepReport, TrainConfig, build, train_steps
from fewstep.training.e2e_couplings import PAIRS, teacher_of

__all__ = ["Conversion", "ConvertPlan", "Sizes"]

_PART = 256  # pairs that are made at a time and kept
_UNSEEN = 10_000_000  # distance of the seeds that are measured from those that are trained on
_LEAST, _MOST = 512, 50_000  # pairs
_FOR_PAIRS, _FOR_STEPS = 0.3, 0.6  # shares of the time; the rest goes into timing, measuring and writing


@dataclass(frozen=True)
class ConvertPlan:
    """What to convert, into what.

    Args:
        model: a bundled model or a model folder.
        steps: numbers of steps of the new model, each 1 to 8.
        minutes: for everything, on the machine it is planned on.
        data: a source of images; empty does without.
        solver: of the teacher, a deterministic one.
        nfe: calls that the teacher makes per sample.
        guidance: of the teacher, which the new model has learned for good; 1 is none.
        batch: conditions per training step.
        seed: of noise, order and critic.

    Raises:
        ConfigError: if there is no time.
    """

    model: str = "mnist"
    steps: tuple[int, ...] = (2,)
    minutes: float = 5.0
    data: str = ""
    solver: str = "evodiff"
    nfe: int = 10
    guidance: float = 1.0
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.minutes < 1e6:
            raise ConfigError(f"A conversion in {self.minutes:g} minutes", "Some minutes", "Use --minutes 5")

    def run(self, name: str, size: Sizes, captioned: bool) -> RunConfig:
        """Write the training down.

        Args:
            name: of the new model.
            size: numbers of steps.
            captioned: whether the model reads captions, of which no two images have the same.

        Returns:
            The end-to-end run.
        """
        told = {"solver": self.solver, "nfe": self.nfe, "guidance": self.guidance}
        # Images are matched with pairs of their own condition; where that is a caption, pairs are made for each batch.
        pairs = Part("teacher", told) if self.data and captioned else Part("pairs", {"data_free": not self.data})
        return RunConfig(
            name=name,
            data=self.data or "samples of the teacher",
            objective="e2e",
            e2e=E2EConfig(init=self.model, steps=self.steps, coupling=pairs, terms=_TERMS),
            train=replace(_TRAIN, steps=size.train_steps, batch=self.batch, seed=self.seed),
        )


_TERMS: Mapping[str, Mapping[str, Any]] = {
    "huber": {"weight": 1.0},
    "perceptual": {"weight": 1.0, "features": "random,self"},
    "energy": {"weight": 1.0, "features": "pixels,random"},
    "adversarial": {"weight": 1.0},
}
_TRAIN = TrainConfig(
    lr=2e-4,
    warmup=10,
    decay=0.5,
    betas=(0.0, 0.99),
    clip=2.0,
    ema=0.99,
    precision="bf16",
    checkpoint_every=50,
    players={"critic": {"lr": 4e-4, "clip": 0.0}},
)


@dataclass(frozen=True)
class Sizes:
    """What was planned from timing.

    Args:
        pairs: pairs of noise and teacher's sample.
        train_steps: steps of training.
    """

    pairs: int
    train_steps: int


@dataclass(frozen=True)
class _Samples:
    """A teacher's samples as images that captions tell apart."""

    name: str
    images: Tensor
    tokens: Tensor
    vocabulary: Vocabulary
    classes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor, mirrored: Tensor | None = None) -> Batch:
        return Batch(to_unit(self.images[indices]), {"tokens": self.tokens[indices]})


class Conversion:
    """A conversion in a folder, which goes on where it was stopped.

    Args:
        plan: what to do.
        folder: where the new model and everything on the way to it goes.
        device: where the teacher is sampled.

    Attributes:
        model: the denoiser, as it was.
        folder: the folder.
        size: what was planned; read from the folder if it is there.
        pictures: images that were measured, by (name of the row, steps).

    Raises:
        ConfigError: if the folder holds another conversion, or the model cannot be converted.
        DataError: if the images cannot be loaded.
    """

    def __init__(self, plan: ConvertPlan, folder: str | Path, device: str = "cpu") -> None:
        self.plan, self.folder, self.model = plan, output_dir(folder), load_model(plan.model, device)
        self._teacher = teacher_of(self.model, plan.solver, plan.nfe, plan.guidance, data_free=True)
        self._data = load_data(plan.data) if plan.data else None
        self.pictures: dict[tuple[str, int], Tensor] = {}
        self.size = self._planned()

    @property
    def parts(self) -> int:
        """Files of pairs."""
        return -(-self.size.pairs // _PART) if self._needs_pairs else 0

    @property
    def config(self) -> RunConfig:
        """The training, as written down."""
        name = f"{self.model.config.name}-{'-'.join(map(str, self.plan.steps))}step"
        return self.plan.run(name, self.size, self.model.config.captions is not None)

    def make_pairs(self) -> Iterator[int]:
        """Sample the teacher; yields the number of pairs after each part."""
        if (self.folder / PAIRS).exists():
            return
        place = output_dir(self.folder / "pairs")
        for part in range(self.parts):
            path = place / f"{part:04d}.safetensors"
            if not path.exists():
                write_pairs(path, self._pairs(part * _PART, min(_PART, self.size.pairs - part * _PART)))
            yield min((part + 1) * _PART, self.size.pairs)
        if self.parts:
            write_pairs(self.folder / PAIRS, join_pairs([read_pairs(path) for path in sorted(place.glob("[0-9]*"))]))
        shutil.rmtree(place)

    def train(self) -> Iterator[StepReport]:
        """Train the chain; yields after every step. The pairs have to be there."""
        return train_steps(self.config, self.folder, data=self._images(self.folder))

    def yardstick(self, n: int = 1000) -> Yardstick:
        """Hold n real images or, without any, as many samples of the teacher against what is measured."""
        judge, seeds = judge_of(self.model), seeds_of(self.plan.seed + 2 * _UNSEEN, n)
        if self._data is not None:
            batch = self._data.batch(indices_of_step(len(self._data), min(n, len(self._data)), self.plan.seed, 0))
            return Yardstick(batch, f"{len(batch)} images of {self._data.name}", judge)
        pairs = make_pairs(self._teacher, self._like, seeds, cond=told(self.model, seeds))
        return Yardstick(Batch(pairs.x, pairs.cond), f"{n} others of the teacher at {self.plan.nfe} calls", judge)

    def measure(self, yardstick: Yardstick, n: int = 1000) -> Iterator[Row]:
        """Compare the model as it was, the new one and the teacher, on seeds that training did not see.

        Args:
            yardstick: measures.
            n: images of each.

        Yields:
            "before" and "after" at every number of steps, then "teacher".
        """
        seeds, teacher = seeds_of(self.plan.seed + _UNSEEN, n), Chained(self._teacher.solver, self._teacher.grid)
        for name, model in (("before", self.model), ("after", load_model(self.folder, self.model.device))):
            for steps in self.plan.steps:
                row, self.pictures[name, steps] = sampled(model, chain_of(model, steps), seeds, name, yardstick)
                yield row
        row, self.pictures["teacher", teacher.grid.steps] = sampled(self.model, teacher, seeds, "teacher", yardstick)
        yield row

    def _planned(self) -> Sizes:
        path = self.folder / "plan.json"
        if path.exists():
            content = read_json(path)
            if content.get("plan") != _plain(self.plan):
                raise ConfigError(
                    f"{self.folder} holds a conversion with the plan {content.get('plan')}",
                    f"Asked is {_plain(self.plan)}",
                    "Restore the options, or choose another folder",
                )
            return Sizes(**content["size"])
        size = self._timed()
        write_json(path, {"plan": _plain(self.plan), "size": asdict(size)})
        return size

    def _timed(self) -> Sizes:
        """Plan from one batch of pairs and one training step of every kind, each after one that only warms up."""
        seconds = 60 * self.plan.minutes
        with tempfile.TemporaryDirectory() as place:
            self.size = Sizes(_PART, 1 + len(self.plan.steps))
            started = time.perf_counter()
            pairs = self._pairs(0, _PART)
            per_pair = (time.perf_counter() - started) / _PART
            write_pairs(Path(place) / PAIRS, pairs)
            quiet = replace(self.config, train=replace(self.config.train, steps=1000, checkpoint_every=1000))
            trainer = build(quiet, self._images(Path(place)), place)
            took = [next(steps).seconds for steps in [trainer.steps()] for _ in range(self.size.train_steps)]
        per_step = sum(took[1:]) / len(self.plan.steps)
        n = min(max(round(_FOR_PAIRS * seconds / per_pair), _LEAST), _MOST)
        return Sizes(n, max(round((_FOR_STEPS * seconds + _FOR_PAIRS * seconds - n * per_pair) / per_step), 1))

    @property
    def _like(self) -> Tensor:
        return torch.empty(1, *self.model.shape, device=self.model.device)

    @property
    def _needs_pairs(self) -> bool:
        return self.config.e2e.coupling.name == "pairs"

    def _pairs(self, first: int, n: int) -> Pairs:
        """Pairs of the n images from number `first` on."""
        seeds = seeds_of(self.plan.seed + first, n)
        return make_pairs(self._teacher, self._like, seeds, cond=told(self.model, seeds))

    def _images(self, place: Path) -> Images:
        """The data or, without any, the teacher's samples."""
        if self._data is not None:
            return self._data
        pairs, config = read_pairs(place / PAIRS), self.model.config
        name, images = f"samples of {config.name}", to_uint8(pairs.x)
        if config.captions is not None and pairs.cond is not None:
            return _Samples(name, images, pairs.cond["tokens"], config.captions, config.classes)
        return ImageData(images, pairs.cond["label"] if pairs.cond else None, config.classes, name)


def _plain(plan: ConvertPlan) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(plan).items()}
