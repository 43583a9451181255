"""Schedulers for diffusers: ``pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config)``.

This path is frozen: ``model_index.json`` of a saved pipeline names the module of a class, so these two live here. It
needs the extra ``diffusers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewstep.adapters.diffusers_levels import Asked, Visited, calls_of, seen, visited
from fewstep.adapters.scheduler_shell import SchedulerMixin, SchedulerShell
from fewstep.calibration import Table, load_table, said_schedule
from fewstep.calibration.problem import levels_at
from fewstep.errors import ConfigError
from fewstep.solvers import EVODiff, Solver, TabulatedSolver

# A pipeline finds how to load a component by the base classes that stand beside it in its module.
__all__ = ["CalibratedScheduler", "EVODiffScheduler", "SchedulerMixin"]

_EVEN = 1e-5  # float32, and what pipelines do to it


class EVODiffScheduler(SchedulerShell):
    """EVODiff in a pipeline of diffusers: pictures in 5 to 15 calls from any model, one call a step.

    Takes the configuration of any scheduler of Stable Diffusion 1, 2 and XL, SD3, Flux, PixArt, Sana and of
    unconditional pipelines: predictions of noise, data, velocity and flow.

    It has the arguments of DPMSolverMultistepScheduler and FlowMatchEulerDiscreteScheduler, with their meaning and, but
    for ``timestep_spacing="trailing"``, their defaults. What differs, each with the reason in docs/diffusers.md:
    ``solver_order``, ``algorithm_type``, ``solver_type``, ``lower_order_final`` and ``euler_at_final`` change nothing;
    "leading" is taken for "trailing"; a flow is shifted once; ramps of sigmas (Karras...) end where the run ends.

    Source:
        Li, Chen, Zeng 2025, arXiv:2509.26096; see :class:`fewstep.solvers.EVODiff`.
    """

    def _check(self) -> None:
        """Nothing: the rule has no options."""

    def _levels(self, asked: Asked) -> Visited:
        return visited(self._said, self._known, asked)

    def _solver(self, first: int) -> Solver:
        return EVODiff()


class CalibratedScheduler(SchedulerShell):
    """A calibrated solver in a pipeline: levels and weights that were fitted to the model, for a few numbers of calls.

    ``CalibratedScheduler.from_config(pipe.scheduler.config, calibration="calibration.json")``; the table then travels
    in the configuration. It has its own levels for every number of steps, whatever the configuration says of spacings
    and shifts. Begun at a later level, as image-to-image pipelines do, it uses what is left of its weights. It ends
    at the table's last level, whatever ``final_sigmas_type`` says.

    A step is a call here, since pipelines call their network at every timestep. An entry of n calls whose first
    estimate is given serves n + 1 steps: the network is asked for that estimate too.

    `calibration` is a table as `fewstep calibrate` writes it, or :func:`fewstep.calibration.fit` of ``wrap(pipe)``
    makes it: its JSON, or the path of it. All other arguments are those of :class:`EVODiffScheduler`.
    """

    @classmethod
    def from_config(  # type: ignore[override]
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Make the scheduler from the configuration of another one.

        Args:
            config: ``pipe.scheduler.config``.
            return_unused_kwargs: also return what was not understood.
            **kwargs: values to use instead of the configuration's: `calibration`, a table as JSON or the path of one.

        Returns:
            The scheduler.
        """
        given = kwargs.get("calibration")
        if isinstance(given, str | Path):  # only what is typed may name a file: a configuration may be anybody's
            kwargs["calibration"] = load_table(given).to_json()
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def _check(self) -> None:
        given = self._said.calibration
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"A CalibratedScheduler with calibration={given!r}",
                "It samples with levels and weights that were fitted to one model: a table, or its path in from_config",
                "from_config(config, calibration='calibration.json'); docs/calibration.md has how to fit one",
            )
        table = Table.from_json(given)
        self._register(calibration=table.to_json())
        own, here = table.origin.schedule, said_schedule(self._known.schedule)
        if own not in ("", here):
            raise ConfigError(
                f"A table fitted on {own}, for a model on {here}",
                "A table serves the model that it was fitted to",
                "Fit one to fewstep.wrap(pipe)",
            )
        # Of two with as many steps, the one that was fitted with a call in each.
        self._entries = {entry.steps: entry for entry in sorted(table.entries.values(), key=lambda e: not e.first)}

    @property
    def steps(self) -> list[int]:
        """Numbers of steps that the table has a solver for."""
        return sorted(self._entries)

    def _levels(self, asked: Asked) -> Visited:
        steps, lists = calls_of(asked)
        # Some pipelines of flows pass 1, 1 - 1/n ... 1/n when they are asked for n steps.
        even = "sigmas" in lists and all(abs(s - (1 - i / steps)) < _EVEN for i, s in enumerate(lists["sigmas"]))
        if steps not in self._entries or (lists and not even):
            raise ConfigError(
                f"{f'{steps} steps' if even or not lists else ', '.join(lists)} of a calibrated solver",
                f"It has its own levels for some numbers of steps: {', '.join(map(str, self.steps))}",
                "Pass one of them as num_inference_steps, alone; or use EVODiffScheduler, which takes any",
            )
        self._entry = self._entries[steps]
        grid = levels_at(self._known.schedule, torch.tensor(self._entry.kappa, dtype=torch.float64))
        return seen(self._said, self._known, grid)

    def _solver(self, first: int) -> Solver:
        # A later start has no earlier estimates: their shares go to the newest, which keeps constants exact.
        weights = tuple(row[first:] for row in self._entry.weights[first:])
        return TabulatedSolver(weights, self._entry.kappa[first:])
