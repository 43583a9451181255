"""The commands that fit something: train, convert, calibrate, ablate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.options import (
    OWN,
    BatchChoice,
    CalibratedOption,
    CallsChoice,
    CaptionsOption,
    ClassesOption,
    DeviceOption,
    FirstChoice,
    FirstLevelChoice,
    GuidanceOption,
    IterationsChoice,
    LastLevelChoice,
    MatchOption,
    ModelOption,
    OutOption,
    PresetOption,
    ScalesChoice,
    StartOption,
    TableOption,
    TeacherChoice,
    TrajectoriesChoice,
)

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Give the application these commands."""
    for command in (train, convert, calibrate, ablate):
        app.command()(command)


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
