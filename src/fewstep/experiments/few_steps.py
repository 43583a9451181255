"""How good a model is at few steps: the same numbers of any way to sample it, for tables of before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep._cond import placed, rows_of
from fewstep.data import Batch, Images, indices_of_step
from fewstep.experiments.evaluation.classes import logits
from fewstep.experiments.evaluation.quality import floor_note
from fewstep.experiments.runs import captions_of, conditions, draw
from fewstep.features import Classifying, RandomConv
from fewstep.metrics import Judge, frechet_distance, image_moments
from fewstep.metrics.images import image_features
from fewstep.models import Chain, Model
from fewstep.objectives import spread_of
from fewstep.sampling import Chained, resolve

__all__ = ["Row", "Yardstick", "chain_of", "sampled", "told", "yardstick_of"]

_UNSEEN = 20_241_230  # seed of random filters that no training uses


@dataclass(frozen=True)
class Row:
    """What was measured of one set of samples.

    Attributes:
        name: what made them.
        steps: of the chain, or of the solver.
        nfe: calls of the denoiser per sample, counted.
        distance: Fréchet distance to the reference, see :meth:`Yardstick.describe`.
        rho: variance of the pixels within conditions over that of the reference; None where no condition has ten
            images.
        contrast: standard deviation of all pixels over that of the reference.
        recognised: share of the samples in which the judge recognises the class asked for; None without such a judge.
        seconds: of sampling.
    """

    name: str
    steps: int
    nfe: int
    distance: float
    rho: float | None
    contrast: float
    recognised: float | None
    seconds: float


class Yardstick:
    """Holds samples against a reference in features that training never saw.

    Args:
        reference: images (n, c, h, w) in [-1, 1] with their conditions, as the model is told them.
        said: what they are, for reports.
        judge: features and reference of distances; None takes random filters of a seed of its own, and `reference`.
        others: more images of the same kind, whose distance is the floor; None if there are none.
    """

    def __init__(self, reference: Batch, said: str, judge: Judge | None = None, others: Tensor | None = None) -> None:
        self.reference, self.said, self.judge, self._others = reference, said, judge, others
        self._features = RandomConv(reference.x0.shape[1], seed=_UNSEEN)
        self._moments = image_moments(self._features, reference.x0)
        self._spread = spread_of(reference)

    def describe(self, n: int) -> str:
        """Say what a distance of n images is."""
        other = f"Fréchet distance in {self._features.name} between {n} images and {self.said}"
        return self.judge.describe(n) if self.judge else other

    def floor(self, rows: Sequence[Row], n: int) -> str:
        """Say which distance is as good as nothing, in rows of n images each; empty if it is not known."""
        if self.judge is not None:
            return floor_note(self.judge, n, rows[-1].distance)
        if self._others is None:
            return ""
        return f"Floor: {len(self._others):,} others of the same images are at {self.distance(self._others):.3g}."

    def distance(self, images: Tensor) -> float:
        """Measure the distance of images (n, c, h, w) to the reference."""
        if self.judge:
            return self.judge.distance(images)
        return frechet_distance(image_moments(self._features, images), self._moments)

    def row(self, name: str, steps: int, made: Batch, nfe: int, seconds: float) -> Row:
        """Measure samples and their conditions."""
        own = spread_of(made)
        rho = own / self._spread if own is not None and self._spread else None
        contrast = float(made.x0.std() / self.reference.x0.std())
        return Row(name, steps, nfe, self.distance(made.x0), rho, contrast, self._recognised(made), seconds)

    def _recognised(self, made: Batch) -> float | None:
        features, labels = self.judge and self.judge.features, (made.cond or {}).get("label")
        if labels is None or not isinstance(features, Classifying):
            return None
        seen = torch.cat([logits(features, vectors).argmax(1) for vectors in image_features(features, made.x0)])
        return float((seen == labels.cpu()).double().mean())


def sampled(model: Model, way: Chained, seeds: range, name: str, yardstick: Yardstick) -> tuple[Row, Tensor]:
    """Sample a model and measure what comes out.

    Args:
        model: what is sampled.
        way: solver and grid.
        seeds: one per image; they also choose classes or captions, in turn.
        name: of the row.
        yardstick: measures.

    Returns:
        The row, and the images (n, c, h, w).
    """
    cond = told(model, seeds)
    drawn = draw(model, way.solver, way.grid, seeds, cond=cond)
    made = Batch(drawn.images, placed(cond, "cpu"))
    return yardstick.row(name, way.grid.steps, made, drawn.nfe, drawn.seconds), drawn.images


def yardstick_of(data: Images, model: Model, n: int, seed: int, judge: Judge | None) -> Yardstick:
    """Take n images of a data set for reference and, as far as there are any, as many others for the floor.

    They keep of their conditions what the model is told: variety within conditions is compared.
    """
    batch = data.batch(indices_of_step(len(data), min(2 * n, len(data)), seed, 0)).told(model.config.null)
    n = min(n, len(data))
    few = Batch(batch.x0[:n], rows_of(batch.cond, slice(n)))
    others = batch.x0[n:] if len(batch) > n + 1 else None
    return Yardstick(few, f"{n} images of {data.name}", judge, others)


def chain_of(model: Model, steps: int) -> Chained:
    """Give a model's chain at a number of steps; DDIM on the grid of chains if it was not trained for them."""
    own = model.config.chain
    return resolve(own if own and steps in own.steps else Chain(steps=(steps,)), model.denoiser.schedule, steps)


def told(model: Model, seeds: range) -> dict[str, Tensor] | None:
    """Say what images of some seeds show if nobody chooses: classes or captions in turn; None if there is nothing."""
    labels, captions = conditions(model, seeds), captions_of(model, seeds)
    if captions is not None:
        return model.cond_of_captions(captions)
    return None if labels is None else {"label": labels}
