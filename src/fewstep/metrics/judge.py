"""Judges: features and the moments of real images in them, in one folder, so that nobody needs the images again.

A folder holds what :func:`fewstep.features.save_classifier` writes plus ``statistics.safetensors`` (mean, cov, n) of
the reference split and, in ``rows.safetensors``, some of its vectors with their classes and the spread inside each
class, for the metrics that look at single images or classes. `config.json` states the data, the split, the accuracy and
the *floors*: what the distance is between sets of real images. A generator cannot be told apart from real data below
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep._files import fingerprint, read_tensors, write_tensors
from fewstep.errors import CheckpointError, choose
from fewstep.features import ClassifierFeatures, load_classifier, save_classifier
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.metrics.images import image_moments
from fewstep.metrics.protocol import ReferenceId
from fewstep.metrics.reference_set import Reference
from fewstep.metrics.summary import FeatureSet

__all__ = ["JUDGES", "Judge", "judge_images", "load_judge", "save_judge"]

_WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

JUDGES: Mapping[str, Path] = {"mnist-judge": _WEIGHTS / "mnist-judge"}


@dataclass(frozen=True)
class Judge:
    """Features, the moments of real images in them, and what is known about both.

    Args:
        features: the classifier's features; their name carries the fingerprint of the weights.
        reference: moments of the reference split.
        facts: JSON-able: "data", "split", "n", "accuracy", "floors", how the classifier was trained, and with `kept`
            "images", the hash of the reference's images, and "classes".
        kept: summary of the reference with some of its vectors, or None where moments are all there is.
    """

    features: ClassifierFeatures
    reference: Moments
    facts: Mapping[str, Any]
    kept: FeatureSet | None = None

    def distance(self, images: Tensor | Moments) -> float:
        """Measure the Fréchet distance of images, or of their moments, to the reference.

        Args:
            images: floating point, shape (n, c, h, w), in [-1, 1]; or moments from :func:`judge_images`.

        Returns:
            The distance; compare only with distances of the same n, and with the floors.
        """
        moments = images if isinstance(images, Moments) else judge_images(self, images)
        return frechet_distance(moments, self.reference)

    def reference_set(self) -> Reference:
        """Give the reference with its name and hash; without kept vectors it has moments alone."""
        moments = self.reference
        summary = self.kept or FeatureSet.from_moments(moments.mean, moments.cov, moments.n)
        content = self.facts.get("images") or fingerprint(_statistics(moments))
        identity = ReferenceId(self.facts["data"], self.facts["split"], moments.n, content)
        return Reference(identity, {self.features.name: summary})

    def describe(self, n: int) -> str:
        """Say in one line what a distance of n images to this reference is.

        Args:
            n: number of images that are judged.

        Returns:
            Features, their dimension, reference split and both counts.
        """
        return (
            f"Fréchet distance in the features {self.features.name} ({self.features.dim}-d) between {n} images and "
            f"the {self.facts['split']} split of {self.facts['data']} (n = {self.reference.n})"
        )


def judge_images(judge: Judge, images: Tensor, batch_size: int = 250) -> Moments:
    """Compute the moments of images, rounded to 8 bits, in the features of a judge.

    Args:
        judge: the judge.
        images: floating point, shape (n, c, h, w), in [-1, 1], on the judge's device.
        batch_size: images per forward pass.

    Returns:
        Moments of n samples; moments of further images can be merged into them.

    Raises:
        DtypeError: if the images are not floating point.
        ShapeError: if they have another shape than the judge's data.
        NonFiniteError: if a pixel is NaN or infinite.
        DataError: if the pixels can only be in 0..255.
    """
    return image_moments(judge.features, images, batch_size)


def save_judge(folder: str | Path, judge: Judge) -> None:
    """Write a judge into an existing folder.

    Args:
        folder: where config.json, model.safetensors and statistics.safetensors go.
        judge: features, reference and facts; "data" and "split" are required among the facts.

    Raises:
        OutputError: if the folder cannot be written.
    """
    statistics, facts = _statistics(judge.reference), dict(judge.facts)
    facts.pop("rows", None)  # of a judge that was loaded with vectors and has none any more
    write_tensors(Path(folder) / "statistics.safetensors", statistics)
    if judge.kept is not None:
        rows = _rows(judge.kept)
        write_tensors(Path(folder) / "rows.safetensors", rows)
        facts["rows"] = fingerprint(rows)
    save_classifier(folder, judge.features, {**facts, "statistics": fingerprint(statistics)})


def _statistics(moments: Moments) -> dict[str, Tensor]:
    return {"mean": moments.mean, "cov": moments.cov, "n": torch.tensor(moments.n)}


def _rows(kept: FeatureSet) -> dict[str, Tensor]:
    """What a summary holds beside its moments; float16 is finer than the features' own noise, and half the size."""
    state = {name: value for name, value in kept.state().items() if not name.startswith("group_")}
    return {**state, "rows": state["rows"].to(torch.float16)}


def _kept(rows: Mapping[str, Tensor], moments: Moments) -> FeatureSet:
    groups = {"group_n": torch.tensor([moments.n]), "group_mean": moments.mean[None]}
    return FeatureSet.from_state({**rows, **groups, "group_scatter": moments.scatter[None]})


def load_judge(name: str | Path) -> Judge:
    """Load a judge that ships with the package, or a folder with one.

    Args:
        name: a name from JUDGES, or the path of a folder.

    Returns:
        The judge, on the CPU.

    Raises:
        UnknownName: if it is neither a folder nor a known name.
        CheckpointError: if a file is missing, damaged or foreign, or the files do not belong together.
    """
    known = str(name) in JUDGES or not Path(name).is_dir()
    folder = choose(str(name), JUDGES, "judge") if known else Path(name)
    features, config = load_classifier(folder)
    statistics = read_tensors(folder / "statistics.safetensors")
    facts = config.get("facts", {})
    if facts.get("statistics") != fingerprint(statistics) or not {"data", "split"} <= set(facts):
        raise CheckpointError(
            f"The statistics in {folder} are not those that its config.json names",
            "statistics.safetensors and config.json come from one training of the judge",
            "Restore both files from one copy, or train the judge again",
        )
    reference = Moments.from_statistics(statistics["mean"], statistics["cov"], int(statistics["n"]))
    if "rows" not in facts:
        return Judge(features, reference, facts)
    rows = read_tensors(folder / "rows.safetensors")
    if fingerprint(rows) != facts["rows"]:
        raise CheckpointError(
            f"The vectors in {folder / 'rows.safetensors'} are not those that its config.json names",
            "rows.safetensors and config.json were written together",
            "Restore both files from one copy, or make the rows again",
        )
    return Judge(features, reference, facts, _kept(rows, reference))
