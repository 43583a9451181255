"""Per-image values kept by the number of their image, so that the order of batches and processes does not matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fewstep.errors import DataError, DtypeError, NonFiniteError, ShapeError

__all__ = ["Indexed", "check_batch", "check_pair", "check_state", "row_pair"]


class Indexed:
    """Columns of values, one row per image number; sorted on reading, whatever the order of writing.

    Args:
        columns: name -> an empty tensor of shape (0, ...) whose dtype and trailing axes the column has.
        order: image numbers -> what the rows are sorted by, a different number for each; the image numbers themselves
            if omitted.
        most: keep so many rows, the first in that order; None keeps all.
    """

    def __init__(
        self, columns: Mapping[str, Tensor], order: Callable[[Tensor], Tensor] | None = None, most: int | None = None
    ) -> None:
        self._parts = [(torch.empty(0, dtype=torch.int64), dict(columns))]
        self._seen: set[int] = set()
        self._order, self._most = order or (lambda index: index), most
        self._bound: int | None = None  # rows from this place in the order on are beyond `most` for good

    def add(self, index: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Add rows.

        Args:
            index: image numbers, shape (b,), int64, none of them there before.
            columns: name -> values, shape (b, ...).

        Raises:
            DataError: if an image number is there already or twice; nothing is added then.
        """
        if self._bound is not None:
            near = self._order(index) < self._bound
            index, columns = index[near], {name: column[near] for name, column in columns.items()}
        numbers = index.tolist()
        new = set(numbers)
        if len(new) < len(numbers) or not self._seen.isdisjoint(new):
            twice = next(iter(self._seen & new), None)
            raise repeated(twice if twice is not None else max(numbers, key=numbers.count))
        if numbers:
            self._seen |= new
            self._parts.append((index, {name: columns[name].to(empty.dtype) for name, empty in self._first().items()}))
        if self._most is not None and len(self._seen) > 2 * self._most:
            self._sorted()

    def _first(self) -> dict[str, Tensor]:
        return self._parts[0][1]

    def _sorted(self) -> tuple[Tensor, dict[str, Tensor]]:
        if len(self._parts) > 1:
            index = torch.cat([part for part, _ in self._parts])
            places = self._order(index)
            chosen = places.argsort()[: self._most]
            columns = {name: torch.cat([part[name] for _, part in self._parts])[chosen] for name in self._first()}
            if len(chosen) < len(index):
                self._bound = int(places[chosen[-1]]) + 1 if len(chosen) else 0
                self._seen = set(index[chosen].tolist())
            self._parts = [(index[chosen], columns)]
        return self._parts[0]

    @property
    def index(self) -> Tensor:
        """Image numbers in their order, shape (m,), int64."""
        return self._sorted()[0]

    def __getitem__(self, name: str) -> Tensor:
        return self._sorted()[1][name]


def repeated(number: int) -> DataError:
    """Say that an image came twice."""
    return DataError(
        f"Image {number} was added twice",
        "Every image of a set has its own number and counts once",
        "Number the images of all processes without overlap",
    )


def check_batch(what: str, values: Tensor, index: Tensor, width: int | None) -> tuple[Tensor, Tensor]:
    """Check one batch of per-image values and bring it to the CPU.

    Args:
        what: what the values are, for messages: "features".
        values: shape (b, width), or (b,) for width None, any float dtype and device.
        index: image numbers, shape (b,), integers from 0.
        width: length of a vector, or None for plain numbers.

    Returns:
        Values in float64 and index in int64, both on the CPU.

    Raises:
        ShapeError: if the shapes do not fit.
        DtypeError: if the values are no floats or the index no integers.
        DataError: if an image number is below 0 or not below 2^32, or comes twice in the batch.
        NonFiniteError: if a value is NaN or infinite; the message names the first such image.
    """
    if tuple(values.shape) != (len(index), *([] if width is None else [width])) or index.ndim != 1:
        raise ShapeError(
            f"{what} of shape {tuple(values.shape)} for image numbers of shape {tuple(index.shape)}",
            f"They have shapes {'(b,)' if width is None else f'(b, {width})'} and (b,)",
            "Pass one row and one number per image, always of one kind",
        )
    if not values.dtype.is_floating_point or index.dtype.is_floating_point or index.dtype == torch.bool:
        raise DtypeError(
            f"{what} of dtype {values.dtype} and image numbers of dtype {index.dtype}",
            f"{what} are floats and image numbers integers",
            "Convert them first",
        )
    values, index = values.detach().to("cpu").to(torch.float64), index.detach().to("cpu").to(torch.int64)
    outside = index[(index < 0) | (index >= 1 << 32)]  # from there on the hash would give two images one rank
    if len(outside):
        raise DataError(
            f"Image number {int(outside[0])}", "Image numbers are 0 ... 2^32 - 1", "Number the images of a set from 0"
        )
    numbers, counts = torch.unique(index, return_counts=True)
    if len(numbers) < len(index):
        raise repeated(int(numbers[counts > 1][0]))
    bad = ~torch.isfinite(values.reshape(len(index), width or 1)).all(1)
    if bad.any():
        raise NonFiniteError(
            f"NaN or infinity in the {what} of image {int(index[bad].min())} ({int(bad.sum())} of {len(bad)} images)",
            "Metrics need finite values; no image is skipped",
            "Look for that image; a sampler that diverged is the usual reason",
        )
    return values, index


def check_pair(x: Tensor, y: Tensor) -> None:
    """Refuse two sets of vectors that cannot be compared: ShapeError unless (n, dim) and (m, dim), NonFiniteError."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ShapeError(
            f"Vectors of shapes {tuple(x.shape)} and {tuple(y.shape)}",
            "They have shapes (n, dim) and (m, dim)",
            "Flatten images to one vector each, and compute both sides with the same features",
        )
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise NonFiniteError("NaN or infinity among the vectors", "Vectors are finite", "Look at the images first")


def row_pair(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Check two sets of rows that a metric compares.

    Args:
        x: shape (n, dim), any float dtype and device.
        y: shape (m, dim).
        least: rows that each side needs.

    Returns:
        Both in float64 on the CPU.

    Raises:
        ShapeError: if the shapes do not fit.
        DataError: if a side has too few rows.
        NonFiniteError: if a value is NaN or infinite.
    """
    check_pair(x, y)
    if min(len(x), len(y)) < least:
        raise DataError(
            f"Sets of {len(x)} and {len(y)} rows",
            f"Each side has at least {least}; a set that was read from statistics has none",
            "Add images; take the reference from images, or from a file with features",
        )
    return x.detach().to("cpu").to(torch.float64), y.detach().to("cpu").to(torch.float64)


def check_state(state: Mapping[str, Tensor], needed: set[str], what: str) -> None:
    """Refuse a state of something else.

    Args:
        state: name -> tensor.
        needed: names that must be there.
        what: what the state should be of.

    Raises:
        DataError: if a name is missing.
    """
    if missing := sorted(needed - set(state)):
        raise DataError(
            f"A state without {', '.join(missing)}",
            f"The state of a {what} has {', '.join(sorted(needed))}",
            "Read the file that was written for it, or compute it again",
        )
