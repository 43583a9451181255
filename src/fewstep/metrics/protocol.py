"""What a number means: how it was measured, what was measured, and with which software.

A :class:`Protocol` has three sides. The *measuring* side (metric, features, resize, rounding, reference, number of
images, seed sets) says what kind of number it is; numbers are comparable if and only if it is the same for both. The
*making* side (model, solver, grid, calls, seeds; or a folder and its content's hash) says whose number it is, and is
what a comparison varies. The versions of the libraries are recorded and reported, but never forbid a comparison.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fewstep.errors import DataError

__all__ = ["Making", "Measuring", "Protocol", "ReferenceId", "library_versions"]


@dataclass(frozen=True)
class ReferenceId:
    """Which images the generated ones are held against.

    Args:
        name: name of the data set.
        split: "test", "train"...; "unknown" for statistics out of a file.
        n: number of images, or None where a file of statistics does not say.
        hash: names the content: 12 hexadecimal digits.
    """

    name: str
    split: str
    n: int | None
    hash: str

    def __str__(self) -> str:
        count = "unknown" if self.n is None else f"{self.n:,}"
        return f"{self.name} {self.split} (n = {count}, {self.hash})"


@dataclass(frozen=True)
class Measuring:
    """How something was measured; two numbers are comparable if theirs are equal.

    Args:
        metric: name in METRICS: "fd", "kid"...
        features: name of the features with the hash of their weights, "name@hash"; "none" where there are none.
        dim: length of a feature vector; 0 without features.
        resize: how images came to the size that the features read.
        reference: what they are held against; None for a metric without a reference.
        n: number of images that were judged, in every seed set.
        sets: number of seed sets over which the number is a mean.
        rounding: what was done to the pixels first.
        parameters: everything else that the metric's value depends on, JSON-able.
    """

    metric: str
    features: str
    dim: int
    resize: str
    reference: ReferenceId | None
    n: int
    sets: int = 1
    rounding: str = "8 bit"
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Making:
    """What was measured, and how it came about; the fields of a model are None for images that were just there.

    Args:
        source: "model NAME", "folder PATH", "npz PATH"...
        hash: of the model's weights, or of the content of the images: 12 hexadecimal digits.
        seeds: "0..4999", or one such range per seed set; "" for images from elsewhere.
        solver: name in SOLVERS.
        grid: spacing, range and number of steps.
        nfe: calls per image, counted.
        network_evals: evaluations of the network per image, counted.
        guidance: scale; 1 is none.
        condition: what was asked for: "classes in turn", or the prompt file with its hash.
    """

    source: str
    hash: str
    seeds: str = ""
    solver: str | None = None
    grid: str | None = None
    nfe: int | None = None
    network_evals: int | None = None
    guidance: float | None = None
    condition: str = "none"


@dataclass(frozen=True)
class Protocol:
    """Everything that has to be said about a number.

    Args:
        measuring: how it was measured.
        making: what was measured.
        versions: library -> version.
    """

    measuring: Measuring
    making: Making
    versions: Mapping[str, str]

    def key(self) -> str:
        """Name the measuring side: 12 hexadecimal digits, equal for comparable numbers."""
        text = json.dumps(dataclasses.asdict(self.measuring), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def line(self) -> str:
        """Say everything in one line of text."""
        m, made = self.measuring, self.making
        extra = [f"{name} {value}" for name, value in m.parameters.items()]
        sets = f"{m.n:,} images" if m.sets == 1 else f"{m.sets} sets of {m.n:,} images"
        features = "" if m.features == "none" else f" in {m.features} ({m.dim}-d, resize {m.resize})"
        against = f" against {m.reference}" if m.reference else ""
        how = [f"{m.metric}{features} of {sets}{against}, {m.rounding}", *extra]
        versions = " ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{', '.join(how)} | {_made(made)} | {versions} | protocol {self.key()}"

    def to_json(self) -> dict[str, Any]:
        """Turn into what JSON can hold; :meth:`from_json` is the way back."""
        return {**dataclasses.asdict(self), "key": self.key()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Protocol:
        """Make a protocol from what :meth:`to_json` gave.

        Args:
            content: "measuring", "making", "versions" and "key".

        Returns:
            The protocol.

        Raises:
            DataError: if keys are missing or unknown, or the key is that of another measuring side.
        """
        try:
            measuring = dict(content["measuring"])
            if measuring["reference"] is not None:
                measuring["reference"] = ReferenceId(**measuring["reference"])
            protocol = cls(Measuring(**measuring), Making(**content["making"]), dict(content["versions"]))
            if content["key"] != protocol.key():
                raise ValueError(f"its key is {content['key']}, its content has {protocol.key()}")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"A protocol that cannot be read ({type(error).__name__}: {error})",
                "It is what this version of fewstep wrote, unchanged",
                "Measure again, or read the file with the version that wrote it",
            ) from error
        return protocol


def _made(made: Making) -> str:
    """Say in words what was measured; parts that do not apply are left out."""
    parts = {
        "solver": made.solver,
        "grid": made.grid,
        "NFE": made.nfe,
        "network evaluations": made.network_evals,
        "guidance": None if made.guidance is None else f"{made.guidance:g}",
        "condition": None if made.condition == "none" else made.condition,
        "seeds": made.seeds or None,
    }
    said = [f"{name} {value}" for name, value in parts.items() if value is not None]
    return ", ".join([f"{made.source}@{made.hash}", *said])


def library_versions(*libraries: str) -> dict[str, str]:
    """Read the versions of fewstep, torch and further installed libraries; what is not installed is left out."""
    # Its own version from the code that runs: the metadata of an editable install may be older.
    versions = {"fewstep": str(importlib.import_module("fewstep").__version__)}
    for library in libraries:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**versions, "torch": str(torch.__version__)}
