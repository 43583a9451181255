"""diffusers' own scheduler tests on our schedulers, and on theirs beside it.

    python -m benchmarks.diffusers_tests --checkout PATH --out benchmarks/results/diffusers_tests/0.42.1.json

PATH is a checkout of diffusers' repository, best of the version that is installed; what is read of it is its folder
tests/. Nothing of it is copied or changed: when the tests are collected, the class that they test is replaced by the
one in question. `test_compatibles` builds every sibling, one of which needs `pip install torchsde`.

A few tests assert the mean of the image that DPM-Solver++ ends at. No other algorithm ends there, so they are left out
for ours, by name, and tests/adapters/test_scheduler_parity.py compares the same loops with our core instead. Two more
ask a calibrated solver for levels that its table does not have. Any other test that fails is a failure and the exit
code 1, unless the stock class fails it too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch

from fewstep._files import output_dir, write_json
from fewstep.calibration import Entry, Origin, Table
from fewstep.experiments.demo import machine
from fewstep.schedulers import CalibratedScheduler, EVODiffScheduler

OURS = "tests/adapters/test_scheduler_parity.py::"
LOOP = OURS + "test_the_loop_is_the_core"
MEAN = "asserts the mean |x| that DPM-Solver++ ends at: "
# What cannot hold for another algorithm: test -> reason, and the test of ours in its place.
EXCLUDED = {
    "test_full_loop_no_noise": (MEAN + ".3301", f"{LOOP}[plain]"),
    "test_full_loop_with_noise": (MEAN + ".4146", OURS + "test_a_run_from_an_image_is_the_core"),
    "test_full_loop_no_noise_thres": (MEAN + "1.1364", f"{LOOP}[thresholding]"),
    "test_full_loop_with_v_prediction": (MEAN + ".2251", f"{LOOP}[v]"),
    "test_full_loop_with_karras_and_v_prediction": (MEAN + ".2096", f"{LOOP}[karras-v]"),
    "test_full_loop_with_lu_and_v_prediction": (MEAN + ".1554", f"{LOOP}[lu-v]"),
    "test_switch": (MEAN + ".3301, before and after three siblings", OURS + "test_the_way_through_siblings"),
}
CALIBRATED = OURS + "test_a_calibrated_loop_is_the_core"
REFUSED = OURS + "test_a_table_has_its_own_levels"
EXCLUDED_CALIBRATED = {
    **{name: (reason, CALIBRATED) for name, (reason, _) in EXCLUDED.items()},
    "test_custom_timesteps": ("a table has its own levels and takes no others", REFUSED),
    "test_duplicated_timesteps": ("asks for 1000 calls, and a table has a few numbers of calls", REFUSED),
}
CONFIG = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
COLLECTION = "collection"  # where a test would stand that failed
CALLS = (10, 25, 50)  # what the tests ask for


class Suite(NamedTuple):
    """A file of diffusers' tests.

    Attributes:
        test: the class in it that is run.
        stock: the scheduler that it is about, by name.
        config: of the schedulers, where the class is abstract and leaves it to others.
    """

    test: str
    stock: str
    config: Mapping[str, Any] | None = None


SUITES = {
    "test_schedulers.py": Suite("SchedulerCommonTest", "DPMSolverMultistepScheduler", CONFIG),
    "test_scheduler_dpm_multi.py": Suite("DPMSolverMultistepSchedulerTest", "DPMSolverMultistepScheduler"),
    "test_scheduler_flow_match_euler_discrete.py": Suite(
        "TestFlowMatchEulerDiscreteSchedulerSigmaConsistency", "FlowMatchEulerDiscreteScheduler"
    ),
}


def table() -> dict[str, Any]:
    """A calibration of weights 0, which is DDIM, on levels that every schedule of the tests has."""
    return Table(Origin(), {n: _entry(n) for n in CALLS}).to_json()


def _entry(n: int) -> Entry:
    kappa = tuple(torch.logspace(-0.5, -1.9, n + 1, dtype=torch.float64).tolist())
    weights = tuple((0.0,) * i for i in range(1, n))
    return Entry(kappa, weights, first=False, base="ddim", grid="test", train=0.0, held=0.0, closed_form=0.0)


class Subject(NamedTuple):
    """A scheduler under test.

    Attributes:
        kind: its class; None is the stock one.
        extra: what its configuration needs beside the tests' own.
        excluded: tests that cannot hold -> reason, and the test of ours in its place.
        flows: whether it can be made of a flow's shift alone.
    """

    kind: Any = None
    extra: Mapping[str, Any] = {}
    excluded: Mapping[str, tuple[str, str]] = {}
    flows: bool = True


SUBJECTS = {
    "stock": Subject(),
    "EVODiffScheduler": Subject(EVODiffScheduler, {}, EXCLUDED),
    "CalibratedScheduler": Subject(CalibratedScheduler, {"calibration": table()}, EXCLUDED_CALIBRATED, flows=False),
}


@dataclass
class Run:
    """One file of tests with one scheduler, as a plugin of pytest.

    Args:
        suite: the file.
        subject: the scheduler.
    """

    suite: Suite
    subject: Subject
    passed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    excluded: dict[str, tuple[str, str]] = field(default_factory=dict)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the tests of the class, and put the scheduler in its place."""
        own = [item for item in items if item.cls is not None and item.cls.__name__ == self.suite.test]
        out = self.subject.excluded
        self.excluded = {item.name: out[item.name] for item in own if item.name in out}
        items[:] = [item for item in own if item.name not in out]
        if items:
            self._replace(items[0].module, items[0].cls)

    def _replace(self, module: Any, test: Any) -> None:
        """Put the scheduler where the tests look for it; all of it is gone with the module."""
        kind, extra = self.subject.kind or getattr(diffusers, self.suite.stock), self.subject.extra
        setattr(module, self.suite.stock, kind)
        if hasattr(test, "scheduler_classes"):
            theirs = test.get_scheduler_config
            own = (lambda case, **given: {**self.suite.config, **given}) if self.suite.config else theirs
            test.scheduler_classes = (kind,)
            test.get_scheduler_config = lambda case, **given: {**own(case, **given), **extra}
        elif self.subject.kind:  # a flow's tests give a shift, and ours want to know that it is a flow
            setattr(module, self.suite.stock, lambda **given: kind(**given, prediction_type="flow_prediction"))

    def pytest_collectreport(self, report: Any) -> None:
        """Note why a file could not be imported."""
        if report.failed:
            self.failed[COLLECTION] = str(report.longrepr).strip().splitlines()[-1][:300]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note how a test ended."""
        name = report.nodeid.split("::")[-1]
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed[name] = str(crash.message if crash else report.longrepr).strip().splitlines()[0][:300]
        elif report.skipped:
            self.skipped.append(name)
        elif report.when == "call":
            self.passed.append(name)

    def record(self) -> dict[str, Any]:
        """What goes into the file."""
        excluded = {name: {"reason": reason, "instead": ours} for name, (reason, ours) in self.excluded.items()}
        return {"passed": self.passed, "failed": self.failed, "skipped": self.skipped, "excluded": excluded}


@contextmanager
def alone() -> Iterator[None]:
    """Forget what was imported of the checkout, whose package has the name of our own tests."""
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "tests"}
    path = list(sys.path)
    for name in kept:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        sys.modules.update(kept)
        sys.path[:] = path


def run(checkout: Path, name: str, subject: Subject) -> dict[str, Any]:
    """Run one file of the checkout with one scheduler; its record."""
    made = Run(SUITES[name], subject)
    options = ["-q", "--no-header", "--no-summary", "-p", "no:cacheprovider", "-c", os.devnull, "-W", "ignore"]
    with alone():
        pytest.main([*options, "--rootdir", str(checkout), str(_path(checkout, name))], plugins=[made])
    if not (made.passed or made.failed):
        made.failed[COLLECTION] = f"no {made.suite.test} in it"
    return made.record()


def all_runs(checkout: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """File -> scheduler -> record, of the files that the checkout has."""
    files = [name for name in SUITES if _path(checkout, name).is_file()]
    return {
        name: {
            subject: run(checkout, name, how)
            for subject, how in SUBJECTS.items()
            if how.flows or not SUITES[name].stock.startswith("FlowMatch")
        }
        for name in files
    }


def _path(checkout: Path, name: str) -> Path:
    return checkout / "tests" / "schedulers" / name


def failures(results: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Tests that ours fail and the stock class passes, and files without a test to run: file, scheduler, test."""
    return [
        f"{file} {subject} {name}"
        for file, subjects in results.items()
        for subject, record in subjects.items()
        for name in record["failed"]
        if name == COLLECTION or name not in subjects["stock"]["failed"]
    ]


def print_counts(results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print how many of which file passed, and why others did not."""
    kinds = ("passed", "failed", "excluded", "skipped")
    print(f"{'file':46}{'scheduler':22}" + "".join(f"{kind:>10}" for kind in kinds))
    for file, subjects in results.items():
        for subject, record in subjects.items():
            print(f"{file:46}{subject:22}" + "".join(f"{len(record[kind]):>10}" for kind in kinds))
            for name, message in record["failed"].items():
                print(f"    failed: {name}: {message}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, help="of diffusers' repository")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = all_runs(options.checkout)
    if not results:
        parser.error(f"no tests/schedulers in {options.checkout}; it takes a checkout of diffusers' repository")
    print_counts(results)
    if options.out:
        hashes = {name: hashlib.sha256(_path(options.checkout, name).read_bytes()).hexdigest() for name in results}
        facts = {**machine("cpu"), "diffusers": diffusers.__version__, "sha256": hashes}
        write_json(output_dir(options.out.parent) / options.out.name, {**facts, "results": results})
    sys.exit("\n".join(failures(results)) or 0)


if __name__ == "__main__":
    main()
