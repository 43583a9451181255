"""From a configuration to a trained model folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from fewstep._files import output_dir
from fewstep.data import Images, load_data
from fewstep.errors import ConfigError
from fewstep.losses import WEIGHTS
from fewstep.models import Model, ModelConfig, Part, load_model, save_model
from fewstep.noise import DRAWS
from fewstep.objectives import GENERATOR, Denoising
from fewstep.training.config import RunConfig
from fewstep.training.trainer import StepReport, Trainer

__all__ = ["build", "model_config", "train_model", "train_steps"]


def model_config(config: RunConfig, data: Images) -> ModelConfig:
    """Describe the model that a run makes: the run's own parts, and what follows from the data.

    Args:
        config: the run.
        data: its images.

    Returns:
        The description; the network's channels, classes and captions are those of the data.

    Raises:
        ConfigError: if the network is given other channels, classes or captions than the data has.
    """
    recipe, told = config.to_json(), config.diffusion.conditional
    described = ModelConfig(
        name=config.name or data.name,
        network=config.network,
        prediction=config.diffusion.prediction,
        schedule=config.diffusion.schedule,
        shape=data.shape,
        label=config.diffusion.label,
        classes=data.classes if told else (),
        facts={"data": data.name, "images": len(data), "diffusion": recipe["diffusion"], "train": recipe["train"]},
        captions=data.vocabulary if told else None,
    )
    follows = {"channels": data.shape[0], **described.conditions}
    for name, value in follows.items():
        if config.network.arguments.get(name, value) != value:
            raise ConfigError(
                f"network.{name}={config.network.arguments[name]!r} for the data set {data.name!r}",
                f"This follows from the data and diffusion.conditional: {name}={value}",
                f"Leave network.{name} out",
            )
    return replace(described, network=Part(config.network.name, {**config.network.arguments, **follows}))


def build(config: RunConfig, data: Images, folder: str | Path) -> Trainer:
    """Make the trainer of a run of ordinary denoising, resumed if the folder holds its checkpoint.

    Args:
        config: the run.
        data: its images.
        folder: where its checkpoints go, in the subfolder "checkpoints".

    Returns:
        A trainer whose ``steps()`` trains.

    Raises:
        ConfigError: if a part of the configuration cannot be built.
        CheckpointError: if the folder holds a checkpoint of another run.
    """
    described = model_config(config, data)
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
    # The images themselves must agree on resuming, not the place they came from.
    seen = {"name": data.name, "images": len(data), "shape": list(data.shape)}
    place, players = Path(folder) / "checkpoints", {GENERATOR: network}
    return Trainer(config.train, objective, players, data, place, {**config.to_json(), "data": seen})


def train_steps(config: RunConfig, folder: str | Path, *, data: Images | None = None) -> Iterator[StepReport]:
    """Train a model and write its folder, giving the caller the loop.

    The folder becomes a model folder at the first checkpoint and is renewed at every later one, so an interrupted run
    leaves both something to resume and something to sample.

    Args:
        config: the run.
        folder: where the model and, in "checkpoints", the state of the run go; an unfinished run in it is resumed.
        data: the images; None loads `config.data`.

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
    return _run(build(config, data, folder), model_config(config, data), folder)


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
    saved = False
    for report in trainer.steps():
        saved = trainer.at_checkpoint
        if saved:
            _save(folder, trainer, described)
        yield report
    if not saved:  # a run that was complete already, but perhaps killed before its model was written
        _save(folder, trainer, described)


def _save(folder: str | Path, trainer: Trainer, described: ModelConfig) -> None:
    """Write the moving average as a model folder, from the main process; the others wait, for they may load it."""
    if trainer.is_main:
        facts = {**described.facts, "steps": trainer.step, "seconds": round(trainer.seconds)}
        save_model(folder, trainer.ema.module, replace(described, facts=facts))
    trainer.wait()
