"""Summaries of what a network says about images: class probabilities, and one score per image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep.errors import ConfigError, DataError
from fewstep.metrics.estimate import GROUPS
from fewstep.metrics.grouping import group_of
from fewstep.metrics.indexed import Indexed, check_batch, check_state

__all__ = ["ProbabilitySet", "ScoreSet"]


class ProbabilitySet:
    r"""Class probabilities of a set of images, as sums over each jackknife group.

    Kept are n, :math:`\sum p` and :math:`\sum H(p)`, with the entropy :math:`H(p) = -\sum_k p_k \log p_k` in nats.

    Args:
        classes: number of classes.
        groups: groups of the jackknife.

    Raises:
        ConfigError: if classes < 2 or groups < 1.
    """

    def __init__(self, classes: int, *, groups: int = GROUPS) -> None:
        if classes < 2 or groups < 1:
            raise ConfigError(
                f"classes = {classes}, groups = {groups}", "At least two classes and one group", "Change them"
            )
        self._count = torch.zeros(groups, dtype=torch.int64)
        self._probability = torch.zeros(groups, classes, dtype=torch.float64)
        self._entropy = torch.zeros(groups, dtype=torch.float64)

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self._count.sum())

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self._probability.shape[1]

    @property
    def groups(self) -> int:
        """Number of jackknife groups."""
        return len(self._count)

    def update(self, probabilities: Tensor, index: Tensor) -> None:
        """Add a batch of images.

        Args:
            probabilities: shape (b, classes), any float dtype and device; each row sums to 1 within 0.01.
            index: numbers of the images in their set, shape (b,), integers from 0, each only once.

        Raises:
            ShapeError: if the shapes do not fit.
            DtypeError: if probabilities are no floats or numbers no integers.
            DataError: if a row is no distribution, or a number comes twice in the batch.
            NonFiniteError: if a value is NaN or infinite; the message names the image.
        """
        values, index = check_batch("probabilities", probabilities, index, self.classes)
        wrong = ((values.sum(1) - 1).abs() > 0.01) | (values < 0).any(1)
        if wrong.any():
            raise DataError(
                f"Image {int(index[wrong][0])} has class probabilities that sum to {float(values[wrong][0].sum()):g}",
                "Probabilities are at least 0 and sum to 1",
                "Apply softmax to the logits first",
            )
        values = values / values.sum(1, keepdim=True)  # float16 rows sum to 1 within 0.001 only
        group = group_of(index, self.groups)
        self._count.index_add_(0, group, torch.ones_like(index))
        self._probability.index_add_(0, group, values)
        self._entropy.index_add_(0, group, -torch.special.xlogy(values, values).sum(1))

    def sums(self, without: int | None = None) -> tuple[int, Tensor, float]:
        """Sum over all images, or over all but those of one group.

        Args:
            without: number of the group to leave out.

        Returns:
            Number of images, sum of their probabilities of shape (classes,) in float64, sum of their entropies in nats.

        Raises:
            ConfigError: if there is no such group.
        """
        if without is not None and not 0 <= without < self.groups:
            raise ConfigError(f"without = {without}", f"There are groups 0 ... {self.groups - 1}", "Pass one of them")
        chosen = torch.arange(self.groups) != (-1 if without is None else without)
        count, entropy = self._count[chosen].sum(), self._entropy[chosen].sum()
        return int(count), self._probability[chosen].sum(0), float(entropy)

    def merge(self, other: ProbabilitySet) -> ProbabilitySet:
        """Join the sums of two parts of one set; neither of them changes.

        Args:
            other: sums over further images.

        Returns:
            The sums over all of them.

        Raises:
            ConfigError: if the numbers of classes or groups differ.
        """
        mine, theirs = (self.classes, self.groups), (other.classes, other.groups)
        if mine != theirs:
            raise ConfigError(f"Sums with (classes, groups) = {mine} and {theirs}", "Parts agree", "Use one setting")
        there = other.state()
        return ProbabilitySet.from_state({name: value + there[name] for name, value in self.state().items()})

    def state(self) -> dict[str, Tensor]:
        """Give everything as tensors, ready for a safetensors file; :meth:`from_state` is the way back."""
        return {
            "count": self._count.clone(),
            "probability": self._probability.clone(),
            "entropy": self._entropy.clone(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ProbabilitySet:
        """Make the object again whose :meth:`state` this is.

        Args:
            state: name -> tensor.

        Returns:
            The sums.

        Raises:
            DataError: if the state is of something else.
        """
        check_state(state, {"count", "probability", "entropy"}, "ProbabilitySet")
        groups, classes = state["probability"].shape
        sums = cls(classes, groups=groups)
        sums._count, sums._probability, sums._entropy = state["count"], state["probability"], state["entropy"]
        return sums


class ScoreSet:
    """One number per image, as an image-text score is; all of them are kept, with their image numbers."""

    def __init__(self) -> None:
        self._rows = Indexed({"values": torch.empty(0, dtype=torch.float64)})

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self._rows.index)

    @property
    def values(self) -> Tensor:
        """Scores, shape (n,), float64, in the order of the image numbers."""
        return self._rows["values"]

    @property
    def index(self) -> Tensor:
        """Image numbers, shape (n,), int64, ascending."""
        return self._rows.index

    def update(self, values: Tensor, index: Tensor) -> None:
        """Add a batch of scores.

        Args:
            values: shape (b,), any float dtype and device.
            index: numbers of the images, shape (b,), integers from 0, each only once.

        Raises:
            ShapeError: if the shapes do not fit.
            DtypeError: if values are no floats or numbers no integers.
            DataError: if an image comes twice.
            NonFiniteError: if a value is NaN or infinite; the message names the image.
        """
        values, index = check_batch("scores", values, index, None)
        self._rows.add(index, {"values": values})

    def merge(self, other: ScoreSet) -> ScoreSet:
        """Join two parts of one set; neither of them changes.

        Args:
            other: scores of further images.

        Returns:
            The scores of all of them.

        Raises:
            DataError: if an image is in both.
        """
        joined = ScoreSet()
        for part in (self, other):
            joined._rows.add(part.index, {"values": part.values})
        return joined

    def state(self) -> dict[str, Tensor]:
        """Give everything as tensors, ready for a safetensors file; :meth:`from_state` is the way back."""
        return {"index": self.index, "values": self.values}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ScoreSet:
        """Make the object again whose :meth:`state` this is.

        Args:
            state: name -> tensor.

        Returns:
            The scores.

        Raises:
            DataError: if the state is of something else.
        """
        check_state(state, {"index", "values"}, "ScoreSet")
        scores = cls()
        scores._rows.add(state["index"], {"values": state["values"]})
        return scores
