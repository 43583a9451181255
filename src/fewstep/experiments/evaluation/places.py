"""Places of images, written as one word: what is measured, what it is held against, what a model learned from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data import ImageData, Images, load_data, to_uint8
from fewstep.errors import DataError, UnknownName
from fewstep.experiments.evaluation.references import Real, RealImages, RealJudge, RealStatistics
from fewstep.experiments.evaluation.subjects import Subject
from fewstep.metrics.judge import JUDGES, load_judge
from fewstep.metrics.npz import npz_format, read_samples, read_statistics
from fewstep.metrics.reference_set import cache_folder
from fewstep.models import bundled

__all__ = ["SPLIT", "THERE", "labels_of", "load_images", "open_real", "with_kind"]

THERE = ("folder", "parquet", "hf", "npz", "digits", "scenes")
SPLIT = ("parquet", "hf", "scenes")  # kinds that have several splits

_KINDS = {".npz": "npz", ".parquet": "parquet"}
_DRAWN = 10_000  # images of a set without end


def with_kind(place: str, *, models: bool = False) -> str:
    """Write a bare path as a source: FILE.npz, FILE.parquet and folders of pictures are known by what they are.

    Args:
        place: what a user wrote.
        models: a folder with a config.json is a model, and stays as it is.

    Returns:
        The source, or what was written if it is none.
    """
    path = Path(place)
    if models and ((path / "config.json").exists() or place in bundled()):
        return place
    if place.partition(":")[0] in (*THERE, "pipeline") or not path.exists():
        return place
    kind = "folder" if path.is_dir() else _KINDS.get(path.suffix)
    return f"{kind}:{place}" if kind else place


def load_images(source: str, split: str, size: int | None) -> ImageData:
    """Load images into memory from a source written as one word, npz among them.

    Args:
        source: "digits", "folder:PATH", "parquet:PATH", "hf:NAME" or "npz:PATH".
        split: for parquet and hf.
        size: crop and resize to size x size pixels; None takes them as they are.

    Returns:
        The images.

    Raises:
        DataError: if they cannot be loaded.
        UnknownName: if there is no such kind of source.
    """
    kind, _, place = source.partition(":")
    if kind != "npz":
        data = load_data(source, split, size)
        return data if isinstance(data, ImageData) else _drawn(data)
    if size is not None:
        raise DataError(f"--size {size} for {source}", "Images of an npz file are taken as they are", "Leave it out")
    images, labels = read_samples(place)
    classes = () if labels is None else tuple(str(c) for c in range(int(labels.max()) + 1))
    return ImageData(images, labels, classes, Path(place).stem)


def _drawn(data: Images) -> ImageData:
    """The first images of a set that is drawn when it is asked for."""
    pieces = torch.split(torch.arange(min(len(data), _DRAWN)), 500)
    return ImageData(torch.cat([to_uint8(data.batch(piece).x0) for piece in pieces]), None, (), data.name)


def open_real(place: str, split: str = "test", size: int | None = None, *, cached: bool = True) -> Real:
    """Open a reference.

    Args:
        place: a judge's name or folder, "npz:PATH" with statistics or images, or any source of images.
        split: for parquet and hf.
        size: crop and resize images to size x size pixels.
        cached: keep the summaries of images in the user's cache folder.

    Returns:
        The reference.

    Raises:
        UnknownName: if it is nothing of that.
        DataError: if it cannot be read.
        CheckpointError: if a judge's folder is damaged.
    """
    if place in JUDGES or (Path(place) / "statistics.safetensors").exists():
        return RealJudge(load_judge(place))
    source = with_kind(place)
    kind, _, rest = source.partition(":")
    if kind == "npz" and npz_format(rest) not in ("samples", "images"):
        return RealStatistics(Path(rest), read_statistics(rest))
    try:
        data = load_images(source, split, size)
    except UnknownName as error:
        raise UnknownName(
            f"No reference {place!r}: no file or folder of that name, and no judge",
            f"Judges: {', '.join(JUDGES)}; or digits, folder:PATH, parquet:PATH, hf:NAME, npz:PATH",
            error.todo,
        ) from error
    return RealImages(data, split if kind in SPLIT else "all", cache_folder() if cached else None)


def labels_of(subject: Subject, classes: Sequence[str]) -> Tensor | None:
    """Number the classes of a subject as a reference does.

    Args:
        subject: what is evaluated.
        classes: names of the reference's classes; classes that nobody named are called by their numbers.

    Returns:
        Class indices, shape (n,); None without labels, or if the names do not agree.
    """
    if subject.labels is None or subject.classes == tuple(classes):
        return subject.labels
    most = len(subject.classes) or int(subject.labels.max()) + 1
    numbers = tuple(map(str, range(max(most, len(classes)))))
    own, names = subject.classes or numbers[:most], classes or numbers
    if not set(own) <= set(names):
        return None
    return torch.tensor([names.index(name) for name in own])[subject.labels]
