"""Feature sets from plain tensors, for the tests of metrics."""

from __future__ import annotations

import torch

from fewstep.metrics.summary import FeatureSet


def draws(n, dim, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def feature_set(rows, labels=None, **options):
    summary = FeatureSet(rows.shape[1], **options)
    summary.update(rows, torch.arange(len(rows)), labels)
    return summary
