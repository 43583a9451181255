"""Two sets of 8-bit images made comparable: as many of each class on both sides, and in both halves of each side.

A classifier that is asked to tell two sets apart uses whatever differs, so class frequencies must not. All choices are
random, from a seed: neighbours in a file often come from one hand, and a cut in file order would be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fewstep.errors import DataError, DtypeError, ShapeError

__all__ = ["Labelled", "Pair", "match"]


@dataclass(frozen=True)
class Labelled:
    """8-bit images with their classes.

    Args:
        images: uint8, shape (n, c, h, w).
        labels: integers, shape (n,), or None: then all are of one class.

    Raises:
        DtypeError: if the images are not 8-bit, or the labels no integers.
        ShapeError: if the shapes do not fit.
    """

    images: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or (self.labels is not None and self.labels.dtype.is_floating_point):
            raise DtypeError(
                f"Images of dtype {self.images.dtype}"
                + (f", labels {self.labels.dtype}" if self.labels is not None else ""),
                "Images are compared in 8 bits, and labels are integers",
                "Round images in [-1, 1] with fewstep.data.to_uint8",
            )
        if self.images.ndim != 4 or (self.labels is not None and self.labels.shape != (len(self.images),)):
            labels = "" if self.labels is None else f" with labels of shape {tuple(self.labels.shape)}"
            raise ShapeError(
                f"Images of shape {tuple(self.images.shape)}{labels}",
                "Images have shape (n, c, h, w) and labels (n,)",
                "Stack the images, and pass one label each",
            )

    def take(self, index: Tensor) -> Labelled:
        """Choose some of them, index of shape (m,)."""
        return Labelled(self.images[index], None if self.labels is None else self.labels[index])

    def by_class(self, seed: int) -> dict[int, Tensor]:
        """Class -> the positions of its images, in random order; labels of None are class 0."""
        order = torch.randperm(len(self.images), generator=Generator().manual_seed(seed))
        labels = torch.zeros(len(order), dtype=torch.int64) if self.labels is None else self.labels.to("cpu")[order]
        return {int(label): order[labels == label] for label in torch.unique(labels)}

    def halves(self, seed: int) -> tuple[Labelled, Labelled]:
        """Cut the set at random into two disjoint ones with equally many of each class; an odd image is left out."""
        classes = [(places, len(places) // 2) for places in self.by_class(seed).values()]
        return (
            self.take(torch.cat([places[:n] for places, n in classes])),
            self.take(torch.cat([places[n : 2 * n] for places, n in classes])),
        )


@dataclass(frozen=True)
class Pair:
    """Two matched sets, cut into a half to learn from and a half to be asked about.

    Args:
        train: images of both sets, uint8, shape (2m, c, h, w).
        train_targets: 1.0 for the first set and 0.0 for the second, shape (2m,).
        held_out: the other halves, likewise.
        held_out_targets: theirs.
    """

    train: Tensor
    train_targets: Tensor
    held_out: Tensor
    held_out_targets: Tensor

    @property
    def n(self) -> int:
        """Images per side."""
        return (len(self.train) + len(self.held_out)) // 2


def match(first: Labelled, second: Labelled, most: int, least: int, seed: int) -> Pair:
    """Choose images so that both sides, and both halves of each, have equally many of each class.

    Args:
        first: one set.
        second: the other.
        most: most images per side; a larger choice shrinks in proportion.
        least: fewest images per side.
        seed: of the random choice.

    Returns:
        The pair; every class has an even number of images per side.

    Raises:
        ShapeError: if the images differ in channels, height or width.
        DataError: if only one side has labels, or fewer than `least` images find a partner.
    """
    if first.images.shape[1:] != second.images.shape[1:]:
        raise ShapeError(
            f"Images of shapes {tuple(first.images.shape[1:])} and {tuple(second.images.shape[1:])}",
            "Both sets have one number of channels, height and width",
            "Make both the same size before they are compared",
        )
    if (first.labels is None) != (second.labels is None):
        raise DataError("One set with labels and one without", "Both have labels, or none", "Pass the other labels too")
    sides = first.by_class(seed), second.by_class(seed + 1)
    partners = {c: min(len(sides[0][c]), len(sides[1][c])) for c in sides[0] if c in sides[1]}
    share = min(1.0, most / max(1, sum(partners.values())))
    halves = {c: int(n * share / 2 + 1e-9) for c, n in partners.items()}
    if 2 * sum(halves.values()) < least:
        raise DataError(
            f"{2 * sum(halves.values())} images per side, of {len(first.images)} and {len(second.images)}, "
            "find a partner of their class",
            f"At least {least} are needed per side",
            "Pass more images, or check that both sides number their classes alike",
        )
    train, held_out = (_both((first, second), sides, halves, part) for part in (0, 1))
    return Pair(*train, *held_out)


def _both(
    sets: tuple[Labelled, Labelled],
    sides: tuple[dict[int, Tensor], dict[int, Tensor]],
    halves: dict[int, int],
    part: int,
) -> tuple[Tensor, Tensor]:
    """Collect one half of both sets, and say with 1 and 0 which image is from which."""
    chosen = [torch.cat([side[c][part * n : (part + 1) * n] for c, n in halves.items()]) for side in sides]
    images = torch.cat([one.images[index] for one, index in zip(sets, chosen, strict=True)])
    m = len(chosen[0])
    return images, torch.cat([torch.ones(m), torch.zeros(m)])
