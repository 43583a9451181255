r"""Couplings by a teacher: pairs (z, x) on the paths of the probability-flow ODE.

A denoiser and a deterministic solver are a map from noise to samples. A chain of few steps that is trained on its pairs
has a target that depends on z, so pointwise losses cost no diversity. :class:`Teacher` makes the pairs while it trains,
:class:`Pairs` draws from a table made beforehand, and :class:`Inversion` runs the ODE the other way, from real images
to the noise they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, TypeAlias

import torch
from torch import Generator, Tensor

from fewstep._cond import placed, rows_of
from fewstep._files import read_tensors, write_tensors
from fewstep._tensor import normal_like
from fewstep.data import Batch
from fewstep.denoisers import Cond, Denoiser
from fewstep.errors import CheckpointError, ConfigError, DataError, GridError, ShapeError
from fewstep.noise import Grid, check_grid, perturb
from fewstep.objectives.coupled import Coupled, Pairing
from fewstep.sampling import START, SeededNoise, sample
from fewstep.solvers import Solver, move

__all__ = ["Inversion", "Pairs", "Teacher", "join_pairs", "make_pairs", "read_pairs", "write_pairs"]

_Key: TypeAlias = tuple[tuple[float, ...], ...]  # the numbers of each condition
_COND = "cond."  # begins the names of conditions in a file
_MADE_BY = "made_by"  # there, the fingerprint in bytes


@dataclass(frozen=True)
class Teacher:
    r"""Pairs made on line: the target of z is what a denoiser samples from it, :math:`x = \Phi(z, c)`.

    The teacher may be guided, may run any deterministic solver on any grid, and is not trained; put its network into
    eval mode. What is learned is the teacher's map, errors included.

    Args:
        denoiser: the teacher.
        solver: its solver, deterministic.
        grid: its levels; z is scaled to the first.
        data_free: compare distributions with the teacher's samples instead of with the batch.

    Raises:
        ConfigError: if the solver draws noise, so that samples are no function of z.
        GridError: if the noise of the grid does not strictly decrease.
    """

    denoiser: Denoiser
    solver: Solver
    grid: Grid
    data_free: bool = False
    pairing: ClassVar[Pairing] = "full"
    leaky: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_grid(self.grid)
        if self.solver.stochastic:
            raise ConfigError(
                f"A teacher that samples with {self.solver}",
                "Pairs need a map: the same noise gives the same sample",
                "Choose a deterministic solver, such as DDIM or Heun",
            )

    def __call__(self, batch: Batch, generator: Generator) -> Coupled:
        """Sample the teacher from fresh noise, under the conditions of the batch."""
        z = normal_like(batch.x0, generator)
        target = self.target(z, batch.cond)
        return Coupled(z, target, batch.cond, target if self.data_free else batch.x0, tied=self.data_free)

    def target(self, z: Tensor, cond: Cond = None) -> Tensor:
        """Carry standard normal noise (b, *d) to the teacher's samples, same shape, without gradient."""
        return sample(self.denoiser, self.solver, self.grid, self.grid.at(0).sigma * z, cond=cond).x


