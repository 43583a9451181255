"""What each part of the default EVODiff is worth, and data of other scales: its error beside DPM-Solver++ 2M's.

    python -m benchmarks.evodiff_variants --out benchmarks/results          # ten minutes of one thread
    python -m benchmarks.evodiff_variants --tables

Every variant changes one constant of the rule. Targets, grids and the choice of the better grid are those of
`benchmarks.exact_targets`, with one seed of 64 trajectories (200 on the ring and the mixture).
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.exact_targets import reference
from benchmarks.quality import geometric_mean
from benchmarks.targets import BUDGETS, FAMILIES, FEW, GRIDS, SCHEDULE, Target, cifar10_folder, targets
from fewstep._files import output_dir, read_json, write_json
from fewstep.denoisers import GaussianMixture
from fewstep.experiments.demo import machine
from fewstep.metrics import rmse
from fewstep.noise import UniformLam
from fewstep.sampling import sample, start_noise
from fewstep.solvers import DPMpp2M, EVODiff, Solver, evodiff_default, evodiff_prior

PLAIN: dict[str, Any] = {}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": PLAIN,
    "diffuse family alone": {"_DRAW": 1e30},
    "clustered family alone": {"DIFFUSE": evodiff_prior.CLUSTERED},
    "windows of 4 estimates": {"WINDOW": 4},
    "windows of 6 estimates": {"WINDOW": 6},
    "foreseen from 2 estimates": {"MEMORY": 2},
    "foreseen from 4 estimates": {"MEMORY": 4},
    "ridges a third": {"ridges": 1 / 3},
    "ridges three times": {"ridges": 3.0},
    "no more ridge in long steps": {"_LONG": (0.0, 16)},
    "clusters of width s / 3": {"width": 1 / 3},
    "clusters of width s / 5": {"width": 1 / 5},
}
SCALES = (0.01, 0.1, 0.3, 3.0, 10.0, 100.0)


@contextlib.contextmanager
def changed(variant: dict[str, Any]) -> Iterator[None]:
    """The rule with other constants, for as long as the block runs."""
    wanted = dict(variant)
    families = {"DIFFUSE": evodiff_prior.DIFFUSE, "CLUSTERED": evodiff_prior.CLUSTERED}
    share, width = wanted.pop("ridges", 1.0), wanted.pop("width", evodiff_prior.CLUSTERED.width)
    families = {name: replace(family, ridge=share * family.ridge) for name, family in families.items()}
    families["CLUSTERED"] = replace(families["CLUSTERED"], width=width)
    kept = []
    for name, value in {**families, **wanted}.items():
        for module in (evodiff_prior, evodiff_default):
            if hasattr(module, name):
                kept.append((module, name, getattr(module, name)))
                setattr(module, name, value)
    evodiff_default._remembered.cache_clear()
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)
        evodiff_default._remembered.cache_clear()


def errors(target: Target, rule: Solver, x: Tensor, exact: Tensor) -> list[float]:
    """RMSE at every budget, on the grid of smaller error over all of them."""
    runs = [
        [rmse(sample(target.denoiser, rule, spacing(SCHEDULE, n), x).x, exact) for n in BUDGETS]
        for spacing in GRIDS.values()
    ]
    return min(runs, key=geometric_mean)


def ratio(mine: list[float], theirs: list[float]) -> float:
    return geometric_mean(mine[:FEW]) / geometric_mean(theirs[:FEW])


def start(target: Target, n: int) -> tuple[Tensor, Tensor]:
    x = start_noise(UniformLam()(SCHEDULE, 1), tuple(target.mean.shape), range(n), dtype=torch.float64)
    return x, reference(target, x, 400)[0]


def scaled(target: Target, scale: float) -> Target:
    mixture = target.denoiser
    if not isinstance(mixture, GaussianMixture):
        raise TypeError("only mixtures are scaled here")
    return replace(
        target,
        denoiser=GaussianMixture(scale * mixture.means, scale * torch.as_tensor(mixture.std)),
        mean=target.mean * scale,
    )


def print_tables(content: dict[str, Any]) -> None:
    families = {f: [n for n in names if n in content["targets"]] for f, names in FAMILIES.items()}
    print(f"| variant | {' | '.join(content['targets'])} | {' | '.join(families)} |")
    print(f"|---|{'---|' * (len(content['targets']) + len(families))}")
    for name, row in content["variants"].items():
        means = [f"{geometric_mean([row[n] for n in names]):.2f}" if names else "–" for names in families.values()]
        print(f"| {name} | {' | '.join(f'{row[n]:.2f}' for n in content['targets'])} | {' | '.join(means)} |")
    print(f"\n| scale of the data | {' | '.join(content['scales'])} |\n|---|{'---|' * len(content['scales'])}")
    for name in ("ring", "mixture_16d"):
        print(f"| {name} | {' | '.join(f'{row[name]:.2f}' for row in content['scales'].values())} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--cifar10", type=Path, default=cifar10_folder())
    parser.add_argument("--tables", action="store_true", help="print what is there")
    options = parser.parse_args()
    path = output_dir(options.out) / "evodiff_variants.json"
    if options.tables:
        print_tables(read_json(path))
        return
    torch.set_num_threads(1)
    chosen = {name: target for name, target in targets(options.cifar10) if "digits" not in name}
    starts = {name: start(target, 200 if target.mean.ndim == 1 else 64) for name, target in chosen.items()}
    base = {name: errors(target, DPMpp2M(), *starts[name]) for name, target in chosen.items()}
    variants: dict[str, dict[str, float]] = {}
    for label, variant in VARIANTS.items():
        with changed(variant):
            variants[label] = {n: ratio(errors(t, EVODiff(), *starts[n]), base[n]) for n, t in chosen.items()}
        print(label, {name: round(value, 3) for name, value in variants[label].items()}, flush=True)
    scales: dict[str, dict[str, float]] = {}
    for scale in SCALES:
        for name in ("ring", "mixture_16d"):
            target = scaled(chosen[name], scale)
            x, exact = start(target, 200)
            both = [errors(target, rule, x, exact) for rule in (EVODiff(), DPMpp2M())]
            scales.setdefault(f"{scale:g}", {})[name] = ratio(*both)
        print(f"scale {scale:g}", scales[f"{scale:g}"], flush=True)
    content = {"machine": machine(), "targets": list(chosen), "variants": variants, "scales": scales}
    write_json(path, content)
    print_tables(content)


if __name__ == "__main__":
    main()
