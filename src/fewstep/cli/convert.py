"""What `fewstep convert` does once it is parsed: plan, make pairs, train, then show before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from fewstep._files import write_json
from fewstep.cli.shell import console, loud, progress, say, table
from fewstep.cli.train import noted
from fewstep.errors import ConfigError
from fewstep.experiments.convert import Conversion
from fewstep.experiments.convert_plan import ConvertPlan
from fewstep.experiments.demo import machine
from fewstep.experiments.few_steps import Row
from fewstep.experiments.pictures import contact_sheet

__all__ = ["run_convert", "show_rows"]

_SHOW = 10  # images of each kind in the picture


def run_convert(plan: ConvertPlan, out: Path, n: int) -> None:
    """Convert a model into a folder, and measure what came out with n images."""
    if n < 2:
        raise ConfigError(f"{n} images to measure with", "2 or more", "Use --n 1000")
    with console.status("planning"), loud():
        work = Conversion(plan, out)
    size = work.size
    pairs = f"{size.pairs:,} pairs, " if work.parts else ""
    say(f"Planned for {plan.minutes:g} minutes: {pairs}{size.train_steps:,} training steps")
    if size.seconds > 60 * plan.minutes:
        say(f"[yellow]That is the least there is to do, and takes about {size.seconds / 60:.2g} minutes[/]")
    for _ in progress(work.make_pairs(), work.parts, f"sampling the teacher, {work.nfe} calls"):
        pass
    with console.status("preparing"), loud():
        steps = work.train()
    for _ in progress(noted(steps), size.train_steps, "training the chain"):
        pass
    with console.status(f"reference of {n} images"):
        yardstick = work.yardstick(n)
    rows = list(progress(work.measure(yardstick, n), 2 * len(plan.steps) + 1, f"measuring with {n} images"))
    measure, floor = yardstick.describe(n), work.floor(yardstick, rows, n)
    report = {"plan": asdict(plan), "size": asdict(size), "measure": measure, "floor": floor}
    found: list[dict[str, Any]] = [asdict(row) for row in rows]
    write_json(out / "convert.json", {**report, "rows": found, "machine": machine(work.model.device)})
    images = {f"{name}, {steps} step{'s' * (steps > 1)}": [of[:_SHOW]] for (name, steps), of in work.pictures.items()}
    contact_sheet(out / "convert.png", images, [work.model.config.name], wide=_SHOW)
    show_rows(f"{work.model.config.name}, {n} images", rows)
    say(f"[dim]{escape(measure)}. This is not FID.[/]")
    say(f"[dim]{escape(floor)}[/]")
    say(f"Few-step model in {escape(str(out))}, with convert.json and convert.png")


def show_rows(title: str, rows: Sequence[Row]) -> None:
    """Print what was measured at few steps."""
    columns = ("samples", "steps", "NFE", "distance", "rho", "contrast", "class", "seconds")
    table(title, columns, [[row.name, str(row.steps), str(row.nfe), *_numbers(row)] for row in rows])


def _numbers(row: Row) -> list[str]:
    rho, recognised = ("-" if value is None else f"{value:.3f}" for value in (row.rho, row.recognised))
    return [f"{row.distance:.3g}", rho, f"{row.contrast:.3f}", recognised, f"{row.seconds:.1f}"]
