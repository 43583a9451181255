"""Where images come from: scikit-learn's digits, folders of pictures, parquet files, the Hugging Face hub.

All of them become one :class:`ImageData`. The parquet layout is that of HF image data sets: a column `image` (or `img`)
of encoded bytes and, when there are classes, an integer column `label` whose names stand in the file's metadata.
"""

from __future__ import annotations

import glob
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep._files import require
from fewstep.data.images import ImageData
from fewstep.errors import ConfigError, DataError, choose

__all__ = ["SOURCES", "digits", "hub", "image_folder", "load_data", "parquet"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_SPLITS = ("train", "test", "validation")
_MODES = {1: "L", 3: "RGB"}


def digits() -> ImageData:
    """Load the 1,797 handwritten 8x8 digits that ship inside scikit-learn.

    Returns:
        Grey images with ten classes; their 17 grey values are spread over 0..255.
    """
    bunch = require("sklearn.datasets", "train").load_digits()
    grey = torch.from_numpy(bunch.images) * (255 / 16)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    return ImageData(grey.round().to(torch.uint8)[:, None], labels, tuple("0123456789"), "digits")


def image_folder(path: str | Path, size: int | None = None, channels: int = 3) -> ImageData:
    """Load the pictures of a folder; its subfolders, when it has any, are the classes.

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
    folder = Path(path)
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
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
    images = _stack((_decode(str(file), file, size, channels) for file in files), map(str, files))
    labels = torch.tensor([classes.index(parts[0]) for parts in parents]) if classes else None
    return ImageData(images, labels, classes, folder.resolve().name)


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
    """
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
    """
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


SOURCES: dict[str, Callable[..., ImageData]] = {
    "digits": digits,
    "folder": image_folder,
    "parquet": parquet,
    "hf": hub,
}


def load_data(source: str, split: str = "train", size: int | None = None) -> ImageData:
    """Load images from a source written as one word.

    Args:
        source: "digits", "folder:PATH", "parquet:PATH" or "hf:NAME".
        split: for parquet and hf.
        size: crop and resize to size x size; None takes images as they are.

    Returns:
        The images.

    Raises:
        UnknownName: if there is no such kind of source.
        ConfigError: if the part after the colon is missing, or not wanted.
        DataError: if the images cannot be loaded.
    """
    kind, _, place = source.partition(":")
    choose(kind, SOURCES, "data source")
    if (kind == "digits") == bool(place):
        raise ConfigError(
            f"The data source {source!r}",
            "Sources are digits, folder:PATH, parquet:PATH and hf:NAME",
            "Write the place of the images after a colon; digits has none",
        )
    if kind == "digits":
        return digits()
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
    channels = 1 if _mode_of(cells[0]) in ("1", "L", "I;16") else 3
    names = [f"row {i} of {name}" for i in range(len(cells))]
    images = _stack((_decode(*pair, size, channels) for pair in zip(names, cells, strict=True)), names)
    if "label" not in table.column_names:
        return ImageData(images, None, (), name)
    labels = _labels(table.column("label").to_pylist(), name)
    return ImageData(images, labels, _class_names(table.schema.metadata, int(labels.max()) + 1), name)


def _labels(cells: list[Any], name: str) -> Tensor:
    if not all(isinstance(cell, int) for cell in cells):
        raise DataError(
            f"The data set {name!r} has labels that are no whole numbers",
            "The column label holds integer class indices for all rows",
            "Encode the labels as 0, 1, 2..., or remove the column",
        )
    return torch.tensor(cells)


def _bytes_of(cell: Any) -> bytes:
    """Read an encoded image: a file, bytes, or HF's pair of bytes and path of which one may be missing."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or Path(cell["path"])
    return cell.read_bytes() if isinstance(cell, Path) else bytes(cell)


def _mode_of(cell: Any) -> str:
    image = require("PIL.Image", "train")
    try:
        mode: str = image.open(io.BytesIO(_bytes_of(cell))).mode
    except Exception:  # the row is decoded again with a proper message
        return "RGB"
    return mode


def _class_names(metadata: dict[bytes, bytes] | None, at_least: int) -> tuple[str, ...]:
    """Read the names of the classes from HF's metadata; numbers where it has none."""
    info = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    names: Sequence[str] = info.get("info", {}).get("features", {}).get("label", {}).get("names") or ()
    return tuple(names) if len(names) >= at_least else tuple(str(i) for i in range(at_least))


def _decode(name: str, cell: Any, size: int | None, channels: int) -> Tensor:
    """Decode one picture to uint8 (c, h, w), cropped and resized if asked."""
    image = require("PIL.Image", "train")
    mode = choose(str(channels), {str(n): mode for n, mode in _MODES.items()}, "number of channels")
    try:
        picture = image.open(io.BytesIO(_bytes_of(cell))).convert(mode)
    except Exception as error:  # PIL raises OSError, ValueError, SyntaxError... by kind of damage
        raise DataError(
            f"{name} cannot be read as a picture ({error})",
            "Every file is a whole picture in a common format",
            "Remove or replace that file",
        ) from error
    if size is not None:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side)).resize((size, size), image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.reshape(picture.height, picture.width, channels).permute(2, 0, 1)


def _stack(images: Iterable[Tensor], names: Iterable[str]) -> Tensor:
    """Stack pictures of one size, or say which one differs."""
    stacked: list[Tensor] = []
    for picture, name in zip(images, names, strict=True):
        if stacked and picture.shape != stacked[0].shape:
            raise DataError(
                f"{name} has {picture.shape[2]}x{picture.shape[1]} pixels, "
                f"the first one {stacked[0].shape[2]}x{stacked[0].shape[1]}",
                "All pictures of a data set have one size",
                "Pass size= to crop and resize them",
            )
        stacked.append(picture)
    return torch.stack(stacked)
