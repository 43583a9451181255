"""Protocols: what a number means survives JSON, and numbers of unlike meaning refuse to be compared."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from fewstep.errors import DataError, ProtocolError
from fewstep.metrics.estimate import Estimate
from fewstep.metrics.protocol import Making, Measuring, Protocol, ReferenceId, library_versions
from fewstep.metrics.result import Result, check_comparable, compare_results, results_from_json

REFERENCE = ReferenceId("CIFAR-10", "test", 10_000, "0123456789ab")
MEASURING = Measuring("fd", "net@aaaaaaaaaaaa", 64, "none", REFERENCE, 5000, parameters={"k": 5})
MAKING = Making("model toy", "bbbbbbbbbbbb", "0..4999", "evodiff", "karras", 10, 20, 1.5, "classes in turn")
VERSIONS = {"fewstep": "0.1.0", "torch": "2.0"}


def result(estimate: Estimate | None = None, making: Making = MAKING, versions=VERSIONS, **changes) -> Result:
    protocol = Protocol(dataclasses.replace(MEASURING, **changes), making, versions)
    return Result(protocol, "fd", estimate or Estimate(2.0, 1.0, 3.0, "jackknife"))


def test_a_result_survives_json():
    first = result()
    again = Result.from_json(json.loads(json.dumps(first.to_json())))
    assert again == first
    assert again.line() == first.line()
    assert results_from_json({"results": [first.to_json()]}) == [first]


def test_a_result_compares_with_itself_out_of_a_file():
    told = result(parameters={"seeds": (0, 1, 2), "k": 5})
    check_comparable(told, Result.from_json(json.loads(json.dumps(told.to_json()))))


def test_the_line_says_everything():
    line = result().line()
    parts = [*dataclasses.asdict(REFERENCE).values(), *dataclasses.asdict(MAKING).values(), *VERSIONS.values()]
    for part in (*parts, "fd", "net@aaaaaaaaaaaa", 64, 5000, "8 bit", "k 5", "resize none", result().protocol.key()):
        said = f"{part:,}" if isinstance(part, int) and part >= 1000 else str(part)
        assert said in line, f"{said!r} is not in {line!r}"
    assert "\n" not in line


OTHER = {
    "metric": "kid",
    "features": "net@cccccccccccc",
    "dim": 128,
    "resize": "bicubic to 299",
    "reference": dataclasses.replace(REFERENCE, split="train"),
    "n": 500,
    "sets": 3,
    "rounding": "none",
    "parameters": {"k": 3},
}


@pytest.mark.parametrize("name", OTHER)
def test_every_field_of_the_measuring_side_matters(name):
    """The table above has all of them; the message has the name and both values."""
    assert set(OTHER) == {field.name for field in dataclasses.fields(Measuring)}
    a, b = result(), result(**{name: OTHER[name]})
    assert a.protocol.key() != b.protocol.key()
    with pytest.raises(ProtocolError) as refusal:
        check_comparable(a, b)
    shown = {"reference": ("reference.split", "test", "train"), "parameters": ("parameters.k", 5, 3)}
    field, mine, theirs = shown.get(name, (name, getattr(MEASURING, name), OTHER[name]))
    assert f"{field}: {mine!r} and {theirs!r}" in refusal.value.given
    assert refusal.value.given.count(": ") == 2, "only what differs is listed"


def test_the_making_side_and_versions_may_differ():
    making, versions = Making("folder x", "dddddddddddd"), {**VERSIONS, "torch": "3.0"}
    other = result(Estimate(5.0, 4.0, 6.0, "jackknife"), making, versions)
    difference = compare_results(result(), other)
    assert difference.estimate.value == 3.0
    assert difference.note == "torch: '2.0' and '3.0'"


def test_the_difference_of_two_symmetric_intervals_is_that_of_independent_errors():
    difference = compare_results(result(Estimate(2.0, -1.0, 5.0)), result(Estimate(10.0, 6.0, 14.0)))
    assert (difference.estimate.low, difference.estimate.high) == (8.0 - 5.0, 8.0 + 5.0)  # 3, 4, 5
    assert difference.overlap is False
    assert compare_results(result(Estimate(2.0, 1.0, 3.0)), result(Estimate(2.5, 2.0, 4.0))).overlap is True


def test_skewed_intervals_give_their_own_sides():
    """The low end of b - a comes from b's low and a's high end."""
    difference = compare_results(result(Estimate(0.0, -1.0, 2.0)), result(Estimate(0.0, -3.0, 4.0)))
    assert difference.estimate.low == pytest.approx(-math.hypot(3, 2))
    assert difference.estimate.high == pytest.approx(math.hypot(4, 1))


def test_without_an_interval_there_is_a_difference_and_no_claim():
    difference = compare_results(result(Estimate(2.0)), result())
    assert (difference.estimate.value, difference.estimate.low, difference.overlap) == (0.0, None, None)


def test_a_tampered_or_foreign_protocol_is_refused():
    content = result().to_json()
    content["protocol"]["measuring"]["n"] = 50
    with pytest.raises(DataError, match="its key is"):
        Result.from_json(content)
    with pytest.raises(DataError, match="cannot be read"):
        Result.from_json({"name": "fd"})
    with pytest.raises(DataError, match="a list under the key results"):
        results_from_json({"cells": []})


def test_versions_leave_out_what_is_not_installed():
    versions = library_versions("numpy", "no-such-library")
    assert list(versions) == ["fewstep", "numpy", "torch"]
