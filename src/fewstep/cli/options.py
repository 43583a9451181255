"""Options that several commands share, and those that are long."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "OWN",
    "BatchChoice",
    "CalibratedOption",
    "CallsChoice",
    "CaptionsOption",
    "ClassesOption",
    "DeviceOption",
    "FeaturesOption",
    "FirstChoice",
    "FirstLevelChoice",
    "ForceOption",
    "GridNameChoice",
    "GridOption",
    "GuidanceOption",
    "ImagesOption",
    "IterationsChoice",
    "KappaMaxChoice",
    "KappaMaxOption",
    "KappaMinChoice",
    "KappaMinOption",
    "LastLevelChoice",
    "MatchOption",
    "MetricsOption",
    "ModelOption",
    "NfeChoice",
    "OutOption",
    "PresetOption",
    "PromptsOption",
    "ReferenceOption",
    "ScalesChoice",
    "SeedOption",
    "SolverChoice",
    "SolversOption",
    "StartOption",
    "StepsChoice",
    "TableOption",
    "TeacherChoice",
    "TrajectoriesChoice",
    "WhatArgument",
]

ModelOption = Annotated[
    str, typer.Option("--model", help="A bundled model (see `fewstep models`), a model folder or a hub id.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for what is written; made if missing.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the first image; image k has seed + k.")]
GuidanceOption = Annotated[float, typer.Option("--guidance", help="Classifier-free guidance; 1 is none.")]
_GRIDS = (
    "karras, uniform_lam, uniform_time, uniform_flow, trailing, quadratic, timesteps (where the model has them), "
    "table_of_levels, ays_sd15, ays_sdxl or ays_svd"
)
_FIRST = "First noise level of karras and uniform_lam, noise per unit of data"
_LAST = "Last noise level, likewise"
GridOption = Annotated[str, typer.Option("--grid", help=f"{_GRIDS}.")]
KappaMaxOption = Annotated[float, typer.Option("--kappa-max", help=f"{_FIRST}.")]
KappaMinOption = Annotated[float, typer.Option("--kappa-min", help=f"{_LAST}.")]

# The same where a few-step model decides for itself: what is left out is the model's, or else the default named here.
OWN = "a few-step model's own, or else"
SolverChoice = Annotated[
    str | None,
    typer.Option(
        "--solver",
        help="See `fewstep solvers`; with options, ddim:eta=0.5; a calibrated table, TABLE.json, or calibrated "
        f"for the one beside the weights; {OWN} calibrated where that serves, or else evodiff.",
    ),
]
NfeChoice = Annotated[int | None, typer.Option("--nfe", help=f"Calls of the network per image; {OWN} 10.")]
StepsChoice = Annotated[
    int | None,
    typer.Option("--steps", help="Steps of the grid, in place of --nfe; of a few-step model, a trained one."),
]
GridNameChoice = Annotated[str, typer.Option("--grid", help=f"{_GRIDS}; {OWN} karras.")]
KappaMaxChoice = Annotated[float | None, typer.Option("--kappa-max", help=f"{_FIRST}; {OWN} 80.")]
KappaMinChoice = Annotated[float | None, typer.Option("--kappa-min", help=f"{_LAST}; {OWN} 0.002.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ...; auto takes a GPU if there is one.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Take a table that was fitted to another model, schedule, guidance or --nfe.")
]
ClassesOption = Annotated[str, typer.Option(help="Classes to walk through, such as 3 or 0,1,2; all if omitted.")]
CaptionsOption = Annotated[
    list[str] | None, typer.Option(help="A caption, or a file with one per line; may be repeated.")
]

# Of `fewstep calibrate`.
TableOption = Annotated[
    str | None,  # a Path would forget the slash that makes it a folder
    typer.Option(
        "--out",
        help="The table, or its folder/; if omitted, beside the weights, where it is picked up by itself, and of a "
        "pipeline here.",
    ),
]
# What is left out is what is usual for a model of ours, or for a pipeline of diffusers.
CalibratedOption = Annotated[
    str, typer.Option("--model", help="A bundled model, a model folder, a hub id, or pipeline:PATH_OR_ID (diffusers).")
]
CallsChoice = Annotated[
    str | None,
    typer.Option("--nfe", help="Numbers of calls, comma-separated; 4,5,6,8,10,15,20, of a pipeline 5,8,10."),
]
ScalesChoice = Annotated[
    str | None,
    typer.Option(
        "--guidance", help="Scale, 1 is none; several, comma-separated, share a table; a pipeline's own, or 1."
    ),
]
TrajectoriesChoice = Annotated[
    int | None, typer.Option(help="Of the teacher; a fifth only judges the result; 160, of a pipeline 32.")
]
TeacherChoice = Annotated[int | None, typer.Option(help="Of the reference ODE; 64, of a pipeline 32.")]
IterationsChoice = Annotated[
    int | None,
    typer.Option(help="Of refinement; 0 is the closed form alone, no gradients; 30, of a pipeline 0."),
]
FirstChoice = Annotated[
    str | None,
    typer.Option(help="First estimate: network (a call), analytic (none) or auto; auto, of a pipeline network."),
]
FirstLevelChoice = Annotated[float | None, typer.Option("--kappa-max", help=f"{_FIRST}; 80, of a pipeline 500.")]
LastLevelChoice = Annotated[float | None, typer.Option("--kappa-min", help=f"{_LAST}; 0.002.")]
BatchChoice = Annotated[int | None, typer.Option(help="Images per call; 64, of a pipeline 4.")]
MatchOption = Annotated[bool, typer.Option("--match-variance", help="Give every sample the teacher's variance.")]

# Of `fewstep compare`, `fewstep train` and `fewstep ablate`.
SolversOption = Annotated[
    str | None,
    typer.Option(
        help="Names or calibrated tables, comma-separated; see `fewstep solvers`. Default: ddim,heun,dpmpp_2m,"
        "unipc,ipndm,evodiff,evodiff_paper, and calibrated where the model has a table."
    ),
]
PresetOption = Annotated[
    str,
    typer.Option(help="digits, mnist, cifar10, cifar10-small or scenes; with -e2e, whole chains. Default: digits."),
]
StartOption = Annotated[
    str, typer.Option("--model", help="Where every cell starts; a small one of the digits is trained if omitted.")
]

# Of `fewstep evaluate`.
WhatArgument = Annotated[
    str,
    typer.Argument(
        help="A bundled model, a model folder, pipeline:PATH_OR_ID (diffusers), folder:PATH, npz:PATH, "
        "parquet:PATH or hf:NAME."
    ),
]
ReferenceOption = Annotated[
    str,
    typer.Option(help="A judge, npz:PATH with statistics, or images as WHAT; the model's own judge if omitted."),
]
MetricsOption = Annotated[
    str,
    typer.Option(
        help="Comma-separated: fd, fd_inf, kid, mmd, prdc, is, clip, rho, sw, c2st, memorisation. "
        "Default fd,kid,prdc; fd,clip with --protocol."
    ),
]
FeaturesOption = Annotated[
    str,
    typer.Option(
        help="Comma-separated: pixels, random-conv, classifier (trained on the spot), classifier:FOLDER, "
        "cifar-resnet:FILE, squeezenet:FILE, inception:FILE, clip:PATH_OR_ID, dinov2:PATH_OR_ID; "
        "the judge's if omitted."
    ),
]
ImagesOption = Annotated[
    int | None,
    typer.Option(
        "--n", "--images", help="Images; 5,000 of a model, all of anything else. torchrun takes --n for its own."
    ),
]
PromptsOption = Annotated[
    Path | None, typer.Option(help="Prompts (.csv, .tsv, .jsonl, .txt): one image each, named by its id.")
]
