"""Every solver on the bundled model: error to a fine solution, contrast gain, and distance to real images.

    python -m benchmarks.solver_quality --out benchmarks/results                    # all that is not there yet
    python -m benchmarks.solver_quality --out benchmarks/results --only evodiff     # these rules
    python -m benchmarks.solver_quality --out benchmarks/results --tables           # print what is there

Classes in turn, no guidance, kappa 80 to 0.002, 128 images a seed, three seeds. Every rule runs on uniform lam and on
Karras rho = 7; tables show the better of the two, chosen once over all budgets. The distance is the Fréchet distance in
the features of the model's judge, over the images of all seeds; that of the fine solution is the floor. It is not FID,
and with so few images most of it is bias, equal for all rules. Cells that the current solvers made are kept; each
carries the version of the code that it is from.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.exact_targets import seeds_of
from benchmarks.quality import Cell, Store, all_cells, make_cell, print_tables, wanted
from benchmarks.quality_pictures import draw as draw_picture
from benchmarks.targets import BUDGETS, RULES
from fewstep._files import output_dir, read_json, read_tensors, write_tensors
from fewstep.errors import ConfigError
from fewstep.experiments.compare import judge_of
from fewstep.experiments.demo import machine
from fewstep.experiments.runs import GridChoice, conditions, draw, make_grid
from fewstep.metrics import Judge, frechet_bias, rmse
from fewstep.models import Model, load_model
from fewstep.noise import Grid
from fewstep.solvers import Solver, UniPC

MEASURE = "Fréchet distance in the judge's features"


def images_of(model: Model, solver: Solver, grid: Grid, seeds: tuple[int, ...]) -> Tensor:
    return draw(model, solver, grid, seeds, labels=conditions(model, seeds), batch_size=128).images


def fine_solution(model: Model, seeds: tuple[int, ...], steps: int, work: Path) -> Tensor:
    """UniPC-3 in many steps on Karras; kept in a file."""
    path = output_dir(work) / f"fine-{model.fingerprint}-{steps}-{len(seeds)}-{seeds[-1]}.safetensors"
    if not path.exists():
        schedule = model.denoiser.schedule
        grid = GridChoice("karras").rule(schedule)(schedule, steps)
        write_tensors(path, {"images": images_of(model, UniPC(order=3), grid, seeds)})
    return read_tensors(path)["images"]


def measure(model: Model, judge: Judge, rule: str, grid: str, fine: Tensor, seeds: tuple[int, ...], n: int) -> Cell:
    """One rule on one grid."""
    solver = RULES[rule]()
    grids = [make_grid(model, solver, GridChoice(grid), nfe) for nfe in BUDGETS]
    runs = [images_of(model, solver, levels, seeds) for levels in grids]
    return make_cell(runs, fine, fine.mean(0), n, judge.distance, solver.stochastic)


def fill(path: Path, options: argparse.Namespace) -> None:
    """Measure what is due."""
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    judge = judge_of(model)
    if judge is None:
        raise ConfigError(f"The model {options.model!r} names no judge", "Its facts name one", "Add it")
    head = {"budgets": list(BUDGETS), "seeds": options.seeds, "measure": MEASURE}
    store, seeds = Store(path, head, machine()), seeds_of(options.n, options.seeds)
    fine = fine_solution(model, seeds, options.steps, options.work)
    few = seeds[: min(64, options.n)]
    gap = rmse(fine_solution(model, few, options.steps // 2, options.work), fine[: len(few)])
    print(f"fine solution: {options.steps} steps and half as many differ by {gap:.1e}", flush=True)
    facts = {
        "model": model.fingerprint,
        "n": options.n,
        "reference": f"fine solution (UniPC-3, {options.steps} steps)",
        "reference_gap": float(f"{gap:.2g}"),
        "floor": float(f"{judge.distance(fine):.5g}"),
        "bias": float(f"{frechet_bias(judge.reference, len(seeds), judge.reference.n):.4g}"),
        "what": judge.describe(len(seeds)),
    }
    store.target(model.config.name, facts)
    for rule, grid in all_cells(wanted(options.only, RULES)):
        if store.due(model.config.name, rule, grid):
            start = time.perf_counter()
            store.put(model.config.name, rule, grid, measure(model, judge, rule, grid, fine, seeds, options.n))
            print(f"{rule} on {grid}: {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/solver_quality"), help="fine solutions, for resuming")
    parser.add_argument("--n", type=int, default=128, help="images per seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=128, help="of the fine solution")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="rules to measure, or to show, with commas; all if omitted")
    parser.add_argument("--tables", action="store_true", help="print what is there and measure nothing")
    options = parser.parse_args()
    path = output_dir(options.out) / "solver_quality.json"
    if not options.tables:
        fill(path, options)
    content = read_json(path)
    for name, target in content["targets"].items():
        print(f"\n{name}: {target['what']}. Not FID; bias about {target['bias']:.2f}.")
    print_tables(content, MEASURE, options.only)
    panels = {(name, "rmse"): f"{name}: error" for name in content["targets"]}
    panels |= {(name, "distance"): f"{name}: distance (dotted: fine solution)" for name in content["targets"]}
    draw_picture(content, panels, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
