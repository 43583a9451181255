"""What an evaluation leaves behind: results.json, a plot, and how the numbers stand to earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep._files import read_json, write_json
from fewstep.errors import ConfigError, ProtocolError
from fewstep.experiments.evaluation.evaluate import Evaluation
from fewstep.experiments.evaluation.finish import Finish
from fewstep.experiments.pictures import interval_plot
from fewstep.metrics.result import Difference, Result, compare_results, results_from_json

__all__ = ["Outcome", "finish", "read_results", "write_outcome"]


@dataclass(frozen=True)
class Outcome:
    """What was measured.

    Args:
        results: the numbers.
        skipped: files that could not be read.
        void: numbers that do not exist, and why.
        settings: what the images depend on.
    """

    results: tuple[Result, ...]
    skipped: tuple[str, ...]
    void: tuple[str, ...]
    settings: Mapping[str, Any]

    def against(self, earlier: Sequence[Result]) -> Iterator[Difference | ProtocolError]:
        """Compare with earlier results, each number with its namesake in the same kind of features.

        Args:
            earlier: results of another evaluation.

        Yields:
            The difference, this one minus the earlier one, or the refusal that says what differs.

        Raises:
            ConfigError: if no number has a namesake.
        """
        found = {_kind(result): result for result in earlier}
        pairs = [(found[_kind(result)], result) for result in self.results if _kind(result) in found]
        if not pairs:
            raise ConfigError(
                f"Earlier results with {', '.join(sorted({' in '.join(key) for key in found})) or 'nothing'}",
                "At least one number of the same name in the same kind of features",
                "Measure the same metrics, or choose another file",
            )
        for before, now in pairs:
            try:
                yield compare_results(before, now)
            except ProtocolError as error:
                yield error


def _kind(result: Result) -> tuple[str, str]:
    return result.name, result.protocol.measuring.features.partition("@")[0]


def finish(evaluation: Evaluation, watch: Callable[[str], None] | None = None) -> Outcome:
    """Compute the numbers of an evaluation whose chunks are all done; for the first process.

    Args:
        evaluation: the evaluation.
        watch: called with a few words whenever something long begins.

    Returns:
        Everything that was measured.

    Raises:
        DataError: if no picture could be read, or a metric cannot be computed from what there is.
        CheckpointError: if a part is missing or damaged.
    """
    last = Finish(evaluation, watch)
    results = last.results()
    return Outcome(tuple(results), tuple(last.skipped), tuple(last.void), evaluation.settings)


def write_outcome(folder: Path, outcome: Outcome, machine: Mapping[str, Any]) -> None:
    """Write results.png and, last, results.json.

    Args:
        folder: where to; it exists.
        outcome: what was measured.
        machine: what it was measured on.

    Raises:
        OutputError: if a file cannot be written.
    """
    # A panel for each kind of features: a distance in one is of another scale than in the other.
    panels: dict[str, dict[str, tuple[float, float | None, float | None]]] = {}
    for result in outcome.results:
        estimate, features = result.estimate, result.protocol.measuring.features.partition("@")[0]
        panels[f"{result.name}, {features}"] = {"": (estimate.value, estimate.low, estimate.high)}
    if panels:
        interval_plot(folder / "results.png", panels)
    content = {
        "results": [result.to_json() for result in outcome.results],
        "skipped": list(outcome.skipped),
        "void": list(outcome.void),
        "settings": dict(outcome.settings),
        "machine": dict(machine),
    }
    write_json(folder / "results.json", content)


def read_results(path: Path) -> Sequence[Result]:
    """Read the results that an evaluation wrote.

    Args:
        path: a results.json, or the folder with it.

    Returns:
        The results.

    Raises:
        CheckpointError: if the file is missing or no JSON.
        DataError: if it holds no results of this version.
    """
    return results_from_json(read_json(path / "results.json" if path.is_dir() else path))
