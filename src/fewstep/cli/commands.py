"""What the commands do once they are parsed: call the floors below, show progress, print."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch
from rich.markup import escape
from torch import Tensor

from fewstep._cond import rows_of
from fewstep._files import output_dir, write_json
from fewstep.cli.shell import console, progress, say, table, ticking
from fewstep.denoisers import Cond
from fewstep.errors import CheckpointError
from fewstep.experiments.calibrate import again
from fewstep.experiments.compare import Cell, Comparison, Plan, judge_of, with_own_table
from fewstep.experiments.demo import draw_comparison, machine, write_report
from fewstep.experiments.digits import DigitsAct
from fewstep.experiments.evaluation.processes import usable_device
from fewstep.experiments.evaluation.quality import floor_note
from fewstep.experiments.pictures import save_images, save_picture, tile
from fewstep.experiments.runs import Drawn, SamplePlan, captions_of, check_guidance, conditions, draw, seeds_of
from fewstep.experiments.ways import CALIBRATED, Way, labelled, own_table, table_of, way_of
from fewstep.models import Model, bundled, load_model
from fewstep.noise import EDM, UniformLam
from fewstep.solvers import IPNDM, SOLVERS, Solver
from fewstep.training import checkpoints

__all__ = ["run_compare", "run_demo", "run_sample", "show_models", "show_solvers"]


# grid.png shows this many images at most; all of them are there one by one.
_ON_THE_GRID = 1024


def _load(name: str, device: str) -> Model:
    return load_model(name, usable_device(device))


def run_sample(name: str, plan: SamplePlan, out: Path, device: str) -> None:
    """Sample images into a folder."""
    model = _load(name, device)
    seeds = seeds_of(plan.seed, plan.n)
    labels, captions = conditions(model, seeds, plan.classes), captions_of(model, seeds, plan.captions)
    cond = None if captions is None else model.cond_of_captions(captions)
    check_guidance(model, plan.guidance)
    way = way_of(model, plan.solver, plan.nfe, plan.steps, plan.grid, plan.guidance, force=plan.force)
    folder = output_dir(out)

    parts = _sampled(model, plan, way, labels, cond, folder)
    images = torch.cat([part.images for part in parts])[:_ON_THE_GRID]
    columns = math.ceil(math.sqrt(len(images)))
    save_picture(folder / "grid.png", tile(images, columns), scale=max(1, 64 // images.shape[-1]))
    facts = {
        "model": model.config.name,
        "model_fingerprint": model.fingerprint,
        "plan": asdict(plan),
        "classes": None if labels is None else labels.tolist(),
        "captions": captions,
        "solver": way.solver,
        "grid": way.said,
        "steps": way.grid.steps,
        "nfe": parts[0].nfe,
        "network_evals": parts[0].network_evals,
        "seconds": sum(part.seconds for part in parts),
        "machine": machine(model.device),
    }
    write_json(folder / "sample.json", facts)
    say(
        f"{plan.n} images of {escape(model.config.name)} in {escape(str(folder))}: {escape(way.solver)} on "
        f"{escape(way.said)}, NFE {parts[0].nfe} (asked {way.nfe}), network evaluations {parts[0].network_evals}, "
        f"{facts['seconds']:.1f} s"
    )


def _sampled(model: Model, plan: SamplePlan, way: Way, labels: Tensor | None, cond: Cond, folder: Path) -> list[Drawn]:
    """Sample batch after batch behind a bar, and write the images of each as soon as they are there."""
    parts: list[Drawn] = []
    batches = range(0, plan.n, plan.batch_size)
    steps, seeds = way.grid.steps, seeds_of(plan.seed, plan.n)
    with ticking(len(batches) * steps, f"{way.solver}, {len(batches)} batches of {steps} steps") as tick:
        for first in batches:
            chosen = slice(first, first + plan.batch_size)
            some = None if labels is None else labels[chosen]
            drawn = draw(
                model,
                way.rule,
                way.grid,
                seeds[chosen],
                labels=some,
                cond=rows_of(cond, chosen),
                guidance=plan.guidance,
                batch_size=plan.batch_size,
                watch=tick,
            )
            save_images(folder, drawn.images, seeds[chosen])
            parts.append(drawn)
    return parts


def run_compare(name: str, plan: Plan, out: Path, device: str, own: bool) -> None:
    """Compare solvers, with `own` the model's own table among them; write the table, the pictures and the curves."""
    model = _load(name, device)
    plan = with_own_table(plan, model) if own else plan
    comparison = Comparison(model, plan, judge_of(model))
    folder = output_dir(out)
    _run(comparison)
    write_json(folder / "compare.json", {"machine": machine(model.device), **comparison.report()})
    draw_comparison(comparison, folder)
    _show(comparison, name)
    say(f"Written to {escape(str(folder))}: compare.json, sheet.png, quality.png")


