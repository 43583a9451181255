"""Bad input to the sampling loop: NaN, and wrong shapes and dtypes of samples, conditions, estimates and seeds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from contracts.inventory import SOLVERS_HERE
from contracts.problems import TwoBumps
from contracts.refusals import GRID, X, refuses
from torch import Tensor

from fewstep.denoisers import X0, NetworkDenoiser
from fewstep.errors import (
    ConfigError,
    DtypeError,
    NonFiniteError,
    ShapeError,
)
from fewstep.noise import (
    EDM,
    Grid,
    NoiseLevel,
    UniformLam,
    VPLinear,
)
from fewstep.sampling import Full, SeededNoise, sample, start_noise
from fewstep.solvers import DDIM

# NaN


def test_nan_in_x() -> None:
    for value in (math.nan, math.inf, -math.inf):
        x = X.clone()
        x[1, 0, 2, 1] = value
        for check in ("end", "each"):
            error = refuses(
                NonFiniteError, "x", lambda x=x, check=check: sample(TwoBumps(), DDIM(), GRID, x, check=check)
            )
            assert "The initial x: NaN or infinite at level 0" in error.given, f"{value}, check={check}: {error}"


class Poisoned:
    """A good denoiser that says NaN at one level of the grid; counts its calls."""

    def __init__(self, sigma: Tensor, value: float = math.nan) -> None:
        self.sigma, self.value, self.calls, self.hits = sigma, value, 0, []

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        self.calls += 1
        good = TwoBumps()(x, level)
        if level.sigma == self.sigma:
            self.hits.append(self.calls)
            good = good.clone()
            good[0, 0, 0, 0] = self.value
        return good


@pytest.mark.parametrize("check", ["end", "each"])
@pytest.mark.parametrize("name", SOLVERS_HERE)
def test_nan_from_the_network(name: str, check: str) -> None:
    """The message names the level at which the network failed, and check='each' makes no call after it."""
    rule, grid = SOLVERS_HERE[name].rule, UniformLam(-3.0, 3.0)(VPLinear(), 5)
    for j in range(5):
        for value in (math.nan, math.inf):
            bad = Poisoned(grid.at(j).sigma, value)
            error = refuses(
                NonFiniteError, f"level {j}", lambda bad=bad: sample(bad, rule, grid, X, check=check, unroll=Full())
            )
            sigma = f"{grid.at(j).sigma.item():.4g}"
            assert sigma in error.given, f"{name}, level {j}: sigma {sigma} is not in {error.given!r}"
            assert "step" in error.given, error.given
            made = bad.hits[0] if check == "each" else rule.nfe(grid)
            assert bad.calls == made, f"{name}, level {j}, check={check}: {bad.calls} calls, not {made}"


def test_unknown_check() -> None:
    refuses(ConfigError, "'sometimes'", lambda: sample(TwoBumps(), DDIM(), GRID, X, check="sometimes"))


# Shapes and dtypes


def test_x() -> None:
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64):
        refuses(
            DtypeError,
            str(dtype),
            lambda dtype=dtype: sample(TwoBumps(), DDIM(), GRID, torch.ones(2, 1, 3, 3).to(dtype)),
        )
    for shape in ((), (0, 1, 3, 3), (2, 0)):
        refuses(ShapeError, str(shape), lambda shape=shape: sample(TwoBumps(), DDIM(), GRID, torch.zeros(shape)))


def test_conditions() -> None:
    for value in (torch.tensor([0, 1, 2]), torch.tensor([0]), torch.tensor(0)):
        refuses(ShapeError, str(tuple(value.shape)),
                lambda value=value: sample(TwoBumps(), DDIM(), GRID, X, cond={"label": value}))  # fmt: skip


def test_output_of_the_denoiser() -> None:
    for shape in ((2, 3, 3, 3), (2, 1, 3), (1, 1, 3, 3), (2, 9)):
        out = torch.zeros(shape).double()
        refuses(ShapeError, str(shape), lambda out=out: sample(lambda x, level, cond: out, DDIM(), GRID, X))
    refuses(DtypeError, "float32", lambda: sample(lambda x, level, cond: x.float(), DDIM(), GRID, X))
    refuses(DtypeError, "bfloat16", lambda: sample(lambda x, level, cond: x.bfloat16(), DDIM(), GRID, X))


def test_seeds() -> None:
    refuses(ShapeError, "3 seeds", lambda: SeededNoise((1, 2, 3))(0, X))
    refuses(ConfigError, "seeds", lambda: SeededNoise(()))
    refuses(ConfigError, "seeds", lambda: start_noise(GRID, (1, 3, 3), []))


class Overflowing:
    """A rule whose last sample is infinite although every estimate is finite."""

    order, stochastic = 1, False

    def nfe(self, grid: Grid) -> int:
        return grid.steps

    def init(self, x: Tensor, grid: Grid) -> None:
        return None

    def step(self, denoise: Any, x: Tensor, grid: Grid, i: int, state: None, noise: Any = None) -> tuple[Tensor, None]:
        return denoise(x, grid.at(i)) * (math.inf if i + 1 == grid.steps else 1), None


def test_overflow_of_the_last_sample() -> None:
    for check in ("end", "each"):
        error = refuses(
            NonFiniteError,
            "The last sample",
            lambda check=check: sample(TwoBumps(), Overflowing(), GRID, X, check=check),
        )
        assert f"level {GRID.steps}" in error.given, str(error)


def test_things_that_are_no_tensors() -> None:
    for value, shows in (([1, 2], "list"), (3, "int"), (None, "NoneType")):
        refuses(DtypeError, shows, lambda value=value: sample(TwoBumps(), DDIM(), GRID, X, cond={"label": value}))
    for out, shows in ((None, "NoneType"), ((X,), "tuple"), ({"x": X}, "dict")):
        refuses(DtypeError, shows, lambda out=out: sample(lambda x, level, cond: out, DDIM(), GRID, X))
        network = NetworkDenoiser(lambda x, label, cond, out=out: out, X0(), EDM())
        refuses(DtypeError, shows, lambda network=network: sample(network, DDIM(), GRID, X))
