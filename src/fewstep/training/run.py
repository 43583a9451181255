"""From a configuration to a trained model folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from fewstep._files import output_dir
from fewstep.data import Images, load_data
from fewstep.errors import ConfigError, NonFiniteError
from fewstep.losses import WEIGHTS
from fewstep.models import Model, ModelConfig, load_model, save_model
from fewstep.noise import DRAWS
from fewstep.objectives import CRITIC, GENERATOR, Denoising
from fewstep.training.config import RunConfig
from fewstep.training.describe import model_config
from fewstep.training.e2e_materials import Tell, quiet
from fewstep.training.e2e_run import Parts, end_to_end, finished
from fewstep.training.log import Log
from fewstep.training.trainer import StepReport, Trainer

__all__ = ["build", "train_model", "train_steps"]


def build(config: RunConfig, data: Images, folder: str | Path, tell: Tell = quiet) -> Trainer:
    """Make the trainer of a run, resumed if the folder holds its checkpoint.

    Args:
        config: the run.
        data: its images.
        folder: where its checkpoints go, in the subfolder "checkpoints".
        tell: hears of what takes its time before the first step.

    Returns:
        A trainer whose ``steps()`` trains.

    Raises:
        ConfigError: if a part of the configuration cannot be built, or the folder is that of a model it learns from.
        CheckpointError: if the folder holds a checkpoint of another run.
    """
    _refuse_own_source(config, Path(folder))
    described = model_config(config, data)
    make = _denoising if config.objective == "denoising" else partial(end_to_end, tell=tell)
    objective, players = make(config, data, described, folder)
    # The images and the weights of start and teacher must agree on resuming, not the places they came from.
    seen = {"name": data.name, "images": len(data), "shape": list(data.shape)}
    e2e = {name: value for name, value in config.to_json().get("e2e", {}).items() if name not in ("init", "teacher")}
    learned = {"start": described.facts.get("init"), "teacher": _teacher(config)}
    same = {**config.to_json(), "e2e": e2e, "data": seen, **learned}
    # Presets say how a critic learns; a run whose adversarial term is off has none.
    idle = {CRITIC} - set(players) if config.objective == "e2e" else set()
    train = replace(config.train, players={name: own for name, own in config.train.players.items() if name not in idle})
    return Trainer(train, objective, players, data, Path(folder) / "checkpoints", same)


def _teacher(config: RunConfig) -> str | None:
    """Fingerprint of the model that couplings learn from, if it is not the start."""
    named = config.objective == "e2e" and config.e2e.teacher
    return load_model(config.e2e.teacher).fingerprint if named else None


def _refuse_own_source(config: RunConfig, folder: Path) -> None:
    for name in ("init", "teacher"):
        source = getattr(config.e2e, name)
        if source and folder.exists() and Path(source).exists() and folder.samefile(source):
            raise ConfigError(
                f"A run in {folder} that learns from the model there (e2e.{name})",
                "Its first checkpoint would overwrite that model",
                "Choose another output folder",
            )


def _denoising(config: RunConfig, data: Images, described: ModelConfig, folder: str | Path) -> Parts:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        network = described.body()
    objective = Denoising(
        described.denoiser(network),
        config.diffusion.draw.build(DRAWS, "draw"),
        config.diffusion.weight.build(WEIGHTS, "weight"),
        described.null,
        config.diffusion.class_dropout,
    )
    return Parts(objective, {GENERATOR: network})


def train_steps(
    config: RunConfig, folder: str | Path, *, data: Images | None = None, tell: Tell = quiet
) -> Iterator[StepReport]:
    """Train a model and write its folder, giving the caller the loop.

    The folder becomes a model folder at the first checkpoint and is renewed at every later one, so an interrupted run
    leaves both something to resume and something to sample.

    Args:
        config: the run.
        folder: where the model and, in "checkpoints", the state of the run go; an unfinished run in it is resumed.
        data: the images; None loads `config.data`.
        tell: hears, in lines, of what takes its time before the first step, such as training a classifier.

    Returns:
        Reports, one after each step; the model folder is complete when they are exhausted.

    Raises:
        DataError: if the images cannot be loaded.
        OutputError: if the folder cannot be written.
        CheckpointError: if the folder holds a checkpoint of another run.
        NonFiniteError: while iterating, if training diverges.
    """
    if data is None:
        data = load_data(config.data, size=config.size or None)
    output_dir(folder)
    return _run(build(config, data, folder, tell), model_config(config, data), folder)


def train_model(config: RunConfig, folder: str | Path, *, data: Images | None = None) -> Model:
    """Train a model to the end and load it; raises what :func:`train_steps` raises.

    Args:
        config: the run.
        folder: where the model and its checkpoints go; an unfinished run in it is resumed.
        data: the images; None loads `config.data`.

    Returns:
        The moving average of the trained network, as loaded from the folder.
    """
    for _ in train_steps(config, folder, data=data):
        pass
    return load_model(folder)


def _run(trainer: Trainer, described: ModelConfig, folder: str | Path) -> Iterator[StepReport]:
    saved, log = False, Log(folder, trainer.step)
    try:
        for report in trainer.steps():
            log.note(report)
            saved = trainer.at_checkpoint
            if saved:
                _save(folder, trainer, described)
                if trainer.is_main:
                    log.write()
            yield report
    except NonFiniteError:
        if trainer.is_main:
            log.write()  # what led there
        raise
    if not saved:  # a run that was complete already, but perhaps killed before its model was written
        _save(folder, trainer, described)


def _save(folder: str | Path, trainer: Trainer, described: ModelConfig) -> None:
    """Write the moving average as a model folder, from the main process; the others wait, for they may load it."""
    if trainer.is_main:
        facts = {**described.facts, "steps": trainer.step, "seconds": round(trainer.seconds)}
        network, described = finished(trainer.ema.module, described)
        save_model(folder, network, replace(described, facts=facts))
    trainer.wait()
