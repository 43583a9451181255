"""Solvers as functions of k-diffusion's contract, which ComfyUI, Forge and A1111 call as well.

``sample_x(model, x, sigmas, extra_args=None, callback=None, disable=None)``: x is already at ``sigmas[0]``, and the
model returns denoised. There is one function for every solver of :data:`~fewstep.solvers.SOLVERS` that a list of sigmas
can run, and :func:`sampler_of` makes one of any other solver. All of them are the one sampling loop, on the grid that
the sigmas mean (:mod:`fewstep.adapters.sigmas`).

``evodiff_paper`` is not among them: it needs a last level above 0 and the clock of the schedule, and sigmas have
neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.adapters.sigma_loop import Callback, NoiseSampler, Run, Sampler, flows, sampler_of
from fewstep.adapters.sigmas import sigma_of
from fewstep.calibration import Table, load_table
from fewstep.errors import GridError
from fewstep.noise import EDM, LinearFlow
from fewstep.sampling import Chained
from fewstep.solvers import DDIM, SOLVERS, Churn, DPMpp2MSDE, Euler, EulerAncestral, Heun

__all__ = [
    "SAMPLERS",
    "Sampler",
    "open_table",
    "sample_automatic",
    "sample_calibrated",
    "sample_ddim",
    "sample_deis",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s",
    "sample_dpmpp_3m",
    "sample_dualfast",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_evodiff",
    "sample_heun",
    "sample_ipndm",
    "sample_renoise",
    "sample_unipc",
    "sample_unipc_3",
    "sampler_of",
    "tabulated_way",
]

_READ = 1e-5  # relative difference of a level of a table and the float32 that was made of it


def sample_ddim(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    eta: float = 0.0,
    noise_sampler: NoiseSampler | None = None,
    flow: bool | None = None,
) -> Tensor:
    """DDIM, with a share eta of fresh noise; at 0 it is k-diffusion's Euler. See :class:`Sampler`."""
    run = sampler_of(DDIM(eta))
    return run(model, x, sigmas, extra_args, callback, disable, noise_sampler=noise_sampler, flow=flow)


def sample_euler_ancestral(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    eta: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    flow: bool | None = None,
) -> Tensor:
    """Ancestral Euler, with a share eta of fresh noise. See :class:`Sampler`."""
    run = sampler_of(EulerAncestral(eta))
    return run(model, x, sigmas, extra_args, callback, disable, noise_sampler=noise_sampler, flow=flow)


def sample_dpmpp_2m_sde(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    eta: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    flow: bool | None = None,
) -> Tensor:
    """DPM-Solver++ 2M SDE, with a share eta of fresh noise. See :class:`Sampler`."""
    run = sampler_of(DPMpp2MSDE(eta))
    return run(model, x, sigmas, extra_args, callback, disable, noise_sampler=noise_sampler, flow=flow)


def _churned(amount: float, low: float, high: float, scale: float) -> Churn | None:
    return Churn(amount, low, high, scale) if amount else None


def sample_euler(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    flow: bool | None = None,
) -> Tensor:
    """Euler with EDM's churn between the levels s_tmin and s_tmax, in noise per unit of data. See :class:`Sampler`."""
    run = sampler_of(Euler(_churned(s_churn, s_tmin, s_tmax, s_noise)))
    return run(model, x, sigmas, extra_args, callback, disable, noise_sampler=noise_sampler, flow=flow)


def sample_heun(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    flow: bool | None = None,
) -> Tensor:
    """Heun, two calls a step, with EDM's churn as in :func:`sample_euler`. See :class:`Sampler`."""
    run = sampler_of(Heun(_churned(s_churn, s_tmin, s_tmax, s_noise)))
    return run(model, x, sigmas, extra_args, callback, disable, noise_sampler=noise_sampler, flow=flow)


