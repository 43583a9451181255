r"""Inversion: the noise that a deterministic solver turns into a given image.

A step of a one-step rule is a function S of the sample alone, :math:`x_{i+1} = S_i(x_i)`. Inversion goes through the
grid from its clean end and looks for the :math:`x_i` that lands on :math:`x_{i+1}`.

* *DDIM inversion* runs the rule backwards, with the estimate at the cleaner level. Its error is of the order of the
  step, because S takes its estimate at the noisier one.
* *Fixed-point inversion* solves :math:`S_i(z) = x_{i+1}` from there:

  .. math:: z \leftarrow z + g\,(x_{i+1} - S_i(z)), \qquad g = 2 / (\sigma'/\sigma + \alpha'/\alpha)

  with a secant step (Anderson's acceleration with a memory of one) from the second iteration on. For DDIM,
  ``S = r z + b D(z)``; with :math:`g = 1/r` it would be the plain fixed point :math:`z \leftarrow (x_{i+1} - b D(z))/r`
  of the papers, which diverges where kappa shrinks to less than half in a step, as on every grid of few steps. The
  Jacobian of S lies between r, where the estimate does not follow the sample, and :math:`\alpha'/\alpha`, where it is
  the sample; g is the middle, and contracts over all of it.

The ends: clean data (sigma = 0) are their own estimate, so the first backward step is :math:`(\alpha/\alpha') x_0` and
costs nothing. It is measured by the first iteration, and not solved: the end of this step is an estimate, in which the
network removes whatever it takes for noise, and the search for a sample that keeps it would drive the sample far from
anything the network knows. At pure noise (alpha = 0) the estimate does not follow the sample, and g = 1/r solves the
step at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep._tensor import expand
from fewstep.denoisers import Cond, Denoiser, evaluate, metered
from fewstep.errors import ConfigError, GridError, NonFiniteError
from fewstep.noise import Grid, NoiseLevel, check_grid
from fewstep.sampling.loop import check_inputs, check_output
from fewstep.solvers import DDIM, Denoise, Solver, move

__all__ = ["Inversion", "invert"]


class Inversion(NamedTuple):
    """The noise behind an image, and what finding it cost.

    Attributes:
        x: samples at the first level of the grid, shape (b, *d).
        nfe: calls of the (guided) denoiser, counted.
        network_evals: evaluations of the network per sample, counted.
        residual: per sample, shape (b,): the largest distance, over all steps and numbers, between where a step from
            the found sample lands and where it should; large where the iteration did not converge. None without
            iterations: then nothing has been measured.
        trajectory: the samples at every level, ``steps + 1`` of them in the order of the grid, the image last.
    """

    x: Tensor
    nfe: int
    network_evals: int
    residual: Tensor | None
    trajectory: tuple[Tensor, ...]


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    grid: Grid,
    image: Tensor,
    *,
    solver: Solver | None = None,
    iterations: int = 0,
    cond: Cond = None,
) -> Inversion:
    """Find the samples at the first level of a grid that a solver carries to an image at its last.

    In every step a sample keeps the iterate of the smallest residual, the guess of plain inversion among them. Carries
    no gradient.

    Args:
        denoiser: (x, level, cond) -> denoised, the one that will sample.
        grid: the levels that will be sampled on.
        image: samples at the last level, shape (b, *d), data units.
        solver: the rule that will sample, deterministic and without memory; DDIM if omitted.
        iterations: evaluations of each step in search of its start; 0 is plain inversion. A step to sigma = 0 is
            evaluated once.
        cond: conditions passed to the denoiser, batch first.

    Returns:
        Inversion(x, nfe, network_evals, residual, trajectory).

    Raises:
        ConfigError: if the solver is stochastic or remembers earlier steps, or iterations is negative.
        GridError: if the noise of the grid does not strictly decrease, or a step leads from pure noise to clean data.
        ShapeError: if the image, a condition or the denoiser's output has the wrong shape.
        DtypeError: if the image is not floating point, or the denoiser returns no tensor or another dtype.
        NonFiniteError: if what was found is NaN or infinite.

    Source:
        Song, Meng, Ermon 2021, arXiv:2010.02502, Eq. 14 backwards; Pan et al. 2023, arXiv:2309.04907, Section 3.
        Departs from it in: the relaxation g, the memory of one, and the choice of the best iterate.
    """
    solver = DDIM() if solver is None else solver
    _check_options(solver, iterations)
    check_inputs(solver, image, cond, None, "end")
    _check_finite(image, None)
    _check_steps(solver, check_grid(grid), image[:1])
    calls, fresh = 0, solver.init(image, grid)

    def denoise(x: Tensor, level: NoiseLevel) -> Tensor:
        nonlocal calls
        calls += 1
        denoised = evaluate(denoiser, x, level, cond)
        check_output(denoised, x)
        return denoised

    path, residuals = [image], []
    with metered() as meter:
        for i in reversed(range(grid.steps)):
            here, there, last = grid.at(i), grid.at(i + 1), path[0]

            def miss(z: Tensor, i: int = i, last: Tensor = last) -> Tensor:
                return last - solver.step(denoise, z, grid, i, fresh)[0]

            tries = iterations if there.sigma > 0 else min(iterations, 1)
            x, residual = _closest(miss, _guess(denoise, solver, last, here, there), _gain(here, there), tries)
            path.insert(0, x)
            residuals.append(residual)
    worst = torch.stack(residuals).amax(0) if iterations else None
    _check_finite(path[0], worst)
    return Inversion(path[0], calls, meter.samples // image.shape[0], worst, tuple(path))


def _guess(denoise: Denoise, solver: Solver, x: Tensor, here: NoiseLevel, there: NoiseLevel) -> Tensor:
    """The rule itself, run backwards; at the ends, where it may not run backwards, DDIM."""
    if there.sigma == 0:
        return here.alpha / there.alpha * x
    if here.alpha == 0:
        return move(x, denoise(x, there), there, here)
    levels = NoiseLevel(torch.stack([there.alpha, here.alpha]), torch.stack([there.sigma, here.sigma]))
    backwards = Grid(levels, levels.kappa)
    return solver.step(denoise, x, backwards, 0, solver.init(x, backwards))[0]


def _gain(here: NoiseLevel, there: NoiseLevel) -> Tensor:
    """What a miss at the end of a step says about its start, a scalar."""
    if here.alpha == 0:
        return here.sigma / there.sigma
    return 2 / (there.sigma / here.sigma + there.alpha / here.alpha)


def _closest(miss: Callable[[Tensor], Tensor], z: Tensor, gain: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Look for the root of `miss`; the best iterate of every sample, and the largest number of its miss, (b,)."""
    best, least = z, torch.full_like(_rows(z)[:, 0], torch.inf)
    before: tuple[Tensor, Tensor] | None = None
    for _ in range(iterations):
        missed = miss(z)
        size = _rows(missed).abs().amax(1)
        better = size < least
        best, least = torch.where(expand(better, z).bool(), z, best), torch.where(better, size, least)
        change = gain * missed
        z, before = z + change - _secant(z, change, before), (z, change)
    return best, least


