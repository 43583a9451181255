"""What `fewstep export` does once it is parsed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape

from fewstep.cli.shell import console, say
from fewstep.experiments.export import export_pipeline
from fewstep.models import load_model

__all__ = ["run_export"]


def run_export(model: str, out: Path, scheduler: str) -> None:
    """Write a model as a folder of diffusers, and say how it is loaded."""
    with console.status("loading diffusers"):
        pipeline = export_pipeline(load_model(model), out, scheduler)
    config: Any = pipeline.config
    steps = f"{', '.join(config.chain)} steps" if config.chain else f"{config.steps} steps unless told otherwise"
    say(f"{escape(model)} in {escape(str(out))}: {type(pipeline.scheduler).__name__}, {steps}")
    say("[dim]from fewstep.pipelines import FewstepPipeline[/]")
    say(f'[dim]pipe = FewstepPipeline.from_pretrained("{escape(str(out))}")[/]')
