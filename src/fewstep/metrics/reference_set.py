"""Reference sets: real images with their summaries in every kind of features, computed once and kept.

A summary is cached under the hash of what it is: content of the images, features, resize, rounding and how much was
kept. A file in the cache that says it is something else, or that is damaged, is refused by name; nothing is ever
guessed from a file's name alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep._files import fingerprint, output_dir, read_json, read_tensors, write_json, write_tensors
from fewstep.errors import CheckpointError, DataError, ProtocolError
from fewstep.features.base import Features
from fewstep.metrics.protocol import ReferenceId
from fewstep.metrics.result import differing
from fewstep.metrics.summary import FeatureSet

__all__ = ["KEPT_ROWS", "Reference", "cache_folder", "content_hash", "gather_reference", "statistics_reference"]

KEPT_ROWS = 10_000

_FORMAT = 1  # of the cache; a summary of another format is another protocol


@dataclass(frozen=True)
class Reference:
    """What generated images are held against.

    Args:
        id: name, split, number and hash.
        sets: name of the features -> summary of the images in them.
        images: the images themselves, uint8, shape (n, c, h, w); None where only statistics are at hand.
        labels: their classes, shape (n,), int64, or None.
    """

    id: ReferenceId
    sets: Mapping[str, FeatureSet]
    images: Tensor | None = None
    labels: Tensor | None = None

    def summary(self, features: str) -> FeatureSet:
        """Summary of the reference in some features.

        Args:
            features: their name, with the hash.

        Returns:
            The summary.

        Raises:
            ProtocolError: if the reference was not measured in these features.
        """
        if features not in self.sets:
            raise ProtocolError(
                f"The reference {self.id} in the features {features}",
                f"It is known in {', '.join(self.sets) or 'no features'}",
                "Use those features, or give the reference as images, which can be measured in any",
            )
        return self.sets[features]


def content_hash(images: Tensor, labels: Tensor | None = None) -> str:
    """Name images by their content: shape, pixels and labels, in their order.

    Args:
        images: uint8, shape (n, c, h, w).
        labels: shape (n,), int64, or None.

    Returns:
        The first 12 hexadecimal digits of a SHA-256.
    """
    return fingerprint({"images": images} if labels is None else {"images": images, "labels": labels})


def cache_folder() -> Path:
    """Where summaries of references are kept: FEWSTEP_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("FEWSTEP_CACHE"):
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "fewstep" / "reference"


def gather_reference(
    name: str,
    split: str,
    images: Tensor,
    labels: Tensor | None,
    features: Sequence[Features],
    *,
    cache: Path | None = None,
    device: str | torch.device = "cpu",
    keep: int = KEPT_ROWS,
    watch: Callable[[int], None] | None = None,
) -> Reference:
    """Summarise images in several kinds of features, in one pass over them; what is cached is not computed again.

    Args:
        name: of the data set.
        split: "test", "train"...
        images: uint8, shape (n, c, h, w).
        labels: classes, shape (n,), int64, or None.
        features: in what to summarise them; they are called on `device`.
        cache: folder of summaries; None computes everything and keeps nothing.
        device: where the features are.
        keep: how many rows are kept for metrics that look at single images.
        watch: called with the number of images of each batch.

    Returns:
        The reference.

    Raises:
        ProtocolError: if the cache holds a summary of something else under this name.
        CheckpointError: if a file of the cache is damaged.
        OutputError: if the cache cannot be written.
        ShapeError: if the features cannot read the images.
    """
    identity = ReferenceId(name, split, len(images), content_hash(images, labels))
    wanted = {one.name: _recipe(identity, one, keep) for one in features}
    found = {one: _read(cache, recipe) for one, recipe in wanted.items()} if cache else {}
    sets = {one: summary for one, summary in found.items() if summary is not None}
    missing = [one for one in features if one.name not in sets]
    for one, summary in zip(missing, _summaries(images, labels, missing, device, keep, watch), strict=True):
        sets[one.name] = summary
        if cache:
            _write(cache, wanted[one.name], summary)
    return Reference(identity, sets, images, labels)


@torch.no_grad()
def _summaries(
    images: Tensor,
    labels: Tensor | None,
    features: Sequence[Features],
    device: str | torch.device,
    keep: int,
    watch: Callable[[int], None] | None,
    batch_size: int = 250,
) -> list[FeatureSet]:
    # One group: intervals come from the generated images, and ten covariances of the reference would only fill memory.
    sets = [FeatureSet(one.dim, keep=keep, groups=1) for one in features]
    for first in range(0, len(images) if features else 0, batch_size):
        here = slice(first, first + batch_size)
        x = images[here].to(device).to(torch.float32) / 127.5 - 1
        index = torch.arange(first, first + len(x))
        for one, summary in zip(features, sets, strict=True):
            summary.update(one(x), index, None if labels is None else labels[here])
        if watch:
            watch(len(x))
    return sets


def statistics_reference(name: str, content: bytes, summary: FeatureSet, features: Features) -> Reference:
    """Make a reference of statistics that somebody else computed: moments alone, without images or rows.

    Args:
        name: of the file.
        content: its bytes, which name it.
        summary: its moments.
        features: the features that it is said to be in.

    Returns:
        The reference.

    Raises:
        ProtocolError: if the features have another dimension than the statistics.
    """
    if summary.dim != features.dim:
        raise ProtocolError(
            f"Statistics {name} of {summary.dim} dimensions for the features {features.name}",
            f"Those have {features.dim} dimensions",
            "Choose the features that the statistics were computed in; such a file does not name them",
        )
    n = summary.n if summary.n_known else None
    return Reference(
        ReferenceId(name, "unknown", n, hashlib.sha256(content).hexdigest()[:12]), {features.name: summary}
    )


def _recipe(identity: ReferenceId, features: Features, keep: int) -> dict[str, Any]:
    """Everything that a summary depends on."""
    return {
        "reference": dataclasses.asdict(identity),
        "features": features.name,
        "dim": features.dim,
        "resize": features.resize,
        "rounding": "8 bit",
        "keep": keep,
        "format": _FORMAT,
    }


def _place(cache: Path, recipe: Mapping[str, Any]) -> Path:
    return cache / hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def _write(cache: Path, recipe: Mapping[str, Any], summary: FeatureSet) -> None:
    place, state = _place(output_dir(cache), recipe), summary.state()
    write_tensors(place.with_suffix(".safetensors"), state)
    # The description is written last and names the tensors, so that a cache is whole or not there.
    write_json(place.with_suffix(".json"), {"protocol": recipe, "fingerprint": fingerprint(state)})


def _read(cache: Path, recipe: Mapping[str, Any]) -> FeatureSet | None:
    place = _place(cache, recipe).with_suffix(".json")
    if not place.exists():
        return None
    content = read_json(place)
    recorded = content.get("protocol")
    if recorded != recipe:
        unlike = differing(recorded, recipe) if isinstance(recorded, dict) else ["it names none"]
        raise ProtocolError(
            f"The cached summary {place} is of another protocol: {'; '.join(unlike)}",
            "A cached summary is used for the very protocol that its file records",
            "Remove that file; it will be computed again",
        )
    state = read_tensors(place.with_suffix(".safetensors"))
    try:
        if fingerprint(state) != content.get("fingerprint"):
            raise DataError("Its tensors are not those it names", "Both were written together", "Remove it")
        return FeatureSet.from_state(state)
    except DataError as error:
        raise CheckpointError(
            f"The cached summary {place} is damaged ({error.given})",
            "Its two files were written together and have not changed since",
            "Remove them; they will be computed again",
        ) from error
