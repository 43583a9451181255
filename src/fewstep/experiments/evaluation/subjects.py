"""What is evaluated: numbered images, read in pieces from files or memory; generated.py has those that are made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.data import ImageData
from fewstep.data.pictures import check_form, decode, is_grey
from fewstep.errors import ConfigError, DataError
from fewstep.metrics.protocol import Making
from fewstep.metrics.reference_set import content_hash

__all__ = ["ArraySubject", "FolderSubject", "Pictures", "Subject", "first_images"]


@dataclass(frozen=True)
class Pictures:
    """A piece of a subject.

    Args:
        images: uint8, shape (b, c, h, w).
        index: numbers of the images in their subject, shape (b,), int64.
        skipped: names of files that could not be read and were to be skipped.
    """

    images: Tensor
    index: Tensor
    skipped: tuple[str, ...] = ()


class Subject(Protocol):
    """Images numbered from 0 to n - 1."""

    @property
    def n(self) -> int:
        """How many there are."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """Their classes, shape (n,), int64, or None."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if nobody named them."""
        ...

    @property
    def texts(self) -> Sequence[str] | None:
        """Their captions, or None."""
        ...

    @property
    def condition(self) -> str:
        """What was asked for, in words; "none" if nothing."""
        ...

    @property
    def prepared(self) -> str:
        """What was done to the pictures before they were measured, in words; "" for nothing."""
        ...

    def read(self, index: range) -> Pictures:
        """Read or make the images of these numbers."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything that the images depend on, JSON-able."""
        ...

    def making(self, digest: str) -> Making:
        """Say in a protocol what was measured; `digest` names the content of the images."""
        ...


