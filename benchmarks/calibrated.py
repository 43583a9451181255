"""The calibrated solver against every fixed one: exact targets, models, what a fit costs and where its table serves.

    python -m benchmarks.calibrated cells                       # the exact targets
    python -m benchmarks.calibrated cells --model mnist         # a model, or several
    python -m benchmarks.calibrated fit --model mnist           # only the fits of these cells
    python -m benchmarks.calibrated cost --model mnist          # 16 to 256 trajectories
    python -m benchmarks.calibrated transfer --model mnist --model runs/cifar10-small --sibling FOLDER
    python -m benchmarks.calibrated headline --model mnist      # against DPM-Solver++ 2M at 10 calls
    python -m benchmarks.calibrated tables                      # print what is there, draw it
    python -m benchmarks.calibrated all                         # all of it; without names, for the models that ship

4 to 20 calls, three seed sets. For each of them a table is fitted to 160 trajectories of its own and then sampled from
fresh noise, the same as every fixed rule gets. Fixed rules run on uniform lam and on Karras rho = 7, kappa 80 to 0.002.
RMSE and contrast gain are to the reference ODE, solved in many steps; the distance is the Fréchet distance of all
images in the features of a judge, or the sliced Wasserstein distance on exact targets. Every part has files of its own
in the folder of results and is written after every row, so each goes on where it was stopped, on any machine; fitted
tables, solutions and the moments of the reference stay in ``--work``. Rules that draw noise have distances alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import calibrated_studies, calibrated_tables
from benchmarks.calibrated_parts import BUDGETS, KINDS, OWN, PartFile, table_of
from benchmarks.calibrated_pictures import draw
from benchmarks.calibrated_subjects import Distance, Subject, exact_subject, judged, model_subject, reference, sliced
from benchmarks.quality import all_cells, wanted
from benchmarks.targets import FAMILIES, RULES, cifar10_folder, targets
from fewstep._files import output_dir
from fewstep.errors import NonFiniteError, choose
from fewstep.experiments.demo import machine
from fewstep.metrics import Estimate, over_seeds
from fewstep.models import Model, bundled, load_model
from fewstep.sampling import Chained

EXACT = tuple(name for members in FAMILIES.values() for name in members)


def errors(x: Tensor, fine: Tensor, mean: Tensor) -> tuple[float, float]:
    """RMSE and contrast gain as `fewstep.metrics` has them, where the samples are."""
    missed, contrast = (x - fine).double(), (fine - mean).double()
    gain = ((x - mean).double() * contrast).sum() / contrast.square().sum()
    return float(missed.square().mean().sqrt()), float(gain)


def make_row(
    runs: Sequence[Tensor],
    fine: Tensor,
    mean: Tensor,
    sets: Sequence[slice],
    distance: Callable[[Tensor], Estimate],
    drawing: bool,
) -> dict[str, Any]:
    """All numbers of one rule on one grid, from its samples at every budget."""
    found = [distance(run) for run in runs]
    row: dict[str, Any] = {"distance": [short(one.value) for one in found]}
    if all(one.low is not None for one in found):
        row |= {"distance_low": [short(one.low) for one in found], "distance_high": [short(one.high) for one in found]}
    if drawing:  # an error to the solution of an equation that the rule does not solve means nothing
        return row
    pairs = [[errors(run[own], fine[own], mean) for own in sets] for run in runs]
    means = [over_seeds([error for error, _ in of_budget]) for of_budget in pairs]
    return {
        "rmse": [short(one.value) for one in means],
        "rmse_half": [short((one.high or one.value) - one.value) for one in means],
        "rmse_sets": [[short(error) for error, _ in of_budget] for of_budget in pairs],
        "gain": [short(sum(gain for _, gain in of_budget) / len(sets)) for of_budget in pairs],
        **row,
    }


def short(number: float | None) -> float:
    return float(f"{number:.5g}")


def fixed_runs(subject: Subject, rule: str, grid: str) -> list[Tensor]:
    """The samples of a fixed rule on one grid."""
    solver = RULES[rule]()
    return [subject.run(solver, subject.grid(solver, grid, nfe), rule) for nfe in BUDGETS]


def fitted_runs(subject: Subject, kind: str, options: argparse.Namespace) -> tuple[list[Tensor], dict[str, Any]]:
    """The samples of the tables of all seed sets, each from the test noise of its own set, and what the tables say."""
    fitted = [table_of(subject, kind, k, options.work, trajectories=options.trajectories) for k in range(subject.seeds)]
    runs = []
    for nfe in BUDGETS:
        ways: list[Chained] = [table.way(subject.schedule, nfe) for table in fitted]
        runs.append(torch.cat([subject.part(*way, subject.set_of(k)) for k, way in enumerate(ways)]))
    said = {
        "held": [[short(table.entries[nfe].held) for table in fitted] for nfe in BUDGETS],
        "from": [[f"{table.entries[nfe].base} on {table.entries[nfe].grid}" for table in fitted] for nfe in BUDGETS],
        "saved": [[table.entries[nfe].first for table in fitted] for nfe in BUDGETS],
        "fits": [
            {key: table.facts[key] for key in ("seconds", "network_evals", "iterations", "machine")} for table in fitted
        ],
    }
    return runs, said


def fill(subject: Subject, distance: Distance, mean: Tensor | None, options: argparse.Namespace) -> None:
    """Measure every cell of a subject that is due."""
    begun = time.perf_counter()
    fine, gap = reference(subject, options.steps, options.work)
    centre = fine.mean(0) if mean is None else mean.to(fine)
    took = time.perf_counter() - begun
    print(f"{subject.name}: two ways to the reference differ by {gap:.1e}, {took:.0f} s", flush=True)
    floor = distance.of(fine)
    head = {
        "part": "cells",
        "subject": subject.name,
        "fingerprint": subject.fingerprint,
        "budgets": list(BUDGETS),
        "n": subject.n,
        "seeds": subject.seeds,
        "measure": distance.measure,
        "what": distance.what,
        "reference_steps": options.steps,
    }
    file = PartFile(output_dir(options.out) / f"cells_{subject.name}.json", head)
    file.content |= {
        "reference_gap": short(gap),
        "floor": [short(number) for number in (floor.value, floor.low, floor.high) if number is not None],
        "bias": short(distance.bias),
    }
    cells = [*((kind, OWN) for kind in KINDS), *all_cells([*RULES])]
    chosen = wanted(options.only, {**KINDS, **RULES})
    due = [(rule, grid) for rule, grid in cells if rule in chosen and file.due(f"{rule} on {grid}", rule)]
    spent: list[float] = []
    for rule, grid in due:
        begun = time.perf_counter()
        said: dict[str, Any] = {"rule": rule, "grid": grid}
        try:
            if rule in KINDS:
                runs, more = fitted_runs(subject, rule, options)
                said |= {"trajectories": options.trajectories, **more}
            else:
                runs = fixed_runs(subject, rule, grid)
            sets = [subject.set_of(k) for k in range(subject.seeds)]
            drawing = rule in RULES and RULES[rule]().stochastic
            said |= make_row(runs, fine, centre, sets, distance.of, drawing)
        except NonFiniteError as error:
            said["failed"] = str(error)
        took = time.perf_counter() - begun
        file.put(f"{rule} on {grid}", rule, {**said, "seconds": short(took), "machine": machine(subject.device)})
        spent += [took] if rule in RULES else []
        left = (len(due) - due.index((rule, grid)) - 1) * (sum(spent) / len(spent) if spent else took)
        print(f"{subject.name}: {rule} on {grid}: {took:.1f} s, about {left / 60:.1f} min left", flush=True)


def subjects(options: argparse.Namespace) -> Iterator[tuple[Subject, Distance, Tensor | None]]:
    """Exact targets and models that were asked for, with their distance and the mean of their data."""
    default = "none" if options.model else ",".join(EXACT)
    names = {name for name in (options.exact or default).split(",") if name != "none"}
    for name in names:
        choose(name, dict.fromkeys(EXACT), "exact target")
    made = targets(options.cifar10) if names else iter(())
    while names and (found := next(made, None)):  # the later ones take long to make
        name, target = found
        if name in names:
            names.remove(name)
            subject = exact_subject(name, target, options.part, options.seeds)
            yield subject, sliced(subject, target), target.mean
    for model_name in options.model:
        subject, model = model_subject(model_name, options.n, options.seeds, options.device, options.batch)
        judge = judged(model, options.features, options.cifar10, options.work)
        yield subject, judge.measured(subject.n * subject.seeds), None


def fit_only(options: argparse.Namespace) -> None:
    """Fit and keep the tables that the cells take; some sets alone, to fit several at once."""
    for subject, _, _ in subjects(options):
        for kind in wanted(options.only, KINDS):
            for k in map(int, options.sets.split(",")) if options.sets else range(options.seeds):
                table_of(subject, kind, k, options.work, trajectories=options.trajectories)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # errors down to 1e-3 are measured
    if options.part_of == "all":
        run_all(options)
    else:
        PARTS[options.part_of](options)


def run_all(options: argparse.Namespace) -> None:
    """Every part, for the models that were named, or those that ship with the package and have a judge."""
    own = options.model or [name for name in bundled() if _ordinary(load_model(name))]
    cells(argparse.Namespace(**{**vars(options), "model": []}))
    for part in (cells, *calibrated_studies.STUDIES.values(), show):
        part(argparse.Namespace(**{**vars(options), "model": own}))


def _ordinary(model: Model) -> bool:
    """Whether a model that ships is judged and sampled with any solver: no chain of its own, no captions."""
    return "judge" in model.config.facts and model.config.chain is None and model.config.captions is None


def cells(options: argparse.Namespace) -> None:
    for subject, distance, mean in subjects(options):
        fill(subject, distance, mean, options)


def show(options: argparse.Namespace) -> None:
    """Print what is there, and draw it."""
    contents = calibrated_tables.read(options.out)
    calibrated_tables.print_all(contents, options.only)
    draw(contents.cells, options.out.with_suffix(".png"))


PARTS = {"cells": cells, "fit": fit_only, **calibrated_studies.STUDIES, "tables": show}


def parser() -> argparse.ArgumentParser:
    parts = (*PARTS, "all")
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("part_of", choices=parts, metavar="|".join(parts))
    made.add_argument("--model", action="append", default=[], help="a bundled model or a folder; more than once")
    made.add_argument("--sibling", default="", help="another training or checkpoint of the last model, for transfer")
    made.add_argument("--exact", default="", help="exact targets with commas; all, or none where models are named")
    made.add_argument("--out", type=Path, default=Path("benchmarks/results/calibrated"))
    made.add_argument("--work", type=Path, default=Path("runs/calibrated"), help="tables, solutions, reference moments")
    made.add_argument("--cifar10", type=Path, default=cifar10_folder(), help="folder with its parquet files")
    made.add_argument("--features", default="", help="judge of models that name none: cifar-resnet:FILE")
    made.add_argument("--device", default="cpu", help="of the models")
    made.add_argument("--batch", type=int, default=512, help="samples per call")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--n", type=int, default=512, help="test images a seed set")
    made.add_argument("--headline-n", type=int, default=2000, help="the same for the headline")
    made.add_argument("--part", type=float, default=1.0, help="of the exact trajectories; below 1 for a trial run")
    made.add_argument("--seeds", type=int, default=3, help="seed sets")
    made.add_argument("--sets", default="", help="fit these sets alone, with commas")
    made.add_argument("--steps", type=int, default=128, help="of the reference; also run at twice or half as many")
    made.add_argument("--trajectories", type=int, default=160, help="of a fit")
    made.add_argument("--only", default="", help="rules to measure, or to show, with commas; all if omitted")
    return made


if __name__ == "__main__":
    main()
