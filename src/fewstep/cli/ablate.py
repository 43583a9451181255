"""What `fewstep ablate` does once it is parsed: fill the table, print it, draw it."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from fewstep._files import write_json
from fewstep.cli.convert import show_rows
from fewstep.cli.shell import progress, say
from fewstep.experiments.ablate import AblatePlan, Ablation
from fewstep.experiments.demo import machine
from fewstep.experiments.pictures import interval_plot

__all__ = ["run_ablate"]


def run_ablate(plan: AblatePlan, out: Path) -> None:
    """Run an ablation in a folder; writes ablation.json and ablation.png."""
    work = Ablation(plan, out)
    for _ in progress(work.run(), len(work), f"{len(work)} cells of {plan.steps} steps"):
        pass
    write_json(out / "ablation.json", {**work.report(), "machine": machine()})
    rows = work.rows
    panels = {
        f"distance, {steps} step{'s' * (steps > 1)}": {
            row.name: (row.distance, None, None) for row in rows if row.steps == steps
        }
        for steps in sorted({row.steps for row in rows})
    }
    interval_plot(out / "ablation.png", panels, columns=2)
    show_rows(f"{plan.model or 'digits'}, {plan.n} images", rows)
    for cell in work.cells:
        if cell.leaky:
            say(f"[yellow]{escape(cell.rows[0].name)}: its training starts from data, which sampling does not have[/]")
    say(f"[dim]{escape(work.measure)}. This is not FID.[/]")
    say(f"[dim]{escape(work.floor)}[/]")
    say(f"Written to {escape(str(out))}: ablation.json with the guard's warnings, ablation.png")
