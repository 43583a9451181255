"""What model a run leaves: the run's own parts or those of the model it starts from, and what follows from the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fewstep.data import Images
from fewstep.errors import ConfigError
from fewstep.models import Chain, Model, ModelConfig, Part, load_model
from fewstep.training.config import RunConfig
from fewstep.training.e2e_couplings import COUPLINGS, GRADIENTS
from fewstep.training.e2e_terms import known_arguments
from fewstep.training.options import defaults_of

__all__ = ["SINGLE_STEPS", "model_config", "written_out"]

SINGLE_STEPS = ("draw", "weight", "class_dropout")  # of DiffusionConfig: what only training of single steps reads

_BLANK = RunConfig()


def model_config(config: RunConfig, data: Images) -> ModelConfig:
    """Describe the model that a run makes.

    Args:
        config: the run.
        data: its images.

    Returns:
        The description. The network's channels, classes and captions are those of the data; a run from another model
        takes that model's parts, and a run of whole chains writes its chain down.

    Raises:
        ConfigError: if the network is given other channels, classes or captions than the data has, or a run from
            another model is given other parts or data than that model has.
        UnknownName: if there is no such model.
        CheckpointError: if the model's folder is damaged.
    """
    if config.objective == "denoising":
        return _anew(config, data)
    _refuse_single_steps(config)
    described = _from_model(config, data, load_model(config.e2e.init)) if config.e2e.init else _anew(config, data)
    leaky = config.e2e.coupling.name == "leaky"
    chain = Chain(config.e2e.solver, config.e2e.spacing, config.e2e.counts, leaky)
    facts = {**described.facts, "e2e": config.to_json()["e2e"]}
    if "diffusion" in facts:  # from scratch
        facts["diffusion"] = {name: value for name, value in facts["diffusion"].items() if name not in SINGLE_STEPS}
    return replace(described, facts=facts, chain=chain)


def written_out(config: RunConfig) -> dict[str, Any]:
    """Give a configuration with what it leaves to others: defaults of terms, parts of the model to start from.

    Args:
        config: the run.

    Returns:
        A configuration of the same run, as JSON holds it.

    Raises:
        UnknownName: if there is no such model to start from.
        CheckpointError: if the model's folder is damaged.
    """
    if config.objective == "denoising":
        return config.to_json()
    e2e, diffusion = config.e2e, config.diffusion
    terms = {name: {**known_arguments(name), **own} for name, own in e2e.terms.items()}
    coupling, gradient = _full(e2e.coupling, COUPLINGS), _full(e2e.gradient, GRADIENTS)
    if e2e.init:
        old = load_model(e2e.init).config
        _refuse_other_parts(config, old)
        diffusion = replace(diffusion, prediction=old.prediction, schedule=old.schedule, label=old.label)
        config = replace(config, network=old.network)
    return replace(
        config, diffusion=diffusion, e2e=replace(e2e, terms=terms, coupling=coupling, gradient=gradient)
    ).to_json()


def _full(part: Part, table: Mapping[str, Callable[..., Any]]) -> Part:
    return Part(part.name, {**defaults_of(table[part.name]), **part.arguments})


def _anew(config: RunConfig, data: Images) -> ModelConfig:
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


def _from_model(config: RunConfig, data: Images, start: Model) -> ModelConfig:
    """Describe a model that goes on from another one, with all of its parts and its judge, if it has one."""
    old = start.config
    _refuse_other_parts(config, old)
    _refuse_other_data(data, old)
    judge = {name: old.facts[name] for name in ("judge",) if name in old.facts}
    facts = {"data": data.name, "images": len(data), "train": config.to_json()["train"], **judge}
    origin = {"init": {"name": old.name, "fingerprint": start.fingerprint}}
    return replace(old, name=config.name or f"{old.name}-e2e", facts={**facts, **origin})


def _refuse_single_steps(config: RunConfig) -> None:
    """Whole chains draw no noise levels, weigh none, and are told every condition."""
    for name in SINGLE_STEPS:
        asked = getattr(config.diffusion, name)
        if asked != getattr(_BLANK.diffusion, name):
            raise ConfigError(
                f"diffusion.{name}={_word(asked)} with objective=e2e",
                "It says how single steps are trained; whole chains have e2e.steps, e2e.spacing and e2e.terms",
                f"Leave diffusion.{name} out",
            )


def _refuse_other_parts(config: RunConfig, old: ModelConfig) -> None:
    own = {"network": old.network, "prediction": old.prediction, "schedule": old.schedule, "label": old.label}
    own["conditional"] = bool(old.null)
    for name, value in own.items():
        holder, blank = (of if name == "network" else of.diffusion for of in (config, _BLANK))
        asked = getattr(holder, name)
        if asked not in (value, getattr(blank, name)):
            key = name if name == "network" else f"diffusion.{name}"
            raise ConfigError(
                f"{key}={_word(asked)} for a run that starts from {old.name!r}",
                f"It goes on with that model's own: {_word(value)}",
                f"Leave {key} out (--init does so for a preset), or start from scratch without e2e.init",
            )


def _word(value: Any) -> str:
    return f"{value.name} {dict(value.arguments)}" if isinstance(value, Part) else repr(value)


def _refuse_other_data(data: Images, old: ModelConfig) -> None:
    """The images of the model, told apart as it was told; a model that is told nothing takes any of its shape."""
    classes = len(data.classes) if old.classes else 0
    if data.shape == old.shape and classes == old.n_classes and old.captions in (None, data.vocabulary):
        return
    raise ConfigError(
        f"{data.name!r}, images of shape {data.shape} with {len(data.classes)} classes and "
        f"{'captions' if data.vocabulary else 'no captions'}, for a run that starts from {old.name!r}",
        f"The model makes images of shape {old.shape}, of {old.n_classes} classes and with "
        f"{'its own captions' if old.captions else 'no captions'}",
        "Choose the data it was trained on; in `fewstep train`, size= makes images of another size fit",
    )
