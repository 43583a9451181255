"""What `fewstep calibrate` does once it is parsed: fit behind a bar, write the table whole, show how good it is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from rich.markup import escape

from fewstep._files import output_dir
from fewstep.calibration import FILE, Progress, Table, calibrate
from fewstep.cli.shell import lines, names, numbers, progress, say, table
from fewstep.errors import ConfigError, choose
from fewstep.experiments import calibrate_pipeline as of_pipelines
from fewstep.experiments.calibrate import CalibratePlan, Prepared, described, place_of, prepared, settings_of
from fewstep.experiments.evaluation.pipelines import load_pipeline, pipeline_name
from fewstep.experiments.evaluation.processes import usable_device
from fewstep.models import Model, load_model
from fewstep.solvers import DEFAULT_NFE

__all__ = ["Given", "run_calibrate", "scales"]

_T = TypeVar("_T")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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


@dataclass(frozen=True)
class Given:
    """The options of the command as they were typed; what is None or empty is left to the plan of the model's kind.

    Args:
        nfe: numbers of calls, comma-separated.
        guidance: scales, likewise.
        trajectories: how many.
        seed: of the first.
        classes: comma-separated.
        captions: texts, and files of them.
        teacher_steps: of the reference.
        iterations: of the refinement.
        match_variance: whether the closed form does.
        first: network, analytic or auto.
        base: rules, comma-separated.
        grids: likewise.
        distribution: weight of the energy score.
        kappa_max: first level.
        kappa_min: last level.
        batch_size: per call.
    """

    nfe: str | None
    guidance: str | None
    trajectories: int | None
    seed: int
    classes: str
    captions: Sequence[str]
    teacher_steps: int | None
    iterations: int | None
    match_variance: bool
    first: str | None
    base: str
    grids: str
    distribution: float
    kappa_max: float | None
    kappa_min: float | None
    batch_size: int | None

    def plan(self, usual: CalibratePlan) -> CalibratePlan:
        """Complete the options; ConfigError and UnknownName as from the plan and its settings."""
        own = usual.settings
        settings = settings_of(
            own.nfe if self.nfe is None else numbers(self.nfe, "--nfe"),
            teacher_steps=_or(self.teacher_steps, own.teacher_steps),
            bases=names(self.base) or own.bases,
            grids=names(self.grids) or own.grids,
            first=_or(self.first, own.first),
            match_variance=self.match_variance,
            iterations=_or(self.iterations, own.refinement.iterations),
            distribution=self.distribution,
        )
        return CalibratePlan(
            settings,
            usual.guidance if self.guidance is None else scales(self.guidance),
            _or(self.trajectories, usual.trajectories),
            self.seed,
            numbers(self.classes, "--classes"),
            lines(self.captions, "--captions"),
            _or(self.kappa_max, usual.kappa_max),
            _or(self.kappa_min, usual.kappa_min),
            _or(self.batch_size, usual.batch_size),
        )


def _or(given: _T | None, usual: _T) -> _T:
    return usual if given is None else given


def run_calibrate(
    name: str, given: Given, out: str | None, device: str, size: int | None = None, dtype: str | None = None
) -> None:
    """Fit a solver to a model or a pipeline and write its table; nothing is written before all of it is there."""
    kind, _, place = name.partition(":")
    if kind == "pipeline":
        _run_pipeline(place, given, out or FILE, device, size, dtype or "float32")
        return
    for option, value in (("--size", size), ("--dtype", dtype)):
        if value is not None:
            raise ConfigError(f"{option} {value} for the model {name}", "Only pipelines take it", f"Leave {option} out")
    plan = given.plan(CalibratePlan())
    model = load_model(name, usable_device(device))
    ready = prepared(model, plan)
    path = place_of(name, ready.origin, plan.settings.nfe, out)
    fitted = described(_fitted(ready, plan, path), model, plan)
    _written(fitted, path)
    _say_next(name, model, path, out, fitted)


def _fitted(ready: Prepared, plan: CalibratePlan, path: Path) -> Table:
    """Fit behind a bar."""
    steps = map(_Shown, calibrate(ready.problem, plan.settings, ready.origin))
    try:
        return _last(progress(steps, len(plan.settings.nfe) + 1, f"calibrating {ready.origin.model}"))
    except KeyboardInterrupt:
        say("No table was written" + (f": {escape(str(path))} is as it was" if path.exists() else ""))
        raise


def _written(fitted: Table, path: Path) -> None:
    output_dir(path.parent)
    fitted.save(path)
    _show(fitted.origin.model, fitted)


def _run_pipeline(place: str, given: Given, out: str, device: str, size: int | None, dtype: str) -> None:
    """Do the same for a pipeline of diffusers; it brings its own scale, where none is given."""
    plan, precision = given.plan(of_pipelines.PLAN), choose(dtype, _DTYPES, "dtype")
    pipeline = load_pipeline(place, precision).to(usable_device(device))
    if given.guidance is None:
        plan = replace(plan, guidance=(of_pipelines.own_guidance(pipeline),))
    ready = of_pipelines.prepared(pipeline, plan, size, pipeline_name(place))
    path = place_of(f"pipeline:{place}", ready.origin, plan.settings.nfe, out)
    _say_cost(of_pipelines.evaluations(ready.problem, plan.settings), plan)
    fitted = of_pipelines.described(_fitted(ready, plan, path), pipeline, plan, size)
    _written(fitted, path)
    _say_scheduler(path, fitted)


def _say_cost(evaluations: int, plan: CalibratePlan) -> None:
    """Say what a fit will cost, in evaluations and in pictures."""
    refined = ", and its refinement further ones with gradients" if plan.settings.refinement.iterations else ""
    scale = ", ".join(f"{scale:g}" for scale in plan.guidance)
    say(
        f"Guidance {scale}; {evaluations:,} evaluations of the network, one sample each, what {evaluations / 50:.0f} "
        f"pictures of 50 steps without guidance cost{refined}"
    )


def _say_scheduler(path: Path, fitted: Table) -> None:
    """Say how a table serves in a pipeline, where a step is a call."""
    *most, last = map(str, sorted({entry.steps for entry in fitted.entries.values()}))
    steps = f"{', '.join(most)} or {last}" if most else last
    say(f"Table in {escape(str(path))}, for num_inference_steps {steps}. In Python:")
    say("  from fewstep.schedulers import CalibratedScheduler")
    say(
        "  pipe.scheduler = CalibratedScheduler.from_config(pipe.scheduler.config, "
        f"calibration={escape(json.dumps(str(path)))})"
    )


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
