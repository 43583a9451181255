"""The commands of ``fewstep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.exchange import add_commands
from fewstep.cli.options import (
    OWN,
    BatchChoice,
    CalibratedOption,
    CallsChoice,
    CaptionsOption,
    ClassesOption,
    DeviceOption,
    FeaturesOption,
    FirstChoice,
    FirstLevelChoice,
    ForceOption,
    GridNameChoice,
    GridOption,
    GuidanceOption,
    ImagesOption,
    IterationsChoice,
    KappaMaxChoice,
    KappaMaxOption,
    KappaMinChoice,
    KappaMinOption,
    LastLevelChoice,
    MatchOption,
    MetricsOption,
    ModelOption,
    NfeChoice,
    OutOption,
    PresetOption,
    PromptsOption,
    ReferenceOption,
    ScalesChoice,
    SeedOption,
    SolverChoice,
    SolversOption,
    StartOption,
    StepsChoice,
    TableOption,
    TeacherChoice,
    TrajectoriesChoice,
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
def train(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as train.lr=1e-3.")] = None,
    data: Annotated[
        str, typer.Option(help="digits, folder:PATH, parquet:PATH, hf:NAME, scenes; else the preset's.")
    ] = "",
    preset: PresetOption = "",
    objective: Annotated[str, typer.Option(help="denoising (single steps) or e2e (chains of 1 to 8 steps).")] = "",
    init: Annotated[str, typer.Option(help="With e2e: a bundled model or a model folder to start from.")] = "",
    out: OutOption = Path("run"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and exit.")] = False,
) -> None:
    """Train a denoiser, or a few-step model end to end; an unfinished run in the output folder goes on."""
    from fewstep.cli.train import run_train
    from fewstep.experiments.presets import configured

    config = configured(preset, objective=objective, init=init, data=data, overrides=overrides or [])
    run_train(config, out, dry_run)


@app.command()
def convert(
    model: ModelOption = "mnist",
    steps: Annotated[str, typer.Option(help="Numbers of steps of the new model, 1 to 8, comma-separated.")] = "2",
    minutes: Annotated[float, typer.Option(help="For everything, planned on this machine.")] = 5.0,
    data: Annotated[str, typer.Option(help="Images, as for train; without any, the model's own samples.")] = "",
    solver: Annotated[str, typer.Option(help=f"Of the teacher; {OWN} evodiff.")] = "",
    nfe: Annotated[int | None, typer.Option(help=f"Calls that the teacher makes per image; {OWN} 10.")] = None,
    guidance: GuidanceOption = 1.0,
    n: Annotated[int, typer.Option("--n", help="Images of each kind that are measured.")] = 1000,
    batch: Annotated[int, typer.Option(help="Images per training step; fewer need less memory.")] = 64,
    seed: Annotated[int, typer.Option(help="Of noise, order and critic.")] = 0,
    out: OutOption = Path("converted"),
) -> None:
    """Turn any denoiser into a few-step model, with images or without; goes on where it was stopped."""
    from fewstep.cli.convert import run_convert
    from fewstep.cli.shell import numbers
    from fewstep.experiments.convert_plan import ConvertPlan

    plan = ConvertPlan(model, numbers(steps, "--steps"), minutes, data, solver, nfe, guidance, batch, seed)
    run_convert(plan, out, n)


@app.command()
def calibrate(
    model: CalibratedOption = "mnist",
    nfe: CallsChoice = None,
    out: TableOption = None,
    guidance: ScalesChoice = None,
    trajectories: TrajectoriesChoice = None,
    seed: Annotated[int, typer.Option(help="Of the first trajectory; far from those that images are made of.")] = 10**9,
    classes: ClassesOption = "",
    captions: CaptionsOption = None,
    size: Annotated[int | None, typer.Option(help="Of a pipeline's images, in pixels; its own if omitted.")] = None,
    teacher_steps: TeacherChoice = None,
    iterations: IterationsChoice = None,
    match_variance: MatchOption = False,
    first: FirstChoice = None,
    base: Annotated[str, typer.Option(help="Rules to fit around, comma-separated; the usual ones if omitted.")] = "",
    grids: Annotated[str, typer.Option(help="To begin with, comma-separated, gits among them; the usual ones.")] = "",
    distribution: Annotated[float, typer.Option(help="Weight of the energy score in the refinement.")] = 0.0,
    kappa_max: FirstLevelChoice = None,
    kappa_min: LastLevelChoice = None,
    batch_size: BatchChoice = None,
    dtype: Annotated[str | None, typer.Option(help="Of a pipeline: float32 (default), bfloat16, float16.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Fit a solver to a model or a pipeline of diffusers; writes a small table, for --solver or CalibratedScheduler."""
    from fewstep.cli.calibrate import Given, run_calibrate

    given = Given(
        nfe=nfe,
        guidance=guidance,
        trajectories=trajectories,
        seed=seed,
        classes=classes,
        captions=captions or [],
        teacher_steps=teacher_steps,
        iterations=iterations,
        match_variance=match_variance,
        first=first,
        base=base,
        grids=grids,
        distribution=distribution,
        kappa_max=kappa_max,
        kappa_min=kappa_min,
        batch_size=batch_size,
    )
    run_calibrate(model, given, out, device, size, dtype)


@app.command()
def ablate(
    model: StartOption = "",
    data: Annotated[str, typer.Option(help="Images, as for train.")] = "digits",
    groups: Annotated[str, typer.Option(help="terms, steps, gradient, start, coupling, comma-separated; or all.")] = "",
    steps: Annotated[int, typer.Option(help="Training steps of a cell.")] = 150,
    n: Annotated[int, typer.Option("--n", help="Images that each number of steps is measured with.")] = 500,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    out: OutOption = Path("ablation"),
) -> None:
    """Show what each part of end-to-end training does; goes on with the cell it was stopped in."""
    from fewstep.cli.ablate import run_ablate
    from fewstep.cli.shell import names
    from fewstep.experiments.ablate import AblatePlan

    run_ablate(AblatePlan(model, data, names(groups), steps, n, seed), out)


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


add_commands(app)
