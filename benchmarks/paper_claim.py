"""What EVODiff's paper claims, measured again, and how much of it is the contrast that its last step adds.

    python -m benchmarks.paper_claim --out benchmarks/results            # goes on where it was stopped
    python -m benchmarks.paper_claim --out benchmarks/results --tables   # print what is there

Ten calls, classes in turn, no guidance. The paper's variant runs as published (uniform lam, nine steps and one call to
denoise at the end), with its last step replaced by one of DPM-Solver++ 2M, and with ten steps and no call at the end.
The default and DPM-Solver++ 2M and 3M run on uniform lam and on Karras rho = 7. Then the samples of the default and of
2M are given the gain g that the paper's last step has for a constant estimate: all numbers multiplied, as that step and
``final_gain`` do, or the distance from the mean of the data. The same on exact targets, where a Gaussian's Fréchet
distance needs no features. Images stay in ``--work`` under the version of the code that made them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.exact_targets import reference
from benchmarks.solver_quality import fine_solution, images_of
from benchmarks.targets import GRIDS, RULES, SCHEDULE, Diagonal, Target, cifar10_folder, code_of, targets
from fewstep._files import output_dir, read_json, read_tensors, write_json, write_tensors
from fewstep.data import seeded
from fewstep.errors import ConfigError
from fewstep.experiments.compare import judge_of
from fewstep.experiments.demo import machine
from fewstep.experiments.runs import GridChoice, make_grid
from fewstep.metrics import Estimate, Judge, contrast_gain, over_seeds, rmse, round_to_8bit, sliced_distance
from fewstep.models import Model, load_model
from fewstep.noise import Grid, NoiseLevel
from fewstep.sampling import grid_for, sample, start_noise
from fewstep.solvers import Denoise, EVODiff, NoiseSource, Solver
from fewstep.solvers.coeffs import levels_of
from fewstep.solvers.dpmpp import midpoint_row
from fewstep.solvers.multistep import combine

NFE = 10
PAPER, BASELINE = "evodiff_paper, uniform_lam", "dpmpp_2m, uniform_lam"
PLAIN, UNFINISHED = "evodiff_paper with a plain last step", "evodiff_paper not denoised at the end"
GAINED = ("dpmpp_2m", "evodiff")  # whose samples are also given the gain


@dataclass(frozen=True)
class PlainEnd:
    """The paper's variant with its last step replaced by one of DPM-Solver++ 2M, from the same two estimates."""

    paper: EVODiff = field(default_factory=partial(EVODiff, variant="paper", denoise_to_zero=True))
    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def nfe(self, grid: Grid) -> int:
        return self.paper.nfe(grid)

    def init(self, x: Tensor, grid: Grid) -> Any:
        return self.paper.init(x, grid)

    def step(
        self, denoise: Denoise, x: Tensor, grid: Grid, i: int, state: Any, noise: NoiseSource | None = None
    ) -> tuple[Tensor, Any]:
        if i + 1 < grid.steps:
            return self.paper.step(denoise, x, grid, i, state, noise)
        before, here, there = levels_of(grid)[i - 1 : i + 2]
        x = combine(midpoint_row(here, before, there), x, state.pair.now, (state.pair.before,))
        return denoise(x, grid.at(-1)), state


def ways() -> Iterator[tuple[str, str, Solver, str]]:
    """Row, rule whose code it is, solver, grid."""
    yield PAPER, "evodiff_paper", RULES["evodiff_paper"](), "uniform_lam"
    yield PLAIN, "evodiff_paper", PlainEnd(), "uniform_lam"
    yield UNFINISHED, "evodiff_paper", EVODiff(variant="paper"), "uniform_lam"
    for rule in ("evodiff", "dpmpp_2m", "dpmpp_3m"):
        for grid in GRIDS:
            yield f"{rule}, {grid}", rule, RULES[rule](), grid


def last_gain(grid: Grid) -> float:
    """What the paper's variant makes of a constant estimate, over what it should make; all of it in the last step."""

    def ones(x: Tensor, level: NoiseLevel, cond: object = None) -> Tensor:
        return torch.ones_like(x)

    x = grid.at(0).alpha * torch.ones(1, 1, dtype=torch.float64)
    return float(sample(ones, EVODiff(variant="paper"), grid, x).x / grid.at(-1).alpha)