@dataclass(frozen=True)
class Inversion:
    r"""Pairs from the data: z is where the probability-flow ODE, run backwards, takes the image.

    The ODE is Euler's method in kappa, DDIM run uphill. It begins at the grid's last level that has noise, with a fresh
    draw of that little noise: there, as on all other levels, the samples of a perfect denoiser are distributed as noisy
    data are, so z is N(0, I) up to the discretisation, also where images are flat. Eight samples of the bundled MNIST
    model come back with a standard deviation of 0.99 (50 steps; 0.46 without that draw). It costs a call per level.

    Args:
        denoiser: whose ODE it is; not trained, its network in eval mode.
        grid: from pure noise, alpha = 0, to clean; 50 steps or more. The images join at its last level with noise.

    Raises:
        GridError: if the grid does not begin at alpha = 0, or has fewer than two levels with noise.

    Source:
        Song, Meng, Ermon 2021, arXiv:2010.02502, Section 4.3. Departs from it in: the noise at the clean end.
    """

    denoiser: Denoiser
    grid: Grid
    pairing: ClassVar[Pairing] = "full"
    leaky: ClassVar[bool] = False

    def __post_init__(self) -> None:
        alpha, sigma = check_grid(self.grid).levels
        if alpha[0] != 0 or int((sigma > 0).sum()) < 2:
            raise GridError(
                f"An inversion along alpha {alpha.tolist()} and sigma {sigma.tolist()}",
                "It climbs through levels with noise, two or more, to pure noise, where alpha is 0",
                "Use UniformFlow() with 50 steps, or PureNoise around another spacing",
            )

    def __call__(self, batch: Batch, generator: Generator) -> Coupled:
        """Find the noise of every image of the batch."""
        z = self.noise(batch.x0, normal_like(batch.x0, generator), batch.cond)
        return Coupled(z, batch.x0, batch.cond, batch.x0)

    @torch.no_grad()
    def noise(self, x0: Tensor, eps: Tensor, cond: Cond = None) -> Tensor:
        r"""Carry data to noise.

        Args:
            x0: data, shape (b, \*d).
            eps: standard normal noise of the first, nearly clean level, same shape.
            cond: conditions, batch first.

        Returns:
            Noise that the denoiser's ODE carries to x0, as standard normal as the denoiser is right; shape of x0.
        """
        uphill = [self.grid.at(i) for i in reversed(range(self.grid.steps + 1)) if self.grid.levels.sigma[i] > 0]
        x = perturb(x0, eps, uphill[0])
        for here, there in pairwise(uphill):
            x = move(x, self.denoiser(x, here, cond), here, there)
        return x / uphill[-1].sigma


@dataclass(frozen=True)
class Pairs:
    r"""Pairs made beforehand, from which every step draws with replacement.

    Noise is kept as seeds and drawn anew, bit for bit, by :class:`SeededNoise`: a table is as large as its images.

    Args:
        seeds: of the noise, shape (n,), int64, n >= 1.
        x: the teacher's sample of each, shape (n, \*d), data units.
        cond: its conditions, n rows each, or None.
        data_free: take conditions and real samples from the table and nothing but the size from the batch; else draw,
            for each image of the batch, among the pairs of its condition.
        made_by: fingerprint of the teacher's weights, so that nobody trains on the pairs of another model; empty if it
            is not known.

    Raises:
        ShapeError: if there is no pair, or not one row of everything for each seed.
    """

    seeds: Tensor
    x: Tensor
    cond: Mapping[str, Tensor] | None = None
    data_free: bool = True
    made_by: str = ""
    pairing: ClassVar[Pairing] = "full"
    leaky: ClassVar[bool] = False

    def __post_init__(self) -> None:
        rows = {"x": len(self.x), **{name: len(value) for name, value in (self.cond or {}).items()}}
        if len(self) == 0 or any(n != len(self) for n in rows.values()):
            raise ShapeError(
                f"{len(self)} seeds, and rows: {rows}",
                "At least one pair, and one row of everything for each",
                "Make them with make_pairs",
            )

    def __len__(self) -> int:
        return len(self.seeds)

    def __call__(self, batch: Batch, generator: Generator) -> Coupled:
        """Draw as many pairs as the batch has images; DataError if there is none of a condition."""
        chances = torch.rand(len(batch), dtype=torch.float64, generator=generator).tolist()
        members = [self._members(key) for key in _keys(self._matched, batch.cond, len(batch))]
        rows = torch.tensor([own[int(chance * len(own))] for own, chance in zip(members, chances, strict=True)])
        target = self.x[rows].to(batch.x0)
        cond = placed(rows_of(self.cond, rows), target.device)
        z = SeededNoise(tuple(self.seeds[rows].tolist()))(START, target)
        return Coupled(z, target, cond, target if self.data_free else batch.x0, tied=self.data_free)

    @property
    def _matched(self) -> tuple[str, ...]:
        """The conditions that a pair must share with its image."""
        return () if self.data_free else tuple(self.cond or ())

    @cached_property
    def _table(self) -> Mapping[_Key, list[int]]:
        table: dict[_Key, list[int]] = {}
        for row, key in enumerate(_keys(self._matched, self.cond, len(self))):
            table.setdefault(key, []).append(row)
        return table

    def _members(self, key: _Key) -> list[int]:
        if key in self._table:
            return self._table[key]
        raise DataError(
            f"No pair of the condition {dict(zip(self._matched, key, strict=True))} among {len(self)}",
            "Every image of a batch needs pairs of its own condition",
            "Make pairs of all conditions of the data, or use data_free=True",
        )


