"""Evaluation: images in, numbers with protocols out; resumable, distributed, in memory that does not grow with n.

Images come in chunks. A chunk is made or read, all features see it in one pass, and its vectors go to the disk as one
part. With several processes, chunk c belongs to process c mod world. At the end the first process streams the parts
through the summaries in their order, so the numbers are the same bits for any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep._files import output_dir
from fewstep.errors import ConfigError
from fewstep.experiments.evaluation.classes import knows_classes
from fewstep.experiments.evaluation.measured import check_counts, check_needs, chosen_metrics
from fewstep.experiments.evaluation.parts import Part, measure_part, open_folder, read_part, settings_hash, write_part
from fewstep.experiments.evaluation.places import labels_of
from fewstep.experiments.evaluation.processes import Processes
from fewstep.experiments.evaluation.references import Real, RealImages
from fewstep.experiments.evaluation.subjects import Subject
from fewstep.features import Classifying, Features
from fewstep.metrics.c2st import C2stConfig

__all__ = ["ChunkDone", "Evaluation", "Plan"]


@dataclass(frozen=True)
class Plan:
    """What to measure, and where to keep it.

    Args:
        metrics: names in METRICS.
        out: folder of images, parts and results.
        chunk: images per part.
        device: where the features compute.
        allow_singular: accept fewer images than dimensions for a Fréchet distance.
        c2st: how the two-sample test is done.

    Raises:
        UnknownName: if there is no such metric.
        ConfigError: if there are no metrics, or a chunk is empty.
    """

    metrics: tuple[str, ...]
    out: Path
    chunk: int = 500
    device: str = "cpu"
    allow_singular: bool = False
    c2st: C2stConfig = C2stConfig()

    def __post_init__(self) -> None:
        chosen_metrics(self.metrics)
        if self.chunk < 1:
            raise ConfigError(f"Chunks of {self.chunk} images", "One image or more", "Use --chunk 500")


@dataclass(frozen=True)
class ChunkDone:
    """What is reported after each chunk.

    Args:
        done: finished chunks of this process.
        total: all chunks of this process.
        images: images in the chunk.
        found: whether it was on the disk already.
    """

    done: int
    total: int
    images: int
    found: bool

    @property
    def note(self) -> str:
        """What stands beside a progress bar."""
        return f"{self.images} images{' (found)' if self.found else ''}"


class Evaluation:
    """One evaluation, in steps that the caller walks through.

    Args:
        subjects: what is evaluated, one per seed set; all with the same number of images.
        features: in what it is measured, on the plan's device.
        plan: metrics and place.
        real: what it is held against; None if no metric asks for it.
        train: what the generator learned from, or None.
        processes: this process among others.

    Raises:
        ProtocolError: if a metric's needs are not met.
        DataError: if there are too few images for the dimension of the features.
        ConfigError: if the subjects differ in number.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        features: Sequence[Features],
        plan: Plan,
        real: Real | None = None,
        train: RealImages | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.subjects, self.features, self.plan = tuple(subjects), tuple(features), plan
        self.real, self.train, self.processes = real, train, processes or Processes()
        if not self.subjects or len({subject.n for subject in self.subjects}) > 1:
            counts = ", ".join(str(subject.n) for subject in self.subjects) or "none"
            raise ConfigError(f"Sets of {counts} images", "One set, or several of one size", "Use the same n for all")
        self._check()
        n = self.subjects[0].n
        pieces = [range(first, min(first + plan.chunk, n)) for first in range(0, n, plan.chunk)]
        self.chunks = [(s, piece) for s in range(len(self.subjects)) for piece in pieces]

    def _check(self) -> None:
        """Refuse what cannot be measured before anything is sampled."""
        subject, metrics = self.subjects[0], self.plan.metrics
        if len({one.name for one in self.features}) < len(self.features):
            raise ConfigError("The same features twice", "Each kind of features once", "Remove one from --features")
        if not self.features and set(metrics) - {"c2st"}:
            raise ConfigError("No features", "All metrics but c2st are measured in features", "Pass --features")
        offers = set(self.real.offers if self.real else ())
        if self.real is None or labels_of(subject, self.real.classes) is None:
            offers -= {"labels"}
        offers |= {"train"} if self.train else set()
        offers |= {"classifier"} if any(isinstance(one, Classifying) for one in self.features) else set()
        alike = self.real is not None and any(knows_classes(one, self.real.classes) for one in self.features)
        offers |= {"classes"} if alike else set()
        reads_texts = any(hasattr(one, "embed_text") for one in self.features)
        offers |= {"texts"} if subject.texts is not None and reads_texts else set()
        where = f"the reference {self.real.title}" if self.real else "an evaluation without a reference"
        check_needs(metrics, offers, where)
        dims = {one.name: one.dim for one in self.features}
        check_counts(metrics, subject.n, dims, self.plan.allow_singular)
        if self.real is not None:
            self.real.check(self.features)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that images and parts depend on; the metrics are not among it and may change."""
        sets = [subject.settings() for subject in self.subjects]
        seeds = [one.get("seeds", "") for one in sets]
        return {**sets[0], "sets": seeds, "features": [one.name for one in self.features], "chunk": self.plan.chunk}

    @property
    def mine(self) -> list[int]:
        """Numbers of the chunks of this process."""
        return list(range(self.processes.rank, len(self.chunks), self.processes.size))

    def run(self) -> Iterator[ChunkDone]:
        """Make what is missing of this process's chunks; returns when all processes are done.

        Yields:
            A report after each chunk.

        Raises:
            ProtocolError: if the folder holds an evaluation with other settings.
            NonFiniteError: if an image or a feature is NaN.
            DataError: if a picture cannot be read, or differs in size or mode.
            OutputError: if something cannot be written.
        """
        settings = self.settings
        if self.processes.first:
            open_folder(self.plan.out, settings)
        self.processes.wait()
        open_folder(self.plan.out, settings)
        output_dir(self.plan.out / "parts")
        for done, number in enumerate(self.mine, start=1):
            subject, piece = self.chunks[number]
            path = self._path(number)
            found = path.exists()
            if not found:
                part = measure_part(self.subjects[subject].read(piece), self.features, self.plan.device)
                write_part(path, part, settings_hash(settings))
            yield ChunkDone(done, len(self.mine), len(piece), found)
        self.processes.wait()

    def _path(self, number: int) -> Path:
        return self.plan.out / "parts" / f"chunk_{number:05d}.safetensors"

    def parts(self, subject: int) -> Iterator[Part]:
        """Read the finished parts of one seed set, in order.

        Args:
            subject: number of the set.

        Yields:
            The parts.

        Raises:
            CheckpointError: if one is missing, damaged or of other settings.
        """
        settings = settings_hash(self.settings)
        for number, (owner, _) in enumerate(self.chunks):
            if owner == subject:
                yield read_part(self._path(number), settings)
