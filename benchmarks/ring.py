"""The trap of unpaired reconstruction, and what gets out of it: eight Gaussians on a ring, two steps from noise.

    python -m benchmarks.ring --out benchmarks/results      # goes on where it was interrupted

Every row is one objective for the same network, trained by the trainer and sampled by the sampler of fewstep, from
scratch unless it says otherwise. `std` is the spread of the samples over that of the data, root of the trace of the
covariance in all dimensions; `modes` counts the Gaussians that hold at least a third of their share of the samples,
within three standard deviations of the centre; `on` is the share of samples within three standard deviations of any,
0.99 for the data. In 64 dimensions the ring lies in a random plane, modes are counted in it, and `off` is the root mean
square distance from it.

Rows without a critic take twice the steps, which costs about as much. The squared error of L2 is taken per number of
the plane, so that its weight means the same in 2 and in 64 dimensions.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewstep._files import output_dir, read_json, write_json
from fewstep.data import Batch, seeded
from fewstep.denoisers import X0, NetworkDenoiser
from fewstep.errors import CollapseWarning
from fewstep.experiments.demo import machine
from fewstep.losses import L2, EnergyScore, MomentReconstruction, Paired, Ramp, Term
from fewstep.losses.adversarial import Adversarial
from fewstep.losses.distribution import MMD
from fewstep.models import Chain
from fewstep.networks.critic import VectorCritic
from fewstep.networks.mlp import MLP
from fewstep.noise import LinearFlow, UniformFlow
from fewstep.objectives import (
    E2E,
    GENERATOR,
    OT,
    Coupled,
    Coupling,
    Denoising,
    Independent,
    Inversion,
    Objective,
    Teacher,
    Weighted,
)
from fewstep.sampling import resolve, sample
from fewstep.solvers import DDIM
from fewstep.training import TrainConfig, Trainer

SCHEDULE = LinearFlow()
CHAIN = Chain(steps=(2,))
MODES, RADIUS, WIDTH = 8, 1.4, 0.14  # variance per axis of the plane: 1.4^2 / 2 + 0.14^2 = 1
STEPS, BATCH, PRETRAINING, PAIRS = 800, 256, 2500, 2**14
TRAIN = TrainConfig(batch=BATCH, lr=2e-3, warmup=50, decay=0.8, betas=(0.0, 0.99), ema=0.99, clip=10.0)


@dataclass(frozen=True)
class Ring:
    """Images, as the trainer calls them: 65,536 draws from the ring, in a random plane of `dim` dimensions."""

    dim: int
    name: str = "ring"
    classes: tuple[str, ...] = ()
    vocabulary: None = None

    def __len__(self) -> int:
        return 2**16

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.dim, 1, 1

    @property
    def plane(self) -> Tensor:
        """Two orthonormal rows, shape (2, dim)."""
        return torch.linalg.qr(torch.randn(self.dim, 2, generator=seeded("plane")))[0].T

    @property
    def centres(self) -> Tensor:
        """Of the Gaussians, in the plane, shape (8, 2)."""
        angle = torch.arange(MODES) * (2 * math.pi / MODES)
        return RADIUS * torch.stack([angle.cos(), angle.sin()], 1)

    @property
    def points(self) -> Tensor:
        """All data, shape (65,536, dim)."""
        generator = seeded("ring")
        mode = torch.randint(MODES, (len(self),), generator=generator)
        return (self.centres[mode] + WIDTH * torch.randn(len(self), 2, generator=generator)) @ self.plane


@dataclass(frozen=True)
class InMemory:
    """The data of a ring, drawn once."""

    ring: Ring
    points: Tensor

    def __len__(self) -> int:
        return len(self.points)

    def batch(self, indices: Tensor, mirrored: Tensor | None = None) -> Batch:
        return Batch(self.points[indices])


@dataclass(frozen=True)
class Row:
    """One objective: its terms with their weights, how noise and data are paired, and where it starts."""

    terms: Callable[[int], dict[str, tuple[Term, float]]]
    coupling: Callable[[NetworkDenoiser, Tensor], Coupling] = lambda denoiser, points: Independent()
    pretrained: bool = False


def l2(weight: float) -> Callable[[int], dict[str, tuple[Term, float]]]:
    return lambda dim: {"l2": (Paired(L2()), weight * dim / 2)}


def gan(dim: int) -> dict[str, tuple[Term, float]]:
    critic = VectorCritic(dim)
    return {"adversarial": (Adversarial(critic, gamma_real=0.2, gamma_fake=0.2, fraction=1.0), 1.0)}


def mmd(dim: int) -> dict[str, tuple[Term, float]]:
    return {"mmd": (MMD(partial(torch.flatten, start_dim=1)), 1.0)}


def moment(dim: int) -> dict[str, tuple[Term, float]]:
    return {"moment": (MomentReconstruction(), dim / 2)}


@dataclass(frozen=True)
class Table:
    """Pairs made once: what Teacher and Inversion make on line, at 64 calls for every sample of every step."""

    z: Tensor
    x: Tensor
    pairing: Literal["full"] = "full"
    leaky: bool = False

    def __call__(self, batch: Batch, generator: torch.Generator) -> Coupled:
        rows = torch.randint(len(self.z), (len(batch),), generator=generator)
        return Coupled(self.z[rows], self.x[rows], None, batch.x0)


def teacher(denoiser: NetworkDenoiser, points: Tensor) -> Coupling:
    z = torch.randn(points.shape, generator=seeded("pairs"))
    return Table(z, Teacher(denoiser, DDIM(), UniformFlow()(SCHEDULE, 64)).target(z))


def inversion(denoiser: NetworkDenoiser, points: Tensor) -> Coupling:
    eps = torch.randn(points.shape, generator=seeded("pairs"))
    return Table(Inversion(denoiser, UniformFlow()(SCHEDULE, 64)).noise(points, eps), points)


ROWS: dict[str, Row] = {
    "L2, independent noise": Row(l2(1)),
    "pretrained, then L2": Row(l2(1), pretrained=True),
    "L2 (1) + GAN (1)": Row(lambda dim: l2(1)(dim) | gan(dim)),
    "0.1 L2 + GAN": Row(lambda dim: l2(0.1)(dim) | gan(dim)),
    "GAN": Row(gan),
    "energy score": Row(lambda dim: {"energy": (EnergyScore(), 1.0)}),
    "MMD": Row(mmd),
    "moment + GAN": Row(lambda dim: moment(dim) | gan(dim)),
    "teacher pairs + L2": Row(l2(1), teacher),
    "inversion pairs + L2": Row(l2(1), inversion),
    "OT pairs + L2": Row(l2(1), lambda denoiser, points: OT()),
}


def denoiser_of(network: nn.Module) -> NetworkDenoiser:
    return NetworkDenoiser(network, X0(), SCHEDULE)


def fresh(dim: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(dim, width=64)


def trained(objective: Objective, players: dict[str, nn.Module], data: InMemory, config: TrainConfig) -> nn.Module:
    """Train in a folder that nobody keeps; returns the moving average."""
    config = replace(config, checkpoint_every=config.steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, objective, players, data, folder, {})
        for _ in trainer.steps():
            pass
    return trainer.ema.module


def pretrain(data: InMemory, seed: int) -> nn.Module:
    network = fresh(data.ring.dim, seed)
    config = replace(TRAIN, steps=PRETRAINING, betas=(0.9, 0.99), seed=seed)
    return trained(Denoising(denoiser_of(network)), {GENERATOR: network}, data, config)


def end_to_end(row: Row, data: InMemory, pretrained: nn.Module, seed: int) -> nn.Module:
    network = fresh(data.ring.dim, seed)
    if row.pretrained:
        network.load_state_dict(pretrained.state_dict())
    denoiser = denoiser_of(network)
    terms = {name: Weighted(term, Ramp(weight)) for name, (term, weight) in row.terms(data.ring.dim).items()}
    coupling = row.coupling(denoiser_of(pretrained), data.points[:PAIRS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        steps = STEPS if "adversarial" in terms else 2 * STEPS
        objective = E2E(denoiser, partial(resolve, CHAIN, SCHEDULE), terms, steps, (2,), coupling)
    return trained(objective, {GENERATOR: network, **objective.others()}, data, replace(TRAIN, steps=steps, seed=seed))


def judged(samples: Tensor, ring: Ring) -> dict[str, float]:
    """Compare samples (n, dim) with the ring."""
    flat = samples @ ring.plane.T
    off = (samples - flat @ ring.plane).square().sum(1).mean().sqrt()
    near, mode = torch.cdist(flat, ring.centres).min(dim=1)
    on = near < 3 * WIDTH
    shares = torch.bincount(mode[on], minlength=MODES) / len(samples)
    spread = samples.var(dim=0).sum().sqrt() / math.sqrt(2 * (RADIUS**2 / 2 + WIDTH**2))
    return {
        "std": float(spread),
        "modes": int((shares > 1 / MODES / 3).sum()),
        "on": float(on.float().mean()),
        "off": float(off),
    }


def sampled(network: nn.Module, dim: int, seed: int, steps: int = 2) -> Tensor:
    solver, grid = (DDIM(), UniformFlow()(SCHEDULE, steps))
    return sample(denoiser_of(network), solver, grid, torch.randn(8192, dim, generator=seeded("judge", seed))).x


def run(dim: int, seed: int, names: list[str], cells: dict[str, dict[str, float]], keep: Callable[[], None]) -> None:
    """Fill in the rows of one seed that are missing, and the pretrained network's own samples."""
    missing = [name for name in names if name not in cells]
    if not missing:
        return
    data = InMemory(Ring(dim), Ring(dim).points)
    pretrained = pretrain(data, seed)
    for steps in (2, 64):
        cells[f"pretrained, {steps} steps"] = judged(sampled(pretrained, dim, seed, steps), data.ring)
    for name in missing:
        started = time.process_time()
        network = end_to_end(ROWS[name], data, pretrained, seed)
        taken = {"cpu_seconds": time.process_time() - started}
        cells[name] = judged(sampled(network, dim, seed), data.ring) | taken
        keep()
        print(dim, seed, name, {key: round(value, 3) for key, value in cells[name].items()}, flush=True)


