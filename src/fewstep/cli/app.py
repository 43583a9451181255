"""The commands of ``fewstep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import exchange, fitting
from fewstep.cli.options import (
    CaptionsOption,
    ClassesOption,
    DeviceOption,
    FeaturesOption,
    ForceOption,
    GridNameChoice,
    GridOption,
    GuidanceOption,
    ImagesOption,
    KappaMaxChoice,
    KappaMaxOption,
    KappaMinChoice,
    KappaMinOption,
    MetricsOption,
    ModelOption,
    NfeChoice,
    OutOption,
    PromptsOption,
    ReferenceOption,
    SeedOption,
    SolverChoice,
    SolversOption,
    StepsChoice,
    WhatArgument,
)

app = typer.Typer(
    help="Few-step diffusion: train, sample, measure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _fewstep(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from fewstep import __version__

        typer.echo(f"fewstep {__version__}")
        raise typer.Exit


@app.command()
def demo(out: OutOption = Path("demo")) -> None:
    """Show the main job: solvers against each other on a bundled model, and digits trained from nothing."""
    from fewstep.cli.commands import run_demo

    run_demo(out)


@app.command()
def sample(
    model: ModelOption = "mnist",
    solver: SolverChoice = None,
    nfe: NfeChoice = None,
    steps: StepsChoice = None,
    n: Annotated[int, typer.Option("--n", help="Number of images.")] = 64,
    seed: SeedOption = 0,
    out: OutOption = Path("samples"),
    classes: ClassesOption = "",
    captions: CaptionsOption = None,
    guidance: GuidanceOption = 1.0,
    grid: GridNameChoice = "",
    kappa_max: KappaMaxChoice = None,
    kappa_min: KappaMinChoice = None,
    batch_size: Annotated[int, typer.Option(help="Images per call.")] = 64,
    force: ForceOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Sample images; writes one PNG per image, grid.png and sample.json."""
    from fewstep.cli.commands import run_sample
    from fewstep.cli.shell import lines, numbers
    from fewstep.experiments.runs import GridChoice, SamplePlan

    chosen, said = GridChoice.given(grid, kappa_max, kappa_min), lines(captions or [], "--captions")
    walk = numbers(classes, "--classes")
    plan = SamplePlan(solver, nfe, n, seed, walk, guidance, chosen, batch_size, said, steps, force)
    run_sample(model, plan, out, device)


@app.command()
def compare(
    model: ModelOption = "mnist",
    solvers: SolversOption = None,
    nfe: Annotated[str, typer.Option(help="Budgets of calls, comma-separated.")] = "5,6,8,10,15,20",
    n: Annotated[int, typer.Option("--n", help="Images per cell.")] = 500,
    seed: SeedOption = 0,
    out: OutOption = Path("comparison"),
    guidance: GuidanceOption = 1.0,
    grid: GridOption = "karras",
    kappa_max: KappaMaxOption = 80.0,
    kappa_min: KappaMinOption = 0.002,
    force: ForceOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Compare solvers at equal noise and equal calls; writes compare.json, sheet.png and quality.png."""
    from fewstep.cli.commands import run_compare
    from fewstep.cli.shell import names, numbers
    from fewstep.experiments.compare import Plan
    from fewstep.experiments.runs import GridChoice

    chosen = Plan.solvers if solvers is None else names(solvers)
    choice = GridChoice(grid, kappa_max, kappa_min)
    plan = Plan(chosen, numbers(nfe, "--nfe"), n, seed, guidance, choice, force=force)
    run_compare(model, plan, out, device, own=solvers is None)


@app.command()
def evaluate(
    what: WhatArgument,
    reference: ReferenceOption = "",
    metrics: MetricsOption = "",
    features: FeaturesOption = "",
    n: ImagesOption = None,
    seed: SeedOption = 0,
    seeds: Annotated[int, typer.Option(help="Seed sets, 1,000,000 apart; from 2 on, intervals are over them.")] = 1,
    nfe: NfeChoice = None,
    steps: StepsChoice = None,
    solver: SolverChoice = None,
    guidance: GuidanceOption = 1.0,
    grid: GridNameChoice = "",
    kappa_max: KappaMaxChoice = None,
    kappa_min: KappaMinChoice = None,
    split: Annotated[str, typer.Option(help="Of parquet, hf and scenes.")] = "test",
    train: Annotated[str, typer.Option(help="Images that the model learned from; default: split train.")] = "",
    protocol: Annotated[str, typer.Option(help="coco30k: one image a prompt, FD and CLIP score.")] = "",
    prompts: PromptsOption = None,
    size: Annotated[int | None, typer.Option(help="Crop and resize pictures to this many pixels a side.")] = None,
    out: OutOption = Path("evaluation"),
    against: Annotated[Path | None, typer.Option(help="An earlier results.json to compare with.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Count and name unreadable pictures, go on.")] = False,
    allow_singular: Annotated[
        bool, typer.Option("--allow-singular", help="A Fréchet distance of fewer images than dimensions.")
    ] = False,
    chunk: Annotated[int, typer.Option(help="Images per part that is kept for resuming.")] = 500,
    batch_size: Annotated[int, typer.Option(help="Images per call of the model.")] = 64,
    force: ForceOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure a model or images against real ones; every number with interval and protocol.

    Goes on where it was stopped; under torchrun, processes share the work. Writes results.json and results.png, and
    for a model its images.
    """
    from fewstep.cli.evaluate import run_evaluate
    from fewstep.cli.shell import names, protocol_metrics
    from fewstep.experiments.evaluation.evaluate import Plan
    from fewstep.experiments.evaluation.processes import usable_device
    from fewstep.experiments.evaluation.request import Request
    from fewstep.experiments.runs import GridChoice

    chosen = names(metrics) or protocol_metrics(protocol, prompts)
    plan = Plan(chosen, out, chunk, usable_device(device), allow_singular)
    choice = GridChoice.given(grid, kappa_max, kappa_min)
    request = Request(
        what=what,
        plan=plan,
        reference=reference,
        split=split,
        train=train,
        features=names(features),
        n=n,
        seed=seed,
        sets=seeds,
        solver=solver,
        nfe=nfe,
        guidance=guidance,
        grid=choice,
        batch_size=batch_size,
        size=size,
        skip_bad=skip_bad,
        prompts=prompts,
        steps=steps,
        force=force,
    )
    run_evaluate(request, against, protocol)


@app.command()
def models() -> None:
    """List the bundled models."""
    from fewstep.cli.commands import show_models

    show_models()


@app.command()
def solvers() -> None:
    """List the solvers, with order and cost."""
    from fewstep.cli.commands import show_solvers

    show_solvers()


fitting.add_commands(app)
exchange.add_commands(app)
