"""Results: numbers with interval and protocol, which refuse to be compared with numbers of another kind."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.errors import DataError, ProtocolError
from fewstep.metrics.estimate import Estimate
from fewstep.metrics.protocol import Protocol

__all__ = ["Difference", "Result", "check_comparable", "compare_results", "differing", "results_from_json"]


@dataclass(frozen=True)
class Result:
    """A number that can be trusted: its protocol, its name, its value with an interval.

    Args:
        protocol: what it means.
        name: of the number: a metric may give several, "precision" and "recall" for instance.
        estimate: value and interval.
        note: what a reader has to know: a bias, skipped images, why there is no interval.
    """

    protocol: Protocol
    name: str
    estimate: Estimate
    note: str = ""

    def line(self) -> str:
        """Say number, interval and protocol in one line of text."""
        how = "" if self.estimate.how == "none" else f" ({self.estimate.how})"
        note = f" | {self.note}" if self.note else ""
        return f"{self.name} = {self.estimate}{how}: {self.protocol.line()}{note}"

    def to_json(self) -> dict[str, Any]:
        """Turn into what JSON can hold; :meth:`from_json` is the way back."""
        return {
            "name": self.name,
            "estimate": self.estimate.to_json(),
            "note": self.note,
            "protocol": self.protocol.to_json(),
            "line": self.line(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Result:
        """Make a result from what :meth:`to_json` gave.

        Args:
            content: "name", "estimate", "note" and "protocol".

        Returns:
            The result.

        Raises:
            DataError: if a key is missing or holds something else.
        """
        try:
            name, note = str(content["name"]), str(content["note"])
            protocol, estimate = content["protocol"], content["estimate"]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"A result that cannot be read ({type(error).__name__}: {error})",
                "It has a name, an estimate, a note and a protocol",
                "Measure again with `fewstep evaluate`",
            ) from error
        return cls(Protocol.from_json(protocol), name, Estimate.from_json(estimate), note)


@dataclass(frozen=True)
class Difference:
    """How far two comparable results are apart.

    Args:
        name: of both numbers.
        estimate: second minus first, with an interval where both have one.
        overlap: whether the two intervals overlap; None where one is missing.
        note: which versions of libraries differ, "" if none.
    """

    name: str
    estimate: Estimate
    overlap: bool | None
    note: str = ""


def check_comparable(a: Result, b: Result) -> None:
    """Refuse two results that were not measured in the same way.

    Args:
        a: one result.
        b: the other one.

    Raises:
        ProtocolError: if they are different numbers or their measuring sides differ; every field that differs is
            named with both of its values.
    """
    unlike = differing({"name": a.name, **_flat(a.protocol)}, {"name": b.name, **_flat(b.protocol)})
    if unlike:
        raise ProtocolError(
            f"{a.name} and {b.name} of unlike protocols: {'; '.join(unlike)}",
            "Numbers are comparable if metric, features, resize, rounding, reference, n and seed sets are the same",
            "Measure both in the same way",
        )


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """List the keys whose values differ, with both values.

    Args:
        a: name -> value.
        b: name -> value.

    Returns:
        One "name: value and value" for each key; a missing value is None.
    """
    return [f"{key}: {a.get(key)!r} and {b.get(key)!r}" for key in {**a, **b} if a.get(key) != b.get(key)]


def _flat(protocol: Protocol) -> dict[str, Any]:
    # Through JSON, because a file gives lists for tuples.
    content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(protocol.measuring)))
    nested = {name: content.pop(name) or {} for name in ("reference", "parameters")}
    return content | {f"{outer}.{name}": value for outer, inner in nested.items() for name, value in inner.items()}


def compare_results(a: Result, b: Result) -> Difference:
    r"""Subtract two comparable results of independent images.

    .. math:: d = b - a, \quad d_{low} = d - \sqrt{(b - b_{low})^2 + (a_{high} - a)^2}, \quad
        d_{high} = d + \sqrt{(b_{high} - b)^2 + (a - a_{low})^2}

    Args:
        a: the first result.
        b: the second one, measured in the same way on other images.

    Returns:
        The difference, b minus a.

    Raises:
        ProtocolError: if they are not comparable.

    Source:
        Zou and Donner 2008, Section 2 (variance estimates recovered from two intervals). Departs from it in: nothing.
    """
    check_comparable(a, b)
    x, y = a.estimate, b.estimate
    note = "; ".join(differing(a.protocol.versions, b.protocol.versions))
    d = y.value - x.value
    if x.low is None or x.high is None or y.low is None or y.high is None:
        return Difference(a.name, Estimate(d), None, note)
    # An interval that does not hold its own number, as a percentile interval may not, reaches to it at least.
    below = math.hypot(max(0.0, y.value - y.low), max(0.0, x.high - x.value))
    above = math.hypot(max(0.0, y.high - y.value), max(0.0, x.value - x.low))
    overlap = x.low <= y.high and y.low <= x.high
    return Difference(a.name, Estimate(d, d - below, d + above, "from both intervals, 95 %"), overlap, note)


def results_from_json(content: Mapping[str, Any]) -> Sequence[Result]:
    """Read the results in what ``results.json`` holds.

    Args:
        content: the object of the file.

    Returns:
        Its results.

    Raises:
        DataError: if there is no list of results, or one cannot be read.
    """
    results = content.get("results")
    if not isinstance(results, list):
        raise DataError(
            f"A file with the keys {', '.join(content) or 'none'}",
            "A results.json has a list under the key results",
            "Pass a file that `fewstep evaluate` wrote",
        )
    return [Result.from_json(entry) for entry in results]
