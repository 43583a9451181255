"""What a model is, in words that JSON can hold: everything about it but its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep._chain import Chain
from fewstep._part import Part
from fewstep.denoisers import PREDICTIONS, NetworkDenoiser
from fewstep.errors import CheckpointError, ConfigError, FewstepError
from fewstep.networks import NETWORKS, Vocabulary
from fewstep.noise import SCHEDULES

__all__ = ["ModelConfig", "built", "fill", "require"]


@dataclass(frozen=True)
class ModelConfig:
    """Everything about a model except its weights; JSON can hold it.

    Args:
        name: what the model is called.
        network: name in NETWORKS and arguments.
        prediction: name in PREDICTIONS and arguments.
        schedule: name in SCHEDULES and arguments.
        shape: channels, height and width of its images.
        label: name in LABELS: what the network reads as its noise level.
        classes: names of the classes; empty for a model that is told none. The null class has the index len(classes).
        captions: words of the captions, and how many a caption may have; None for a model that reads none.
        facts: data, seconds, steps... for the card.
        chain: the chain that it was trained through end to end; None for a model of ordinary training.

    Raises:
        ConfigError: if a value has the wrong form.
    """

    name: str
    network: Part
    prediction: Part
    schedule: Part
    shape: tuple[int, int, int]
    label: str = "angle"
    classes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    captions: Vocabulary | None = None
    chain: Chain | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.name, str), self, "name", "a word")
        three = isinstance(self.shape, tuple) and len(self.shape) == 3
        whole = three and all(type(length) is int and length > 0 for length in self.shape)
        require(whole, self, "shape", "three whole numbers above 0: channels, height, width")
        require(isinstance(self.label, str), self, "label", "a word")
        named = isinstance(self.classes, tuple) and all(isinstance(name, str) for name in self.classes)
        require(named, self, "classes", "a list of names")
        require(isinstance(self.captions, Vocabulary | None), self, "captions", "null, or words and length")
        require(isinstance(self.facts, Mapping), self, "facts", "a group of keys")
        require(isinstance(self.chain, Chain | None), self, "chain", "null, or solver, spacing and steps")

    @property
    def n_classes(self) -> int:
        """Number of classes, 0 for a model that is told none."""
        return len(self.classes)

    @property
    def conditions(self) -> dict[str, int]:
        """Arguments of the network that say what it is told."""
        words = {} if self.captions is None else {"n_tokens": self.captions.n_tokens}
        length = {} if self.captions is None else {"caption_length": self.captions.length}
        return {"n_classes": self.n_classes, **words, **length}

    @property
    def null(self) -> dict[str, Tensor]:
        """The condition that says nothing, one row of each entry; empty for an unconditional model."""
        label = {"label": torch.tensor([self.n_classes])} if self.classes else {}
        return label if self.captions is None else {**label, "tokens": self.captions.null}

    def body(self) -> nn.Module:
        """Build the network with fresh weights.

        Returns:
            The network, in training mode.

        Raises:
            UnknownName: if there is no such network, or it has no such argument.
            ConfigError: if it cannot be built.
        """
        return self.network.build(NETWORKS, "network")

    def denoiser(self, network: nn.Module) -> NetworkDenoiser:
        """Wrap a network.

        Args:
            network: one from :meth:`body`.

        Returns:
            Its denoiser.

        Raises:
            UnknownName: if prediction, schedule or label is in no table.
            ConfigError: if one of them cannot be built.
        """
        prediction = self.prediction.build(PREDICTIONS, "prediction")
        return NetworkDenoiser(network, prediction, self.schedule.build(SCHEDULES, "schedule"), self.label)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelConfig:
        """Rebuild the configuration from what ``dataclasses.asdict`` and JSON made of it.

        Args:
            content: the keys of this class.

        Returns:
            The configuration.

        Raises:
            CheckpointError: if keys are missing or unknown, or a value has the wrong form.
        """
        try:
            parts = {key: Part(**content[key]) for key in ("network", "prediction", "schedule")}
            lists = {key: _tuple(content[key]) for key in ("shape", "classes")}
            captions = content.get("captions")  # models from before there were captions do not have the key
            words = captions and Vocabulary(**{**captions, "words": _tuple(captions["words"])})
            chain = content.get("chain")  # nor do models from before there were chains
            known = {"captions": words, "chain": chain and Chain.from_json(chain)}
            return cls(**{**content, **parts, **lists, **known})
        except (KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(
                f"config.json does not describe a fewstep model ({type(error).__name__}: {error})",
                f"Its keys are {', '.join(f.name for f in dataclasses.fields(cls))}",
                "Check that the folder was written by this version of fewstep",
            ) from error


def require(holds: bool, config: ModelConfig, name: str, allowed: str) -> None:
    """Refuse a value of a configuration; raises ConfigError unless it holds what is allowed."""
    if not holds:
        raise ConfigError(f"{name}={getattr(config, name)!r}", f"{name} is {allowed}", f"Change {name}")


def built(config: ModelConfig, source: str | Path) -> tuple[NetworkDenoiser, nn.Module]:
    """Build what a configuration from some source describes; its network must be made for its images and conditions."""
    try:
        network = config.body()
        denoiser = config.denoiser(network)
        unread = {"n_tokens": 0, "caption_length": 0}
        for name, needed in {**unread, "channels": config.shape[0], **config.conditions}.items():
            require(getattr(network, name, needed) == needed, config, "network", f"made with {name}={needed}")
    except FewstepError as error:
        raise CheckpointError(
            f"{source} describes a model that cannot be built ({error})",
            "Its parts are those of this version of fewstep, and fit together",
            "Restore the folder from a copy, or save the model again",
        ) from error
    return denoiser, network


def fill(network: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Copy weights into a network of the same names and shapes."""
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in {folder} do not fit the network of its config.json ({error})",
            "Both have the same parameters, of the same shapes",
            "Restore the folder from a copy, or save the model again",
        ) from error


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
