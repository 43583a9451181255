"""What the demo writes: report.json, pictures, curves, and one page that explains them."""

from __future__ import annotations

import base64
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import fewstep
from fewstep._files import require, write_atomic, write_json
from fewstep.experiments.compare import Comparison
from fewstep.experiments.digits import AFTER, BEFORE, DigitsAct
from fewstep.experiments.pictures import contact_sheet, curves

__all__ = ["draw_comparison", "machine", "write_report"]

_TEMPLATE = Path(__file__).with_name("report.html.j2")


def machine(device: str | torch.device = "auto") -> dict[str, Any]:
    """What a number was measured on, JSON-able; "auto" is a GPU if there is one."""
    on_gpu = torch.cuda.is_available() and torch.device("cuda" if device == "auto" else device).type == "cuda"
    return {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fewstep": fewstep.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def draw_comparison(comparison: Comparison, folder: Path) -> None:
    """Write sheet.png and quality.png of a comparison."""
    plan = comparison.plan
    rows = {s: [comparison.pictures[s, nfe] for nfe in plan.nfe] for s in plan.solvers}
    fine = comparison.reference[: comparison.show]
    contact_sheet(
        folder / "sheet.png",
        {name: [*sets, fine] for name, sets in rows.items()},
        [*(f"{nfe} calls" for nfe in plan.nfe), "fine solution"],
    )
    panels, lines = {"Error to the fine solution (RMSE)": _lines(comparison, "rmse")}, {}
    if comparison.fine is not None and comparison.fine.distance is not None:
        title = "Distance to real images (Fréchet)"
        panels[title] = _lines(comparison, "distance")
        lines[title] = ("fine solution", comparison.fine.distance)
    curves(folder / "quality.png", panels, x_label="calls of the network (NFE)", lines=lines)


def _lines(comparison: Comparison, measure: str) -> dict[str, tuple[list[float], list[float]]]:
    lines = {}
    for solver in comparison.plan.solvers:
        cells = [cell for cell in comparison.cells if cell.solver == solver]
        lines[solver] = ([float(cell.nfe) for cell in cells], [float(getattr(cell, measure)) for cell in cells])
    return lines


def write_report(folder: Path, comparison: Comparison, act: DigitsAct, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Write everything the demo leaves behind.

    Args:
        folder: an existing folder that can be written.
        comparison: the finished first act.
        act: the finished second act.
        seconds: wall time of each part.

    Returns:
        What report.json holds.
    """
    report = {
        "machine": machine(),
        "seconds": dict(seconds),
        "solvers": comparison.report(),
        "digits": act.report(),
    }
    write_json(folder / "report.json", report)
    draw_comparison(comparison, folder)
    _draw_digits(act, folder)
    jinja2 = require("jinja2", "cli")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        trainings=(BEFORE, AFTER),
        pictures={name: _embedded(folder / f"{name}.png") for name in ("sheet", "quality", "digits")},
    )
    write_atomic(folder / "report.html", page.encode())
    return report


def _draw_digits(act: DigitsAct, folder: Path) -> None:
    """Write digits.png: before and after at the same numbers of steps, real digits, and the mark of ordinary steps."""
    rows = {
        training: [*(act.pictures[training, steps] for steps in act.steps), act.real] for training in (BEFORE, AFTER)
    }
    rows[BEFORE].append(act.pictures[BEFORE, act.mark])
    counts = [f"{steps} step{'s' * (steps > 1)}" for steps in act.steps]
    contact_sheet(folder / "digits.png", rows, [*counts, "real digits", f"{act.mark} steps"], scale=4)


def _embedded(path: Path) -> str:
    """A picture as part of the page, so that the page is one file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
