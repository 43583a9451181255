r"""Anytime sampling: a finished picture after every step, for those who do not know how many calls they can afford.

A step from level i to level i + 1 leaves two estimates of the picture: the newest denoised one, m, and the one that the
step as a whole held constant, :math:`\bar m = (x_{i+1} - r x_i) / b`, which carries the rule's extrapolation. The
picture is a DDIM step with their mean from level i to the last level. It costs no call and asks nothing of the rule. In
a step without a call, such as the first of a rule whose first estimate is given, there is :math:`\bar m` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoisers import Cond, Denoiser, evaluate
from fewstep.errors import NonFiniteError
from fewstep.noise import Grid, NoiseLevel, check_grid
from fewstep.sampling.loop import check_inputs, check_output
from fewstep.solvers import NoiseSource, Solver, move

__all__ = ["Picture", "anytime"]


class Picture(NamedTuple):
    """The best picture so far.

    Attributes:
        x: samples at the last level of the grid, shape (b, *d).
        nfe: calls of the (guided) denoiser so far, counted.
        finished: whether this is the last one, the result of `sample`.
    """

    x: Tensor
    nfe: int
    finished: bool


def anytime(
    denoiser: Denoiser,
    solver: Solver,
    grid: Grid,
    x: Tensor,
    *,
    cond: Cond = None,
    noise: NoiseSource | None = None,
) -> Iterator[Picture]:
    """Sample, and show the best picture so far after every step; stop whenever you like.

    Nothing is called before a picture is asked for, and nothing after the last one that is. No gradient is kept. Every
    picture is looked at for NaN on the host, which waits for the device once a step.

    Args:
        denoiser: (x, level, cond) -> denoised, of x's shape and dtype.
        solver: the rule; with one call a step there is a picture after every call. A step without a call shows what it
            held constant, such as a first estimate that is given.
        grid: the levels; the calls that a run may make at most.
        x: samples at the first level, floating point, shape (b, *d), data units times alpha plus noise.
        cond: conditions passed to the denoiser, batch first.
        noise: source of fresh noise, for stochastic solvers; their pictures are of the newest denoised estimate alone.

    Returns:
        One picture a step; the last one is what `sample` returns, bit for bit.

    Raises:
        ShapeError: if x, a condition or the denoiser's output has the wrong shape.
        DtypeError: if x is not floating point, a condition is no tensor, or the denoiser returns no tensor or another
            dtype.
        GridError: if the noise of the grid does not strictly decrease.
        NonFiniteError: if a picture is NaN or infinite; names the step.
        ConfigError: if a stochastic solver has no noise source.

    Source:
        Elata et al. 2023, arXiv:2305.19066 (Nested Diffusion) for the promise. Departs from it in: one pass of one
        rule, without an inner chain, so that a run to the end costs no more than without pictures.
    """
    check_inputs(solver, x, cond, noise, "each")
    check_grid(grid)
    return _pictures(denoiser, solver, grid, x, cond, noise)


def _pictures(
    denoiser: Denoiser, solver: Solver, grid: Grid, x: Tensor, cond: Cond, noise: NoiseSource | None
) -> Iterator[Picture]:
    calls = 0
    newest: Tensor | None = None

    def denoise(x: Tensor, level: NoiseLevel) -> Tensor:
        nonlocal calls, newest
        denoised = evaluate(denoiser, x, level, cond)
        check_output(denoised, x)
        calls, newest = calls + 1, denoised
        return denoised

    state = solver.init(x, grid)
    for i in range(grid.steps):
        finished, newest = i + 1 == grid.steps, None
        with torch.no_grad():  # never across a yield: it would reach into the caller's code
            there, state = solver.step(denoise, x, grid, i, state, noise)
            shown = there if finished else _ahead(newest, x, there, grid, i, solver.stochastic)
            _check_finite(shown, i)
        yield Picture(shown, calls, finished)
        x = there


def _ahead(newest: Tensor | None, x: Tensor, there: Tensor, grid: Grid, i: int, stochastic: bool) -> Tensor:
    """Carry samples x of level i to the last level by what step i has shown; by what it held alone without a call."""
    here, following = grid.at(i), grid.at(i + 1)
    if newest is not None and stochastic:
        return move(x, newest, here, grid.at(-1))
    r = following.sigma / here.sigma
    held = (there - r * x) / (following.alpha - here.alpha * r)
    return move(x, held if newest is None else (newest + held) / 2, here, grid.at(-1))


def _check_finite(x: Tensor, i: int) -> None:
    if not bool(x.isfinite().all()):
        raise NonFiniteError(
            f"The picture after step {i}: NaN or infinite",
            "Samples and denoised estimates are finite",
            "Check the weights and the input; sample(..., check='each') names the level",
        )
