"""A run, written down: frozen dataclasses that travel as JSON and refuse typing errors.

``override(config, ["train.lr=1e-3", "network=unet", "network.width=48"])`` is what the command line does. A part such
as the network is set by its name, which forgets the arguments of the old one, and its arguments by their names.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fewstep.denoisers import LABELS, PREDICTIONS
from fewstep.errors import ConfigError, about, choose
from fewstep.losses import WEIGHTS
from fewstep.models import Part
from fewstep.networks import NETWORKS
from fewstep.noise import DRAWS, SCHEDULES, SPACINGS
from fewstep.solvers import SOLVERS
from fewstep.training.e2e_config import E2EConfig
from fewstep.training.e2e_couplings import COUPLINGS, GRADIENTS
from fewstep.training.options import Tables, assign, rebuilt, refuse_unless, typed

__all__ = ["OBJECTIVES", "DiffusionConfig", "RunConfig", "TrainConfig", "override"]

_OWN = ("lr", "betas", "weight_decay", "clip")  # keys of TrainConfig that each player may have its own value of
OBJECTIVES = ("denoising", "e2e")
_TABLES: Tables = {
    "network": NETWORKS,
    "prediction": PREDICTIONS,
    "schedule": SCHEDULES,
    "draw": DRAWS,
    "weight": WEIGHTS,
    "solver": SOLVERS,
    "spacing": SPACINGS,
    "coupling": COUPLINGS,
    "gradient": GRADIENTS,
}


@dataclass(frozen=True)
class DiffusionConfig:
    """What the network learns.

    Args:
        prediction: meaning of the network's output.
        schedule: its noise levels.
        label: what it reads as its noise level, a name in LABELS.
        draw: density of the training times.
        weight: weight of each noise level.
        conditional: whether it is told the class or the caption, when the data has them.
        class_dropout: probability of training without the class or caption, for guidance.
    """

    prediction: Part = Part("flow")
    schedule: Part = Part("linear_flow")
    label: str = "angle"
    draw: Part = Part("logit_normal")
    weight: Part = Part("plain")
    conditional: bool = True
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        choose(self.label, LABELS, "noise label")
        refuse_unless(0 <= self.class_dropout <= 1, self, "class_dropout", "between 0 and 1", "diffusion")
        for name in ("prediction", "schedule", "draw", "weight"):
            getattr(self, name).build(_TABLES[name], name)


@dataclass(frozen=True)
class TrainConfig:
    """How the players are trained.

    Args:
        steps: training steps of the whole run.
        batch: images per step and process.
        lr: peak learning rate of AdamW.
        warmup: steps over which it rises.
        decay: fraction of the run, at its end, over which it falls to 0 along a half cosine; 0 keeps it constant.
        betas: decay rates of AdamW's two moments.
        weight_decay: of AdamW.
        clip: largest norm of a player's gradient; 0 does not clip.
        ema: decay of the moving average of the generator's weights.
        precision: "no" (float32) or "bf16" (autocast).
        flip: whether every image is mirrored half of the time.
        seed: of weights, data order and noise; at least 0 and below 2^63.
        checkpoint_every: steps between checkpoints; the last step always has one.
        keep: how many checkpoints stay.
        players: player -> its own values of lr, betas, weight_decay or clip, where they differ from those above.

    Raises:
        ConfigError: if a value is outside its range.
        UnknownName: if a player is given another key.
    """

    steps: int = 1000
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 100
    decay: float = 0.33
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    precision: str = "no"
    flip: bool = False
    seed: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    players: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse = partial(refuse_unless, group="train")
        for name in ("steps", "batch", "lr", "checkpoint_every", "keep"):
            refuse(0 < getattr(self, name) < math.inf, self, name, "above 0 and finite")
        for name in ("warmup", "weight_decay", "clip"):
            refuse(0 <= getattr(self, name) < math.inf, self, name, "at least 0 and finite")
        refuse(0 <= self.seed < 2**63, self, "seed", "at least 0 and below 2^63")
        refuse(0 <= self.decay <= 1, self, "decay", "between 0 and 1")
        refuse(0 <= self.ema < 1, self, "ema", "at least 0 and below 1")
        proper = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        refuse(proper, self, "betas", "two numbers in [0, 1)")
        refuse(self.precision in ("no", "bf16"), self, "precision", "'no' or 'bf16'")
        object.__setattr__(self, "players", {name: self._own(name, own) for name, own in self.players.items()})
        for name in self.players:
            with about(f"train.players.{name}"):
                self.of_player(name)

    def of_player(self, name: str) -> TrainConfig:
        """Return what holds for one player: its own values before those of all."""
        return dataclasses.replace(self, players={}, **self.players.get(name, {}))

    def _own(self, player: str, own: Any) -> dict[str, Any]:
        key, table = f"train.players.{player}", {name: getattr(self, name) for name in _OWN}
        if not isinstance(own, Mapping):
            raise ConfigError(f"{key}={own!r}", f"{key} is a group of {', '.join(_OWN)}", f"Write {key}.lr=1e-4")
        return {
            name: typed(value, choose(name, table, "key of a player"), f"{key}.{name}") for name, value in own.items()
        }


@dataclass(frozen=True)
class RunConfig:
    """A whole training run.

    Args:
        name: what the model will be called; empty names it after the data.
        data: a source for :func:`fewstep.data.load_data`.
        network: name in NETWORKS and arguments; channels, classes and captions come from the data.
        diffusion: what it learns.
        train: how.
        size: crop and resize images to size x size pixels; 0 takes them as they are.
        objective: "denoising", single steps; or "e2e", whole chains.
        e2e: the chains and what is asked of their ends; for the objective "e2e" alone.

    Raises:
        UnknownName: if there is no such objective.
        ConfigError: if the size is below 0, or a part has an argument that JSON cannot hold.
    """

    name: str = ""
    data: str = "digits"
    size: int = 0
    network: Part = Part("unet")
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    objective: str = "denoising"
    e2e: E2EConfig = field(default_factory=E2EConfig)

    def __post_init__(self) -> None:
        choose(self.objective, dict.fromkeys(OBJECTIVES), "objective")
        refuse_unless(type(self.size) is int and self.size >= 0, self, "size", "a whole number, at least 0")
        self.to_json()

    def to_json(self) -> dict[str, Any]:
        """Turn the configuration into plain values.

        Returns:
            Nested keys, as JSON holds them; a run of single steps leaves out those of chains.

        Raises:
            ConfigError: if JSON cannot hold a value, such as NaN.
        """
        options = dataclasses.asdict(self)
        if self.objective == "denoising":
            del options["objective"], options["e2e"]
        try:
            content: dict[str, Any] = json.loads(json.dumps(options, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"A configuration that JSON cannot hold ({error})",
                "Options are words, finite numbers, true or false, and lists of them",
                "Look for NaN, infinity or an object among the arguments of the parts",
            ) from error
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RunConfig:
        """Rebuild the configuration.

        Args:
            content: what :meth:`to_json` returned.

        Returns:
            The configuration.

        Raises:
            UnknownName: if a key is unknown.
            ConfigError: if a value has the wrong type or is outside its range.
        """
        config: RunConfig = rebuilt(cls, content)
        return config


def override(config: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """Change values of a configuration by dotted names.

    Args:
        config: where to start.
        assignments: for instance "train.lr=1e-3", "diffusion.prediction=v", "diffusion.schedule.t_min=0.01".

    Returns:
        The changed configuration.

    Raises:
        UnknownName: if a key, or the name of a part, does not exist; the message names the nearest one.
        ConfigError: if an assignment has no "=", a value has the wrong type or is outside its range, or options of
            chains are left over for a run of single steps.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"The override {assignment!r}", "Overrides are written key=value", "Write train.lr=1e-3")
        config = assign(config, key.strip().split("."), text.strip(), key.strip(), _TABLES)
    if config.objective == "denoising" and config.e2e != E2EConfig():
        raise ConfigError(
            "Options of the group e2e for a run of the objective denoising",
            "They belong to the objective e2e",
            "Add objective=e2e (or --objective e2e), or leave them out",
        )
    return config
