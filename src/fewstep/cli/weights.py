"""What `fewstep import` and `fewstep push` do once they are parsed: foreign weights in, models of ours out."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from fewstep._files import fingerprint, read_json
from fewstep.adapters.checkpoints import Imported, config_like, import_weights
from fewstep.adapters.diffusers_import import import_diffusers
from fewstep.cli.shell import console, say
from fewstep.errors import ConfigError, OutputError
from fewstep.models import load_model, save_model, stored_weights

__all__ = ["run_import", "run_push"]

_OF_A_MODEL = ("config.json", "model.safetensors", "calibration.json")
_READ_AS = ("schedule", "prediction", "label")


def run_import(
    weights: str, like: str, out: Path, name: str, licence: str, scheduler: str = "", null: bool = False
) -> None:
    """Make a model folder of a file of weights, or of a model of diffusers."""
    with console.status(f"reading {escape(weights)}"):
        found = _found(weights, like, scheduler, null, name or out.name)
    _refuse_another_model(out, found)
    source = Path(weights).name if Path(weights).exists() else weights
    facts = {"imported": {"file": source, "taken": found.said}, **({"license": licence} if licence else {})}
    save_model(out, found.network, replace(found.config, facts=facts), half=found.half)
    model = load_model(out)
    model.save_pretrained(out)
    say(f"{escape(model.config.name)} {model.fingerprint} in {escape(str(out))}: {escape(found.said)}")
    say(f"[dim]fewstep sample --model {escape(str(out))}[/]")


def _found(weights: str, like: str, scheduler: str, null: bool, name: str) -> Imported:
    if not like:
        found = import_diffusers(weights, scheduler, null=null)
        return found._replace(config=replace(found.config, name=name))
    if scheduler or null:
        given = f"--like with {'--scheduler' if scheduler else '--null'}"
        raise ConfigError(given, "What --like names says all of a model", "Leave one of them out")
    return import_weights(weights, replace(config_like(like), name=name))


def _refuse_another_model(out: Path, found: Imported) -> None:
    """Keep a model that is there, and its table; the same weights may be imported again, to describe them anew."""
    there = [name for name in _OF_A_MODEL if (out / name).exists()]
    content = read_json(out / "config.json") if "config.json" in there else {}
    given = ""
    if there and content.get("fingerprint") != fingerprint(stored_weights(found.network, found.half)):
        given = f"{out} holds another model ({', '.join(there)})"
    elif "calibration.json" in there and any(content.get(part) != _as_json(found, part) for part in _READ_AS):
        given = f"{out} holds these weights read in another way, and a calibration.json that was fitted to that"
    if given:
        raise OutputError(
            given,
            "A new folder, one without a model, or one of the same weights",
            "Choose another --out, or delete what is there first",
        )


def _as_json(found: Imported, part: str) -> Any:
    """A part of a configuration as its file has it."""
    return json.loads(json.dumps(asdict(found.config)[part]))


def run_push(model: str, repo_id: str, private: bool) -> None:
    """Share a model on the Hugging Face hub."""
    with console.status(f"uploading to {repo_id}"):
        url = load_model(model).push_to_hub(repo_id, private=private)
    say(escape(url))
