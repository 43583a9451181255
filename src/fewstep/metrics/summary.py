"""What is kept of a set of images while they stream by: moments by group, some rows, class probabilities, scores.

All metrics of one run are functions of these summaries, so images pass the feature network once, whatever is asked of
them. The number of an image decides, by a hash, which jackknife group it belongs to and whether its row is kept, so
images in the order of their classes do no harm. Summaries of several processes merge into the one of a single process,
and the order and the size of batches do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep.errors import ConfigError, DataError, ShapeError
from fewstep.metrics.estimate import GROUPS
from fewstep.metrics.frechet import Moments
from fewstep.metrics.grouping import group_of, random_rank
from fewstep.metrics.indexed import Indexed, check_batch, check_state
from fewstep.metrics.outputs import ProbabilitySet, ScoreSet
from fewstep.metrics.spread import Spread

__all__ = ["FeatureSet", "ProbabilitySet", "ScoreSet"]


class FeatureSet:
    """Streaming summary of one set of images in one kind of features.

    Memory does not grow with the number of images: `groups` covariances in float64, rows in float32, at most twice as
    many as are kept, and one mean per distinct label.

    Args:
        dim: length of a feature vector.
        keep: rows that are kept, for metrics that look at single images: a random sample of the image numbers.
        groups: groups of the jackknife; 1 for no intervals and a tenth of the memory.

    Raises:
        ConfigError: if dim < 1, keep < 0 or groups < 1.
    """

    def __init__(self, dim: int, *, keep: int = 10_000, groups: int = GROUPS) -> None:
        if dim < 1 or keep < 0 or groups < 1:
            raise ConfigError(
                f"dim = {dim}, keep = {keep}, groups = {groups}", "dim >= 1, keep >= 0, groups >= 1", "Change them"
            )
        self._dim, self._keep, self._unknown_n = dim, keep, False
        self._groups = [Moments() for _ in range(groups)]
        columns = {"rows": torch.empty(0, dim), "labels": torch.empty(0, dtype=torch.int64)}
        self._rows = Indexed(columns, random_rank, keep)
        self._labelled: bool | None = None  # None until the first image
        self._spread = Spread(dim)

    @classmethod
    def from_moments(cls, mean: Tensor, cov: Tensor, n: int | None) -> FeatureSet:
        """Make a set that is known by its moments alone, as an npz file holds them: no rows, no groups.

        Args:
            mean: shape (dim,).
            cov: unbiased covariance, shape (dim, dim).
            n: images behind them, or None if nobody knows.

        Returns:
            The set.

        Raises:
            ShapeError: if mean and cov do not fit.
            DataError: if n < 2.
            NonFiniteError: if a value is NaN or infinite.
        """
        summary = cls(max(1, mean.numel()), keep=0, groups=1)
        # Two samples stand in for an unknown number: the covariance is the same, and nothing is ever merged into it.
        summary._groups = [Moments.from_statistics(mean, cov, 2 if n is None else n)]
        summary._unknown_n = n is None
        return summary

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self._dim

    @property
    def groups(self) -> int:
        """Number of jackknife groups; 1 means that no interval can be had."""
        return len(self._groups)

    @property
    def keep(self) -> int:
        """How many rows are kept at most."""
        return self._keep

    @property
    def n_known(self) -> bool:
        """Whether the number of images is known; statistics from a file may not say it."""
        return not self._unknown_n

    @property
    def n(self) -> int:
        """Number of images; DataError where nobody knows it."""
        if self._unknown_n:
            raise DataError(
                "Statistics that do not say of how many images they are",
                "This needs the number of images",
                "Write the statistics again with fewstep, which stores it, or ask n_known first",
            )
        return sum(group.n for group in self._groups)

    @property
    def by_group(self) -> tuple[Moments, ...]:
        """Moments of each group, those of the set itself: merge them, never update them."""
        return tuple(self._groups)

    def update(self, features: Tensor, index: Tensor, labels: Tensor | None = None) -> None:
        """Add a batch of images.

        Args:
            features: shape (b, dim), any float dtype and device.
            index: numbers of the images in their set, shape (b,), integers from 0, each only once.
            labels: classes of the images, shape (b,), integers; for all batches or for none.

        Raises:
            ShapeError: if the shapes do not fit.
            DtypeError: if features are no floats or numbers no integers.
            DataError: if an image comes twice (found for kept rows), or only some batches have labels.
            NonFiniteError: if a feature is NaN or infinite; the message names the image, and nothing is added.
        """
        self._check_grows()
        values, index = check_batch("features", features, index, self._dim)
        classes = self._check_labels(labels, len(index))
        self._rows.add(index, {"rows": values, "labels": classes})
        group_of_each = group_of(index, self.groups)
        for number, group in enumerate(self._groups):
            group.update(values[group_of_each == number])
        if labels is not None:
            self._spread.add(classes, values)
        if len(index):
            self._labelled = labels is not None

    def moments(self, without: int | None = None) -> Moments:
        """Join the moments of all groups, or of all but one.

        Args:
            without: number of the group to leave out.

        Returns:
            New moments; those of the set stay as they are.

        Raises:
            ConfigError: if there is no such group.
        """
        if without is not None and not 0 <= without < self.groups:
            raise ConfigError(f"without = {without}", f"There are groups 0 ... {self.groups - 1}", "Pass one of them")
        return Moments().merge(*[group for number, group in enumerate(self._groups) if number != without])

    @property
    def rows(self) -> Tensor:
        """Kept feature vectors, shape (m, dim), float32, in a random order: the first k are a sample too."""
        return self._rows["rows"]

    @property
    def row_index(self) -> Tensor:
        """Image numbers of the rows, shape (m,), int64."""
        return self._rows.index

    @property
    def row_labels(self) -> Tensor | None:
        """Labels of the rows, shape (m,), int64, or None without labels."""
        return self._rows["labels"] if self._labelled else None

    @property
    def spread(self) -> Mapping[int, tuple[int, float]]:
        """Label -> (images, trace of the unbiased covariance of their vectors: NaN for one); empty without labels."""
        return self._spread.traces()

    def merge(self, other: FeatureSet) -> FeatureSet:
        """Join the summaries of two parts of one set, as two processes make them; neither of them changes.

        Args:
            other: summary of further images, with the same dim, keep and groups.

        Returns:
            The summary of all of them.

        Raises:
            ConfigError: if dim, keep or groups differ.
            DataError: if an image is in both (found for kept rows), only one has labels, or the number of images of
                one is unknown.
        """
        for part in (self, other):
            part._check_grows()
        mine, theirs = ((part._dim, part._keep, part.groups) for part in (self, other))
        if mine != theirs:
            raise ConfigError(
                f"Summaries with (dim, keep, groups) = {mine} and {theirs}", "Parts of one set agree", "Use one setting"
            )
        if None not in (self._labelled, other._labelled) and self._labelled != other._labelled:
            raise _half_labelled()
        joined = FeatureSet(self._dim, keep=self._keep, groups=self.groups)
        for part in (self, other):
            joined._rows.add(part._rows.index, {name: part._rows[name] for name in ("rows", "labels")})
        joined._groups = [mine.merge(theirs) for mine, theirs in zip(self._groups, other._groups, strict=True)]
        joined._spread = self._spread.merge(other._spread)
        joined._labelled = other._labelled if self._labelled is None else self._labelled
        return joined

    def state(self) -> dict[str, Tensor]:
        """Give everything as tensors, ready for a safetensors file; :meth:`from_state` is the way back.

        Returns:
            Name -> tensor.
        """
        empty = torch.zeros(self._dim, dtype=torch.float64)
        flags = [self._dim, self._keep, self._unknown_n, -1 if self._labelled is None else self._labelled]
        return {
            "settings": torch.tensor([int(flag) for flag in flags]),
            "group_n": torch.tensor([group.n for group in self._groups]),
            "group_mean": torch.stack([group.mean if group.n else empty for group in self._groups]),
            "group_scatter": torch.stack([group.scatter if group.n else torch.diag(empty) for group in self._groups]),
            "row_index": self._rows.index,
            "rows": self._rows["rows"],
            "row_labels": self._rows["labels"],
            **{f"spread_{name}": value for name, value in self._spread.state().items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> FeatureSet:
        """Make the summary again whose :meth:`state` this is.

        Args:
            state: name -> tensor.

        Returns:
            The summary, bitwise the same.

        Raises:
            DataError: if the state is of something else.
        """
        needed = set(cls(1).state())
        check_state(state, needed, "FeatureSet")
        dim, keep, unknown, labelled = state["settings"].tolist()
        summary = cls(dim, keep=keep, groups=len(state["group_n"]))
        summary._unknown_n, summary._labelled = bool(unknown), None if labelled < 0 else bool(labelled)
        parts = zip(state["group_n"].tolist(), state["group_mean"], state["group_scatter"], strict=True)
        summary._groups = [Moments.from_scatter(mean, scatter, n) for n, mean, scatter in parts]
        summary._rows.add(state["row_index"], {"rows": state["rows"], "labels": state["row_labels"]})
        names = Spread(1).state()
        summary._spread = Spread.from_state({name: state[f"spread_{name}"] for name in names})
        return summary

    def _check_labels(self, labels: Tensor | None, n: int) -> Tensor:
        if self._labelled is not None and self._labelled != (labels is not None):
            raise _half_labelled()
        if labels is None:
            return torch.full((n,), -1)
        if labels.shape != (n,) or labels.dtype.is_floating_point:
            raise ShapeError(
                f"Labels of shape {tuple(labels.shape)} and dtype {labels.dtype} for {n} images",
                f"Labels are integers of shape ({n},)",
                "Pass one class per image",
            )
        return labels.detach().to("cpu").to(torch.int64)

    def _check_grows(self) -> None:
        if self._unknown_n:
            raise DataError(
                "Statistics of an unknown number of images",
                "Only sets with a known number of images can be added to",
                "Compute the statistics from all images at once",
            )


def _half_labelled() -> DataError:
    return DataError(
        "Some images with labels and some without", "All images of a set have labels, or none", "Pass labels always"
    )
