"""Calibration: solvers that are fitted to a model, and the table that they travel in (beside the objectives)."""

from fewstep.calibration.fit import Progress, calibrate, fit, problem_of
from fewstep.calibration.problem import Problem
from fewstep.calibration.refine import Refinement
from fewstep.calibration.settings import NFE, Settings
from fewstep.calibration.table import FILE, Entry, Origin, Table, load_table, said_schedule

__all__ = [
    "FILE",
    "NFE",
    "Entry",
    "Origin",
    "Problem",
    "Progress",
    "Refinement",
    "Settings",
    "Table",
    "calibrate",
    "fit",
    "load_table",
    "problem_of",
    "said_schedule",
]
