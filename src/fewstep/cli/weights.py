"""What `fewstep import` and `fewstep push` do once they are parsed: foreign weights in, models of ours out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.markup import escape

from fewstep.adapters.checkpoints import config_like, import_weights
from fewstep.cli.shell import console, say
from fewstep.models import load_model, save_model

__all__ = ["run_import", "run_push"]


def run_import(weights: Path, like: str, out: Path, name: str, licence: str) -> None:
    """Make a model folder of a file of weights."""
    with console.status(f"reading {weights.name}"):
        config = config_like(like)
        found = import_weights(weights, replace(config, name=name or out.name))
    facts = {"imported": {"file": weights.name, "taken": found.said}, **({"license": licence} if licence else {})}
    save_model(out, found.network, replace(found.config, facts=facts), half=found.half)
    model = load_model(out)
    model.save_pretrained(out)
    say(f"{escape(model.config.name)} {model.fingerprint} in {escape(str(out))}: {escape(found.said)}")
    say(f"[dim]fewstep sample --model {escape(str(out))}[/]")


def run_push(model: str, repo_id: str, private: bool) -> None:
    """Share a model on the Hugging Face hub."""
    with console.status(f"uploading to {repo_id}"):
        url = load_model(model).push_to_hub(repo_id, private=private)
    say(escape(url))
