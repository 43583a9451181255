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
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep._files import output_dir, read_json, write_json
from fewstep.data import Batch, ImageData, Images, load_data, to_uint8, to_unit
from fewstep.errors import CheckpointError, ConfigError
from fewstep.experiments.compare import judge_of
from fewstep.experiments.convert_plan import ConvertPlan, Sizes
from fewstep.experiments.few_steps import Row, Yardstick, chain_of, sampled, told, yardstick_of
from fewstep.experiments.runs import check_guidance, seeds_of
from fewstep.experiments.ways import reads_data
from fewstep.models import Model, load_model
from fewstep.networks import Vocabulary
from fewstep.objectives.couplings import Pairs, join_pairs, make_pairs, read_pairs, write_pairs
from fewstep.sampling import Chained
from fewstep.training import RunConfig, StepReport, build, model_config, train_steps
from fewstep.training.e2e_couplings import PAIRS, teacher_of
from fewstep.training.processes import accelerator

__all__ = ["Conversion"]

_PART = 256  # pairs that are made at a time and kept
_UNSEEN = 10_000_000  # distance of the seeds that are measured from those that are trained on
_LEAST, _MOST = 512, 50_000  # pairs
_FOR_PAIRS, _FOR_STEPS = 0.3, 0.6  # shares of the time; the rest goes into timing, measuring and writing


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

    Attributes:
        model: the denoiser, as it was.
        folder: the folder.
        size: what was planned; read from the folder if it is there.
        pictures: images that were measured, by (name of the row, steps).

    Raises:
        ConfigError: if the folder holds another conversion, or the model cannot be converted.
        DataError: if the images cannot be loaded.
    """

    def __init__(self, plan: ConvertPlan, folder: str | Path) -> None:
        self.plan, self.model, self.size = plan, load_model(plan.model, accelerator().device), Sizes(_LEAST, 1)
        _refuse_leaky(self.model)
        check_guidance(self.model, plan.guidance)
        self._teacher = teacher_of(self.model, plan.solver, plan.nfe or 0, plan.guidance, data_free=True)
        self._data = load_data(plan.data, size=self._side or None) if plan.data else None
        if self._data is not None:
            model_config(self.config, self._data)  # refuses images that are not the model's, before anything is made
        self.folder = self._output(folder)
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
        return self.plan.run(name, self.size, self.model.config.captions is not None, self._side)

    @property
    def nfe(self) -> int:
        """Calls that the teacher makes per sample."""
        return self._teacher.solver.nfe(self._teacher.grid)

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
            return yardstick_of(self._data, self.model, n, self.plan.seed, judge)
        pairs = make_pairs(self._teacher, self._like, seeds, cond=told(self.model, seeds))
        return Yardstick(Batch(pairs.x, pairs.cond), f"{n} others of the teacher at {self.nfe} calls", judge)

    def floor(self, yardstick: Yardstick, rows: Sequence[Row], n: int) -> str:
        """Say which distance is as good as nothing."""
        return yardstick.floor(rows, n) or "Floor: the last row, other samples of the teacher that is the reference."

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

    def _output(self, folder: str | Path) -> Path:
        """Make the folder; refuses one that holds a model or another run, which would be overwritten or mixed up."""
        path = Path(folder)
        if (path / "config.json").exists() and not (path / "plan.json").exists():
            raise ConfigError(
                f"{path} holds a model that no conversion made",
                "A conversion writes its model into a folder of its own",
                "Choose another --out",
            )
        return output_dir(path)

    @property
    def _side(self) -> int:
        """Height and width of the model's images, if they are the same."""
        _, height, width = self.model.shape
        return height if height == width else 0

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
            try:
                return Sizes(**content["size"])
            except (KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{path} does not say what was planned ({error})",
                    "It has a plan, and the numbers of pairs and steps",
                    "Restore it from a copy, or choose another folder",
                ) from error
        size = self._timed()
        write_json(path, {"plan": _plain(self.plan), "size": asdict(size)})
        return size

    def _timed(self) -> Sizes:
        """Plan from one batch of pairs and one round of training steps of every kind, after a round that warms up."""
        seconds, of_pairs = 60 * self.plan.minutes, 0.0
        with tempfile.TemporaryDirectory() as place:
            self.size = Sizes(_PART if self._needs_pairs else 0, 2 * len(self.plan.steps))
            if self._needs_pairs:
                started = time.perf_counter()
                pairs = self._pairs(0, _PART)
                of_pairs = (time.perf_counter() - started) / _PART
                write_pairs(Path(place) / PAIRS, pairs)
            quiet = replace(self.config, train=replace(self.config.train, steps=1000, checkpoint_every=1000))
            trainer = build(quiet, self._images(Path(place)), place)
            took = [next(steps).seconds for steps in [trainer.steps()] for _ in range(self.size.train_steps)]
        of_step = statistics.mean(took[len(self.plan.steps) :])
        n = min(max(round(_FOR_PAIRS * seconds / of_pairs), _LEAST), _MOST) if of_pairs else 0
        n_steps = max(round(((_FOR_PAIRS + _FOR_STEPS) * seconds - n * of_pairs) / of_step), 1)
        return Sizes(n, n_steps, round(n * of_pairs + n_steps * of_step, 2))

    @property
    def _like(self) -> Tensor:
        return torch.empty(1, *self.model.shape, device=self.model.device)

    @property
    def _needs_pairs(self) -> bool:
        return self.config.e2e.coupling.name == "pairs"

    def _pairs(self, first: int, n: int) -> Pairs:
        """Pairs of the n images from number `first` on."""
        seeds = seeds_of(self.plan.seed + first, n)
        pairs = make_pairs(self._teacher, self._like, seeds, cond=told(self.model, seeds))
        return replace(pairs, made_by=self.model.fingerprint)

    def _images(self, place: Path) -> Images:
        """The data or, without any, the teacher's samples."""
        if self._data is not None:
            return self._data
        pairs, config = read_pairs(place / PAIRS), self.model.config
        name, images = f"samples of {config.name}", to_uint8(pairs.x)
        if config.captions is not None and pairs.cond is not None:
            return _Samples(name, images, pairs.cond["tokens"], config.captions, config.classes)
        return ImageData(images, pairs.cond["label"] if pairs.cond else None, config.classes, name)


def _refuse_leaky(model: Model) -> None:
    if reads_data(model):
        raise ConfigError(
            f"{model.config.name!r}, whose chain starts at data with noise on them",
            "A few-step model starts from pure noise, and so does everything that it is compared with",
            "Convert the denoiser that this model was made from",
        )


def _plain(plan: ConvertPlan) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(plan).items()}
