r"""The shell in which a solver serves diffusers: state where diffusers wants it, and no mathematics.

A step of ours takes a state and returns the next one; diffusers' pipelines call ``step`` and expect the scheduler to
remember. The shell keeps, beside the grid, the state *before* each step it may be asked for again: the last one, and
under gradients all of them, so that a step that activation checkpointing runs a second time is the same step
(``use_reentrant=False``; the state is no argument of it). Two runs at once need two schedulers.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from fewstep.adapters.diffusers_levels import Visited
from fewstep.adapters.diffusers_network import denoised_of
from fewstep.adapters.scheduler_levels import SchedulerLevels, SchedulerMixin, SchedulerOutput
from fewstep.errors import ConfigError
from fewstep.noise import Grid, NoiseLevel
from fewstep.solvers import Solver

__all__ = ["SchedulerMixin", "SchedulerShell"]


class _Run(NamedTuple):
    """A run before one of its steps.

    Attributes:
        solver: its rule.
        grid: its levels.
        first: index of the step that it began with.
        state: of the solver.
        x: the samples that the step is made of; None where they are yet to come.
    """

    solver: Solver
    grid: Grid
    first: int
    state: Any
    x: Tensor | None = None


class SchedulerShell(SchedulerLevels):
    """What both schedulers are, but for their solver and grid; see :class:`fewstep.schedulers.EVODiffScheduler`."""

    @abstractmethod
    def _solver(self, first: int) -> Solver:
        """The rule for a run over the levels that are set, from level `first` on."""

    def _visit(self, levels: Visited, device: str | torch.device | None) -> None:
        super()._visit(levels, device)
        self._runs: dict[int, _Run] = {}

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Carry samples one level down.

        Args:
            model_output: what the network returned for `sample` at `timestep`, shape (b, *d); twice the channels where
                it also learned a variance.
            timestep: one of `timesteps`.
            sample: samples at this level, shape (b, *d).
            generator: not used, no noise is drawn.
            variance_noise: not used.
            return_dict: return a SchedulerOutput instead of a tuple.

        Returns:
            The samples at the next level, in the dtype of `model_output`; the arithmetic is in float32 or better.

        Raises:
            ConfigError: before :meth:`set_timesteps`, after the last step, or for a step once more of other samples.
        """
        i = self._index_of(timestep)
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        run = self._runs.get(i) or self._begun(x, i)
        if run.x is not None and not torch.equal(run.x, x):
            raise ConfigError(
                f"Step {i} once more, of other samples",
                "Under gradients a step may be run again, of the same samples; two runs at once need two schedulers",
                "Call set_timesteps before every run, or copy.deepcopy the scheduler for each of them",
            )
        denoised = denoised_of(self._said, self._known, model_output.to(x.dtype), x, self.grid.at(i))
        there, state = run.solver.step(lambda *_: denoised, x, run.grid, i - run.first, run.state)
        if i >= (self._step_index or 0):
            kept = {**self._runs, i: run._replace(x=x.detach())} if torch.is_grad_enabled() else {}
            self._runs = {**kept, i + 1: run._replace(state=state)}
            self._step_index = i + 1
        there = there.to(model_output.dtype)
        return SchedulerOutput(prev_sample=there) if return_dict else (there,)

    def _index_of(self, timestep: float | Tensor) -> int:
        """The step that is asked for: the next one, or one that is run again."""
        if self.num_inference_steps is None:
            raise ConfigError("A step before set_timesteps", "A run has levels", "Call set_timesteps(8) first")
        if self._step_index is None:
            return self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        i = self._step_index
        if torch.is_grad_enabled() and (i == len(self.timesteps) or float(self.timesteps[i]) != float(timestep)):
            again = [j for j in self._runs if j < i and float(self.timesteps[j]) == float(timestep)]
            i = again[0] if again else i
        if i >= len(self.timesteps):
            raise ConfigError(
                f"A step after the last of {len(self.timesteps)}", "A run ends", "Call set_timesteps for the next run"
            )
        return i

    def _begun(self, x: Tensor, i: int) -> _Run:
        """A run that begins at step i."""
        alpha, sigma = self.grid.levels
        grid, solver = Grid(NoiseLevel(alpha[i:], sigma[i:]), self.grid.t[i:]), self._solver(i)
        return _Run(solver, grid, i, solver.init(x, grid))
