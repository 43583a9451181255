"""What `fewstep import` and `fewstep push` do once they are parsed: foreign weights in, models of ours out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.markup import escape

from fewstep._files import fingerprint, read_json
from fewstep.adapters.checkpoints import Imported, config_like, import_weights
from fewstep.adapters.diffusers_import import import_diffusers
from fewstep.cli.shell import console, say
from fewstep.errors import ConfigError, OutputError
from fewstep.models import load_model, save_model, stored_weights

__all__ = ["run_import", "run_push"]

_OF_A_MODEL = ("config.json", "model.safetensors", "calibration.json")


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
    mark = read_json(out / "config.json").get("fingerprint") if "config.json" in there else None
    if there and mark != fingerprint(stored_weights(found.network, found.half)):
        raise OutputError(
            f"{out} holds another model ({', '.join(there)})",
            "A new folder, one without a model, or one of the same weights",
            "Choose another --out, or delete the model first",
        )


def run_push(model: str, repo_id: str, private: bool) -> None:
    """Share a model on the Hugging Face hub."""
    with console.status(f"uploading to {repo_id}"):
        url = load_model(model).push_to_hub(repo_id, private=private)
    say(escape(url))
