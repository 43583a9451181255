"""What `fewstep evaluate` does once it is parsed: walk through the chunks, then print and write the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.markup import escape

from fewstep.cli.shell import console, progress, say, table
from fewstep.errors import ProtocolError
from fewstep.experiments.demo import machine
from fewstep.experiments.evaluation.evaluate import ChunkDone
from fewstep.experiments.evaluation.outcome import Outcome, finish, read_results, write_outcome
from fewstep.experiments.evaluation.prepare import prepare
from fewstep.experiments.evaluation.processes import processes
from fewstep.experiments.evaluation.request import Request
from fewstep.metrics.result import Result

__all__ = ["run_evaluate"]

_COCO = 30_000  # prompts of the protocol of that name


def run_evaluate(request: Request, against: Path | None, protocol: str) -> None:
    """Evaluate, and write results.json and results.png."""
    # A file that cannot be read is to be known before hours of sampling.
    earlier = None if against is None else read_results(against)
    here = processes(request.plan.device)
    evaluation = prepare(request, here)
    steps: Iterable[ChunkDone] = evaluation.run()
    if here.first:
        title = f"{evaluation.subjects[0].n:,} images, chunks of {request.plan.chunk}"
        steps = progress(steps, len(evaluation.mine), title)
    for _ in steps:
        pass
    if not here.first:
        return
    with console.status("reference and metrics") as status:
        outcome = finish(evaluation, status.update)
    write_outcome(request.plan.out, outcome, machine(request.plan.device))
    _show(outcome, request, protocol)
    if earlier is not None:
        _show_differences(outcome, earlier, against)
    say(f"Written to {escape(str(request.plan.out))}: results.json with the line of every number, results.png")


def _show(outcome: Outcome, request: Request, protocol: str) -> None:
    results = outcome.results
    table(
        f"{request.what}: {protocol + ', ' if protocol else ''}{_images(results)}",
        ("number", "value [95 % interval]", "features"),
        ((result.name, str(result.estimate), result.protocol.measuring.features) for result in results),
    )
    for how in dict.fromkeys(result.estimate.how for result in results):
        named = ", ".join(dict.fromkeys(result.name for result in results if result.estimate.how == how))
        say(f"[dim]Interval of {escape(named)}: {escape(how)}[/]")
    if protocol == "coco30k" and results and results[0].protocol.measuring.n != _COCO:
        say(f"[yellow]The protocol of that name has {_COCO:,} prompts; these numbers stand for themselves.[/]")
    for note in dict.fromkeys([*(result.note for result in results), *outcome.void]):
        if note:
            say(f"[yellow]{escape(note)}[/]")
    if results:
        say(f"[dim]{escape(results[0].protocol.line())}[/]")


def _images(results: Sequence[Result]) -> str:
    if not results:
        return "no number"
    measuring = results[0].protocol.measuring
    return f"{measuring.n:,} images" + (f" in each of {measuring.sets} seed sets" if measuring.sets > 1 else "")


def _show_differences(outcome: Outcome, earlier: Sequence[Result], against: Path | None) -> None:
    rows, refusals = [], []
    for difference in outcome.against(earlier):
        if isinstance(difference, ProtocolError):
            refusals.append(difference.given)
        else:
            overlap = {None: "unknown", True: "overlap", False: "apart"}[difference.overlap]
            rows.append((difference.name, str(difference.estimate), overlap, difference.note))
    if rows:
        say(f"Compared with {escape(str(against))}:")
        table("This minus the earlier one", ("number", "difference [95 % interval]", "intervals", "versions"), rows)
    for refusal in refusals:
        say(f"[bold red]Not compared:[/] {escape(refusal)}")