def sample_calibrated(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    table: str | Path | Mapping[str, Any] | Table,
    flow: bool | None = None,
) -> Tensor:
    """Sample with the solver of a calibrated table, on the table's own levels.

    Args:
        model: as :class:`Sampler` has it.
        x: samples at the first sigma.
        sigmas: the levels of one entry of the table, as :func:`tabulated_way` or the node "fewstep table sigmas" makes
            them; they say which number of calls is wanted.
        extra_args: passed on with every call.
        callback: called once a step.
        disable: whether to show no progress.
        table: what ``fewstep calibrate`` wrote: its file, its JSON, or the table.
        flow: whether ``x = (1 - sigma) x0 + sigma eps``; None asks the model.

    Returns:
        Samples at the table's last level, shape and dtype of x.

    Raises:
        GridError: if the sigmas are no levels of the table.
        CheckpointError: if it is no table.
    """
    fitted = open_table(table)
    if len(sigmas) <= 1:
        return x
    of_flow = flows(model, flow)
    solver, grid = _way_through(fitted, sigmas, of_flow)
    return Run(model, sigmas, of_flow, dict(extra_args or {}), callback, x).through(solver, grid, disable)


def open_table(table: str | Path | Mapping[str, Any] | Table) -> Table:
    """Take a table from a file, from its JSON, or as it is; CheckpointError if it is none."""
    if isinstance(table, Table):
        return table
    return Table.from_json(table) if isinstance(table, Mapping) else load_table(table)


def tabulated_way(table: Table, nfe: int, flow: bool) -> Chained:
    """Take solver and grid out of a table, in the coordinates of sigmas.

    Args:
        table: fitted to the model.
        nfe: calls per sample.
        flow: whether the model is a flow model.

    Returns:
        Solver and grid; ``sigma_of(grid.levels, flow)`` are the sigmas.

    Raises:
        ConfigError: if the table has no such number of calls.
    """
    kappas = [kappa for entry in table.entries.values() for kappa in entry.kappa]
    return table.way(LinearFlow() if flow else EDM(min(kappas), max(kappas)), nfe)


def _way_through(table: Table, sigmas: Tensor, flow: bool) -> Chained:
    """The way of a table whose levels are these."""
    given = sigmas.detach().to(device="cpu", dtype=torch.float64)
    for nfe in table.entries:
        way = tabulated_way(table, nfe, flow)
        own = sigma_of(way.grid.levels, flow)
        if own.shape == given.shape and bool(((own - given).abs() <= _READ * own).all()):
            return way
    raise GridError(
        f"{len(given)} sigmas from {given[0]:.6g} to {given[-1]:.6g} for a calibrated table",
        f"Its weights belong to its own levels, which it has for {', '.join(map(str, sorted(table.entries)))} calls",
        'Take them from the node "fewstep table sigmas", or of tabulated_way(table, nfe, flow)',
    )


def _plain(name: str) -> Sampler:
    run = sampler_of(SOLVERS[name]())
    run.__name__ = f"sample_{name}"  # type: ignore[attr-defined]
    return run


_WITH_OPTIONS: dict[str, Sampler] = {
    "ddim": sample_ddim,
    "dpmpp_2m_sde": sample_dpmpp_2m_sde,
    "euler": sample_euler,
    "euler_ancestral": sample_euler_ancestral,
    "heun": sample_heun,
}
SAMPLERS: dict[str, Sampler] = {
    name: _WITH_OPTIONS.get(name) or _plain(name) for name in SOLVERS if name != "evodiff_paper"
}
"""Name of a solver -> its function."""

sample_automatic = SAMPLERS["automatic"]
sample_deis = SAMPLERS["deis"]
sample_dpmpp_2m = SAMPLERS["dpmpp_2m"]
sample_dpmpp_2s = SAMPLERS["dpmpp_2s"]
sample_dpmpp_3m = SAMPLERS["dpmpp_3m"]
sample_dualfast = SAMPLERS["dualfast"]
sample_evodiff = SAMPLERS["evodiff"]
sample_ipndm = SAMPLERS["ipndm"]
sample_renoise = SAMPLERS["renoise"]
sample_unipc = SAMPLERS["unipc"]
sample_unipc_3 = SAMPLERS["unipc_3"]
