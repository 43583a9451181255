"""The one loop, called with a list of sigmas: how a solver becomes a function of k-diffusion's contract."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from fewstep.adapters.sigmas import grid_of_sigmas, is_flow_model, refuse_shares, sampling_of, sigma_of
from fewstep.denoisers import Cond
from fewstep.noise import Grid, NoiseLevel
from fewstep.sampling import SeededNoise, sample
from fewstep.solvers import NoiseSource, Solver, TabulatedSolver

__all__ = ["Callback", "NoiseSampler", "Run", "Sampler", "flows", "sampler_of"]

Callback: TypeAlias = Callable[[dict[str, Any]], Any]
NoiseSampler: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Sampler(Protocol):
    """A function of k-diffusion's contract."""

    def __call__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: NoiseSampler | None = None,
        flow: bool | None = None,
    ) -> Tensor:
        """Carry x (b, *d) from the first sigma to the last.

        Args:
            model: (x, sigma, **extra_args) -> denoised, with one sigma per sample.
            x: samples at the first sigma, as the model takes them.
            sigmas: shape (steps + 1,), falling; 0 may be last. None or one of them gives x back.
            extra_args: passed on with every call; the number "seed", which ComfyUI puts there, seeds fresh noise.
            callback: called once a step with a dict of x, i, sigma, sigma_hat and denoised, of the step's start.
            disable: whether to show no progress; None shows it on a terminal. It needs tqdm.
            noise_sampler: (sigma, next sigma) -> standard normal noise, for stochastic rules. If omitted, sample k has
                the seed ``seed + k``; without a seed, torch's global generator is drawn from.
            flow: whether ``x = (1 - sigma) x0 + sigma eps``; None asks the model.

        Returns:
            Samples at the last sigma, shape and dtype of x.
        """
        ...


def sampler_of(solver: Solver) -> Sampler:
    """Make a sampler of a solver: ``sampler_of(UniPC(order=3, variant="bh1"))``.

    Args:
        solver: any.

    Returns:
        The function; it keeps nothing between calls.
    """

    def sampler(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: NoiseSampler | None = None,
        flow: bool | None = None,
    ) -> Tensor:
        if len(sigmas) <= 1:
            return x
        grid = grid_of_sigmas(sigmas, of_flow := flows(model, flow))
        if flow is None and not of_flow:
            refuse_shares(sigmas, sampling_of(model))
        run = Run(model, sigmas, of_flow, dict(extra_args or {}), callback, x)
        return run.through(solver, grid, disable, noise_sampler)

    sampler.__name__ = f"sample_{type(solver).__name__.lower()}"
    sampler.__doc__ = f"{solver}, by the contract of :class:`Sampler`."
    return sampler


def flows(model: Any, flow: bool | None) -> bool:
    """Whether a model is a flow model: what was said, or else what it says itself."""
    return is_flow_model(sampling_of(model)) if flow is None else flow


@dataclass
class Run:
    """One run: the model as a denoiser, and what is told of every step.

    Attributes:
        model: as it was given.
        sigmas: as they were given.
        flow: whether it is a flow model.
        extra_args: for the model.
        callback: or None.
        x: samples at the start of the step.
        i: the step.
        told: whether the callback had it.
    """

    model: Any
    sigmas: Tensor
    flow: bool
    extra_args: Mapping[str, Any]
    callback: Callback | None
    x: Tensor
    i: int = 0
    told: bool = False

    def through(
        self, solver: Solver, grid: Grid, disable: bool | None, noise_sampler: NoiseSampler | None = None
    ) -> Tensor:
        """Run the loop."""
        noise = self._noise(noise_sampler) if solver.stochastic else None
        given = solver.first if isinstance(solver, TabulatedSolver) else None
        with _progress(grid.steps, disable) as bar:

            def watch(i: int, x: Tensor) -> None:
                if not self.told and given is not None:  # the first estimate came out of a table, and no call
                    self._tell(self.x, grid.at(i), given.to(self.x).expand_as(self.x))
                self.x, self.i, self.told = x, i + 1, False
                if bar is not None:
                    bar.update()

            return sample(self.denoise, solver, grid, self.x, noise=noise, watch=watch).x

    def denoise(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Ask the model in its own coordinates; at the levels of the grid, x is divided by exactly 1."""
        x = x / (level.alpha + level.sigma if self.flow else level.alpha)
        dtype = torch.promote_types(x.dtype, torch.float32)  # half precision would merge neighbouring levels
        sigma = torch.full((len(x),), sigma_of(level, self.flow).item(), dtype=dtype, device=x.device)
        denoised: Tensor = self.model(x, sigma, **self.extra_args).to(x.dtype)
        if not self.told:
            self._tell(x, level, denoised)
        return denoised

    def _tell(self, x: Tensor, level: NoiseLevel, denoised: Tensor) -> None:
        self.told = True
        if self.callback is not None:
            hat = sigma_of(level, self.flow).to(self.sigmas)
            step = {"x": x, "i": self.i, "sigma": self.sigmas[self.i], "sigma_hat": hat, "denoised": denoised}
            self.callback(step)

    def _noise(self, noise_sampler: NoiseSampler | None) -> NoiseSource:
        seed = self.extra_args.get("seed")
        if noise_sampler is not None:
            return lambda i, like: noise_sampler(self.sigmas[i], self.sigmas[i + 1]).to(like)
        if seed is not None:
            return SeededNoise(tuple(range(int(seed), int(seed) + len(self.x))))
        return lambda i, like: torch.randn_like(like)


def _progress(steps: int, disable: bool | None) -> AbstractContextManager[Any]:
    if importlib.util.find_spec("tqdm") is None:
        return nullcontext()
    bar: AbstractContextManager[Any] = importlib.import_module("tqdm.auto").tqdm(total=steps, disable=disable)
    return bar
