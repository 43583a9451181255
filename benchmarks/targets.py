"""What solvers are compared on, and which: distributions with an exact denoiser, rules by name, grids, code versions.

Smooth targets are a ring of eight Gaussians, a mixture in 16 dimensions and a Gaussian with the mean and covariance of
CIFAR-10's test images; image-like ones are a kernel density of 300 of these images and 1,000 patches of 8x8 pixels cut
from them, as points. Without CIFAR-10 the digits of scikit-learn stand in.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import math
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Generator, Tensor

from fewstep.data import digits, load_data, to_unit
from fewstep.denoisers import KDE, Cond, Denoiser, EmpiricalData, Gaussian, GaussianMixture
from fewstep.noise import EDM, Grid, Karras, NoiseLevel, Spacing, UniformLam
from fewstep.sampling import SeededNoise, sample
from fewstep.solvers import DDIM, DEIS, IPNDM, SOLVERS, Solver, UniPC

BUDGETS = (5, 6, 8, 10, 15, 20)
FEW = 4  # budgets that count for ratios and goals: 5, 6, 8, 10
SCHEDULE = EDM()
GRIDS: dict[str, Spacing] = {"uniform_lam": UniformLam(), "karras": Karras()}

RULES: dict[str, Callable[[], Solver]] = {
    **SOLVERS,
    "ddim_eta_1": partial(DDIM, eta=1.0),
    "deis_2": partial(DEIS, order=2),
    "deis_log_kappa": partial(DEIS, variable="log_kappa"),
    "ipndm_2": partial(IPNDM, order=2),
    "ipndm_3": partial(IPNDM, order=3),
    "unipc_bh1": partial(UniPC, variant="bh1"),
}
PER_CHANNEL = ("evodiff_paper",)  # rules that look at channels, and so depend on the basis of the data

FAMILIES = {"smooth": ("ring", "mixture_16d", "gaussian_cifar"), "image-like": ("kde_cifar", "patches_cifar")}
STAND_INS = {"smooth": ("ring", "mixture_16d", "gaussian_digits"), "image-like": ("kde_digits",)}


class Oracle(Denoiser, Protocol):
    """An exact denoiser whose data can be drawn."""

    def draw(self, n: int, generator: Generator | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Diagonal:
    """Exact denoiser of a Gaussian in its own eigenbasis: :class:`Gaussian` without the two matrix products."""

    mean: Tensor
    variances: Tensor

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        alpha, sigma = level
        share = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        return self.mean + share * (x - alpha * self.mean)

    def flow(self, x: Tensor, here: NoiseLevel, there: NoiseLevel) -> Tensor:
        """Solve the probability-flow ODE exactly."""
        before, after = (level.alpha**2 * self.variances + level.sigma**2 for level in (here, there))
        return there.alpha * self.mean + (after / before).sqrt() * (x - here.alpha * self.mean)

    def draw(self, n: int, generator: Generator | None = None) -> Tensor:
        eps = torch.randn(n, len(self.mean), dtype=self.mean.dtype, generator=generator)
        return self.mean + self.variances.sqrt() * eps


@dataclass(frozen=True)
class Pixels:
    """The same Gaussian where rules that look at channels see them.

    Args:
        oracle: the denoiser of images.
        basis: eigenvectors of the covariance, in columns.
    """

    oracle: Gaussian
    basis: Tensor

    def run(self, rule: Solver, grid: Grid, x: Tensor) -> Tensor:
        """Sample in pixels what begins and ends in the eigenbasis."""
        images = (x @ self.basis.T).reshape(len(x), *self.oracle.mean.shape)
        return sample(self.oracle, rule, grid, images).x.flatten(1) @ self.basis


@dataclass(frozen=True)
class Target:
    """A distribution.

    Args:
        denoiser: the exact one, with `draw`.
        mean: of the data, shape of one sample.
        n: trajectories per seed.
        pixels: the same in pixels, for rules that look at channels, if `denoiser` is not.
    """

    denoiser: Oracle
    mean: Tensor
    n: int
    pixels: Pixels | None = None

    def run(self, name: str, rule: Solver, grid: Grid, x: Tensor, seeds: tuple[int, ...]) -> Tensor:
        """Sample with a rule of RULES."""
        if self.pixels is not None and name in PER_CHANNEL:
            return self.pixels.run(rule, grid, x)
        noise = SeededNoise(seeds) if rule.stochastic else None
        return sample(self.denoiser, rule, grid, x, noise=noise).x


def ring() -> Target:
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    data = GaussianMixture(torch.stack([angle.cos(), angle.sin()], 1), torch.tensor(0.1, dtype=torch.float64))
    return Target(data, torch.zeros(2, dtype=torch.float64), 1000)


def mixture() -> Target:
    centres = torch.randn(10, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Target(GaussianMixture(centres, torch.tensor(0.3, dtype=torch.float64)), centres.mean(0), 1000)


def gaussian(images: Tensor) -> Target:
    """The Gaussian with the mean and covariance of images, in its eigenbasis."""
    oracle = Gaussian(images.mean(0), torch.cov(images.flatten(1).T))
    variances, basis = oracle._spectrum
    if basis is None:
        raise TypeError("a covariance matrix has a basis")
    mean = images.mean(0).flatten() @ basis
    return Target(Diagonal(mean, variances), mean, 64, Pixels(oracle, basis))


def density(images: Tensor) -> Target:
    """Kernels of width 0.1 around the first 300 images."""
    return Target(KDE(images[:300], 0.1), images[:300].mean(0), 64)


def patches(images: Tensor) -> Target:
    """A patch of 8x8 pixels from each of 1,000 images, at a random place, as a finite set."""
    corners = torch.randint(25, (1000, 2), generator=torch.Generator().manual_seed(0)).tolist()
    cut = torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(images[300:], corners, strict=False)])
    return Target(EmpiricalData(cut), cut.mean(0), 128)


def targets(cifar10: Path | None) -> Iterator[tuple[str, Target]]:
    """Every target that can be made, with its name."""
    yield "ring", ring()
    yield "mixture_16d", mixture()
    grey = to_unit(digits().images).double()
    yield "gaussian_digits", gaussian(grey)
    yield "kde_digits", density(grey)
    if cifar10 is None:
        print("Left out: gaussian_cifar, kde_cifar, patches_cifar. They need CIFAR-10's test images: --cifar10 FOLDER")
        return
    images = to_unit(load_data(f"parquet:{cifar10}", "test").images).double()
    yield "gaussian_cifar", gaussian(images)
    yield "kde_cifar", density(images)
    yield "patches_cifar", patches(images)


def cifar10_folder() -> Path | None:
    """The folder shared/data/cifar10 beside the repository, where there is one."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
    return folder if folder.is_dir() else None


@cache
def code_of(name: str) -> dict[str, str]:
    """Which code a number of a rule comes from: the revision, and a hash of the modules that the rule is made of.

    The hash is of the syntax without docstrings and comments, taken once a process: numbers stay valid when words do.
    """
    make = RULES[name]
    files = _with_imports(Path(inspect.getfile(make.func if isinstance(make, partial) else make)))
    text = "".join(_syntax(files[key]) for key in sorted(files))
    return {"revision": _revision(), "solvers": hashlib.sha256(text.encode()).hexdigest()[:12]}


def _with_imports(file: Path) -> dict[str, Path]:
    """A module of the solvers and those that it imports, by name."""
    found, open_ends = {file.stem: file}, [file]
    while open_ends:
        for word in re.findall(r"^from fewstep\.solvers\.(\w+) import", open_ends.pop().read_text(), re.MULTILINE):
            if word not in found:
                found[word] = file.with_name(f"{word}.py")
                open_ends.append(found[word])
    return found


def _syntax(file: Path) -> str:
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [part for part in body if not (isinstance(part, ast.Expr) and _is_text(part.value))]
    return ast.dump(tree)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@cache
def _revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
