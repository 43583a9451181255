"""The error that a table names for new noise is one of trajectories that had no say in it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from calibration.test_fit import QUICK, WIDE, made_for
from fewstep.calibration import Problem, Table, fit
from fewstep.errors import CheckpointError
from fewstep.sampling import sample

SETTINGS = replace(QUICK, nfe=(4,), judged=0.25)


def other_end(problem: Problem, kept: int) -> Problem:
    """The same problem with other noise where it only judges."""
    start = problem.start.clone()
    start[kept:] = start[kept:].flip(0) * 0.9
    return replace(problem, start=start)


def test_judged_trajectories_have_no_say() -> None:
    own = made_for(WIDE, 16, 32)
    one, two = (fit(problem, SETTINGS).entries[4] for problem in (own, other_end(own, 24)))
    assert replace(one, fresh=None) == replace(two, fresh=None)
    assert one.fresh != two.fresh


def test_it_is_the_error_of_sampling_there() -> None:
    own = made_for(WIDE, 16, 32)
    table = fit(own, replace(SETTINGS, teacher_steps=80))
    rule, grid = table.way(own.schedule, 4)
    fine = fit(own, replace(SETTINGS, nfe=(40,), teacher_steps=90, grids=("karras:rho=7",))).way(own.schedule, 40)
    x = grid.levels.sigma[0] * own.start[24:]
    ends, wanted = (sample(own.denoisers[0], *way, x).x / way[1].levels.alpha[-1] for way in ((rule, grid), fine))
    error = float((ends - wanted).square().mean().sqrt())
    named = table.entries[4].fresh
    assert named is not None
    assert abs(named - error) < 0.02 * error, f"{named:.5f} is named, {error:.5f} is found"


def test_none_without_such_trajectories() -> None:
    assert fit(made_for(WIDE, 16, 24), replace(SETTINGS, judged=0.0)).entries[4].fresh is None


@pytest.mark.parametrize("key", ["weights", "kappa", "held", "origin", "mean"])
def test_an_edited_number_is_seen(key: str) -> None:
    """Numbers that could be right, but are not those that were fitted."""
    content = json.loads(json.dumps(fit(made_for(WIDE, 16, 32), replace(SETTINGS, first="analytic")).to_json()))
    entry = content["entries"]["4"]
    if key == "weights":
        entry["weights"][0][0] += 1e-3
    elif key == "origin":
        content["origin"]["fingerprint"] = "0123456789ab"
    elif key == "mean":
        content["mean"]["float16"] = "AAA" + content["mean"]["float16"][3:]
    else:
        entry[key] = [value * 0.999 for value in entry[key]] if key == "kappa" else entry[key] * 0.5
    with pytest.raises(CheckpointError, match="edited"):
        Table.from_json(content)


def test_the_judged_of_several_denoisers_are_led_by_their_own() -> None:
    """With two denoisers an odd number of trajectories is left to the judges, so that the leaders stay in turn."""
    own = made_for(WIDE, 16, 33)
    twice = replace(own, denoisers=(own.denoisers[0], own.denoisers[0]))
    table = fit(twice, SETTINGS)
    assert table.entries[4].fresh is not None
    assert torch.isfinite(torch.tensor(table.entries[4].fresh))
