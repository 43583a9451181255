"""The trainer: an iterator over steps that knows players and turns, and nothing of what they minimise.

Every step draws its images and its randomness from (seed, step, rank) alone, so a run that resumes from a checkpoint
goes on exactly as if it had never stopped. Several processes average their gradients after each backward pass; the
networks stay plain modules, which an objective may call as often as it likes.

A step is taken whole or not at all: where a number in any player's turn is not finite, all players are put back to
where the step began, and the run stops with a checkpoint of that state and the batch beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fewstep.data import Batch, Images, indices_of_step, seeded
from fewstep.errors import CheckpointError, NonFiniteError, OutputError, choose
from fewstep.objectives import GENERATOR, Objective, Turn
from fewstep.training.checkpoint import Checkpoint, join, latest, read_checkpoint, split, write_checkpoint
from fewstep.training.config import TrainConfig
from fewstep.training.ema import Ema
from fewstep.training.failure import write_reproduction
from fewstep.training.optim import adamw, flat_state, learning_rate, load_flat_state
from fewstep.training.processes import accelerator, averaged

__all__ = ["StepReport", "Trainer"]

_MAY_CHANGE = ("steps", "checkpoint_every", "keep")  # keys of TrainConfig that a resumed run may set anew


@dataclass(frozen=True)
class StepReport:
    """What happened in one training step.

    Args:
        step: steps done, this one included.
        losses: "<player>/<part>" -> value, and "<player>/grad_norm" before clipping.
        seconds: duration of this step.
        images: images seen so far, over all processes.
    """

    step: int
    losses: Mapping[str, float]
    seconds: float
    images: int

    def at_every(self, steps: int) -> bool:
        """Whether this step is a multiple of `steps`."""
        return self.step % steps == 0


class Trainer:
    """Trains players towards an objective.

    Args:
        config: how to train.
        objective: what to minimise; it holds the same modules as `players`.
        players: name -> network; "generator" is the one whose average is kept. One without trainable parameters is
            no player, but what it remembers is kept in the checkpoints.
        data: the images.
        folder: where checkpoints go; an unfinished run in it is resumed.
        described: what else must agree with the checkpoint of a resumed run, as JSON.

    Attributes:
        step: steps done.
        seconds: time spent in them, over all parts of the run.
        ema: the moving average of the generator.

    Raises:
        UnknownName: if no player is the generator, or `config` names a player that is not there.
        CheckpointError: if the folder holds a checkpoint that does not belong to this run.
    """

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        players: Mapping[str, nn.Module],
        data: Images,
        folder: str | Path,
        described: Mapping[str, Any],
    ) -> None:
        generator = choose(GENERATOR, players, "player")
        self.config, self.objective, self.players, self.data = config, objective, dict(players), data
        for name in config.players:
            choose(name, players, "player")
        self._accelerator = accelerator()
        # Another number of processes would see the images in another order.
        self.folder, self.described = Path(folder), {**described, "processes": self._accelerator.num_processes}
        self.device: torch.device = self._accelerator.device
        for module in self.players.values():
            module.to(self.device).train()
        self._configs = {name: config.of_player(name) for name in self.players}
        self._optimizers = {
            name: adamw(module, self._configs[name])
            for name, module in self.players.items()
            if any(parameter.requires_grad for parameter in module.parameters())
        }
        self.ema = Ema(generator, config.ema)
        self.step, self.seconds = 0, 0.0
        newest = latest(self.folder)
        if newest is not None:
            self._resume(newest)

    def steps(self) -> Iterator[StepReport]:
        """Train until the last step.

        Yields:
            One report after each step, when its checkpoint, if it was due, is on the disk.

        Raises:
            NonFiniteError: if a loss or a gradient is NaN or infinite; the step is not taken, and the message names
                the state before it and its batch, which are written.
            OutputError: if a checkpoint cannot be written.
        """
        while self.step < self.config.steps:
            started = time.perf_counter()
            losses = self._train_step()
            self.step += 1
            self.seconds += time.perf_counter() - started
            if self.at_checkpoint:
                self.save()
            images = self.step * self.config.batch * self._accelerator.num_processes
            yield StepReport(self.step, losses, time.perf_counter() - started, images)

    @property
    def at_checkpoint(self) -> bool:
        """Whether the step just done is one after which a checkpoint is written."""
        return self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self._accelerator.is_main_process)

    def save(self) -> None:
        """Write a checkpoint from the main process; the others wait.

        Raises:
            OutputError: if it cannot be written.
        """
        if self.is_main:
            write_checkpoint(self.folder, self._state(), self.config.keep)
        self.wait()

    def wait(self) -> None:
        """Wait until every process has come here."""
        self._accelerator.wait_for_everyone()

    def _state(self) -> Checkpoint:
        """The run as it is now; its tensors are the networks' own and change with them."""
        model = join({name: module.state_dict() for name, module in self.players.items()})
        states = {name: flat_state(self.players[name], optimizer) for name, optimizer in self._optimizers.items()}
        return Checkpoint(self.step, self.seconds, self.described, model, self.ema.module.state_dict(), join(states))

    def _put_back(self, state: Checkpoint) -> None:
        for name, module in self.players.items():
            module.load_state_dict(split(state.model, name))
            if name in self._optimizers:
                load_flat_state(module, self._optimizers[name], split(state.optimizer, name))
        self.ema.module.load_state_dict(dict(state.ema))

    def _train_step(self) -> dict[str, float]:
        generator = seeded("step", self.config.seed, self.step, self._accelerator.process_index)
        batch, before = self._batch(generator), self._remembered()
        losses: dict[str, float] = {}
        for turn in self.objective.turns(batch, self.step, generator):
            try:
                losses |= self._take(turn)
            except NonFiniteError as error:
                self._put_back(before)
                raise self._stopped(turn.player, batch, before, error) from error
        self._average_memory()
        self.ema.update(self.players[GENERATOR], self.step)
        return losses

    def _remembered(self) -> Checkpoint:
        """The state before a step: a copy, as a turn that fails must undo the earlier ones; a lone player has none."""
        state = self._state()
        if len(self.players) == 1:
            return state
        return replace(state, model=_copied(state.model), optimizer=_copied(state.optimizer))

    def _stopped(self, player: str, batch: Batch, before: Checkpoint, error: NonFiniteError) -> NonFiniteError:
        """Leave the state before the step and its batch on the disk, and say where."""
        given = f"Step {self.step + 1}, player {player!r}: {error.given}"
        facts = {"step": self.step + 1, "player": player, "seed": self.config.seed, "given": given}
        facts |= {"process": self._accelerator.process_index, "config": self.described}
        try:
            left = str(write_reproduction(self.folder, batch, facts))
            if self.is_main:  # without waiting for the others, which may be well
                left = f"{write_checkpoint(self.folder, before, self.config.keep)} and {left}"
        except OutputError as full:
            left = f"nothing ({full.given})"
        return NonFiniteError(given, error.allowed, f"{error.todo}; the state before the step and its batch: {left}")

    def _batch(self, generator: Generator) -> Batch:
        config, accelerator = self.config, self._accelerator
        place = (config.seed, self.step, accelerator.process_index, accelerator.num_processes)
        indices = indices_of_step(len(self.data), config.batch, *place)
        mirrored = torch.rand(config.batch, generator=generator) < 0.5 if config.flip else None
        return self.data.batch(indices, mirrored).to(self.device)

    def _take(self, turn: Turn) -> dict[str, float]:
        """Take one optimiser step of one player; whatever the loss did to the others' gradients is forgotten."""
        player, config = choose(turn.player, self.players, "player"), self._configs[turn.player]
        self._forget_gradients()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss, parts = turn.loss()
        torch.autograd.backward(loss)
        parameters = averaged(self._accelerator, player)
        norm = nn.utils.clip_grad_norm_(parameters, config.clip or math.inf)
        values = self._read(turn.player, {**parts, **turn.after(), "grad_norm": norm}, loss)
        optimizer = self._optimizers[turn.player]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        optimizer.step()
        self._forget_gradients()
        return values

    def _forget_gradients(self) -> None:
        for module in self.players.values():
            module.zero_grad(set_to_none=True)

    def _average_memory(self) -> None:
        """Average what players without parameters remember: every process saw its own images."""
        for module in (module for name, module in self.players.items() if name not in self._optimizers):
            for buffer in filter(torch.is_floating_point, module.buffers()):
                buffer.copy_(self._accelerator.reduce(buffer, reduction="mean"))

    def _read(self, player: str, parts: Mapping[str, Tensor], loss: Tensor) -> dict[str, float]:
        """Fetch all logged numbers at once and refuse what is not finite, before the step is taken."""
        fetched = torch.stack([value.detach().float() for value in (*parts.values(), loss)]).tolist()
        values = {f"{player}/{name}": value for name, value in zip(parts, fetched, strict=False)}
        wrong = [name for name, value in zip(parts, fetched, strict=False) if not math.isfinite(value)]
        if wrong or not math.isfinite(fetched[-1]):
            raise NonFiniteError(
                f"{', '.join(wrong) or 'The loss'} not finite; loss {fetched[-1]}, parts "
                + ", ".join(f"{name} {value:g}" for name, value in values.items()),
                "Losses and gradients are finite",
                "Train anew with a lower train.lr, or look for images, weights or noise levels that are not finite",
            )
        return values

    def _resume(self, path: Path) -> None:
        checkpoint = read_checkpoint(path)
        self._check_belongs(path, checkpoint.config)
        try:
            self._put_back(checkpoint)
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path} does not fit the players {', '.join(self.players)} ({error})",
                "A run resumes with the networks it was started with",
                "Start again in another folder, or restore the networks' options",
            ) from error
        self.step, self.seconds = checkpoint.step, checkpoint.seconds

    def _check_belongs(self, path: Path, config: Mapping[str, Any]) -> None:
        """Refuse to go on with other options than the run was started with."""
        before, now = _flat(config), _flat(self.described)
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        changed = [key for key in changed if key not in {f"train.{name}" for name in _MAY_CHANGE}]
        if changed:
            raise CheckpointError(
                f"{path} belongs to a run with other options: "
                + ", ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in changed),
                f"A resumed run may change only {', '.join(_MAY_CHANGE)}",
                "Restore the options, or start again in another folder",
            )


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name every value of nested mappings by its dotted path."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
