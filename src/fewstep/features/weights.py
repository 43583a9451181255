"""Weights of published networks: from a path, never downloaded, and only where every name and shape fits.

Networks are built without being initialised and receive their weights as float32, whatever the file holds, so that
loading one neither draws random numbers nor leaves a tensor that no file filled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from fewstep._files import read_tensors
from fewstep.errors import CheckpointError, MissingWeights

__all__ = ["build", "find_weights", "read_weights"]

Network = TypeVar("Network", bound=nn.Module)

_COUNTER = "num_batches_tracked"  # batch normalisation's count of training batches; evaluation never reads it


def find_weights(path: str | Path, what: str, where: str) -> Path:
    """Make sure that a file of weights is there.

    Args:
        path: the file.
        what: whose weights, for the message: "SqueezeNet 1.1".
        where: which file of which project holds them, and how to get it.

    Returns:
        The path.

    Raises:
        MissingWeights: if no file is there; the message says what is missing and where to get it.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingWeights(
            f"The weights of {what} are not at {str(path)!r}",
            f"fewstep downloads no weights; these are {where}",
            "Get the file and pass its path (pip install 'fewstep[metrics]' brings what reads it)",
        )
    return path


def read_weights(path: str | Path, what: str, where: str) -> dict[str, Tensor]:
    """Read the weights of a published network from a safetensors file.

    Args:
        path: the file.
        what: whose weights, for the message.
        where: which file of which project holds them, and how to get it.

    Returns:
        Name -> tensor, in the dtypes of the file.

    Raises:
        MissingWeights: if no file is there.
        CheckpointError: if the file is damaged or no safetensors file.
    """
    return read_tensors(find_weights(path, what, where))


def build(make: Callable[[], Network], weights: Mapping[str, Tensor], path: str | Path) -> Network:
    """Build a network around weights that fit it exactly.

    Args:
        make: constructor of the network.
        weights: name -> tensor; counters of training batches may be missing and are ignored.
        path: where they came from, for the message.

    Returns:
        The network on the CPU, float32.

    Raises:
        CheckpointError: if a name is missing or unknown, or a shape does not fit; the message lists the first three.
    """
    with torch.device("meta"):
        network = make()
    expected = network.state_dict()
    wrong = _misfits(expected, weights)
    if wrong:
        raise CheckpointError(
            f"{path} does not hold the weights of {type(network).__name__}: {'; '.join(wrong[:3])}",
            f"All names and shapes fit; {len(wrong)} of {len(expected)} do not",
            "Check which network the file belongs to",
        )
    counters = {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith(_COUNTER)}
    filled = {name: weights[name].to(torch.float32) for name in expected if name not in counters}
    network.load_state_dict(counters | filled, assign=True)
    return network


def _misfits(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    names = sorted(name for name in expected.keys() | weights.keys() if not name.endswith(_COUNTER))
    wrong = []
    for name in names:
        if name not in weights:
            wrong.append(f"{name} is missing")
        elif name not in expected:
            wrong.append(f"{name} is unknown")
        elif weights[name].shape != expected[name].shape:
            wrong.append(f"{name} has shape {tuple(weights[name].shape)}, not {tuple(expected[name].shape)}")
    return wrong
