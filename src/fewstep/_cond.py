"""Rows of conditions: what a network is told, tensors by name with the batch first, or None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["conditions_of", "placed", "repeated", "rows_of"]

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


def conditions_of(cond: _Cond, n: int, device: torch.device | str) -> Tensor:
    """Number the conditions of n rows: rows that are told the same have the same number, from 0; int64, (n,)."""
    if not cond:
        return torch.zeros(n, dtype=torch.int64, device=device)
    told = torch.cat([value.detach().reshape(n, -1).double() for value in cond.values()], dim=1)
    number: Tensor = torch.unique(told, dim=0, return_inverse=True)[1]
    return number.to(device)
