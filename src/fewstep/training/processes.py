"""Several processes that train as one."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from fewstep._files import require

__all__ = ["accelerator", "averaged"]


def accelerator() -> Any:
    """Join the other processes, if a launcher started several; without a GPU they talk through gloo.

    Returns:
        The Accelerator of accelerate; MissingExtra without it.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return require("accelerate", "train").Accelerator(cpu=several and not torch.cuda.is_available())


def averaged(accelerator: Any, player: nn.Module) -> list[nn.Parameter]:
    """Average a player's gradients over the processes, in one message.

    A gradient that some processes lack and others have counts as zero there.

    Args:
        accelerator: of accelerate.
        player: after its backward pass.

    Returns:
        The parameters that have a gradient in any of the processes.
    """
    parameters = [parameter for parameter in player.parameters() if parameter.requires_grad]
    if accelerator.num_processes == 1:
        return [parameter for parameter in parameters if parameter.grad is not None]
    has = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=accelerator.device)
    counts = accelerator.reduce(has, reduction="sum").tolist()
    parameters = [parameter for parameter, count in zip(parameters, counts, strict=True) if count]
    gradients = [torch.zeros_like(of) if of.grad is None else of.grad for of in parameters]
    flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
    means = flat.split([gradient.numel() for gradient in gradients])
    for parameter, mean in zip(parameters, means, strict=True):
        parameter.grad = mean.view_as(parameter).to(parameter.dtype)
    return parameters
