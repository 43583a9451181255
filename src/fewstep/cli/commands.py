"""What the commands do once they are parsed: call the floors below, show progress, print."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.markup import escape

from fewstep._files import output_dir, write_json
from fewstep.cli.shell import console, progress, say, table, ticking
from fewstep.errors import choose
from fewstep.experiments.compare import Cell, Comparison, Plan, judge_of
from fewstep.experiments.demo import draw_comparison, machine, write_report
from fewstep.experiments.digits import DigitsAct
from fewstep.experiments.evaluation.processes import usable_device
from fewstep.experiments.evaluation.quality import floor_note
from fewstep.experiments.pictures import save_images, save_picture, tile
from fewstep.experiments.presets import PRESETS
from fewstep.experiments.runs import SamplePlan, captions_of, check_guidance, conditions, draw, make_grid, seeds_of
from fewstep.models import Model, bundled, load_model
from fewstep.noise import EDM, UniformLam
from fewstep.solvers import IPNDM, SOLVERS, Solver
from fewstep.training import StepReport, checkpoints, override, train_steps

__all__ = ["run_compare", "run_demo", "run_sample", "run_train", "show_models", "show_solvers"]


# grid.png shows this many images at most; all of them are there one by one.
_ON_THE_GRID = 1024


def _load(name: str, device: str) -> Model:
    return load_model(name, usable_device(device))


def run_sample(name: str, plan: SamplePlan, out: Path, device: str) -> None:
    """Sample images into a folder."""
    model = _load(name, device)
    rule = choose(plan.solver, SOLVERS, "solver")()
    seeds = seeds_of(plan.seed, plan.n)
    labels, captions = conditions(model, seeds, plan.classes), captions_of(model, seeds, plan.captions)
    cond = None if captions is None else model.cond_of_captions(captions)
    grid = make_grid(model, rule, plan.grid, plan.nfe)
    check_guidance(model, plan.guidance)
    folder = output_dir(out)

    parts = []
    batches = range(0, plan.n, plan.batch_size)
    with ticking(len(batches) * grid.steps, f"{plan.solver}, {len(batches)} batches of {grid.steps} steps") as tick:
        for first in batches:
            chosen = slice(first, first + plan.batch_size)
            some = None if labels is None else labels[chosen]
            drawn = draw(
                model,
                rule,
                grid,
                seeds[chosen],
                labels=some,
                cond=cond and {name: value[chosen] for name, value in cond.items()},
                guidance=plan.guidance,
                batch_size=plan.batch_size,
                watch=tick,
            )
            save_images(folder, drawn.images, seeds[chosen])
            parts.append(drawn)
    images = torch.cat([part.images for part in parts])[:_ON_THE_GRID]
    columns = math.ceil(math.sqrt(len(images)))
    save_picture(folder / "grid.png", tile(images, columns), scale=max(1, 64 // images.shape[-1]))
    facts = {
        "model": model.config.name,
        "model_fingerprint": model.fingerprint,
        "plan": asdict(plan),
        "classes": None if labels is None else labels.tolist(),
        "captions": captions,
        "steps": grid.steps,
        "nfe": parts[0].nfe,
        "network_evals": parts[0].network_evals,
        "seconds": sum(part.seconds for part in parts),
        "machine": machine(model.device),
    }
    write_json(folder / "sample.json", facts)
    say(
        f"{plan.n} images of {escape(model.config.name)} in {escape(str(folder))}: {plan.solver}, {grid.steps} steps, "
        f"NFE {parts[0].nfe} (asked {plan.nfe}), network evaluations {parts[0].network_evals}, {facts['seconds']:.1f} s"
    )


def run_compare(name: str, plan: Plan, out: Path, device: str) -> None:
    """Compare solvers and write the table, the pictures and the curves."""
    model = _load(name, device)
    comparison = Comparison(model, plan, judge_of(model))
    folder = output_dir(out)
    _run(comparison)
    write_json(folder / "compare.json", {"machine": machine(model.device), **comparison.report()})
    draw_comparison(comparison, folder)
    _show(comparison)
    say(f"Written to {escape(str(folder))}: compare.json, sheet.png, quality.png")


def run_demo(out: Path) -> None:
    """Run both acts and write the report."""
    model = load_model("mnist")
    folder = output_dir(out)
    seconds = {}
    console.print("[bold]Act one[/]: one bundled model, seven solvers, six budgets, equal noise")
    start = time.perf_counter()
    # Fewer images than `compare` takes by default: the whole demo is to end within three minutes on two cores.
    comparison = Comparison(model, Plan(n=250, reference_steps=48), judge_of(model))
    _run(comparison)
    seconds["solvers"] = time.perf_counter() - start
    _show(comparison)

    console.print("[bold]Act two[/]: real digits, a network trained from nothing, sampled with few steps")
    start = time.perf_counter()
    # The act trains anew each time; a finished run in the folder would leave nothing to train.
    for old in checkpoints(folder / "digits" / "checkpoints"):
        shutil.rmtree(old)
    act = DigitsAct(folder / "digits")
    for _ in progress(act.train(), act.config.train.steps, "training on 1,797 digits"):
        pass
    seconds["training"] = time.perf_counter() - start
    rows = list(progress(act.sample(), len(act.steps), "sampling digits"))
    seconds["digits"] = time.perf_counter() - start
    table(
        f"Digits trained for {seconds['training']:.0f} s: distance of pixels to real ones (floor {act.floor:.2f})",
        ("steps", "Fréchet distance", "seconds"),
        ((str(row.steps), f"{row.distance:.2f}", f"{row.seconds:.2f}") for row in rows),
    )
    write_report(folder, comparison, act, seconds)
    say(f"Look at [bold]{escape(str(folder / 'report.html'))}[/] (also report.json and the pictures beside it)")


def run_train(overrides: list[str], data: str, preset: str, out: Path, dry_run: bool) -> None:
    """Train a model, or print what would be trained."""
    config = choose(preset, PRESETS, "preset")
    if data:
        config = replace(config, data=data)
    config = override(config, overrides)
    if dry_run:
        console.print_json(json.dumps(config.to_json()))
        return
    last = None
    for report in progress(_noted(train_steps(config, out)), config.train.steps, f"training on {config.data}"):
        last = report.report
    if last is None:
        say(f"{escape(str(out))} already holds a finished run; train.steps above {config.train.steps} goes on with it")
    else:
        say(f"Step {last.step}, {last.images} images: {_losses(last)}. Model in {escape(str(out))}")


@dataclass(frozen=True)
class _Noted:
    """A report with the line that stands beside the progress bar."""

    report: StepReport

    @property
    def note(self) -> str:
        return _losses(self.report)


def _noted(reports: Iterator[StepReport]) -> Iterator[_Noted]:
    return (_Noted(report) for report in reports)


def _losses(report: StepReport) -> str:
    return ", ".join(f"{name.split('/')[-1]} {value:.4f}" for name, value in report.losses.items())


def _run(comparison: Comparison) -> None:
    for _ in progress(comparison.run(), len(comparison), f"{len(comparison) - 1} cells of {comparison.plan.n} images"):
        pass


def _show(comparison: Comparison) -> None:
    judge = comparison.judge
    cells = [*comparison.cells, *([comparison.fine] if comparison.fine else [])]
    names = ["fine solution" if cell is comparison.fine else cell.solver for cell in cells]
    columns = ["solver", "NFE", "network evals", "RMSE", "contrast gain", "seconds"]
    title = f"{comparison.model.config.name}, {comparison.plan.n} images a cell"
    table(title, columns, [[name, *_costs(cell)] for name, cell in zip(names, cells, strict=True)])
    if judge is None or not cells:
        return
    measures = list(cells[0].quality)
    rows = [[name, str(cell.nfe), *map(str, cell.quality.values())] for name, cell in zip(names, cells, strict=True)]
    table("Quality, with 95 % intervals", ["solver", "NFE", *measures], rows)
    say(f"[dim]fd: {escape(judge.describe(comparison.plan.n))}. This is not FID.[/]")
    say(f"[dim]{escape(floor_note(judge, comparison.plan.n, cells[-1].quality['fd'].value))}[/]")


def _costs(cell: Cell) -> list[str]:
    counts = [str(cell.nfe), str(cell.network_evals)]
    return [*counts, f"{cell.rmse:.4f}", f"{cell.contrast_gain:.3f}", f"{cell.seconds:.1f}"]


def show_models() -> None:
    """Print the bundled models."""
    rows = []
    for name in bundled():
        model = load_model(name)
        data = f"{model.config.facts.get('data', 'not stated')}"
        rows.append((name, "x".join(map(str, model.shape)), str(model.config.n_classes), data))
    table("Bundled models; a model folder works in their place", ("name", "shape", "classes", "trained on"), rows)


def show_solvers() -> None:
    """Print the solvers, with their cost on ten steps of an EDM grid."""
    grid = UniformLam()(EDM(), 10)
    rows = []
    for name, make in sorted(SOLVERS.items()):
        rule = make()
        rows.append((name, _order(rule), "yes" if rule.stochastic else "no", str(rule.nfe(grid))))
    table("Solvers", ("name", "order", "stochastic", "calls for 10 steps"), rows)
    say("[dim]* on steps of equal length in kappa; 2 on the grids karras and uniform_lam[/]")


def _order(rule: Solver) -> str:
    return f"{rule.order}*" if isinstance(rule, IPNDM) else str(rule.order)
