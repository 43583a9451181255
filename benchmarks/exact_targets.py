"""Error of every solver to the exact ODE, on distributions whose denoiser is known in closed form.

    python -m benchmarks.exact_targets --out benchmarks/results                    # all that is not there yet
    python -m benchmarks.exact_targets --out benchmarks/results --only evodiff     # these rules
    python -m benchmarks.exact_targets --out benchmarks/results --tables           # print what is there

No network and no training: the error is the solver's alone. EDM schedule, kappa 80 to 0.002, float64; 64 trajectories a
seed on images, 128 on patches, 1,000 on the ring and the mixture. Every rule runs on uniform lam and on Karras rho = 7;
tables show the better of the two, chosen once over all budgets. The distance is the sliced Wasserstein distance (128
directions) between all samples and draws of the data; that of the exact solution is the floor. Cells that the current
solvers made are kept; each carries the version of the code that it is from.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.quality import Cell, Store, all_cells, make_cell, print_tables, wanted
from benchmarks.quality_pictures import draw
from benchmarks.targets import BUDGETS, FAMILIES, GRIDS, RULES, SCHEDULE, Diagonal, Target, cifar10_folder, targets
from fewstep._files import output_dir, read_json
from fewstep.data import seeded
from fewstep.experiments.demo import machine
from fewstep.metrics import rmse, sliced_distance
from fewstep.noise import Karras, UniformLam
from fewstep.sampling import grid_for, sample, start_noise
from fewstep.solvers import UniPC

MEASURE = "sliced Wasserstein distance to draws of the data"
TITLES = {
    "ring": "ring, 2-d",
    "mixture_16d": "mixture, 16-d",
    "gaussian_cifar": "Gaussian, CIFAR-10 covariance",
    "kde_cifar": "density of 300 CIFAR-10 images",
    "patches_cifar": "1,000 CIFAR-10 patches",
}


def reference(target: Target, x: Tensor, steps: int) -> tuple[Tensor, float]:
    """The exact solution and how far a second way to it is: closed form and fine steps, or fine and half as fine."""
    fine = sample(target.denoiser, UniPC(order=3), Karras()(SCHEDULE, steps), x).x
    if isinstance(target.denoiser, Diagonal):
        ends = UniformLam()(SCHEDULE, 1)
        exact = target.denoiser.flow(x, ends.at(0), ends.at(1))
    else:
        exact = sample(target.denoiser, UniPC(order=3), Karras()(SCHEDULE, 2 * steps), x).x
    return exact, rmse(fine, exact)


def seeds_of(n: int, seeds: int) -> tuple[int, ...]:
    return tuple(1000 * k + j for k in range(seeds) for j in range(n))


def measure(target: Target, rule: str, grid: str, exact: Tensor, data: Tensor, seeds: tuple[int, ...], n: int) -> Cell:
    """One rule on one grid."""
    solver = RULES[rule]()
    x = start_noise(UniformLam()(SCHEDULE, 1), tuple(target.mean.shape), seeds, dtype=torch.float64)
    grids = [grid_for(solver, GRIDS[grid], SCHEDULE, nfe) for nfe in BUDGETS]
    runs = [target.run(rule, solver, levels, x, seeds) for levels in grids]
    distance = partial(distance_to, data)
    return make_cell(runs, exact, target.mean, n, distance, solver.stochastic)


def distance_to(data: Tensor, x: Tensor) -> float:
    return sliced_distance(x.flatten(1), data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--cifar10", type=Path, default=cifar10_folder(), help="folder with its parquet files")
    parser.add_argument("--part", type=float, default=1.0, help="of the trajectories; below 1 for a trial run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250, help="of the reference; also run at twice as many")
    parser.add_argument("--only", default="", help="rules to measure, or to show, with commas; all if omitted")
    parser.add_argument("--tables", action="store_true", help="print what is there and measure nothing")
    options = parser.parse_args()
    path = output_dir(options.out) / "exact_targets.json"
    if not options.tables:
        fill(path, options)
    content = read_json(path)
    print_tables(content, MEASURE, options.only)
    if all(name in content["targets"] for family in FAMILIES.values() for name in family):
        draw(content, {(name, "rmse"): title for name, title in TITLES.items()}, path.with_suffix(".png"))


def fill(path: Path, options: argparse.Namespace) -> None:
    """Measure what is due."""
    torch.set_num_threads(1)
    head = {"budgets": list(BUDGETS), "seeds": options.seeds, "measure": MEASURE}
    store = Store(path, head, machine())
    for name, target in targets(options.cifar10):
        start, n = time.perf_counter(), max(2, round(options.part * target.n))
        seeds = seeds_of(n, options.seeds)
        x = start_noise(UniformLam()(SCHEDULE, 1), tuple(target.mean.shape), seeds, dtype=torch.float64)
        exact, gap = reference(target, x, options.steps)
        data = target.denoiser.draw(max(1000, len(seeds)), seeded(name)).flatten(1)
        print(f"{name}: two ways to the reference differ by {gap:.1e}, {time.perf_counter() - start:.0f} s", flush=True)
        store.target(
            name,
            {
                "n": n,
                "draws": len(data),
                "reference": "exact solution",
                "reference_gap": float(f"{gap:.1e}"),
                "floor": float(f"{distance_to(data, exact):.5g}"),
            },
        )
        for rule, grid in all_cells(wanted(options.only, RULES)):
            if store.due(name, rule, grid):
                store.put(name, rule, grid, measure(target, rule, grid, exact, data, seeds, n))
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
