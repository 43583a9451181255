"""What generated images are held against: real images, a judge, or statistics out of an npz file.

Each says what it offers before anything is computed, so that a metric which cannot be had is refused at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from fewstep.data import ImageData
from fewstep.errors import ProtocolError
from fewstep.features import Features
from fewstep.metrics.judge import Judge
from fewstep.metrics.reference_set import KEPT_ROWS, Reference, gather_reference, statistics_reference
from fewstep.metrics.summary import FeatureSet

__all__ = ["Real", "RealImages", "RealJudge", "RealStatistics"]


class Real(Protocol):
    """A reference before it is measured."""

    @property
    def title(self) -> str:
        """What to call it in messages."""
        ...

    @property
    def offers(self) -> frozenset[str]:
        """What metrics can be computed from it: of "moments", "rows", "labels", "images"."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes; empty if nobody named them."""
        ...

    def check(self, features: Sequence[Features]) -> None:
        """Refuse features that it cannot be measured in; ProtocolError says which it can."""
        ...

    def gather(
        self, features: Sequence[Features], device: str = "cpu", watch: Callable[[int], None] | None = None
    ) -> Reference:
        """Summarise it in these features."""
        ...


@dataclass(frozen=True)
class RealImages:
    """Real images in memory, which can be measured in any features.

    Args:
        data: the images.
        split: "test", "train"...
        cache: folder of summaries; None keeps none.
        keep: vectors that are kept of them.
    """

    data: ImageData
    split: str
    cache: Path | None = None
    keep: int = KEPT_ROWS

    @property
    def title(self) -> str:
        """Name and split."""
        return f"{self.data.name} {self.split}"

    @property
    def offers(self) -> frozenset[str]:
        """Everything, and labels where the data has some."""
        return frozenset({"moments", "rows", "images"} | ({"labels"} if self.data.labels is not None else set()))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes."""
        return self.data.classes

    def check(self, features: Sequence[Features]) -> None:
        """Let the features see the first image; what they cannot read they refuse themselves."""
        with torch.no_grad():
            for one in features:
                one(_on(one, self.data.images[:1]).float() / 127.5 - 1)

    def gather(
        self, features: Sequence[Features], device: str = "cpu", watch: Callable[[int], None] | None = None
    ) -> Reference:
        """Summarise the images, or take their summary from the cache.

        Args:
            features: in what.
            device: where the features compute.
            watch: called with the number of images of each batch.

        Returns:
            The reference.
        """
        data = self.data
        given = (data.name, self.split, data.images, data.labels, features)
        return gather_reference(*given, cache=self.cache, device=device, keep=self.keep, watch=watch)


def _on(features: Features, images: Tensor) -> Tensor:
    """Move images to where the weights of the features are."""
    tensors = list(features.state_dict().values()) if isinstance(features, nn.Module) else []
    return images.to(tensors[0].device) if tensors else images


@dataclass(frozen=True)
class RealJudge:
    """The reference that a judge carries, in the judge's own features.

    Args:
        judge: the judge.
    """

    judge: Judge

    @property
    def title(self) -> str:
        """Name and split of the judge's data."""
        return f"{self.judge.facts['data']} {self.judge.facts['split']} of the judge {self.judge.features.name}"

    @property
    def offers(self) -> frozenset[str]:
        """Moments, and with kept rows everything but the images."""
        kept = self.judge.kept
        return frozenset({"moments"} | ({"rows", "labels"} if kept is not None else set()))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the judge's data, if it knows them."""
        return tuple(self.judge.facts.get("classes", ()))

    def check(self, features: Sequence[Features]) -> None:
        """Refuse features that are not the judge's."""
        for one in features:
            if one.name != self.judge.features.name:
                raise ProtocolError(
                    f"The reference {self.title} in the features {one.name}",
                    f"It is known in {self.judge.features.name} only",
                    "Leave --features out, or give the reference as images: --reference parquet:PATH or folder:PATH",
                )

    def gather(
        self, features: Sequence[Features], device: str = "cpu", watch: Callable[[int], None] | None = None
    ) -> Reference:
        """Take what the judge's folder holds; nothing is computed.

        Args:
            features: the judge's.
            device: not used.
            watch: not called.

        Returns:
            The reference.
        """
        return self.judge.reference_set()


@dataclass(frozen=True)
class RealStatistics:
    """Moments out of an npz file, or features of clean-fid's kind.

    Args:
        path: the file.
        summary: what it holds.
        classes: none are known.
    """

    path: Path
    summary: FeatureSet
    classes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name of the file."""
        return f"npz {self.path.name}"

    @property
    def offers(self) -> frozenset[str]:
        """Moments, and rows if the file has them."""
        return frozenset({"moments"} | ({"rows"} if len(self.summary.rows) else set()))

    def check(self, features: Sequence[Features]) -> None:
        """Refuse more than one kind of features, and another dimension."""
        if len(features) != 1:
            raise ProtocolError(
                f"{len(features)} kinds of features for the statistics {self.path}",
                "A file of statistics is in one kind of features",
                "Name that one with --features",
            )
        self.gather(features)

    def gather(
        self, features: Sequence[Features], device: str = "cpu", watch: Callable[[int], None] | None = None
    ) -> Reference:
        """Say that the statistics are in these features; the file itself does not.

        Args:
            features: one kind.
            device: not used.
            watch: not called.

        Returns:
            The reference.
        """
        return statistics_reference(self.path.name, self.path.read_bytes(), self.summary, features[0])
