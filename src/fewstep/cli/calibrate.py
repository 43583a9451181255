"""What `fewstep calibrate` does once it is parsed: fit behind a bar, write the table whole, show how good it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from fewstep._files import output_dir
from fewstep.calibration import FILE, Progress, Table, calibrate
from fewstep.cli.shell import progress, say, table
from fewstep.errors import ConfigError
from fewstep.experiments.calibrate import CalibratePlan, described, place_of, prepared
from fewstep.experiments.evaluation.processes import usable_device
from fewstep.models import Model, load_model
from fewstep.solvers import DEFAULT_NFE

__all__ = ["run_calibrate", "scales"]

_USUAL = 8  # calls of the command that is suggested, if the table has them


def scales(text: str) -> tuple[float, ...]:
    """Read a comma-separated list of guidance scales, each once."""
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",") if part.strip()))
    except ValueError:
        raise ConfigError(
            f"--guidance {text}", "Numbers, separated by commas", "Write for instance --guidance 1,2,3"
        ) from None


@dataclass(frozen=True)
class _Shown:
    """Progress with what the bar wants: the line beside it, and one step for the teacher and for every budget."""

    made: Progress

    @property
    def note(self) -> str:
        return self.made.words

    @property
    def advance(self) -> int:
        done = self.made.table is not None and self.made.nfe in self.made.table.entries
        return int(done or self.made.nfe == 0)


def run_calibrate(name: str, plan: CalibratePlan, out: str | None, device: str) -> None:
    """Fit a solver to a model and write its table; nothing is written before all of it is there."""
    model = load_model(name, usable_device(device))
    ready, path = prepared(model, plan), place_of(name, model, plan.settings.nfe, out)
    steps = map(_Shown, calibrate(ready.problem, plan.settings, ready.origin))
    try:
        fitted = _last(progress(steps, len(plan.settings.nfe) + 1, f"calibrating {model.config.name}"))
    except KeyboardInterrupt:
        say("No table was written" + (f": {escape(str(path))} is as it was" if path.exists() else ""))
        raise
    fitted = described(fitted, model, plan)
    output_dir(path.parent)
    fitted.save(path)
    _show(model.config.name, fitted)
    _say_next(name, model, path, out, fitted)


def _last(steps: Iterator[_Shown]) -> Table:
    made = None
    for step in steps:
        made = step.made.table
    if made is None:
        raise RuntimeError("a fit without an entry")
    return made


def _show(name: str, fitted: Table) -> None:
    facts, rows = fitted.facts, []
    for nfe, entry in sorted(fitted.entries.items()):
        errors = (_said(error) for error in (entry.closed_form, entry.held, entry.fresh, entry.train))
        rows.append((str(nfe), str(entry.steps), entry.base, entry.grid, *errors))
    columns = ("calls", "steps", "base", "grid", "closed form", "held out", "fresh", "fitted to")
    table(f"{name}: RMSE to the teacher's ends, which spread over {facts['spread']:g}", columns, rows)
    say("[dim]closed form: on trajectories that were held out to choose by, before refinement; held out: after it[/]")
    say("[dim]fresh: on trajectories that had no say, what to expect; fitted to: on those that were fitted to[/]")
    if any(entry.first for entry in fitted.entries.values()):
        say("[dim]One step more than calls: the first estimate is the mean of the data, without a call[/]")
    say(
        f"[dim]{facts['trajectories']} trajectories in {facts['teacher_steps']} steps, {facts['judged']:.0%} only to "
        f"judge, {facts['held_out']:.0%} of the others held out; {facts['seconds']:.0f} s, "
        f"{facts['network_evals']:,} evaluations of the network, one image each[/]"
    )


def _said(error: float | None) -> str:
    return "-" if error is None else f"{error:.4g}"


def _say_next(name: str, model: Model, path: Path, out: str | None, fitted: Table) -> None:
    """Say where the table is and how it is used."""
    nfe = min(fitted.entries, key=lambda known: abs(known - _USUAL))
    own = path.resolve() == (Path(name) / FILE).resolve()
    where = f"beside the weights, and picked up by itself {_when(model, fitted)}" if own else "named as a solver"
    if out is None and not own:
        where = "here, since the folder of a bundled model belongs to the package"
    words = ["fewstep", "sample", "--model", name, *([] if own else ["--solver", str(path)]), "--nfe", f"{nfe}"]
    say(f"Table in {escape(str(path))}: {where}. Next:")
    say(f"  {escape(shlex.join([*words, *_guided(fitted)]))}")


def _guided(fitted: Table) -> list[str]:
    """What has to be said of the guidance."""
    low, _ = fitted.origin.guidance or (1.0, 1.0)
    return [] if fitted.covers(1.0) else ["--guidance", f"{low:g}"]


def _when(model: Model, fitted: Table) -> str:
    """When sampling takes the table though no solver is named."""
    guided = " ".join(["", *_guided(fitted)])
    if DEFAULT_NFE in fitted.entries and not guided and model.config.chain is None:
        return "from now on"
    *most, last = map(str, sorted(fitted.entries))
    return f"with --nfe {', '.join(most)} or {last}{guided}" if most else f"with --nfe {last}{guided}"