def run_demo(out: Path) -> None:
    """Run both acts and write the report."""
    model = load_model("mnist")
    folder = output_dir(out)
    seconds = {}
    console.print("[bold]Act one[/]: one bundled model, seven solvers and its own, six budgets, equal noise")
    start = time.perf_counter()
    # Fewer images than `compare` takes by default: the whole demo is to end within four minutes on two cores.
    comparison = Comparison(model, with_own_table(Plan(n=128, reference_steps=48), model), judge_of(model))
    _run(comparison)
    seconds["solvers"] = time.perf_counter() - start
    _show(comparison, "mnist")

    console.print(
        "[bold]Act two[/]: real digits, a network trained from nothing, then end to end for one to four steps"
    )
    act = DigitsAct(folder)
    seconds |= _train_digits(act)
    rows = list(progress(act.sample(), len(act), "sampling digits"))
    seconds["digits"] = time.perf_counter() - start - seconds["solvers"]
    table(
        f"Digits after {seconds['training']:.0f} s of ordinary training and {seconds['chains']:.0f} s end to end "
        f"(distance of real halves {act.floor:.2f}; variety of real digits 1)",
        ("training", "steps", "Fréchet distance", "variety"),
        ((row.training, str(row.steps), f"{row.distance:.2f}", f"{row.rho:.2f}") for row in rows),
    )
    write_report(folder, comparison, act, seconds)
    say(f"Look at [bold]{escape(str(folder / 'report.html'))}[/] (also report.json and the pictures beside it)")


def _train_digits(act: DigitsAct) -> dict[str, float]:
    """Train both models anew, as finished runs in the folder would leave nothing to train; wall time of each."""
    seconds = {}
    for name, train, folder, run in (
        ("training", act.train, act.before, act.config),
        ("chains", act.train_chains, act.after, act.chains),
    ):
        start = time.perf_counter()
        for old in checkpoints(folder / "checkpoints"):
            shutil.rmtree(old)
        said = "training on 1,797 digits" if name == "training" else "training whole chains"
        for _ in progress(train(), run.train.steps, said):
            pass
        seconds[name] = time.perf_counter() - start
    return seconds


def _run(comparison: Comparison) -> None:
    for _ in progress(comparison.run(), len(comparison), f"{len(comparison) - 1} cells of {comparison.plan.n} images"):
        pass


def _show(comparison: Comparison, name: str) -> None:
    judge, fine = comparison.judge, comparison.fine
    rows = [*comparison.rows, *([("fine solution", fine.nfe, fine)] if fine else [])]
    columns = ["solver", "NFE", "network evals", "RMSE", "contrast gain", "seconds"]
    title = f"{labelled(comparison.model)}, {comparison.plan.n} images a cell"
    table(title, columns, [[solver, *_costs(nfe, cell)] for solver, nfe, cell in rows])
    for solver in dict.fromkeys(solver for solver, _, cell in rows if cell is None):
        fit = again(
            name, table_of(comparison.model, solver), comparison.plan.nfe, "" if solver == CALIBRATED else solver
        )
        say(f"[dim]-: the table has no solver for that number of calls; fit it: {escape(fit)}[/]")
    if judge is None or fine is None:
        return
    measured = [(solver, cell) for solver, _, cell in rows if cell is not None]
    quality = [[solver, str(cell.nfe), *map(str, cell.quality.values())] for solver, cell in measured]
    table("Quality, with 95 % intervals", ["solver", "NFE", *fine.quality], quality)
    say(f"[dim]fd: {escape(judge.describe(comparison.plan.n))}. This is not FID.[/]")
    say(f"[dim]{escape(floor_note(judge, comparison.plan.n, fine.quality['fd'].value))}[/]")


def _costs(nfe: int, cell: Cell | None) -> list[str]:
    if cell is None:
        return [str(nfe), *"----"]
    counts = [str(cell.nfe), str(cell.network_evals)]
    return [*counts, f"{cell.rmse:.4f}", f"{cell.contrast_gain:.3f}", f"{cell.seconds:.1f}"]


def show_models() -> None:
    """Print the bundled models."""
    rows = []
    for name in bundled():
        model = load_model(name)
        data = f"{model.config.facts.get('data', 'not stated')}"
        chain = ",".join(map(str, model.config.chain.steps)) if model.config.chain else "-"
        shape, classes = "x".join(map(str, model.shape)), str(model.config.n_classes)
        rows.append((name, shape, classes, chain, _fitted(model), data))
    columns = ("name", "shape", "classes", "chain", "calibrated", "trained on")
    table("Bundled models; a model folder works in their place", columns, rows)
    say("[dim]chain: the numbers of steps that a few-step model was trained for, for --steps[/]")
    say("[dim]calibrated: the numbers of calls that its own table has a solver for, for --nfe[/]")


def _fitted(model: Model) -> str:
    """The numbers of calls of a model's own table."""
    if model.calibration is None:
        return "-"
    try:
        known = own_table(model)
    except CheckpointError:
        return "damaged"
    belongs = known.origin.fingerprint in ("", model.fingerprint)
    return ",".join(map(str, sorted(known.entries))) if belongs else "of other weights"


def show_solvers() -> None:
    """Print the solvers, with their cost on ten steps of an EDM grid."""
    grid = UniformLam()(EDM(), 10)
    rows = []
    for name, make in sorted(SOLVERS.items()):
        rule = make()
        rows.append((name, _order(rule), "yes" if rule.stochastic else "no", str(rule.nfe(grid))))
    table("Solvers", ("name", "order", "stochastic", "calls for 10 steps"), rows)
    say("[dim]* on steps of equal length in kappa; 2 on the grids karras and uniform_lam[/]")
    say("[dim]Options follow the name: --solver ddim:eta=0.5, unipc:order=3:variant=bh1, deis:variable=log_kappa[/]")


def _order(rule: Solver) -> str:
    return f"{rule.order}*" if isinstance(rule, IPNDM) else str(rule.order)
