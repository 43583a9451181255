r"""A batch in chunks with an exact gradient: the memory of one chunk, at the price of one more forward pass.

A loss over a whole batch, as a discrepancy of two distributions is, cannot be summed over smaller batches. But the
*samples* can be made chunk by chunk: their values are kept and the graphs behind them are not. When the gradient of
the loss with respect to the samples arrives, each chunk is run again and differentiated alone,

.. math:: \nabla_\theta L = \sum_{chunks} (\partial F_{chunk} / \partial\theta)^T \, \partial L / \partial F_{chunk} .

Source: Gao et al. 2021, arXiv:2101.06983 (gradient cache). Departs from it in: activation checkpointing does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewstep._cond import rows_of
from fewstep.errors import ConfigError, ShapeError

__all__ = ["Rows", "in_chunks"]

Rows: TypeAlias = Tensor | Mapping[str, Tensor] | None


def in_chunks(function: Callable[..., Tensor], rows: tuple[Rows, ...], size: int) -> Tensor:
    r"""Run a function of a batch on chunks of it; same values, same gradient, less memory.

    The function must treat samples apart from each other. In the backward pass it is called once more per chunk with
    torch's own random state restored, so dropout is safe; an explicit generator that it advances is not.

    Args:
        function: takes the parts of `rows` in order, returns a tensor with the batch first.
        rows: what is cut: tensors (b, ...), mappings of such tensors (conditions), or None, which stays None; the first
            is a tensor and says what b is.
        size: rows in a chunk, 1 or more. A batch that fits into one chunk is run plainly.

    Returns:
        The outputs of all chunks, joined along the batch.

    Raises:
        ConfigError: if size < 1.
        ShapeError: if the parts differ in length.
    """
    if size < 1:
        raise ConfigError(f"Chunks of {size} samples", "A chunk has one sample or more", "Use size=64, or the batch")
    n = _length(rows)
    if n <= size:
        return function(*rows)
    chunks = [tuple(_cut(part, slice(first, first + size)) for part in rows) for first in range(0, n, size)]
    return torch.cat([_run(function, chunk) for chunk in chunks])


def _run(function: Callable[..., Tensor], chunk: tuple[Rows, ...]) -> Tensor:
    out: Tensor = checkpoint(function, *chunk, use_reentrant=False)
    return out


def _cut(part: Rows, chosen: slice) -> Rows:
    return part[chosen] if isinstance(part, Tensor) else rows_of(part, chosen)


def _length(rows: tuple[Rows, ...]) -> int:
    tensors = [tensor for part in rows if part is not None for tensor in _tensors(part)]
    lengths = sorted({len(tensor) for tensor in tensors})
    if len(lengths) != 1:
        raise ShapeError(
            f"A batch of parts with {', '.join(map(str, lengths)) or 'no'} rows",
            "All parts have one row per sample",
            "Repeat or index them to the length of the batch",
        )
    return lengths[0]


def _tensors(part: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return (part,) if isinstance(part, Tensor) else tuple(part.values())