def _secant(z: Tensor, change: Tensor, before: tuple[Tensor, Tensor] | None) -> Tensor:
    """What two iterates tell of the way: the part of the last move that did not make the change smaller."""
    if before is None:
        return torch.zeros_like(z)
    moved, turned = z - before[0], change - before[1]
    dtype = torch.promote_types(z.dtype, torch.float32)
    rows, turns = _rows(change).to(dtype), _rows(turned).to(dtype)
    length = turns.square().sum(1)
    share = (rows * turns).sum(1) / torch.where(length > 0, length, 1.0)
    return expand(share.to(z.dtype), z) * (moved + turned)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)


def _check_options(solver: Solver, iterations: int) -> None:
    if iterations < 0:
        raise ConfigError(f"{iterations} iterations", "0 is plain inversion, each further one a call", "Use 0 to 20")
    if solver.stochastic:
        raise ConfigError(
            f"Inversion of {solver}",
            "It draws fresh noise in every step, so that no start leads to an image for certain",
            "Invert with a deterministic rule, such as DDIM()",
        )


def _check_steps(solver: Solver, grid: Grid, x: Tensor) -> None:
    if grid.at(0).alpha == 0 and grid.at(1).sigma == 0:
        raise GridError(
            "Inversion of a step from pure noise to clean data",
            "Its end is the estimate alone, which forgets the sample it was made from",
            "Use a grid of more steps",
        )
    if _remembers(solver, grid, x):
        raise ConfigError(
            f"Inversion of {solver}",
            "Its steps remember estimates of earlier ones, which backwards have not been made yet",
            "Invert with a rule without memory, such as DDIM()",
        )


def _remembers(solver: Solver, grid: Grid, x: Tensor) -> bool:
    """Whether what earlier steps left changes a step of the rule; tried on estimates that no network made."""

    def denoise(x: Tensor, level: NoiseLevel) -> Tensor:
        return (1 + level.sigma) * x.sin()

    def another(x: Tensor, level: NoiseLevel) -> Tensor:
        return (2 + level.sigma) * x.cos()

    state = other = solver.init(x, grid)
    for i in range(grid.steps):
        after, next_state = solver.step(denoise, x, grid, i, state)
        if not torch.equal(after, solver.step(denoise, x, grid, i, other)[0]):
            return True
        state, other = next_state, solver.step(another, x, grid, i, other)[1]
    return False


def _check_finite(x: Tensor, residual: Tensor | None) -> None:
    if not bool(x.isfinite().all()) or (residual is not None and not bool(residual.isfinite().all())):
        raise NonFiniteError(
            "The image, or its inversion: NaN or infinite",
            "Samples and denoised estimates are finite",
            "Check the image, the weights, and that the network knows every level of the grid",
        )
