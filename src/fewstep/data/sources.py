"""Where images come from: scikit-learn's digits, folders of pictures, parquet files, the Hugging Face hub, scenes.

All but the scenes, which are drawn when they are asked for, become one :class:`ImageData`. The parquet layout is that
of HF image data sets: a column `image` (or `img`) of encoded bytes and, when there are classes, an integer column
`label` whose names stand in the file's metadata.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep._files import require
from fewstep.data.images import ImageData, Images
from fewstep.data.pictures import check_form, decode, is_grey, resized, stack
from fewstep.data.scenes import Scenes
from fewstep.errors import ConfigError, DataError, choose

__all__ = ["SOURCES", "digits", "folder_files", "hub", "image_folder", "load_data", "parquet"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_MOST_CLASSES = 1_000_000  # a larger label is a mistake, and a name for each class would fill the memory
_SPLITS = ("train", "test", "validation")
_SEEDS = {split: seed for seed, split in enumerate(_SPLITS)}  # of the scenes


def digits(size: int | None = None) -> ImageData:
    """Load the 1,797 handwritten 8x8 digits that ship inside scikit-learn.

    Args:
        size: resize them to size x size pixels; None leaves them 8x8.

    Returns:
        Grey images with ten classes; their 17 grey values are spread over 0..255.

    Raises:
        ConfigError: if `size` cannot be.
    """
    check_form(size)
    bunch = require("sklearn.datasets", "train").load_digits()
    grey = torch.from_numpy(bunch.images) * (255 / 16)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    images = grey.round().to(torch.uint8)[:, None]
    return ImageData(images if size is None else resized(images, size), labels, tuple("0123456789"), "digits")


def image_folder(path: str | Path, size: int | None = None, channels: int = 3) -> ImageData:
    """Load the pictures of a folder; its subfolders, when it has any, are the classes.

    Hidden files and folders are passed over, cameras' notes on which way is up are followed, and pictures of 16 bits
    are rescaled to 8.

    Args:
        path: the folder; pictures lie in it, or in one subfolder per class, at any depth.
        size: crop every picture to its central square and resize that to size x size pixels; None takes them as
            they are.
        channels: 1 for grey, 3 for colour.

    Returns:
        The pictures in alphabetical order.

    Raises:
        DataError: if the folder is missing, has no picture, mixes pictures with class folders, holds a picture that
            cannot be read, or pictures of unlike sizes.
        ConfigError: if `size` or `channels` cannot be.
    """
    check_form(size, channels)
    files, labels, classes = folder_files(path)
    images = stack((decode(str(file), file, size, channels) for file in files), map(str, files))
    return ImageData(images, labels, classes, Path(path).resolve().name)


def folder_files(path: str | Path) -> tuple[list[Path], Tensor | None, tuple[str, ...]]:
    """List the pictures of a folder without opening them.

    Args:
        path: as in :func:`image_folder`.

    Returns:
        The files in alphabetical order, their class indices or None, and the names of the classes.

    Raises:
        DataError: if the folder is missing, has no picture, or mixes pictures with class folders.
    """
    folder = Path(path)
    files = sorted(file for file in folder.rglob("*") if _is_picture(file, folder))
    if not files:
        raise DataError(
            f"{folder} {'holds no picture' if folder.is_dir() else 'is no folder'}",
            f"An image folder holds pictures ({', '.join(sorted(_SUFFIXES))}) or one subfolder of them per class",
            "Check the path",
        )
    parents = [file.relative_to(folder).parts[:-1] for file in files]
    classes = tuple(sorted({parts[0] for parts in parents if parts}))
    if classes and not all(parents):
        raise DataError(
            f"{folder} holds pictures ({files[parents.index(())].name}) beside class folders ({classes[0]})",
            "Either all pictures lie in class folders, or none does",
            "Move the pictures into class folders, or give the path of one class",
        )
    labels = torch.tensor([classes.index(parts[0]) for parts in parents]) if classes else None
    return files, labels, classes


def _is_picture(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() in _SUFFIXES and file.is_file()


def parquet(path: str | Path, split: str = "train", size: int | None = None) -> ImageData:
    """Load images from parquet files in the layout of HF image data sets.

    Args:
        path: a file, a folder of ``*.parquet`` files, or a glob.
        split: of several files, take those whose names say this split; files that name no split are all taken.
        size: as in :func:`image_folder`.

    Returns:
        The images in the order of the rows; grey if the first one is.

    Raises:
        DataError: if there is no such file, no image column, or an image that cannot be read.
        ConfigError: if `size` cannot be.
    """
    check_form(size)
    files = _parquet_files(Path(path), split)
    read_table = require("pyarrow.parquet", "train").read_table
    try:
        tables = [read_table(file) for file in files]
        table = require("pyarrow", "train").concat_tables(tables)
    except Exception as error:  # pyarrow has a dozen exceptions for the kinds of damage
        raise DataError(
            f"{path} cannot be read as parquet ({error})",
            "Parquet files of one data set, all with the same columns",
            "Check the path, or download the files again",
        ) from error
    first = files[0]
    return _from_table(table, first.parent.name if first.stem.startswith(_SPLITS) else first.stem, size)


def hub(name: str, split: str = "train", size: int | None = None) -> ImageData:
    """Load an image data set from the Hugging Face hub, or from its local cache.

    Args:
        name: for instance "ylecun/mnist".
        split: "train", "test"...
        size: as in :func:`image_folder`.

    Returns:
        The images of that split.

    Raises:
        DataError: if it cannot be had or has no image column.
        ConfigError: if `size` cannot be.
    """
    check_form(size)
    load_dataset = require("datasets", "train").load_dataset
    try:
        table = load_dataset(name, split=split).with_format("arrow")[:]
    except Exception as error:  # network, missing name, missing split, gated: datasets raises many kinds
        raise DataError(
            f"The data set {name!r} (split {split!r}) could not be loaded ({error})",
            "A data set of images on the Hugging Face hub, or in its local cache",
            "Check the name and the network, or use parquet:PATH with downloaded files",
        ) from error
    return _from_table(table, name.rpartition("/")[2], size)


def _scenes(place: str, split: str, size: int | None) -> Scenes:
    """Scenes of a split, which is a seed of its own; the size may stand in the source or beside it."""
    if place and (not place.isdecimal() or size not in (None, int(place))):
        raise ConfigError(
            f"The data source scenes:{place}" + (f" with size={size}" if size else ""),
            "scenes, scenes:32 or scenes:64, and no other size beside it",
            "Use scenes:64",
        )
    return Scenes(int(place) if place else size or 32, seed=choose(split, _SEEDS, "split"))


SOURCES: dict[str, Callable[..., Images]] = {
    "digits": digits,
    "folder": image_folder,
    "parquet": parquet,
    "hf": hub,
    "scenes": _scenes,
}
_FORMS = "digits, folder:PATH, parquet:PATH, hf:NAME, scenes and scenes:64"


def load_data(source: str, split: str = "train", size: int | None = None) -> Images:
    """Load images from a source written as one word.

    Args:
        source: "digits", "folder:PATH", "parquet:PATH", "hf:NAME", "scenes" or "scenes:64".
        split: for parquet, hf and scenes.
        size: crop and resize to size x size; None takes images as they are. Scenes are drawn in this size.

    Returns:
        The images.

    Raises:
        UnknownName: if there is no such kind of source.
        ConfigError: if the part after the colon is missing, or not wanted, or `size` cannot be.
        DataError: if the images cannot be loaded.
    """
    kind, _, place = source.partition(":")
    choose(kind, SOURCES, "data source")
    if kind != "scenes" and (kind == "digits") == bool(place):
        raise ConfigError(
            f"The data source {source!r}",
            f"Sources are {_FORMS}",
            "Write the place of the images after a colon; digits has none",
        )
    if kind == "digits":
        return digits(size)
    return image_folder(place, size) if kind == "folder" else SOURCES[kind](place, split, size)


def _parquet_files(path: Path, split: str) -> list[Path]:
    pattern = str(path / "*.parquet") if path.is_dir() else str(path)
    files = [Path(name) for name in sorted(glob.glob(pattern))]
    if len(files) > 1 and any(file.stem.startswith(_SPLITS) for file in files):
        files = [file for file in files if file.stem.startswith(split)]
    if not files:
        raise DataError(
            f"No parquet file of the split {split!r} at {path}",
            "A .parquet file, a folder of them, or a glob in quotes",
            "Check the path and the split",
        )
    return files


def _from_table(table: Any, name: str, size: int | None) -> ImageData:
    """Decode an arrow table with an image column and perhaps a label column."""
    image_column = next((column for column in ("image", "img") if column in table.column_names), None)
    if image_column is None:
        raise DataError(
            f"The data set {name!r} has the columns {', '.join(table.column_names)}",
            "Images stand in a column named image or img",
            "Rename the column of the images",
        )
    cells = table.column(image_column).to_pylist()
    if not cells:
        raise DataError(f"The data set {name!r} has no rows", "At least one image", "Check the path and the split")
    channels = 1 if is_grey(cells[0]) else 3
    names = [f"row {i} of {name}" for i in range(len(cells))]
    images = stack((decode(*pair, size, channels) for pair in zip(names, cells, strict=True)), names)
    if "label" not in table.column_names:
        return ImageData(images, None, (), name)
    labels = _labels(table.column("label").to_pylist(), name)
    return ImageData(images, labels, _class_names(table.schema.metadata, int(labels.max()) + 1), name)


def _labels(cells: list[Any], name: str) -> Tensor:
    if not all(isinstance(cell, int) and cell < _MOST_CLASSES for cell in cells):
        raise DataError(
            f"The data set {name!r} has labels that are no class indices",
            f"The column label holds integer class indices below {_MOST_CLASSES:,} for all rows",
            "Encode the labels as 0, 1, 2..., or remove the column",
        )
    return torch.tensor(cells)


def _class_names(metadata: dict[bytes, bytes] | None, at_least: int) -> tuple[str, ...]:
    """Read the names of the classes from HF's metadata; numbers where it has none, or nothing that can be read."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        names = None
    usable = isinstance(names, list) and len(names) >= at_least and all(isinstance(name, str) for name in names)
    return tuple(names) if usable else tuple(str(i) for i in range(at_least))
