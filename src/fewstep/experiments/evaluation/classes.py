"""Classifiers among the features: which classes they know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewstep.features import Classifying, Features

__all__ = ["class_count", "knows_classes", "logits"]


def logits(features: Classifying, vectors: Tensor) -> Tensor:
    """Turn vectors that features returned, shape (n, dim), into class logits (n, n_classes), float32 on the host."""
    tensors = features.state_dict().values() if isinstance(features, nn.Module) else ()
    device = next((value.device for value in tensors), torch.device("cpu"))
    with torch.no_grad():
        return features.logits_of(vectors.to(device)).float().cpu()


def class_count(features: Classifying) -> int:
    """Count the classes that a classifier knows."""
    return logits(features, torch.zeros(1, features.dim)).shape[1]


def knows_classes(features: Features, classes: Sequence[str]) -> bool:
    """Whether features belong to a classifier of as many classes, which are then taken for these, in this order."""
    return isinstance(features, Classifying) and class_count(features) == len(classes) > 0