def with_gains(rows: Mapping[str, Tensor], g: float, mean: Tensor) -> Iterator[tuple[str, Tensor]]:
    """All rows, and those that are made of them."""
    yield from rows.items()
    for name, x in rows.items():
        if name.split(",")[0] in GAINED:
            yield f"{name}, times g", g * x
            yield f"{name}, g about the mean", mean + g * (x - mean)


def numbers(x: Tensor, fine: Tensor, mean: Tensor, distance: float) -> dict[str, float]:
    """One row of one set; `fine` may be the solution of the first samples alone."""
    x = x[: len(fine)]
    zero = torch.zeros((), dtype=mean.dtype)
    gains = {"gain": contrast_gain(x, fine, mean), "multiple": contrast_gain(x, fine, zero)}
    return {"distance": distance, "rmse": rmse(x, fine), **gains}


def on_model(options: argparse.Namespace) -> dict[str, Any]:
    """The claim on the bundled model."""
    model = load_model(options.model)
    judge = judge_of(model)
    if judge is None:
        raise ConfigError(f"The model {options.model!r} names no judge", "Its facts name one", "Add it")
    sets = [tuple(range(10_000 * k, 10_000 * k + options.n)) for k in range(options.seeds)]
    grid = make_grid(model, RULES["evodiff_paper"](), GridChoice("uniform_lam"), NFE)
    g = last_gain(grid)
    found: dict[str, list[dict[str, float]]] = {}
    for seeds in sets:
        fine = fine_solution(model, seeds[: options.fine], options.steps, options.work)
        mean = fine.mean(0)
        rows = {
            name: kept(model, solver, rule, name, options, seeds, spacing) for name, rule, solver, spacing in ways()
        }
        for name, x in with_gains(rows, g, mean):
            found.setdefault(name, []).append(_judged(judge, x, fine, mean))
        print(f"set of seed {seeds[0]}: done", flush=True)
    return {
        "what": judge.describe(options.n),
        "reference": f"UniPC-3 in {options.steps} steps, {min(options.fine, options.n)} images a set",
        "floors": dict(judge.facts["floors"]),
        "g": g,
        "sets": options.seeds,
        "n": options.n,
        "rows": found,
    }


def _judged(judge: Judge, x: Tensor, fine: Tensor, mean: Tensor) -> dict[str, float]:
    seen = contrast_gain(round_to_8bit(x[: len(fine)]), round_to_8bit(fine), mean)
    return {**numbers(x, fine, mean, judge.distance(x)), "gain_8bit": seen}


def kept(
    model: Model,
    solver: Solver,
    rule: str,
    name: str,
    options: argparse.Namespace,
    seeds: tuple[int, ...],
    spacing: str,
) -> Tensor:
    """Images of one row and set, from the file of this code if there is one."""
    file = f"{name.replace(', ', '-').replace(' ', '-')}-{code_of(rule)['solvers']}-{model.fingerprint}"
    path = output_dir(options.work) / f"{file}-{NFE}-{seeds[0]}-{len(seeds)}.safetensors"
    if not path.exists():
        grid = make_grid(model, solver, GridChoice(spacing), NFE)
        write_tensors(path, {"images": images_of(model, solver, grid, seeds)})
        print(path.stem, flush=True)
    return read_tensors(path)["images"]


def on_target(target: Target, name: str, seeds: int) -> dict[str, Any]:
    """The claim on an exact target."""
    found: dict[str, list[dict[str, float]]] = {}
    paper = RULES["evodiff_paper"]()
    g = last_gain(grid_for(paper, GRIDS["uniform_lam"], SCHEDULE, NFE))
    data = target.denoiser.draw(1000, seeded(name))
    for k in range(seeds):
        some = tuple(1000 * k + j for j in range(target.n))
        x = start_noise(GRIDS["uniform_lam"](SCHEDULE, 1), tuple(target.mean.shape), some, dtype=torch.float64)
        exact, _ = reference(target, x, 250)
        rows = {
            row: target.run(rule, solver, grid_for(solver, GRIDS[spacing], SCHEDULE, NFE), x, some)
            for row, rule, solver, spacing in ways()
        }
        for row, y in with_gains(rows, g, target.mean):
            found.setdefault(row, []).append(numbers(y, exact, target.mean, distance(target, y, exact, data)))
    gaussian = isinstance(target.denoiser, Diagonal)
    what = "Fréchet distance, exact along the eigenvectors" if gaussian else "sliced Wasserstein distance to the data"
    return {"what": what, "reference": "exact solution", "g": g, "sets": seeds, "n": target.n, "rows": found}


