"""Rows of conditions: what a network is told, tensors by name with the batch first, or None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["placed", "repeated", "rows_of"]

_Cond: TypeAlias = Mapping[str, Tensor] | None
_Made: TypeAlias = dict[str, Tensor] | None


def rows_of(cond: _Cond, chosen: slice | Tensor) -> _Made:
    """Choose some rows."""
    return None if cond is None else {name: value[chosen] for name, value in cond.items()}


def repeated(cond: _Cond, times: int) -> _Made:
    """Stack all rows several times: (times * b, ...)."""
    return None if cond is None else {n: value.repeat(times, *[1] * (value.ndim - 1)) for n, value in cond.items()}


def placed(cond: _Cond, device: torch.device | str) -> _Made:
    """Bring all rows to a device."""
    return None if cond is None else {name: value.to(device) for name, value in cond.items()}
