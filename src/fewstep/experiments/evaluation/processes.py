"""Which process of how many this is, under torchrun, accelerate launch, or alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch

from fewstep._files import require
from fewstep.errors import ConfigError

__all__ = ["Processes", "processes", "usable_device"]


@dataclass(frozen=True)
class Processes:
    """This process among its siblings.

    Args:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number on this machine, which is the number of its GPU.
        wait: returns once all processes have called it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    wait: Callable[[], object] = lambda: None

    @property
    def first(self) -> bool:
        """Whether this is the process that computes and writes the results."""
        return self.rank == 0


def processes(device: str = "cpu") -> Processes:
    """Join the other processes, if a launcher started several.

    Args:
        device: where this process computes; processes on a CPU talk through gloo.

    Returns:
        This process.

    Raises:
        MissingExtra: if there are several and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    # A process waits while another one summarises a large reference or trains a classifier, which may take hours.
    state = require("accelerate", "train").PartialState(cpu=device == "cpu", timeout=timedelta(days=2))
    return Processes(state.process_index, state.num_processes, state.local_process_index, state.wait_for_everyone)


def usable_device(name: str) -> str:
    """Resolve "auto", and refuse a device that cannot be used; of several GPUs, each process takes its own.

    Args:
        name: "auto", "cpu", "cuda", "cuda:1"...

    Returns:
        A device that torch can use.

    Raises:
        ConfigError: if it cannot.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        given = f"--device {name}: {str(error).splitlines()[0]}"
        raise ConfigError(given, "A device that torch can use here", "Use --device cpu") from error
    return name
