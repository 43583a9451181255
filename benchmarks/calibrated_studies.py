"""What a fit costs, where a table serves that was fitted elsewhere, and EVODiff's headline on our models."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.calibrated_parts import OWN, PartFile, table_of
from benchmarks.calibrated_subjects import Judged, Subject, judged, model_subject, reference
from benchmarks.targets import GRIDS, RULES
from fewstep._files import output_dir
from fewstep.calibration import Table
from fewstep.errors import ConfigError
from fewstep.experiments.demo import machine
from fewstep.metrics import FeatureSet, frechet_distance, jackknife, over_seeds, rmse

SIZES = (16, 32, 64, 128, 256)
NFE = (5, 8)
GUIDANCES = (1.0, 2.0, 3.0)
FIXED = ("dpmpp_2m", "unipc", "ipndm", "ipndm_3", "deis_log_kappa", "evodiff")  # beside a table fitted elsewhere
FEW = 128  # test images a seed set of cost and transfer
TEN = 10  # calls of the headline
MINE = "calibrated"


def models(options: argparse.Namespace) -> Iterator[Subject]:
    """The models that were named, with few test images."""
    if not options.model:
        raise ConfigError("No model", "One or more", "Name them: --model mnist")
    for name in options.model:
        yield model_subject(name, min(options.n, FEW), options.seeds, options.device, options.batch)[0]


def fresh_errors(subject: Subject, fitted: Sequence[Table], fine: Tensor, guidance: float = 1.0) -> dict[str, Any]:
    """RMSE of the tables of all seed sets, each from the test noise of its set."""
    found = []
    for nfe in NFE:
        ways = [table.way(subject.schedule, nfe) for table in fitted]
        runs = [subject.part(*way, subject.set_of(k), guidance=guidance) for k, way in enumerate(ways)]
        found.append([rmse(run, fine[subject.set_of(k)]) for k, run in enumerate(runs)])
    return summed(found)


def summed(sets: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Means over seed sets, and the numbers themselves, by budget."""
    means = [over_seeds(of_budget) for of_budget in sets]
    half = [(one.high or one.value) - one.value for one in means]
    numbers = {"rmse": [one.value for one in means], "rmse_half": half}
    return {name: [float(f"{number:.5g}") for number in row] for name, row in numbers.items()} | {
        "rmse_sets": [[float(f"{number:.5g}") for number in of_budget] for of_budget in sets]
    }


def cost(options: argparse.Namespace) -> None:
    """Seconds and calls of fits to more and more trajectories, and what they are worth."""
    for subject in models(options):
        fine, _ = reference(subject, options.steps, options.work)
        head = {"part": "cost", "subject": subject.name, "fingerprint": subject.fingerprint, "nfe": list(NFE)}
        head |= {"n": subject.n, "seeds": subject.seeds}
        file = PartFile(output_dir(options.out) / f"cost_{subject.name}.json", head)
        for size in SIZES:
            for kind in ("closed_form", MINE):
                key = f"{kind} from {size}"
                if not file.due(key, kind):
                    continue
                fitted = [
                    table_of(subject, kind, k, options.work, nfe=NFE, trajectories=size) for k in range(subject.seeds)
                ]
                row: dict[str, Any] = {"kind": kind, "trajectories": size}
                for name in ("seconds", "network_evals", "machine"):
                    row[name] = [table.facts[name] for table in fitted]
                for name in ("train", "held"):
                    row[name] = [[getattr(table.entries[nfe], name) for table in fitted] for nfe in NFE]
                file.put(key, kind, {**row, **fresh_errors(subject, fitted, fine)})
                print(f"{subject.name}: {key}", flush=True)


def transfer(options: argparse.Namespace) -> None:
    """Tables used where they were not fitted: on other guidance, on another model."""
    owners = [*models(options)]
    if options.sibling:
        sibling, _ = model_subject(options.sibling, min(options.n, FEW), options.seeds, options.device, options.batch)
        owners.append(replace(sibling, name=f"sibling of {owners[-1].name}"))
    for subject in owners:
        head = {"part": "transfer", "subject": subject.name, "fingerprint": subject.fingerprint, "nfe": list(NFE)}
        head |= {"n": subject.n, "seeds": subject.seeds, "trajectories": options.trajectories}
        file = PartFile(output_dir(options.out) / f"transfer_{subject.name.replace(' ', '_')}.json", head)
        for guidance in GUIDANCES:
            sources = tables_for(subject, owners, guidance, options)
            due = {source: make for source, make in sources.items() if file.due(_key(source, guidance), MINE)}
            rules = [rule for rule in FIXED if file.due(_key(rule, guidance), rule)]
            if not due and not rules:
                continue
            fine, _ = reference(subject, options.steps, options.work, guidance)
            for source, make in due.items():
                row = {"source": source, "guidance": guidance, **fresh_errors(subject, make(), fine, guidance)}
                file.put(_key(source, guidance), MINE, row)
                print(f"{subject.name}: {_key(source, guidance)}: {row['rmse']}", flush=True)
            for rule in rules:
                file.put(_key(rule, guidance), rule, fixed_row(subject, rule, fine, guidance))


def _key(source: str, guidance: float) -> str:
    return f"{source}, at guidance {guidance:g}"