def make_pairs(
    teacher: Teacher, like: Tensor, seeds: Sequence[int], *, cond: Cond = None, batch_size: int = 256
) -> Pairs:
    r"""Sample a teacher from seeded noise.

    Args:
        teacher: what to sample.
        like: any batch (m, \*d) of the samples' shape, dtype and device.
        seeds: one for each pair.
        cond: conditions, one row for each pair.
        batch_size: samples per call.

    Returns:
        As many pairs as seeds, on the host.

    Raises:
        ShapeError: if there is no seed, or not one row of every condition for each.
        ConfigError: if batch_size < 1.
    """
    if batch_size < 1:
        raise ConfigError(f"Batches of {batch_size} pairs", "One or more", "Use batch_size=256")
    found = []
    for first in range(0, len(seeds), batch_size):
        chosen = slice(first, first + batch_size)
        z = SeededNoise(tuple(seeds[chosen]))(START, like.new_empty(len(seeds[chosen]), *like.shape[1:]))
        some = placed(rows_of(cond, chosen), like.device)
        found.append(teacher.target(z, some).cpu())
    return Pairs(torch.tensor(list(seeds)), torch.cat(found) if found else like[:0], placed(cond, "cpu"))


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """Join tables of the same teacher; they must have the same conditions; other facts are those of the first."""
    first = parts[0]
    cond = first.cond and {name: torch.cat([(part.cond or {})[name] for part in parts]) for name in first.cond}
    seeds, x = torch.cat([part.seeds for part in parts]), torch.cat([part.x for part in parts])
    return replace(first, seeds=seeds, x=x, cond=cond)


def write_pairs(path: str | Path, pairs: Pairs) -> None:
    """Write pairs as one safetensors file, atomically; OutputError if it cannot be written."""
    cond = {_COND + name: value for name, value in (pairs.cond or {}).items()}
    made_by = {_MADE_BY: torch.tensor(list(pairs.made_by.encode()), dtype=torch.uint8)} if pairs.made_by else {}
    write_tensors(path, {"seeds": pairs.seeds, "x": pairs.x, **cond, **made_by})


def read_pairs(path: str | Path) -> Pairs:
    """Read what :func:`write_pairs` wrote, bit for bit.

    Args:
        path: the file.

    Returns:
        The pairs, on the host, with `data_free` as by default.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds no pairs.
        ShapeError: if it holds unlike numbers of rows.
    """
    content = read_tensors(path)
    if not {"seeds", "x"} <= set(content) or content["seeds"].dtype != torch.int64:
        raise CheckpointError(
            f"{path} holds the tensors {', '.join(sorted(content)) or 'none'}",
            "A table of pairs has the tensors seeds (int64), x and those of the conditions",
            "Make it with make_pairs and write_pairs",
        )
    cond = {name.removeprefix(_COND): value for name, value in content.items() if name.startswith(_COND)}
    made_by = bytes(content[_MADE_BY].to(torch.uint8).tolist()).decode(errors="replace") if _MADE_BY in content else ""
    return Pairs(content["seeds"], content["x"], cond or None, made_by=made_by)


def _keys(names: Sequence[str], cond: Cond, n: int) -> list[_Key]:
    """Conditions of some names as tuples of numbers, one for each of n samples."""
    missing = [name for name in names if name not in (cond or {})]
    if cond is None or missing:
        if not names:
            return [()] * n
        raise DataError(
            f"A batch without the condition {', '.join(missing)}",
            "Pairs of a conditional teacher are matched by their conditions",
            "Use data with that condition, or data_free=True",
        )
    columns = [cond[name].reshape(n, -1).tolist() for name in names]
    return [tuple(tuple(column[row]) for column in columns) for row in range(n)]