def distance(target: Target, x: Tensor, exact: Tensor, data: Tensor) -> float:
    """Fréchet distance where the target is Gaussian, sliced Wasserstein distance elsewhere."""
    if isinstance(target.denoiser, Diagonal):
        return frechet_along_axes(x, exact, target.denoiser.variances)
    return sliced_distance(x.flatten(1), data.flatten(1))


def frechet_along_axes(x: Tensor, exact: Tensor, variances: Tensor) -> float:
    r"""Fréchet distance to a Gaussian with a diagonal covariance, from samples paired with exact ones.

    .. math:: \sum_k (\mathrm{mean}_k(x) - \mathrm{mean}_k(y))^2 + v_k (\mathrm{sd}_k(x) / \mathrm{sd}_k(y) - 1)^2

    Samples of the same noise have the same sampling error, which the quotient takes out: a solver that is linear on
    every axis, as all of these but EVODiff are, gets its exact distance.
    """
    shift = (x - exact).mean(0)
    stretch = x.std(0) / exact.std(0)
    return float((shift**2 + variances * (stretch - 1) ** 2).sum())


def estimates(runs: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """Means over the sets, and of the difference in distance to the baseline from the same noise."""
    table = {key: over_seeds([run[key] for run in runs]) for key in runs[0]}
    apart = [run["distance"] - other["distance"] for run, other in zip(runs, base, strict=True)]
    return {**table, "apart": over_seeds(apart)}


def print_tables(content: Mapping[str, Any]) -> None:
    """Print everything as Markdown."""
    for name, part in content["targets"].items():
        seen = "gain_8bit" in part["rows"][PAPER][0]
        print(f"\n**{name}**, {NFE} calls, g = {part['g']:.4f}: {part['what']}.")
        print(f"{part['sets']} sets of {part['n']}; errors and gains against: {part['reference']}.\n")
        print(f"| | distance | minus 2M's | RMSE | gain about the mean | about 0 |{' as 8 bits |' if seen else ''}")
        print(f"|---|---|---|---|---|---|{'---|' if seen else ''}")
        for row, runs in part["rows"].items():
            mean = estimates(runs, part["rows"][BASELINE])
            cells = [str(mean["distance"]), "" if row == BASELINE else str(mean["apart"]), f"{mean['rmse'].value:.4f}"]
            gains = [f"{mean[key].value:.3f}" for key in ("gain", "multiple", *(["gain_8bit"] if seen else []))]
            print(f"| {row} | {' | '.join(cells + gains)} |")
        _print_share(part["rows"])
    print(f"\nCode: {', '.join(f'{rule} {code}' for rule, code in content['code'].items())}; {content['revision']}.")


def _print_share(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """How much of the paper's advantage over its baseline each ingredient has."""
    base = rows[BASELINE]
    parts = {
        "the paper's variant": PAPER,
        "with a plain last step": PLAIN,
        "ten steps and no call at the end": UNFINISHED,
        "2M times g": f"{BASELINE}, times g",
        "the default": "evodiff, uniform_lam",
        "the default times g": "evodiff, uniform_lam, times g",
    }
    words = [f"{said}: {estimates(rows[row], base)['apart']}" for said, row in parts.items()]
    print(f"\nDistance less that of DPM-Solver++ 2M on the same grid (below 0 is better): {'; '.join(words)}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/paper_claim"), help="images, for resuming")
    parser.add_argument("--cifar10", type=Path, default=cifar10_folder(), help="folder with its parquet files")
    parser.add_argument("--n", type=int, default=2000, help="images per set")
    parser.add_argument("--fine", type=int, default=128, help="of them that are compared with a fine solution")
    parser.add_argument("--seeds", type=int, default=3, help="sets")
    parser.add_argument("--steps", type=int, default=128, help="of the fine solution")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tables", action="store_true", help="print what is there and measure nothing")
    options = parser.parse_args()
    path = output_dir(options.out) / "paper_claim.json"
    if not options.tables:
        torch.set_num_threads(options.threads)
        code = {rule: code_of(rule)["solvers"] for _, rule, _, _ in ways()}  # before anybody can edit the files
        parts = {
            name: on_target(target, name, options.seeds)
            for name, target in targets(options.cifar10)
            if name.startswith(("gaussian", "kde"))
        }
        content = {
            "machine": machine(),
            "revision": code_of("evodiff")["revision"],
            "code": code,
            "targets": {options.model: on_model(options), **parts},
        }
        write_json(path, content)
    print_tables(read_json(path))


if __name__ == "__main__":
    main()