def tables_for(
    subject: Subject, owners: Sequence[Subject], guidance: float, options: argparse.Namespace
) -> dict[str, Callable[[], list[Table]]]:
    """Where a table for a model under some guidance may come from: its own under every guidance, that of others."""

    def own(scales: Sequence[float]) -> list[Table]:
        # The fit of the main run serves at guidance 1.
        nfe = {} if scales == (1.0,) else {"nfe": NFE}
        return [
            table_of(subject, MINE, k, options.work, trajectories=options.trajectories, guidances=scales, **nfe)
            for k in range(subject.seeds)
        ]

    def foreign(owner: Subject) -> list[Table]:
        fitted = [
            table_of(owner, MINE, k, options.work, trajectories=options.trajectories) for k in range(subject.seeds)
        ]
        return [with_mean_of(subject, table, k, options.trajectories) for k, table in enumerate(fitted)]

    found: dict[str, Callable[[], list[Table]]] = {}
    for scales in (*((scale,) for scale in GUIDANCES), GUIDANCES):
        found[f"fitted at guidance {', '.join(f'{scale:g}' for scale in scales)}"] = lambda scales=scales: own(scales)
    for owner in owners if guidance == 1 else ():
        if owner.name != subject.name:
            found[f"fitted on {owner.name}"] = lambda owner=owner: foreign(owner)
    return found


def with_mean_of(subject: Subject, table: Table, k: int, trajectories: int) -> Table:
    """The same table with the first estimate of another model, where it gives one."""
    if table.mean is None:
        return table
    problem = subject.problem(k, trajectories)
    return replace(table, mean=problem.estimate(problem.noise, problem.kappa_max).mean(0))


def fixed_row(subject: Subject, rule: str, fine: Tensor, guidance: float) -> dict[str, Any]:
    """A fixed rule on the grid of smaller error, chosen once over the budgets."""
    solver, best = RULES[rule](), dict[str, Any]()
    for grid in GRIDS:
        runs = [subject.run(solver, subject.grid(solver, grid, nfe), rule, guidance) for nfe in NFE]
        sets = [[rmse(run[own], fine[own]) for own in map(subject.set_of, range(subject.seeds))] for run in runs]
        row = {"source": rule, "grid": grid, "guidance": guidance, **summed(sets)}
        if not best or torch.tensor(row["rmse"]).log().sum() < torch.tensor(best["rmse"]).log().sum():
            best = row
    return best


def headline(options: argparse.Namespace) -> None:
    """Fréchet distances at ten calls, and how much lower than that of DPM-Solver++ 2M."""
    for name in options.model:
        subject, model = model_subject(name, options.headline_n, options.seeds, options.device, options.batch)
        judge = judged(model, options.features, options.cifar10, options.work)
        head = {"part": "headline", "subject": subject.name, "fingerprint": subject.fingerprint, "nfe": TEN}
        head |= {"n": subject.n, "seeds": subject.seeds, "what": judge.measured(subject.n * subject.seeds).what}
        file = PartFile(output_dir(options.out) / f"headline_{subject.name}.json", head)
        ways = [*((rule, grid) for rule in ("dpmpp_2m", "evodiff") for grid in GRIDS)]
        ways += [("evodiff_paper", "uniform_lam"), (MINE, OWN)]
        if not any(file.due(f"{rule} on {grid}", rule) for rule, grid in ways):
            continue
        begun = time.perf_counter()
        sets = {f"{rule} on {grid}": judge.summary(at_ten(subject, rule, grid, options)) for rule, grid in ways}
        file.content["machine"] = machine(subject.device)
        found = compared(judge, sets)
        for rule, grid in ways:
            file.put(f"{rule} on {grid}", rule, {"rule": rule, "grid": grid, **found[f"{rule} on {grid}"]})
        print(f"{subject.name}: headline, {time.perf_counter() - begun:.0f} s", flush=True)


def at_ten(subject: Subject, rule: str, grid: str, options: argparse.Namespace) -> Tensor:
    """Samples of ten calls."""
    if rule != MINE:
        solver = RULES[rule]()
        return subject.run(solver, subject.grid(solver, grid, TEN), rule)
    made = []
    for k in range(subject.seeds):
        table = table_of(subject, MINE, k, options.work, trajectories=options.trajectories)
        made.append(subject.part(*table.way(subject.schedule, TEN), subject.set_of(k)))
    return torch.cat(made)


def compared(judge: Judged, sets: Mapping[str, FeatureSet]) -> dict[str, dict[str, Any]]:
    """Distances with intervals, and per cent lower than each grid of the baseline, by a paired jackknife."""
    distances = {key: _left_out(judge, found) for key, found in sets.items()}
    rows: dict[str, dict[str, Any]] = {}
    for key, (whole, parts) in distances.items():
        lower = {}
        for base in (f"dpmpp_2m on {grid}" for grid in GRIDS):
            of_whole, of_parts = distances[base]
            percent = [100 * (1 - mine / theirs) for mine, theirs in zip(parts, of_parts, strict=True)]
            lower[base] = jackknife(100 * (1 - whole / of_whole), percent).to_json()
        rows[key] = {"distance": jackknife(whole, parts).to_json(), "per cent lower than": lower}
    return rows


def _left_out(judge: Judged, found: FeatureSet) -> tuple[float, list[float]]:
    """The distance, and without each group of images: the same groups for all, which begin with the same noise."""
    parts = [frechet_distance(found.moments(without), judge.moments) for without in range(found.groups)]
    return frechet_distance(found.moments(), judge.moments), parts


STUDIES: dict[str, Callable[[argparse.Namespace], None]] = {"cost": cost, "transfer": transfer, "headline": headline}
