"""What a judge says of one cell of a comparison: distances, precision and recall, with intervals and protocols."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep.experiments.evaluation.measured import METRICS, row_parameters
from fewstep.metrics import Judge, fd, frechet_bias, kid, small_sample_note
from fewstep.metrics.estimate import Estimate
from fewstep.metrics.images import image_features
from fewstep.metrics.prdc import prdc
from fewstep.metrics.protocol import Making, Measuring, Protocol, library_versions
from fewstep.metrics.result import Result
from fewstep.metrics.summary import FeatureSet

__all__ = ["floor_note", "judge_results"]

_NEIGHBOURS = 5


def judge_results(judge: Judge, images: Tensor, making: Making) -> list[Result]:
    """Measure what the judge's reference allows.

    Args:
        judge: features and reference; without kept vectors there is the Fréchet distance alone.
        images: floating point, shape (n, c, h, w), in [-1, 1].
        making: how they came about.

    Returns:
        "fd" and, with kept vectors, "kid" and, from six images on, "precision" and "recall".
    """
    reference = judge.reference_set()
    summary, ref = _summary(judge, images), reference.summary(judge.features.name)
    # A table of few images is for a look, and the bias is printed beside it.
    numbers: dict[str, tuple[str, Estimate]] = {"fd": ("fd", fd(summary, ref, allow_singular=True))}
    if judge.kept is not None:
        numbers["kid"] = ("kid", kid(summary, ref))
        if len(images) > _NEIGHBOURS:
            found = prdc(summary, ref, k=_NEIGHBOURS)
            numbers |= {name: ("prdc", found[name]) for name in ("precision", "recall")}
    features, versions = judge.features, library_versions("numpy")
    results = []
    for name, (metric, estimate) in numbers.items():
        told = row_parameters(METRICS[metric], summary, ref)
        measuring = Measuring(
            metric, features.name, features.dim, features.resize, reference.id, len(images), parameters=told
        )
        results.append(Result(Protocol(measuring, making, versions), name, estimate))
    return results


def _summary(judge: Judge, images: Tensor) -> FeatureSet:
    summary, index, first = FeatureSet(judge.features.dim), torch.arange(len(images)), 0
    for vectors in image_features(judge.features, images):
        summary.update(vectors, index[first : first + len(vectors)])
        first += len(vectors)
    return summary


def floor_note(judge: Judge, n: int, value: float) -> str:
    """Say what a perfect generator would measure at this number of images, and what real images measure.

    Args:
        judge: its reference and known floors.
        n: images of a cell.
        value: a Fréchet distance of so many.

    Returns:
        One or two sentences.
    """
    bias = frechet_bias(judge.reference, n, judge.reference.n)
    known: Mapping[str, float] = judge.facts.get("floors", {})
    floors = "; ".join(f"{name}: {distance:g}" for name, distance in known.items())
    said = f"Bias: {n:,} independent draws of the real distribution have about {bias:.3g} (less with classes in turn)."
    real = f" Real against real: {floors}." if floors else ""
    return " ".join(filter(None, (said + real, small_sample_note(n, judge.features.dim, bias, value))))
