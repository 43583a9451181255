"""The features of a piece of the images on the disk: what makes an evaluation resumable and its memory flat.

A part is written in one step once all of its images are measured, so that its file is the mark that it is done. It
names the settings it belongs to; a part of other settings is refused, never mixed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep._files import output_dir, read_json, read_tensors, write_json, write_tensors
from fewstep.errors import CheckpointError, NonFiniteError, OutputError, ProtocolError
from fewstep.experiments.evaluation.subjects import Pictures
from fewstep.features import Features
from fewstep.metrics.result import differing

__all__ = ["Part", "measure_part", "open_folder", "read_part", "settings_hash", "write_part"]

_OWN = ("index", "digests", "skipped", "settings")


@dataclass(frozen=True)
class Part:
    """What is kept of a piece of the images.

    Args:
        index: numbers of the images, shape (b,), int64.
        digests: SHA-256 of each image, shape (b, 32), uint8.
        features: name -> vectors, shape (b, dim), float32.
        skipped: files that could not be read.
    """

    index: Tensor
    digests: Tensor
    features: Mapping[str, Tensor]
    skipped: tuple[str, ...]


@torch.no_grad()
def measure_part(
    pictures: Pictures, features: Sequence[Features], device: str | torch.device, batch_size: int = 250
) -> Part:
    """Compute all features of some images, in one pass over them.

    Args:
        pictures: 8-bit images.
        features: what to compute, on `device`.
        device: where.
        batch_size: images per call.

    Returns:
        The part.

    Raises:
        ShapeError: if the features cannot read the images.
        NonFiniteError: if a vector is NaN or infinite; the message names its image.
    """
    vectors: dict[str, list[Tensor]] = {one.name: [torch.empty(0, one.dim)] for one in features}
    for batch in torch.split(pictures.images, batch_size) if len(pictures.images) else ():
        x = batch.to(device).to(torch.float32) / 127.5 - 1
        for one in features:
            vectors[one.name].append(one(x).to("cpu", torch.float32))
    joined = {name: torch.cat(parts) for name, parts in vectors.items()}
    for name, rows in joined.items():
        _check_finite(name, rows, pictures.index)
    return Part(pictures.index, _digests(pictures.images), joined, pictures.skipped)


def _check_finite(name: str, rows: Tensor, index: Tensor) -> None:
    bad = ~torch.isfinite(rows).all(1)
    if bad.any():
        raise NonFiniteError(
            f"NaN or infinity in the features {name} of {int(bad.sum())} images, first in {int(index[bad][0])}",
            "Features of 8-bit images are finite",
            "Look at the weights of the features; half precision may overflow",
        )


def _digests(images: Tensor) -> Tensor:
    rows = [_bytes(hashlib.sha256(repr(image.shape).encode() + image.numpy().tobytes()).digest()) for image in images]
    return torch.stack(rows) if rows else torch.empty(0, 32, dtype=torch.uint8)


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Name settings: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def write_part(path: Path, part: Part, settings: str) -> None:
    """Write a part, whole or not at all.

    Args:
        path: its file; the folder must exist.
        part: what to write.
        settings: hash of the settings it belongs to.

    Raises:
        OutputError: if it cannot be written.
    """
    own = {
        "index": part.index,
        "digests": part.digests,
        "skipped": _bytes(json.dumps(part.skipped).encode()),
        "settings": _bytes(settings.encode()),
    }
    write_tensors(path, {**own, **{f"features {name}": rows for name, rows in part.features.items()}})


def read_part(path: Path, settings: str) -> Part:
    """Read a part.

    Args:
        path: its file.
        settings: hash of the settings that it must belong to.

    Returns:
        The part.

    Raises:
        CheckpointError: if it is missing, damaged, or of other settings.
    """
    tensors = read_tensors(path)
    try:
        own = {name: tensors.pop(name) for name in _OWN}
        found = own["settings"].numpy().tobytes().decode()
        skipped = tuple(json.loads(own["skipped"].numpy().tobytes()))
    except (KeyError, ValueError) as error:
        found, skipped = f"none ({error})", ()
    if found != settings:
        raise CheckpointError(
            f"{path} belongs to the settings {found}, this evaluation has {settings}",
            "All parts of an evaluation were made by one kind of run",
            "Remove that file; it will be made again",
        )
    rows = {name.removeprefix("features "): value for name, value in tensors.items()}
    return Part(own["index"], own["digests"], rows, skipped)


def open_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Begin an evaluation in a folder, or go on with the one that is there.

    Args:
        folder: made if missing.
        settings: everything that images and parts depend on.

    Raises:
        ProtocolError: if the folder holds an evaluation with other settings; the message says what differs.
        OutputError: if it cannot be written, or holds images of something else.
    """
    path = folder / "settings.json"
    begun = any(file.is_file() for name in ("images", "parts") for file in (folder / name).rglob("*"))
    if path.exists() and begun:
        unlike = differing(read_json(path), json.loads(json.dumps(settings)))
        if unlike:
            raise ProtocolError(
                f"{folder} holds an evaluation with other settings: {'; '.join(unlike)}",
                "An evaluation goes on with the settings it began with",
                "Choose another --out, or remove the folder",
            )
        return
    if begun:
        raise OutputError(
            f"{folder} has images or parts but no settings.json",
            "Only what an evaluation made is taken for its images",
            "Choose another --out",
        )
    # Settings under which nothing was made yet, because it was refused, bind nobody.
    write_json(output_dir(folder) / "settings.json", settings)
