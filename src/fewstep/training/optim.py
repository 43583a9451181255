r"""The optimiser of each player and its learning rate at each step.

.. math:: lr_n = lr \cdot \min\Bigl(1, \frac{n+1}{warmup}\Bigr) \cdot
          \begin{cases} 1 & r \ge d \\ \tfrac12 (1 - \cos(\pi r / d)) & r < d \end{cases}

with r the fraction of the run that is left and d = `decay`: 0 keeps the rate constant, 1 is a cosine over the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewstep.training.config import TrainConfig

__all__ = ["adamw", "flat_state", "learning_rate", "load_flat_state"]

_STATE = {"step", "exp_avg", "exp_avg_sq"}  # what AdamW keeps of each parameter it has stepped


def adamw(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Make the optimiser of one player."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Compute the learning rate of a step, with `step` of them done before."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    left = (config.steps - step) / config.steps
    fall = (1 - math.cos(math.pi * left / config.decay)) / 2 if left < config.decay else 1.0
    return config.lr * warm * fall


def _names(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def flat_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name every tensor of an optimiser's state after its parameter, as "<parameter>:<what>"."""
    names, state = _names(module), optimizer.state_dict()["state"]
    return {f"{names[i]}:{what}": tensor for i, values in state.items() for what, tensor in values.items()}


def load_flat_state(module: nn.Module, optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Put back what :func:`flat_state` wrote; KeyError or ValueError if it is not the state of these parameters."""
    places = {name: i for i, name in enumerate(_names(module))}
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        name, _, what = key.rpartition(":")
        if tensor.shape != (() if what == "step" else shapes[name]):
            raise ValueError(f"the optimiser's {key} has the shape {tuple(tensor.shape)}")
        state.setdefault(places[name], {})[what] = tensor
    for i, values in state.items():
        if set(values) != _STATE:
            raise KeyError(f"the optimiser's state of {_names(module)[i]} has only {', '.join(values)}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
