r"""The table: a calibrated solver as a small JSON file that travels with the weights.

For every number of calls it holds the levels, the weights c of :class:`~fewstep.solvers.TabulatedSolver`, and how far
its ends are from the teacher's; and of the whole: the model's fingerprint, its schedule, the guidance scales it was
fitted under, and how. A rule that was fitted to one model means nothing to another, so a table is refused where it does
not belong, unless it is forced.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep._files import read_json, write_json
from fewstep.calibration.problem import levels_at
from fewstep.errors import CheckpointError, ConfigError, FewstepError
from fewstep.noise import Schedule
from fewstep.sampling import Chained
from fewstep.solvers import TabulatedSolver

__all__ = ["FILE", "Entry", "Origin", "Table", "load_table", "said_schedule"]

FILE = "calibration.json"  # its name in a model folder
_VERSION = 1
_CLOSE = 1e-6  # two guidance scales that differ by less are one
_LARGEST = 1e6  # a weight beyond it is a slip of a hand


def _is_number(value: Any, largest: float = _LARGEST) -> bool:
    return type(value) in (float, int) and abs(value) < largest  # NaN is not below


def said_schedule(schedule: Schedule) -> str:
    """Name a schedule with its arguments."""
    return repr(schedule)


@dataclass(frozen=True)
class Entry:
    """The solver for one number of calls.

    Args:
        kappa: levels, descending, one more than there are steps.
        weights: c, one row per step after the first.
        first: whether the first estimate is the table's mean, and no call is made for it.
        base: the rule that the residual was fitted around, in words.
        grid: where the levels come from.
        train: RMSE of its ends to the teacher's over the trajectories that it was fitted to, data units.
        held: over those that were held out of the fit, which decided what was chosen: a little too good.
        closed_form: the same of the closed form alone, before refinement.
        fresh: over trajectories that neither fitted nor decided anything, what to expect; None without any.

    Raises:
        ConfigError: if levels and weights are no rule.
    """

    kappa: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    first: bool
    base: str
    grid: str
    train: float
    held: float
    closed_form: float
    fresh: float | None = None

    def __post_init__(self) -> None:
        numbers = [*self.kappa, *(weight for row in self.weights for weight in row)]
        real = all(map(_is_number, numbers))
        falls = real and all(here > there > 0 for here, there in zip(self.kappa, self.kappa[1:], strict=False))
        if not falls or len(self.kappa) < 2:
            raise ConfigError(
                f"Levels {self.kappa} with weights {self.weights}",
                f"Finite numbers below {_LARGEST:g}; levels above 0 that fall from each to the next",
                "Take the table as `fewstep calibrate` wrote it",
            )
        TabulatedSolver(self.weights, self.kappa)
        errors = (self.train, self.held, self.closed_form)
        words = isinstance(self.base, str) and isinstance(self.grid, str)
        if not (words and type(self.first) is bool and all(map(_is_number, errors)) and self.nfe > 0):
            raise ConfigError(
                f"An entry with first={self.first!r}, base={self.base!r}, grid={self.grid!r}, errors {errors} and "
                f"{self.steps} steps",
                "Whether the first estimate is given, two names, three finite errors, and one call or more",
                "Take the table as `fewstep calibrate` wrote it",
            )

    @property
    def steps(self) -> int:
        """Of the grid."""
        return len(self.kappa) - 1

    @property
    def nfe(self) -> int:
        """Calls per sample."""
        return self.steps - self.first


@dataclass(frozen=True)
class Origin:
    """What a table was fitted to.

    Args:
        model: name.
        fingerprint: of the weights; empty if it is no model of ours.
        schedule: in words.
        guidance: smallest and largest scale, 1 is none; None where nothing is said of it.
    """

    model: str = ""
    fingerprint: str = ""
    schedule: str = ""
    guidance: tuple[float, float] | None = None


@dataclass(frozen=True)
class Table:
    """A calibrated solver for several numbers of calls.

    Args:
        origin: what it was fitted to.
        entries: number of calls -> solver.
        mean: the first estimate of entries that make no call for it, shape of one sample, data units.
        facts: how it was fitted: trajectories, seeds, seconds, evaluations of the network.

    Raises:
        ConfigError: if an entry makes another number of calls than it stands under, or needs a mean that is missing.
    """

    origin: Origin
    entries: Mapping[int, Entry]
    mean: Tensor | None = field(default=None, compare=False)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for nfe, entry in self.entries.items():
            if entry.nfe != nfe or (entry.first and self.mean is None):
                wrong = f"{entry.nfe} calls under the number {nfe}"
                given = wrong if entry.nfe != nfe else "no mean for its first step"
                raise ConfigError(
                    f"A table with {given}",
                    "Every entry stands under its number of calls, and one that saves the first has a mean",
                    "Take the table as `fewstep calibrate` wrote it",
                )
        if not self.entries:
            raise ConfigError("A table without an entry", "One number of calls or more", "Fit it again")

    def way(self, schedule: Schedule, nfe: int, *, force: bool = False) -> Chained:
        """Build what `sample` takes.

        Args:
            schedule: of the denoiser.
            nfe: calls per sample.
            force: take the largest number of calls within `nfe` where the table lacks it.

        Returns:
            Solver and grid.

        Raises:
            ConfigError: if the table has no such number of calls.
            LevelError: if the schedule does not have a level.
        """
        below = [known for known in self.entries if known <= nfe]
        if nfe not in self.entries and not (force and below):
            raise ConfigError(
                f"{nfe} calls with a calibrated table",
                f"It was fitted for {', '.join(map(str, sorted(self.entries)))}",
                f"Choose one of them, or fit again: fewstep calibrate --model {self.origin.model or '..'} "
                f"--nfe {','.join(map(str, sorted({*self.entries, nfe})))}",
            )
        entry = self.entries[nfe if nfe in self.entries else max(below)]
        solver = TabulatedSolver(entry.weights, entry.kappa, self.mean if entry.first else None)
        return Chained(solver, levels_at(schedule, torch.tensor(entry.kappa, dtype=torch.float64)))

    def covers(self, guidance: float) -> bool:
        """Whether it was fitted under such a scale, or around it."""
        low, high = self.origin.guidance or (-math.inf, math.inf)
        return low - _CLOSE <= guidance <= high + _CLOSE

    def check(self, fingerprint: str, schedule: Schedule, guidance: float = 1.0) -> None:
        """Refuse a model, schedule or guidance that the table was not fitted to.

        Args:
            fingerprint: of the weights that are to be sampled.
            schedule: of the denoiser.
            guidance: scale; 1 is none.

        Raises:
            ConfigError: if one of them is another.
        """
        allowed = f"A table serves what it was fitted to, {self.origin.model or 'one model'}"
        todo = "Fit one: fewstep calibrate --model .. --out TABLE; or force it, --force, at your own risk"
        own = self.origin.fingerprint
        if own and fingerprint != own:
            given = f"A table fitted to the weights {own}, for a model with the weights {fingerprint or 'unknown'}"
            raise ConfigError(given, allowed, todo)
        if self.origin.schedule and said_schedule(schedule) != self.origin.schedule:
            given = f"A table fitted on {self.origin.schedule}, for a model on {said_schedule(schedule)}"
            raise ConfigError(given, allowed, todo)
        if self.origin.guidance and not self.covers(guidance):
            low, high = self.origin.guidance
            span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            raise ConfigError(f"A table fitted under guidance {span}, for guidance {guidance:g}", allowed, todo)

    def to_json(self) -> dict[str, Any]:
        """Write it as JSON can hold it; the mean as base64 of float16."""
        entries = {str(nfe): dataclasses.asdict(entry) for nfe, entry in sorted(self.entries.items())}
        mean = None
        if self.mean is not None:
            half = self.mean.detach().cpu().to(torch.float16).contiguous()
            data = base64.b64encode(bytes(half.flatten().view(torch.uint8).tolist())).decode()
            mean = {"shape": list(half.shape), "float16": data}
        guidance = self.origin.guidance
        origin = {**dataclasses.asdict(self.origin), "guidance": None if guidance is None else list(guidance)}
        numbers = {"origin": origin, "entries": entries, "mean": mean}
        return {"fewstep_table": _VERSION, "facts": dict(self.facts), **numbers, "digest": _digest(numbers)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: str = "A table") -> Table:
        """Rebuild a table.

        Args:
            content: what :meth:`to_json` made.
            source: what it was read from, for messages.

        Returns:
            The table.

        Raises:
            CheckpointError: if it is none.
        """
        try:
            if content["fewstep_table"] != _VERSION:
                raise ValueError(f"version {content['fewstep_table']!r}; this release reads {_VERSION}")
            origin = {**content["origin"], "guidance": _pair(content["origin"]["guidance"])}
            entries = {int(nfe): _entry(entry) for nfe, entry in content["entries"].items()}
            table = cls(Origin(**origin), entries, _mean(content["mean"]), dict(content["facts"]))
            found = _digest({key: content[key] for key in ("origin", "entries", "mean")})
            if content["digest"] != found:
                raise ValueError(f"edited: its numbers have the digest {found}, and it names {content['digest']!r}")
            return table
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, FewstepError) as error:
            raise CheckpointError(
                f"{source} that cannot be read ({type(error).__name__}: {error})",
                "It is JSON as `fewstep calibrate` wrote it: facts, origin, entries, mean, a digest of the last three",
                "Restore it from a copy, or fit it again: fewstep calibrate --model .. --out TABLE",
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the table, whole or not at all; OutputError if it cannot be written."""
        write_json(path, self.to_json())


def load_table(path: str | Path) -> Table:
    """Read what :meth:`Table.save` wrote; CheckpointError if it is missing or no table."""
    return Table.from_json(read_json(path), str(path))


def _digest(numbers: Mapping[str, Any]) -> str:
    """Name the numbers of a table: 12 hexadecimal digits of a SHA-256 of their JSON."""
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:12]


def _pair(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = (float(number) for number in value)
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"guidance from {low:g} to {high:g}")
    return low, high


def _entry(content: Mapping[str, Any]) -> Entry:
    weights = tuple(tuple(row) for row in content["weights"])
    return Entry(**{**content, "kappa": tuple(content["kappa"]), "weights": weights})


def _mean(content: Mapping[str, Any] | None) -> Tensor | None:
    if content is None:
        return None
    data = bytearray(base64.b64decode(content["float16"], validate=True))
    mean = torch.frombuffer(data, dtype=torch.float16).reshape(content["shape"]).float()
    if not bool(mean.isfinite().all()):
        raise ValueError("a mean that is not finite")
    return mean
