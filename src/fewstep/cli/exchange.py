"""The commands that deal with other libraries: import, export, push, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import ModelOption

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Give the application these commands."""
    app.command()(doctor)
    app.command()(export)
    app.command(name="import")(import_)
    app.command()(push)


def doctor(
    pipeline: Annotated[str, typer.Argument(help="Folder or hub id of a diffusers pipeline, or a model of ours.")],
    steps: Annotated[
        int | None, typer.Option(help="num_inference_steps; without it 4 and 10, or 4 of distilled weights.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="guidance_scale that you use.")] = None,
    strength: Annotated[float | None, typer.Option(help="strength of image to image that you use.")] = None,
    sigmas: Annotated[str, typer.Option(help="Sigmas that you pass, comma-separated; a flow's before its shift.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Name the mistakes of a few-step pipeline, with evidence and fix; exit 1 if there are any. Needs no weights."""
    from fewstep.cli.doctor import levels, run_doctor

    given = levels(sigmas)
    raise typer.Exit(
        run_doctor(pipeline, steps=steps, guidance=guidance, strength=strength, sigmas=given, as_json=as_json)
    )


def export(
    model: ModelOption = "mnist",
    out: Annotated[Path, typer.Option(help="Folder of diffusers to write.")] = Path("pipeline"),
    scheduler: Annotated[
        str, typer.Option(help="evodiff, calibrated, stock, or auto: the model's table if it has one, else evodiff.")
    ] = "auto",
) -> None:
    """Write a model of ours as a folder of diffusers."""
    from fewstep.cli.export import run_export

    run_export(model, out, scheduler)


def import_(
    weights: Annotated[
        str, typer.Argument(help="safetensors; .pt, .pth, .ckpt, read with weights_only; or a folder of diffusers.")
    ],
    like: Annotated[str, typer.Option(help="What a file is of: a model, its folder, or a config.json.")] = "",
    out: Annotated[Path, typer.Option(help="Model folder to write.")] = Path("imported"),
    name: Annotated[str, typer.Option(help="Name of the model; that of the folder if omitted.")] = "",
    licence: Annotated[str, typer.Option(help="Of the weights, for the card.")] = "",
    scheduler: Annotated[str, typer.Option(help="Folder of the scheduler, for a unet of diffusers alone.")] = "",
    null: Annotated[
        bool, typer.Option("--null", help="The last class of a network of diffusers says nothing: it can be guided.")
    ] = False,
) -> None:
    """Make a model folder of a file of weights, or of a folder of diffusers with a UNet2DModel."""
    from fewstep.cli.weights import run_import

    run_import(weights, like, out, name, licence, scheduler, null)


def push(
    repo_id: Annotated[str, typer.Argument(help="Where to on the hub: user/name.")],
    model: ModelOption = "mnist",
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Share a model on the Hugging Face hub."""
    from fewstep.cli.weights import run_push

    run_push(model, repo_id, private)
