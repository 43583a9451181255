"""What is examined: a pipeline in memory, its folder or hub id, a scheduler alone, or a model of ours.

Configurations and the card are read, never weights, and no code out of a folder is run: classes come from diffusers and
from fewstep by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from fewstep._files import read_json, require
from fewstep.adapters.diffusers_config import need_diffusers
from fewstep.adapters.doctor.build import built, fitted
from fewstep.adapters.doctor.runs import quiet
from fewstep.errors import CheckpointError, ConfigError, MissingWeights
from fewstep.models import Model, ModelConfig, bundled

__all__ = ["Own", "Subject", "subject_of"]

_WEIGHTS = Path(__file__).parents[2] / "weights"
_ID = r"[\w.-]+/[\w.-]+"
_NETWORKS = ("unet", "transformer")
_Find: TypeAlias = Callable[[str], Path | None]  # name of a file in a folder or on the hub -> where it is


@dataclass(frozen=True)
class Subject:
    """A pipeline of diffusers, or what there is of one.

    Args:
        name: what it was called by.
        scheduler: its scheduler; it is never changed.
        pipeline: name of its class; empty for a scheduler alone.
        network: configuration of its network, with the name of the class; empty if there is none.
        names: where it is said what the weights are: names, paths, tags and title of the card.
        steps: numbers of steps that a calibrated table, an exported model or the card's example has; empty without any.
        chain: of an exported model, number of steps -> sigmas that it was trained at; empty for any other.
        refused: why our scheduler refuses its own configuration, in which case another samples the same schedule;
            empty if it does not.
    """

    name: str
    scheduler: Any
    pipeline: str = ""
    network: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    chain: Mapping[str, Sequence[float]] = field(default_factory=dict)
    refused: str = ""

    @property
    def config(self) -> Mapping[str, Any]:
        """Configuration of the scheduler, with what its class fills in."""
        return dict(self.scheduler.config)

    @property
    def scheduler_name(self) -> str:
        """Class of the scheduler."""
        return type(self.scheduler).__name__


@dataclass(frozen=True)
class Own:
    """A model of ours.

    Args:
        name: what it was called by.
        config: what it is.
        fingerprint: of its weights, as its configuration says.
        table: the calibration beside its weights; why it cannot be read; or None.
    """

    name: str
    config: ModelConfig
    fingerprint: str
    table: Mapping[str, Any] | CheckpointError | None


def subject_of(given: Any) -> Subject | Own:
    """Find out what was given.

    Args:
        given: a pipeline, a scheduler or a Model; a folder of one; a hub id; or the name of a bundled model.

    Returns:
        What there is to examine.

    Raises:
        UnknownName: if its scheduler is of no known class.
        ConfigError: if it is no pipeline, or its scheduler cannot be built.
        CheckpointError: if a file is damaged or missing.
        MissingWeights: if there is no such folder, or the hub does not have it or cannot be reached.
        MissingExtra: if diffusers is missing or too old.
    """
    if isinstance(given, Model):
        return Own(given.config.name, given.config, given.fingerprint, given.calibration)
    if not isinstance(given, str | Path):
        return _in_memory(given)
    name = str(given)
    if name in bundled():
        return _own(name, _folder(_WEIGHTS / name))
    if Path(given).is_dir():
        return _read(name, _folder(Path(given)))
    if isinstance(given, Path) or Path(given).exists() or not re.fullmatch(_ID, name):
        raise MissingWeights(
            f"{name} is no folder, no bundled model and no hub id",
            f"A pipeline's folder, a hub id such as stabilityai/sdxl-turbo, or one of {', '.join(bundled())}",
            "Check the path",
        )
    return _read(name, _hub(name))


def _in_memory(given: Any) -> Subject:
    need_diffusers()
    scheduler = getattr(given, "scheduler", given)
    if not (hasattr(scheduler, "set_timesteps") and hasattr(scheduler, "config")):
        raise ConfigError(
            f"A {type(given).__name__}, which has no scheduler with set_timesteps",
            "A diffusers pipeline or scheduler, a fewstep Model, a folder, a hub id or a bundled name",
            "Pass the pipeline itself, or the path of its folder",
        )
    if scheduler is given:
        return Subject(type(given).__name__, given, steps=fitted(given))
    config = dict(getattr(given, "config", {}))
    network = next((part for name in _NETWORKS if (part := getattr(given, name, None)) is not None), None)
    known = dict(getattr(network, "config", {}))
    known.setdefault("_class_name", type(network).__name__ if network is not None else "")
    adapters = tuple(getattr(network, "peft_config", {}) or {})
    names = _said(config.get("_name_or_path"), known.get("_name_or_path"), *adapters)
    pipeline = config.get("_class_name") or type(given).__name__
    chain = _chain({**config, "_class_name": pipeline})
    steps = fitted(scheduler) or _numbers(chain, config.get("steps"))
    return Subject(names[0] if names else pipeline, scheduler, pipeline, known, names, steps, chain)


def _said(*names: Any) -> tuple[str, ...]:
    return tuple(name for name in names if isinstance(name, str) and name)


# Files


def _folder(folder: Path) -> _Find:
    return lambda name: path if (path := folder / name).is_file() else None


def _hub(name: str) -> _Find:
    hub = require("huggingface_hub", "diffusers")

    def find(file: str) -> Path | None:
        try:
            with quiet():
                return Path(hub.hf_hub_download(name, file))
        except hub.errors.EntryNotFoundError as error:
            if not isinstance(error, hub.errors.LocalEntryNotFoundError):
                return None
            _unreached(name, error)
        except (hub.errors.HfHubHTTPError, OSError, ValueError) as error:
            _unreached(name, error)
        return None

    return find


def _unreached(name: str, error: Exception) -> None:
    raise MissingWeights(
        f"{name} is no folder here, and cannot be had from the hub ({(str(error).splitlines() or [''])[0]})",
        "A hub id that exists and is open to you, with a connection or in the cache",
        "Check the name; a pipeline on disk is given by the path of its folder",
    ) from error


def _read(name: str, find: _Find) -> Subject | Own:
    if (index := find("model_index.json")) is not None:
        return _pipeline(name, find, read_json(index))
    if (alone := find("scheduler_config.json")) is not None:
        scheduler, refused = built(read_json(alone))
        return Subject(name, scheduler, names=(_base(name),), steps=fitted(scheduler), refused=refused)
    config = find("config.json")
    if config is not None and "_class_name" not in read_json(config):
        return _own(name, find)
    raise CheckpointError(
        f"{name} holds " + ("a network alone, no model_index.json" if config else "no model_index.json"),
        "A pipeline's folder (model_index.json), a scheduler's (scheduler_config.json) or a fewstep model's "
        "(config.json)",
        "Give the folder of the whole pipeline, such as the one that save_pretrained wrote",
    )


def _own(name: str, find: _Find) -> Own:
    path, table = find("config.json"), find("calibration.json")
    if path is None:
        raise CheckpointError(f"{name} has no config.json", "A model folder has one", "Restore it from a copy")
    content = read_json(path)
    mark = str(content.pop("fingerprint", ""))
    try:
        read = None if table is None else read_json(table)
    except CheckpointError as error:
        return Own(name, ModelConfig.from_json(content), mark, error)
    return Own(name, ModelConfig.from_json(content), mark, read)


def _pipeline(name: str, find: _Find, index: Mapping[str, Any]) -> Subject:
    path = find("scheduler/scheduler_config.json")
    if path is None:
        raise CheckpointError(
            f"{name} has no scheduler/scheduler_config.json",
            "The schedule that the weights were trained with lies beside them",
            "Restore the folder from a copy, or save the pipeline again",
        )
    entry = index.get("scheduler")
    kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    network: dict[str, Any] = {}
    for part in _NETWORKS:
        if isinstance(index.get(part), list) and (config := find(f"{part}/config.json")) is not None:
            network = read_json(config)
            break
    card = find("README.md")
    text = "" if card is None else card.read_text(encoding="utf-8", errors="replace")
    called = (name, index.get("_name_or_path"), network.get("_name_or_path"))
    names = (*map(_base, _said(*called)), *_titles(text))
    pipeline = str(index.get("_class_name") or "")
    chain = _chain(index)
    scheduler, refused = built(read_json(path), kind)
    steps = fitted(scheduler) or _numbers(chain, index.get("steps")) or _steps(text)
    return Subject(name, scheduler, pipeline, network, names, steps, chain, refused)


def _chain(config: Mapping[str, Any]) -> Mapping[str, Sequence[float]]:
    """Of a pipeline that `fewstep export` wrote."""
    chain = config.get("chain") if config.get("_class_name") == "FewstepPipeline" else None
    return chain if isinstance(chain, Mapping) else {}


def _numbers(chain: Mapping[str, Any], steps: Any) -> tuple[int, ...]:
    """Numbers of steps of an exported model: those of its chain, or the one that it makes unless told."""
    return tuple(sorted(map(int, chain))) or ((steps,) if type(steps) is int else ())


def _base(name: str) -> str:
    """A hub id, or the last part of a path: what lies above a model says nothing of it."""
    return name if re.fullmatch(_ID, name) and not Path(name).exists() else Path(name).name


def _titles(card: str) -> list[str]:
    """The lines of a card that say what it is of: base model and tags of its front matter, and its title."""
    front = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    tags = re.findall(r"^(?:base_model:|-) *(\S+)$", front[1], re.MULTILINE) if front else []
    return [*tags, *re.findall(r"^# +(.+)$", card, re.MULTILINE)[:1]]


def _steps(card: str) -> tuple[int, ...]:
    """Number of steps of the card's first example."""
    found = re.search(r"num_inference_steps\s*=\s*(\d{1,3})\b", card)
    return (max(int(found[1]), 1),) if found else ()
