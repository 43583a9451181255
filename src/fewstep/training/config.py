"""A run, written down: frozen dataclasses that travel as JSON and refuse typing errors.

``override(config, ["train.lr=1e-3", "network=unet", "network.width=48"])`` is what the command line does. A part such
as the network is set by its name, which forgets the arguments of the old one, and its arguments by their names.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

from fewstep.denoisers import LABELS, PREDICTIONS
from fewstep.errors import ConfigError, choose
from fewstep.losses import WEIGHTS
from fewstep.models import Part
from fewstep.networks import NETWORKS
from fewstep.noise import DRAWS, SCHEDULES

__all__ = ["DiffusionConfig", "RunConfig", "TrainConfig", "override"]

ConfigT = TypeVar("ConfigT")
_OWN = ("lr", "betas", "weight_decay", "clip")  # keys of TrainConfig that each player may have its own value of
_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    tuple: "a list of numbers",
    Part: "a name and arguments",
}
_TABLES: dict[str, Mapping[str, Any]] = {
    "network": NETWORKS,
    "prediction": PREDICTIONS,
    "schedule": SCHEDULES,
    "draw": DRAWS,
    "weight": WEIGHTS,
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
        _require(0 <= self.class_dropout <= 1, self, "class_dropout", "between 0 and 1")
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
        for name in ("steps", "batch", "lr", "checkpoint_every", "keep"):
            _require(0 < getattr(self, name) < math.inf, self, name, "above 0 and finite")
        for name in ("warmup", "weight_decay", "clip"):
            _require(0 <= getattr(self, name) < math.inf, self, name, "at least 0 and finite")
        _require(0 <= self.seed < 2**63, self, "seed", "at least 0 and below 2^63")
        _require(0 <= self.decay <= 1, self, "decay", "between 0 and 1")
        _require(0 <= self.ema < 1, self, "ema", "at least 0 and below 1")
        _require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), self, "betas", "two numbers in [0, 1)")
        _require(self.precision in ("no", "bf16"), self, "precision", "'no' or 'bf16'")
        object.__setattr__(self, "players", {name: self._own(name, own) for name, own in self.players.items()})
        for name in self.players:
            self.of_player(name)

    def of_player(self, name: str) -> TrainConfig:
        """Return what holds for one player: its own values before those of all."""
        return dataclasses.replace(self, players={}, **self.players.get(name, {}))

    def _own(self, player: str, own: Any) -> dict[str, Any]:
        key, table = f"train.players.{player}", {name: getattr(self, name) for name in _OWN}
        if not isinstance(own, Mapping):
            raise ConfigError(f"{key}={own!r}", f"{key} is a group of {', '.join(_OWN)}", f"Write {key}.lr=1e-4")
        return {
            name: _typed(value, choose(name, table, "key of a player"), f"{key}.{name}") for name, value in own.items()
        }


def _require(holds: bool, config: Any, name: str, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{name}={getattr(config, name)!r}", f"{name} is {allowed}", f"Change {name}")


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

    Raises:
        ConfigError: if the size is below 0, or a part has an argument that JSON cannot hold.
    """

    name: str = ""
    data: str = "digits"
    size: int = 0
    network: Part = Part("unet")
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _require(type(self.size) is int and self.size >= 0, self, "size", "a whole number, at least 0")
        self.to_json()

    def to_json(self) -> dict[str, Any]:
        """Turn the configuration into nested keys of plain values; ConfigError if JSON cannot hold one, such as NaN."""
        try:
            content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))
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
        config: RunConfig = _rebuilt(cls, content, "")
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
        ConfigError: if an assignment has no "=", or a value has the wrong type or is outside its range.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"The override {assignment!r}", "Overrides are written key=value", "Write train.lr=1e-3")
        config = _assign(config, key.strip().split("."), text.strip(), key.strip())
    return config


def _assign(config: ConfigT, path: list[str], text: str, key: str) -> ConfigT:
    """Set one value below a dataclass, rebuilding every dataclass on the way."""
    hints = get_type_hints(type(config))
    choose(path[0], hints, f"key of {type(config).__name__}")
    old = getattr(config, path[0])
    new: Any
    if isinstance(old, Part):
        new = _assign_part(old, path, text, key)
    elif dataclasses.is_dataclass(old):
        if len(path) == 1:
            raise ConfigError(f"{key}={text}", f"{key} is a group of keys", f"Write {key}.<key>=value")
        new = _assign(old, path[1:], text, key)
    elif isinstance(old, Mapping) and len(path) == 3:
        new = {**old, path[1]: {**old.get(path[1], {}), path[2]: _parsed(text)}}
    elif len(path) > 1:
        raise ConfigError(f"{key}={text}", f"{path[0]} is a single value", f"Write {path[0]}=value")
    else:
        new = text if isinstance(old, str) else _typed(_parsed(text), old, key)
    return dataclasses.replace(config, **{path[0]: new})  # type: ignore[type-var]


def _assign_part(part: Part, path: list[str], text: str, key: str) -> Part:
    """Set a part by name, or one of its arguments."""
    table = _TABLES[path[0]]
    if len(path) > 2:
        raise ConfigError(f"{key}={text}", f"{path[1]} is a single value", f"Write {path[0]}.{path[1]}=value")
    if len(path) == 1:
        choose(text, table, path[0])
        return Part(text)
    parameters = inspect.signature(choose(part.name, table, path[0])).parameters
    parameter = choose(path[1], parameters, f"argument of {path[0]} {part.name!r}")
    return Part(part.name, {**part.arguments, path[1]: _typed(_parsed(text), parameter.default, key)})


def _parsed(text: str) -> Any:
    """Read a value as JSON; what is no JSON is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _typed(value: Any, like: Any, key: str) -> Any:
    """Check that a value has the type of the one it replaces; whole numbers do for decimal ones, lists for tuples."""
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(like, tuple) and isinstance(value, list) and all(isinstance(part, int | float) for part in value):
        return tuple(value)
    if type(value) is type(like) or (like is None and isinstance(value, int | float)):
        return value
    kind = _KINDS.get(type(like), "a number" if like is None else "a group of keys")
    raise ConfigError(
        f"{key}={value!r} ({type(value).__name__})", f"{key} takes {kind}, such as {like!r}", f"Change {key}"
    )


def _rebuilt(cls: type[Any], content: Mapping[str, Any], prefix: str) -> Any:
    """Build a dataclass from JSON, checking keys and types against its defaults."""
    default = cls()
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, value in content.items():
        choose(name, hints, f"key of {cls.__name__}")
        old, key = getattr(default, name), prefix + name
        if not isinstance(value, Mapping):
            values[name] = _typed(value, old, key)
        elif isinstance(old, Part) and value.keys() == {"name", "arguments"}:
            values[name] = Part(value["name"], value["arguments"])
        elif dataclasses.is_dataclass(old) and not isinstance(old, Part):
            values[name] = _rebuilt(type(old), value, f"{key}.")
        else:
            values[name] = _typed(value, old, key)
    return cls(**values)
