"""Error of every solver to the exact ODE, on distributions whose denoiser is known in closed form.

    python -m benchmarks.exact_targets --out benchmarks/results

No network and no training: the error is the solver's alone. Targets: a ring of eight Gaussians, a mixture in 16
dimensions, a Gaussian with the covariance of real digits, and a kernel density of 300 real digits, which is as curved
as image data are. Every solver runs on uniform lam and on Karras rho = 7; the table shows the better of the two grids,
chosen once over all budgets.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from fewstep._files import output_dir, write_json
from fewstep.data import digits, to_unit
from fewstep.denoisers import KDE, Denoiser, Gaussian, GaussianMixture
from fewstep.experiments.demo import machine
from fewstep.metrics import contrast_gain, rmse
from fewstep.noise import EDM, Karras, UniformLam
from fewstep.sampling import grid_for, sample, start_noise
from fewstep.solvers import SOLVERS, Heun

BUDGETS = (5, 6, 8, 10, 15, 20)
GRIDS = {"uniform_lam": UniformLam(), "karras_7": Karras()}
SCHEDULE = EDM()


def targets() -> dict[str, tuple[Denoiser, torch.Tensor]]:
    """Name -> (denoiser, mean of the data)."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    ring = GaussianMixture(torch.stack([angle.cos(), angle.sin()], 1), torch.tensor(0.1, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 16, dtype=torch.float64, generator=generator)
    images = to_unit(digits().images).double()
    flat = images.flatten(1)
    return {
        "ring": (ring, torch.zeros(2)),
        "mixture_16d": (GaussianMixture(centres, torch.tensor(0.3, dtype=torch.float64)), centres.mean(0)),
        "gaussian_digits": (Gaussian(images.mean(0), torch.cov(flat.T)), images.mean(0)),
        "kde_digits": (KDE(images[:300], 0.1), images[:300].mean(0)),
    }


def measure(denoiser: Denoiser, mean: torch.Tensor, seeds: range) -> dict[str, dict[str, list[list[float]]]]:
    """Solver -> grid -> (rmse, gain) at every budget, from one set of noise."""
    x = start_noise(UniformLam()(SCHEDULE, 1), tuple(mean.shape), seeds, dtype=torch.float64)
    exact = sample(denoiser, Heun(), Karras()(SCHEDULE, 500), x).x
    table: dict[str, dict[str, list[list[float]]]] = {}
    for name, make in SOLVERS.items():
        rule = make()
        for grid_name, spacing in GRIDS.items():
            runs = [sample(denoiser, rule, grid_for(rule, spacing, SCHEDULE, nfe), x).x for nfe in BUDGETS]
            cells = [[rmse(run, exact), contrast_gain(run, exact, mean.double())] for run in runs]
            table.setdefault(name, {})[grid_name] = cells
    return table


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def averaged(tables: list[dict[str, dict[str, list[list[float]]]]]) -> dict[str, dict[str, list[list[float]]]]:
    """Mean over seeds."""
    return {
        name: {
            grid: torch.tensor([table[name][grid] for table in tables], dtype=torch.float64).mean(0).tolist()
            for grid in tables[0][name]
        }
        for name in tables[0]
    }


def better(grids: dict[str, list[list[float]]]) -> tuple[str, list[float]]:
    """The grid of smaller error over all budgets, and the errors on it."""
    errors = {grid: [cell[0] for cell in cells] for grid, cells in grids.items()}
    best = min(errors, key=lambda grid: geometric_mean(errors[grid]))
    return best, errors[best]


def print_tables(results: dict[str, dict[str, dict[str, list[list[float]]]]]) -> None:
    """Print what benchmarks/README.md shows, as Markdown."""
    ratios: dict[str, list[float]] = {}
    for target, table in results.items():
        best = {solver: better(grids) for solver, grids in table.items()}
        least = [min(errors[k] for _, errors in best.values()) for k in range(len(BUDGETS))]
        print(
            f"\n**{target}**\n\n| solver | grid | {' | '.join(map(str, BUDGETS))} |\n|---|---|{'---|' * len(BUDGETS)}"
        )
        for solver, (grid, errors) in best.items():
            cells = [f"**{e:.4f}**" if e == m else f"{e:.4f}" for e, m in zip(errors, least, strict=True)]
            print(f"| {solver} | {grid} | {' | '.join(cells)} |")
            peer = geometric_mean(best["dpmpp_2m"][1][:4])
            ratios.setdefault(solver, []).append(geometric_mean(errors[:4]) / peer)
    print(f"\n| solver | {' | '.join(results)} | all |\n|---|{'---|' * (len(results) + 1)}")
    for solver, row in sorted(ratios.items(), key=lambda item: geometric_mean(item[1])):
        print(f"| {solver} | {' | '.join(f'{r:.2f}' for r in row)} | {geometric_mean(row):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--n", type=int, default=64, help="trajectories per seed")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    folder = output_dir(options.out)
    results = {}
    for name, (denoiser, mean) in targets().items():
        seeds = [range(1000 * k, 1000 * k + options.n) for k in range(options.seeds)]
        results[name] = averaged([measure(denoiser, mean, some) for some in seeds])
    print_tables(results)
    content = {"machine": machine(), "n": options.n, "seeds": options.seeds, "budgets": BUDGETS, "results": results}
    write_json(folder / "exact_targets.json", content)


if __name__ == "__main__":
    main()