class FolderSubject:
    """Pictures in files, decoded when they are needed.

    Args:
        path: the folder.
        files: its pictures, at least one.
        labels: their classes, shape (n,), int64, or None.
        classes: names of the classes.
        size: crop and resize to size x size pixels; None refuses unlike sizes and modes.
        skip_bad: count and name pictures that cannot be read instead of stopping.
        texts: their captions, or None.
        condition: what the captions are, in words.

    Raises:
        DataError: if the first picture cannot be read, or with `skip_bad` none can.
        ConfigError: if `size` cannot be.
    """

    def __init__(
        self,
        path: str | Path,
        files: Sequence[Path],
        labels: Tensor | None = None,
        classes: tuple[str, ...] = (),
        *,
        size: int | None = None,
        skip_bad: bool = False,
        texts: Sequence[str] | None = None,
        condition: str = "none",
    ) -> None:
        check_form(size)
        self.path, self.files, self.labels, self.classes = Path(path), list(files), labels, classes
        self.size, self.skip_bad, self.texts, self.condition = size, skip_bad, texts, condition
        self._first = self._first_whole()

    @property
    def prepared(self) -> str:
        """What was done to the pictures first; nothing if the first one has the size that is asked for."""
        first, like = self._first
        return "" if decode(str(first), first, None, len(like)).shape == like.shape else _prepared(self.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the pictures."""
        channels, height, width = self._first[1].shape
        return channels, height, width

    def _first_whole(self) -> tuple[Path, Tensor]:
        """The first picture that can be read: the others have its size and its channels."""
        for file in self.files:
            try:
                return file, decode(str(file), file, self.size, 1 if is_grey(file) else 3)
            except DataError as error:
                if not self.skip_bad:
                    raise _unreadable(error) from error
        raise DataError(f"No picture of {self.path} can be read", "At least one whole picture", "Check the folder")

    @property
    def n(self) -> int:
        """How many files there are, whole or not."""
        return len(self.files)

    def read(self, index: range) -> Pictures:
        """Decode pictures.

        Args:
            index: their numbers.

        Returns:
            Those that can be read; the others are named, if they are to be skipped.

        Raises:
            DataError: if one cannot be read and is not to be skipped, or has another size or mode than the first.
        """
        images, numbers, skipped = [], [], []
        for k in index:
            try:
                image = decode(str(self.files[k]), self.files[k], self.size, len(self._first[1]))
            except DataError as error:
                if not self.skip_bad:
                    raise _unreadable(error) from error
                skipped.append(str(self.files[k].relative_to(self.path)))
                continue
            self._check_like_first(self.files[k], image)
            images.append(image)
            numbers.append(k)
        whole = torch.stack(images) if images else torch.empty(0, *self._first[1].shape, dtype=torch.uint8)
        return Pictures(whole, torch.tensor(numbers, dtype=torch.int64), tuple(skipped))

    def _check_like_first(self, file: Path, image: Tensor) -> None:
        first, like = self._first
        form = "x".join(map(str, (image.shape[2], image.shape[1]))), "grey" if is_grey(file) else "colour"
        expected = "x".join(map(str, (like.shape[2], like.shape[1]))), "grey" if len(like) == 1 else "colour"
        if form[0] != expected[0] or (self.size is None and form[1] != expected[1]):
            raise DataError(
                f"{file} has {form[0]} pixels, {form[1]}; {first} has {expected[0]} pixels, {expected[1]}",
                "All pictures that are measured have one size and one mode",
                "Pass --size to crop and resize them all, which also brings them to the mode of the first",
            )

    def settings(self) -> dict[str, Any]:
        """Everything that the images depend on; a file counts by its name, size and time."""
        told = [(str(file.relative_to(self.path)), (s := file.stat()).st_size, s.st_mtime_ns) for file in self.files]
        files = hashlib.sha256(repr((told, self.texts)).encode()).hexdigest()[:12]
        return {
            "folder": str(self.path.resolve()),
            "files": files,
            "n": self.n,
            "size": self.size,
            "skip_bad": self.skip_bad,
        }

    def making(self, digest: str) -> Making:
        """Say in a protocol what was measured."""
        return Making(f"folder {self.path.resolve().name}", digest, condition=self.condition)


def _prepared(size: int | None) -> str:
    return f"cropped and resized to {size}x{size}" if size else ""


def _unreadable(error: DataError) -> DataError:
    return DataError(error.given, error.allowed, f"{error.todo}; or pass --skip-bad, which counts and names such files")


@dataclass(frozen=True)
class ArraySubject:
    """Images in memory.

    Args:
        data: the images.
        kind: where they come from: "parquet", "npz"...
        size: what they were cropped and resized to, or None.
        texts: they have no captions.
        condition: nothing was asked for.
    """

    data: ImageData
    kind: str
    size: int | None = None
    texts: None = None
    condition: str = "none"

    @property
    def prepared(self) -> str:
        """What was done to the pictures first."""
        return _prepared(self.size)

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.data)

    @property
    def labels(self) -> Tensor | None:
        """Their classes, or None."""
        return self.data.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.data.classes

    def read(self, index: range) -> Pictures:
        """Take images.

        Args:
            index: their numbers.

        Returns:
            The images.
        """
        return Pictures(self.data.images[index.start : index.stop], torch.tensor(index))

    def settings(self) -> dict[str, Any]:
        """Everything that the images depend on: themselves."""
        return {"source": f"{self.kind} {self.data.name}", "images": content_hash(self.data.images), "n": self.n}

    def making(self, digest: str) -> Making:
        """Say in a protocol what was measured."""
        return Making(f"{self.kind} {self.data.name}", digest)


def first_images(subject: Subject, most: int, piece: int = 500) -> tuple[Tensor, Tensor]:
    """Read the first images of a subject again, for metrics that look at pixels.

    Args:
        subject: what is evaluated.
        most: how many at most.
        piece: images read at once.

    Returns:
        Images, uint8, shape (m, c, h, w), and their numbers, shape (m,).

    Raises:
        ConfigError: if there are none.
    """
    n = min(most, subject.n)
    if n < 1:
        raise ConfigError(f"{n} images", "At least one image", "Ask for more")
    parts = [subject.read(range(first, min(first + piece, n))) for first in range(0, n, piece)]
    return torch.cat([part.images for part in parts]), torch.cat([part.index for part in parts])
