"""Checkpoints: folders ``checkpoint-00000500`` that are whole or absent.

====================== ==================================================================
model.safetensors      every player's parameters and buffers, as "<player>/<name>"
ema.safetensors        the moving average of the generator
optimizer.safetensors  every optimiser's state, as "<player>/<parameter>:<what>"
state.json             steps done, seconds spent, the configuration, the version of this layout, and the
                       fingerprints of the other three files: a checkpoint is whole or refused
====================== ==================================================================

A folder is built beside its final name and renamed, so an interruption leaves the earlier checkpoint as it was.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from fewstep._files import (
    fingerprint,
    output_dir,
    read_json,
    read_tensors,
    sweep,
    write_folder_atomic,
    write_json,
    write_tensors,
)
from fewstep.errors import CheckpointError

__all__ = ["Checkpoint", "checkpoints", "join", "latest", "read_checkpoint", "split", "write_checkpoint"]

_LAYOUT = 2
_PREFIX = "checkpoint-"
_TENSORS = ("model", "ema", "optimizer")


@dataclass(frozen=True)
class Checkpoint:
    """The whole state of a run between two steps.

    Args:
        step: steps done.
        seconds: time spent in them.
        config: the run's configuration, as JSON holds it.
        model: "<player>/<name>" -> tensor.
        ema: name -> tensor of the moving average.
        optimizer: "<player>/<parameter>:<what>" -> tensor.
    """

    step: int
    seconds: float
    config: Mapping[str, Any]
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


def join(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Put the tensors of several players into one flat mapping."""
    return {f"{player}/{name}": tensor for player, group in groups.items() for name, tensor in group.items()}


def split(flat: Mapping[str, Tensor], player: str) -> dict[str, Tensor]:
    """Take one player's tensors out of a flat mapping."""
    start = f"{player}/"
    return {name.removeprefix(start): tensor for name, tensor in flat.items() if name.startswith(start)}


def checkpoints(folder: str | Path) -> list[Path]:
    """List the checkpoints of a run, oldest first; none for a folder that is missing."""
    found = [path for path in Path(folder).glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def latest(folder: str | Path) -> Path | None:
    """Find the newest checkpoint of a run, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def write_checkpoint(folder: str | Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, then delete all but the newest ones and what killed runs left half written.

    Args:
        folder: of the run; created if missing.
        checkpoint: what to write.
        keep: how many checkpoints stay.

    Returns:
        The new checkpoint's folder.

    Raises:
        OutputError: if it cannot be written; earlier checkpoints stay as they were.
    """
    path = output_dir(folder) / f"{_PREFIX}{checkpoint.step:08d}"
    with write_folder_atomic(path) as temporary:
        for name in _TENSORS:
            write_tensors(temporary / f"{name}.safetensors", getattr(checkpoint, name))
        state = {name: getattr(checkpoint, name) for name in ("step", "seconds", "config")}
        prints = {name: fingerprint(getattr(checkpoint, name)) for name in _TENSORS}
        write_json(temporary / "state.json", {"layout": _LAYOUT, **state, "fingerprints": prints})
    sweep(path.parent, f"{_PREFIX}*")
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Args:
        path: its folder.

    Returns:
        The state of the run.

    Raises:
        CheckpointError: if a file is missing, damaged or foreign.
    """
    path = Path(path)
    state = read_json(path / "state.json")
    if not _is_state(state):
        raise CheckpointError(
            f"{path / 'state.json'} has the keys {', '.join(state)}, layout {state.get('layout')!r} "
            f"and step {state.get('step')!r}",
            f"A checkpoint of this version has layout {_LAYOUT}, and the numbers and options of its run",
            "Resume with the version of fewstep that wrote it, or start again in another folder",
        )
    number = path.name.removeprefix(_PREFIX)
    if number.isdigit() and int(number) != state["step"]:
        _refuse(path, f"is named after step {int(number)}, its state.json says {state['step']}")
    tensors = {name: read_tensors(path / f"{name}.safetensors") for name in _TENSORS}
    for name, content in tensors.items():
        if fingerprint(content) != state["fingerprints"].get(name):
            _refuse(path, f"has a {name}.safetensors that is not the one its state.json was written with")
    return Checkpoint(state["step"], state["seconds"], state["config"], **tensors)


def _is_state(state: Mapping[str, Any]) -> bool:
    """Whether these are the keys of a state.json, with values that can be."""
    step, seconds = state.get("step"), state.get("seconds")
    if type(step) is not int or not isinstance(seconds, int | float):
        return False
    groups = all(isinstance(state.get(name), dict) for name in ("config", "fingerprints"))
    return state.get("layout") == _LAYOUT and step >= 0 and 0 <= seconds < math.inf and groups


def _refuse(path: Path, reason: str) -> NoReturn:
    raise CheckpointError(
        f"{path} {reason}",
        "The files of a checkpoint were written together and stay together",
        "Delete that checkpoint, and the run goes on from the one before it",
    )
