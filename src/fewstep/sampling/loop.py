"""The one sampling loop.

It knows nothing of methods: it checks what it is given, hands the denoiser to the solver step by step, counts what is
called, and looks for NaN. How it is differentiated is the `unroll` policy's business, so the very same function
samples, trains end to end, and serves the adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fewstep.denoisers import Cond, Denoiser, evaluate, metered
from fewstep.errors import ConfigError, DtypeError, NonFiniteError, ShapeError
from fewstep.noise import Grid, NoiseLevel, check_grid
from fewstep.sampling.unroll import NoGrad, Unroll
from fewstep.solvers import NoiseSource, Solver

__all__ = ["Sample", "sample"]

Check = Literal["end", "each"]


class Sample(NamedTuple):
    """What a run of the sampler made, and what it cost.

    Attributes:
        x: samples at the last level of the grid, shape (b, *d).
        nfe: calls of the (guided) denoiser, counted.
        network_evals: evaluations of the network per sample, counted; guidance makes two per call.
        trajectory: the samples at every level, ``steps + 1`` of them, the input first. Under gradient they carry it.
    """

    x: Tensor
    nfe: int
    network_evals: int
    trajectory: tuple[Tensor, ...]


def sample(
    denoiser: Denoiser,
    solver: Solver,
    grid: Grid,
    x: Tensor,
    *,
    cond: Cond = None,
    unroll: Unroll | None = None,
    noise: NoiseSource | None = None,
    watch: Callable[[int, Tensor], None] | None = None,
    check: Check = "end",
) -> Sample:
    """Carry samples from the first level of a grid to its last.

    Args:
        denoiser: (x, level, cond) -> denoised, of x's shape and dtype.
        solver: the rule; see `fewstep.solvers`.
        grid: the levels; see `fewstep.noise`.
        x: samples at the first level, floating point, shape (b, *d), data units times alpha plus noise.
        cond: conditions passed to the denoiser, batch first.
        unroll: how to differentiate; NoGrad() if omitted.
        noise: source of fresh noise, for stochastic solvers.
        watch: called with (step, x) after every step.
        check: "end" looks for NaN and infinity on the device and reads the answer once, after the last step; "each"
            reads it after every call, and stops at once.

    Returns:
        Sample(x, nfe, network_evals, trajectory).

    Raises:
        ShapeError: if x, a condition or the denoiser's output has the wrong shape.
        DtypeError: if x is not floating point, a condition is no tensor, or the denoiser returns no tensor or another
            dtype.
        GridError: if the noise of the grid does not strictly decrease.
        NonFiniteError: if x or an estimate is NaN or infinite; names the step and the level.
        ConfigError: if a stochastic solver has no noise source, or `check` is unknown.
    """
    check_inputs(solver, x, cond, noise, check)
    check_grid(grid)
    run = _Run(denoiser, solver, grid, cond, noise, watch, _Sentinel(grid, check))
    run.sentinel.look(x, "The initial x", grid.at(0))
    run.trajectory.append(x)
    with metered() as meter:
        last, _ = (unroll or NoGrad()).run(run.step, x, solver.init(x, grid), grid.steps)
    run.close()
    return Sample(last, run.nfe, meter.samples // x.shape[0], tuple(run.trajectory))


@dataclass
class _Sentinel:
    """Remembers the largest magnitude of everything that passes, on its device; NaN and infinity survive a maximum."""

    grid: Grid
    check: Check
    seen: list[tuple[Tensor, str, NoiseLevel]] = field(default_factory=list)

    def look(self, x: Tensor, what: str, level: NoiseLevel) -> None:
        low, high = torch.aminmax(x.detach())  # many times faster than the norm of order infinity
        self.seen.append((torch.maximum(high, -low), what, level))
        if self.check == "each":
            self.report()

    def report(self) -> None:
        """Read the flags, the one time the host waits for the device."""
        sizes = torch.stack([size for size, _, _ in self.seen]).isfinite().tolist()
        for finite, (_, what, level) in zip(sizes, self.seen, strict=True):
            if not finite:
                raise NonFiniteError(
                    f"{what}: NaN or infinite at {self._where(level)}",
                    "Samples and denoised estimates are finite",
                    "Check the weights and the input at that level; check='each' stops at once",
                )
        self.seen.clear()

    def _where(self, level: NoiseLevel) -> str:
        """Name a level by its place in the grid; a step may look at the level it ends at, or between two."""
        levels, (alpha, sigma) = self.grid.levels, (part.item() for part in level)
        place = ((levels.alpha == alpha) & (levels.sigma == sigma)).nonzero().flatten().tolist()
        name = f"level {place[0]} of {self.grid.steps}" if place else "a level between those of the grid"
        return f"{name} (alpha {alpha:.4g}, sigma {sigma:.4g})"


@dataclass
class _Run:
    """One run of the loop: what is fixed, and what is counted.

    A checkpointed step is run again in the backward pass, after the run is closed: then nothing is counted or watched.
    """

    denoiser: Denoiser
    solver: Solver
    grid: Grid
    cond: Cond
    noise: NoiseSource | None
    watch: Callable[[int, Tensor], None] | None
    sentinel: _Sentinel
    nfe: int = 0
    trajectory: list[Tensor] = field(default_factory=list)
    closed: bool = False

    def step(self, x: Tensor, i: int, state: Any) -> tuple[Tensor, Any]:
        def denoise(x: Tensor, level: NoiseLevel) -> Tensor:
            denoised = evaluate(self.denoiser, x, level, self.cond)
            check_output(denoised, x)
            if not self.closed:
                self.nfe += 1
                self.sentinel.look(denoised, f"The denoiser's output in step {i}", level)
            return denoised

        x, state = self.solver.step(denoise, x, self.grid, i, state, self.noise)
        if not self.closed:
            self.trajectory.append(x)
            if self.watch is not None:
                self.watch(i, x)
        return x, state

    def close(self) -> None:
        self.sentinel.look(self.trajectory[-1], "The last sample", self.grid.at(-1))
        if self.sentinel.seen:
            self.sentinel.report()
        self.closed = True


def check_inputs(solver: Solver, x: Tensor, cond: Cond, noise: NoiseSource | None, check: str) -> None:
    if not x.is_floating_point():
        raise DtypeError(f"Samples of dtype {x.dtype}", "Samples are floating point", "Call x.float() or x.double()")
    if x.ndim < 1 or x.numel() == 0:
        raise ShapeError(
            f"Samples of shape {tuple(x.shape)}", "A batch (b, *d) with at least one sample of one number", "Add axes"
        )
    for name, value in (cond or {}).items():
        if not isinstance(value, Tensor):
            raise DtypeError(
                f"Condition {name!r} is of type {type(value).__name__}",
                "Conditions are tensors with one row per sample",
                f"Pass cond={{{name!r}: torch.tensor(...)}}",
            )
        if value.ndim < 1 or value.shape[0] != x.shape[0]:
            raise ShapeError(
                f"Condition {name!r} of shape {tuple(value.shape)} for {x.shape[0]} samples",
                "Conditions have one row per sample, batch first",
                "Repeat or index the condition so that it has the batch's length",
            )
    if check not in ("end", "each"):
        raise ConfigError(f"check={check!r}", "'end' reads once after the loop, 'each' after every call", "Use 'end'")
    if solver.stochastic and noise is None:
        raise ConfigError(
            f"{solver} without a noise source", "It draws fresh noise in every step", "Pass noise=SeededNoise(seeds)"
        )


def check_output(denoised: Tensor, x: Tensor) -> None:
    if not isinstance(denoised, Tensor):
        raise DtypeError(
            f"The denoiser returned a {type(denoised).__name__}",
            "Denoised estimates are tensors of the shape and dtype of x",
            "Return the estimate alone, not a tuple or an object that holds it",
        )
    if denoised.shape != x.shape:
        raise ShapeError(
            f"The denoiser returned shape {tuple(denoised.shape)} for samples of shape {tuple(x.shape)}",
            "Denoised estimates have the shape of x",
            "Check the network's output channels, and that the condition fits the batch",
        )
    if denoised.dtype != x.dtype:
        raise DtypeError(
            f"The denoiser returned {denoised.dtype} for samples of {x.dtype}",
            "Denoised estimates have the dtype of x",
            "Return denoised.to(x.dtype), or pass x in the denoiser's dtype",
        )
