"""What a calibration fits, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fewstep.calibration.grids import GITS, spaced
from fewstep.calibration.history import base_rule
from fewstep.calibration.refine import Refinement
from fewstep.errors import ConfigError

__all__ = ["NFE", "Settings"]

NFE = (4, 5, 6, 8, 10, 15, 20)


@dataclass(frozen=True)
class Settings:
    """What to fit and how.

    Args:
        nfe: numbers of calls.
        teacher_steps: of the reference ODE.
        bases: rules to fit a residual around, as on the command line.
        grids: levels to begin with, as on the command line; "gits" is dynamic programming on the trajectories.
        first: whether the first estimate is called for ("network"), is the mean of what the denoiser says there
            ("analytic"), or whichever has the smaller error ("auto").
        match_variance: whether the closed form gives every sample the variance of the teacher's.
        refinement: of the closed form; with 0 iterations no gradient is asked of the denoiser.
        held: part of the trajectories that is held out of the fit, to choose by.
        judged: part of all that only the reported error is of; the others are fitted to and held out.

    Raises:
        ConfigError: if a value cannot be, or a base rule is none.
        UnknownName: if a base rule or a grid does not exist.
    """

    nfe: tuple[int, ...] = NFE
    teacher_steps: int = 64
    bases: tuple[str, ...] = ("ipndm:order=3", "deis:variable=log_kappa")
    grids: tuple[str, ...] = ("karras:rho=10", "karras:rho=7", "karras:rho=5", "uniform_lam", "gits")
    first: Literal["network", "analytic", "auto"] = "auto"
    match_variance: bool = False
    refinement: Refinement = field(default_factory=Refinement)
    held: float = 0.25
    judged: float = 0.2

    def __post_init__(self) -> None:
        whole = self.nfe and all(type(nfe) is int and nfe >= 1 for nfe in self.nfe)
        longest = max(self.nfe) + 1 if whole else 1
        _require(bool(whole), f"nfe={self.nfe}", "Numbers of calls from 1 on", "Write for instance nfe=(5, 8, 10)")
        _require(
            type(self.teacher_steps) is int and self.teacher_steps > 2 * longest,
            f"A teacher of {self.teacher_steps} steps for {longest} steps of a student",
            "A whole number, more than twice as many",
            "Raise teacher_steps, or fit fewer calls",
        )
        _require(bool(self.bases and self.grids), "No base rule or no grid", "One of each, or more", "Use Settings()")
        for base in self.bases:
            base_rule(base)
        for grid in self.grids:
            if grid.strip() != GITS:
                spaced(grid, 80.0, 0.002, 2)
        known = ("network", "analytic", "auto")
        _require(self.first in known, f"first={self.first!r}", f"One of {', '.join(known)}", "Use 'auto'")
        _require(0 < self.held < 1, f"held={self.held}", "A part of the trajectories, between 0 and 1", "Use 0.25")
        _require(0 <= self.judged < 1, f"judged={self.judged}", "A part of the trajectories, or 0 for none", "Use 0.2")


def _require(holds: bool, given: str, allowed: str, todo: str) -> None:
    if not holds:
        raise ConfigError(given, allowed, todo)