def print_tables(results: dict[str, dict[str, dict[str, dict[str, float]]]]) -> None:
    """Print what benchmarks/README.md shows, as Markdown: the seeds of every cell side by side."""
    for dim, seeds in results.items():
        print(f"\n**{dim} dimensions**\n\n| setting | std | modes | on | off |\n|---|---|---|---|---|")
        for name in next(iter(seeds.values())):
            rows = [cells[name] for cells in seeds.values() if name in cells]
            columns = {"std": ".3f", "modes": "d", "on": ".2f", "off": ".3f"}
            texts = [" / ".join(format(row[key], how) for row in rows) for key, how in columns.items()]
            print(f"| {name} | {' | '.join(texts)} |")


def undated(content: dict[str, Any]) -> dict[str, Any]:
    """What rows must share to stand in one table: all but the rows and the day, so that a run may cross midnight."""
    machine = {key: value for key, value in content.get("machine", {}).items() if key != "date"}
    return {**{key: value for key, value in content.items() if key != "results"}, "machine": machine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 64])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = output_dir(options.out) / "ring.json"
    told: dict[str, Any] = {"machine": machine(), "steps": STEPS, "batch": BATCH, "pretraining": PRETRAINING}
    before = read_json(path) if path.exists() else {}
    results = before["results"] if undated(before) == undated(told) else {}
    for seed in range(options.seeds):
        for dim in options.dims:
            cells = results.setdefault(str(dim), {}).setdefault(str(seed), {})
            run(dim, seed, options.rows, cells, lambda: write_json(path, {**told, "results": results}))
    print_tables(results)


if __name__ == "__main__":
    main()
