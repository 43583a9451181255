"""The runner of diffusers' tests, on a small checkout of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.diffusers_tests import EXCLUDED, EXCLUDED_CALIBRATED, all_runs, failures

DPM = """
import unittest
from diffusers import DPMSolverMultistepScheduler

class DPMSolverMultistepSchedulerTest(unittest.TestCase):
    scheduler_classes = (DPMSolverMultistepScheduler,)

    def get_scheduler_config(self, **given):
        return {"beta_end": 0.01, **given}

    def test_both_ways_lead_to_one_class(self):
        assert self.scheduler_classes == (DPMSolverMultistepScheduler,)

    def test_configuration(self):
        scheduler = DPMSolverMultistepScheduler(**self.get_scheduler_config(beta_start=0.001))
        assert (scheduler.config.beta_start, scheduler.config.beta_end) == (0.001, 0.01)

    def test_only_stock_passes(self):
        assert DPMSolverMultistepScheduler.__module__.startswith("diffusers"), "another class"

    def test_only_ours_pass(self):
        assert not DPMSolverMultistepScheduler.__module__.startswith("diffusers")

    def test_switch(self):
        assert DPMSolverMultistepScheduler.__module__.startswith("diffusers")

    @unittest.skip("no reason")
    def test_skipped(self):
        pass

class OtherTest(unittest.TestCase):
    def test_nobody_asked(self):
        assert False
"""
FLOW = """
from diffusers import FlowMatchEulerDiscreteScheduler

class TestFlowMatchEulerDiscreteSchedulerSigmaConsistency:
    def test_shift(self):
        assert FlowMatchEulerDiscreteScheduler(shift=3.0).config.shift == 3
"""
NAME, FLOWS = "test_scheduler_dpm_multi.py", "test_scheduler_flow_match_euler_discrete.py"
TESTS = ["test_both_ways_lead_to_one_class", "test_configuration"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("checkout") / "tests" / "schedulers"
    folder.mkdir(parents=True)
    for path, text in {"../__init__.py": "", "__init__.py": "", NAME: DPM, FLOWS: FLOW}.items():
        (folder / path).write_text(text)
    return all_runs(folder.parents[1])


def test_ours_stand_where_the_stock_class_stood(results: Any) -> None:
    stock, evodiff, calibrated = results[NAME].values()
    assert sorted(stock["passed"]) == [*TESTS, "test_only_stock_passes", "test_switch"]
    assert list(stock["failed"]) == ["test_only_ours_pass"]
    for record in (evodiff, calibrated):
        assert sorted(record["passed"]) == [*TESTS, "test_only_ours_pass"]
        assert record["failed"] == {"test_only_stock_passes": "AssertionError: another class"}
        assert list(record["excluded"]) == ["test_switch"]
        assert record["skipped"] == ["test_skipped"]


def test_flows_are_made_of_ours(results: Any) -> None:
    assert {subject: record["passed"] for subject, record in results[FLOWS].items()} == {
        "stock": ["test_shift"],
        "EVODiffScheduler": ["test_shift"],
    }


def test_what_stock_passes_and_ours_do_not_is_a_failure(results: Any) -> None:
    subjects = ("EVODiffScheduler", "CalibratedScheduler")
    assert failures(results) == [f"{NAME} {subject} test_only_stock_passes" for subject in subjects]


def test_a_file_that_cannot_be_imported_is_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "schedulers"
    folder.mkdir(parents=True)
    (folder / NAME).write_text("import no_such_module")
    assert failures(all_runs(tmp_path)) == [
        f"{NAME} {subject} collection" for subject in ("stock", "EVODiffScheduler", "CalibratedScheduler")
    ]


@pytest.mark.parametrize("excluded", [EXCLUDED, EXCLUDED_CALIBRATED], ids=["EVODiff", "Calibrated"])
def test_every_excluded_test_has_one_of_ours_in_its_place(excluded: dict[str, tuple[str, str]]) -> None:
    """And that one exists, with its parameter."""
    from tests.adapters import test_scheduler_parity as parity

    for reason, instead in excluded.values():
        path, test = instead.split("::")
        name, _, case = test.rstrip("]").partition("[")
        assert reason
        assert path == "tests/adapters/test_scheduler_parity.py"
        assert callable(getattr(parity, name))
        assert not case or case in parity.CASES
