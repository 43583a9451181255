"""From the parts of an evaluation to results: stream them through the summaries, compute, and say what it all means."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import DataError
from fewstep.experiments.evaluation.classes import class_count, knows_classes, logits
from fewstep.experiments.evaluation.controls import place_of_controls, read_controls, write_controls
from fewstep.experiments.evaluation.evaluate import Evaluation
from fewstep.experiments.evaluation.measured import (
    METRICS,
    Gathered,
    Metric,
    c2st_parameters,
    frechet_note,
    row_parameters,
)
from fewstep.experiments.evaluation.places import labels_of
from fewstep.experiments.evaluation.references import RealImages
from fewstep.experiments.evaluation.subjects import Subject, first_images
from fewstep.features import Classifying, Features
from fewstep.metrics.c2st import C2stControls, C2stProgress, C2stResult, c2st_steps
from fewstep.metrics.estimate import Estimate, over_seeds
from fewstep.metrics.frechet_estimates import fd
from fewstep.metrics.outputs import ProbabilitySet, ScoreSet
from fewstep.metrics.protocol import Making, Measuring, Protocol, library_versions
from fewstep.metrics.reference_set import KEPT_ROWS, Reference
from fewstep.metrics.result import Result
from fewstep.metrics.scores import clip_score_values
from fewstep.metrics.summary import FeatureSet

__all__ = ["Finish"]

_NAMED = 10  # skipped files that a note lists by name; results.json has all


@dataclass(frozen=True)
class _Number:
    """One number of one seed set, before it has its protocol."""

    metric: str
    features: Features | None
    name: str
    estimate: Estimate
    note: str = ""
    parameters: tuple[tuple[str, Any], ...] = ()


class Finish:
    """The last step of an evaluation.

    Args:
        evaluation: whose parts are all there.
        watch: called with a few words whenever something long begins.

    Attributes:
        skipped: files that could not be read.
        void: numbers that do not exist, and why.
    """

    def __init__(self, evaluation: Evaluation, watch: Callable[[str], None] | None = None) -> None:
        self.evaluation, self.plan, self._watch = evaluation, evaluation.plan, watch or (lambda words: None)
        self._controls: C2stControls | None = None
        self.skipped: list[str] = []
        self.void: list[str] = []
        self._n = evaluation.subjects[0].n
        self._reference = self._train = None
        self._watch("the reference")
        if evaluation.real is not None:
            self._reference = evaluation.real.gather(evaluation.features, self.plan.device)
        if evaluation.train is not None and "memorisation" in self.plan.metrics:
            self._train = evaluation.train.gather(evaluation.features, self.plan.device)

    def results(self) -> list[Result]:
        """Compute everything.

        Returns:
            One result for every number.

        Raises:
            DataError: if no picture could be read, or a metric cannot be computed.
        """
        sets, makings = [], []
        for number, subject in enumerate(self.evaluation.subjects):
            gathered, digest = self._gather(number, subject)
            sets.append([*self._numbers(gathered), *self._two_sample(subject)])
            makings.append(subject.making(digest))
        making = _joined(makings)
        versions = library_versions("accelerate", "diffusers", "transformers", "numpy", "pillow")
        return [self._result(same, making, versions) for same in zip(*sets, strict=True)]

    def _gather(self, number: int, subject: Subject) -> tuple[list[tuple[Features, Gathered]], str]:
        """Stream the parts of one set; returns its summaries and the hash of its images."""
        labels = labels_of(subject, self.evaluation.real.classes if self.evaluation.real else ())
        gathered = [(one, self._empty(one)) for one in self.evaluation.features]
        digest, n = hashlib.sha256(), 0
        for part in self.evaluation.parts(number):
            digest.update(part.digests.numpy().tobytes())
            n += len(part.index)
            self.skipped += part.skipped
            for one, into in gathered:
                chosen = None if labels is None else labels[part.index]
                _add(one, into, part.features[one.name], part.index, chosen, _texts(subject, part.index))
        if n < 2:
            raise DataError(f"{n} whole pictures", "Numbers need two images at least", "Give more pictures")
        self._n = n
        return gathered, digest.hexdigest()[:12]

    def _empty(self, features: Features) -> Gathered:
        name, ref, train = features.name, self._reference, self._train
        classes = None
        if "is" in self.plan.metrics and isinstance(features, Classifying):
            classes = ProbabilitySet(class_count(features))
        alike = self.evaluation.real is not None and knows_classes(features, self.evaluation.real.classes)
        return Gathered(
            FeatureSet(features.dim, keep=KEPT_ROWS),
            ref.summary(name) if ref else None,
            train.summary(name) if train else None,
            classes,
            ScoreSet() if "clip" in self.plan.metrics and hasattr(features, "embed_text") else None,
            ScoreSet() if "class_accuracy" in self.plan.metrics and alike else None,
        )

    def _numbers(self, gathered: Sequence[tuple[Features, Gathered]]) -> Iterator[_Number]:
        for name in self.plan.metrics:
            metric = METRICS[name]
            self._watch(metric.about)
            for features, given in gathered:
                if metric.compute is None or not _applies(metric, given):
                    continue
                for number, estimate in self._computed(name, metric, given).items():
                    note = frechet_note(given.gen, given.have("ref"), estimate.value) if number == "fd" else ""
                    yield _Number(name, features, number, estimate, note, self._parameters(metric, given))

    def _computed(self, name: str, metric: Metric, given: Gathered) -> Mapping[str, Estimate]:
        if name == "fd" and self.plan.allow_singular:
            return {"fd": fd(given.gen, given.have("ref"), allow_singular=True)}
        if metric.compute is None:
            return {}
        return metric.compute(given)

    def _parameters(self, metric: Metric, given: Gathered) -> tuple[tuple[str, Any], ...]:
        told = row_parameters(metric, given.gen, given.ref)
        if "train" in metric.needs and self._train is not None:
            told["train"] = str(self._train.id)
        return tuple({**told, **self._asked()}.items())

    def _asked(self) -> dict[str, str]:
        """What was asked for in words, and done to the pictures: other prompts or sizes make it another number."""
        subject = self.evaluation.subjects[0]
        prepared = {"pictures": subject.prepared} if subject.prepared else {}
        return prepared if subject.texts is None else {**prepared, "condition": subject.condition}

    def _two_sample(self, subject: Subject) -> Iterator[_Number]:
        """Train classifiers on the images themselves; a void test gives no number, but says why."""
        reference = self._reference
        if "c2st" not in self.plan.metrics or reference is None or reference.images is None:
            return
        images, index = first_images(subject, KEPT_ROWS)
        labels = labels_of(subject, self.evaluation.real.classes if self.evaluation.real else ())
        both = labels is not None and reference.labels is not None
        place = self._place_of_controls(reference, both)
        controls = self._controls or (read_controls(place) if place else None)
        steps = c2st_steps(
            images,
            reference.images,
            self.plan.c2st,
            fake_labels=labels[index] if labels is not None and both else None,
            real_labels=reference.labels if both else None,
            controls=controls,
            device=self.plan.device,
        )
        outcome = next(step for step in self._watched(steps) if isinstance(step, C2stResult))
        self._controls = outcome.controls  # of real images alone, so other seed sets and other models share them
        if place and controls is None:
            write_controls(place, outcome.controls)
        if outcome.trial is None:
            self.void = [f"c2st is void: {outcome.why}"]  # the same for every seed set, as the controls are
            return
        told = {
            **c2st_parameters(self.plan.c2st),
            "images a side": outcome.trial.n,
            "classes matched": both,
            **self._asked(),
        }
        yield _Number("c2st", None, "c2st", outcome.trial.accuracy, "", tuple(told.items()))

    def _place_of_controls(self, reference: Reference, matched: bool) -> Path | None:
        real = self.evaluation.real
        cache = real.cache if isinstance(real, RealImages) else None
        return place_of_controls(cache, reference.id.hash, self.plan.c2st, matched) if cache else None

    def _watched(self, steps: Iterable[C2stProgress | C2stResult]) -> Iterator[C2stProgress | C2stResult]:
        for step in steps:
            if isinstance(step, C2stProgress):
                self._watch(f"two-sample test: {step.part}, seed {step.seed}, epoch {step.epoch}")
            yield step

    def _result(self, same: Sequence[_Number], making: Making, versions: Mapping[str, str]) -> Result:
        """Join the same number of all seed sets, and give it its protocol."""
        one = same[0]
        values = [number.estimate.value for number in same]
        measuring = Measuring(
            metric=one.metric,
            features=one.features.name if one.features else "none",
            dim=one.features.dim if one.features else 0,
            resize=one.features.resize if one.features else "none",
            reference=self._reference.id if self._reference and METRICS[one.metric].held_against else None,
            n=self._n,
            sets=len(same),
            parameters=dict(one.parameters),
        )
        estimate = one.estimate if len(same) == 1 else over_seeds(values)
        note = "; ".join(filter(None, (one.note, _skipped(self.skipped))))
        return Result(Protocol(measuring, making, versions), one.name, estimate, note)


def _add(
    features: Features,
    into: Gathered,
    vectors: Tensor,
    index: Tensor,
    labels: Tensor | None,
    texts: Sequence[str] | None,
) -> None:
    """Add the images of one part to everything that is gathered of them."""
    into.gen.update(vectors, index, labels)
    if isinstance(features, Classifying) and (into.classes is not None or into.hits is not None):
        found = logits(features, vectors)
        if into.classes is not None:
            into.classes.update(found.softmax(1), index)
        if into.hits is not None and labels is not None:
            into.hits.update((found.argmax(1) == labels).double(), index)
    if into.scores is not None and texts:
        embed: Any = features
        with torch.no_grad():
            into.scores.update(clip_score_values(vectors, embed.embed_text(texts).float().cpu()), index)


def _texts(subject: Subject, index: Tensor) -> list[str] | None:
    texts = subject.texts
    return None if texts is None else [texts[k] for k in index.tolist()]


def _applies(metric: Metric, given: Gathered) -> bool:
    """Whether these features can serve; that some can was checked before the first image."""
    gathered = {"classifier": given.classes, "classes": given.hits, "texts": given.scores}
    return all(gathered[need] is not None for need in metric.needs if need in gathered)


def _skipped(files: Sequence[str]) -> str:
    if not files:
        return ""
    more = ", ..." if len(files) > _NAMED else ""
    return f"{len(files)} files could not be read and were skipped: {', '.join(files[:_NAMED])}{more}"


def _joined(makings: Sequence[Making]) -> Making:
    """Say what all seed sets are: they differ in their seeds alone."""
    return replace(makings[0], seeds="; ".join(dict.fromkeys(making.seeds for making in makings)))
