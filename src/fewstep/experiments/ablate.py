"""What each part of end-to-end training does: one model, trained on in many ways for equally many steps.

=========  =================================================================================================
group      what changes
=========  =================================================================================================
terms      reconstruction, + perceptual, + adversarial, adversarial alone, energy score + adversarial
steps      one length of the chain, 1 to 4, with the last of these terms
gradient   through every step of the chain, through the last, through random many, through a random exit
start      pure noise, or noise that the data shine through, which sampling does not have (leaky)
coupling   how noise and data are paired, under reconstruction alone
=========  =================================================================================================

Every cell is a run in a folder of its own; an ablation that was stopped goes on with the cell it was in.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fewstep._files import output_dir, read_json, write_json
from fewstep.data import Images, load_data
from fewstep.errors import CollapseWarning, ConfigError, choose
from fewstep.experiments.compare import judge_of
from fewstep.experiments.few_steps import Row, Yardstick, chain_of, sampled, yardstick_of
from fewstep.experiments.presets import CHAINS, PRESETS
from fewstep.experiments.runs import seeds_of
from fewstep.models import Model, load_model
from fewstep.training import E2EConfig, RunConfig, model_config, override, train_steps

__all__ = ["GROUPS", "AblatePlan", "Ablation", "Cell", "Doing"]

_OFF = ("e2e.terms.energy.weight=0", "e2e.terms.adversarial.weight=0")
_REC = (_OFF[0], _OFF[1], "e2e.terms.l2.weight=1")
_PERC = "e2e.terms.perceptual.weight=1"
_ADV = "e2e.terms.adversarial.weight=1"
_LEAKY = ("e2e.coupling=leaky", "e2e.spacing=uniform_lam", "e2e.spacing.lam_min=-2.7", "e2e.spacing.end=zero")

# Group -> cell -> what it changes in the run of energy score and critic.
GROUPS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "terms": {
        "rec": _REC,
        "rec+perc": (*_REC, _PERC),
        "rec+perc+adv": (*_REC, _PERC, _ADV),
        "adv": (_OFF[0],),
        "energy+adv": (),
    },
    "steps": {str(steps): (f"e2e.steps=[{steps}]",) for steps in (1, 2, 3, 4)},
    "gradient": {name: (f"e2e.gradient={name}",) for name in ("full", "last_k", "random_k", "exit")},
    "start": {"pure": (), "leaky": _LEAKY},
    "coupling": {
        name: (*_REC, f"e2e.coupling={name}") for name in ("independent", "ot", "nearest", "inversion", "teacher")
    },
}


@dataclass(frozen=True)
class AblatePlan:
    """What to ablate on.

    Args:
        model: where every cell starts; empty trains a small denoiser of the digits first.
        data: a source of images.
        groups: names in GROUPS; all if empty.
        steps: training steps of a cell.
        n: images that each number of steps is measured with.
        seed: of everything.

    Raises:
        UnknownName: if there is no such group.
        ConfigError: if there are no steps or images, or a data set without a model.
    """

    model: str = ""
    data: str = "digits"
    groups: tuple[str, ...] = ()
    steps: int = 150
    n: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for group in self.groups:
            choose(group, GROUPS, "group of an ablation")
        if self.steps < 1 or self.n < 2:
            raise ConfigError(f"{self.steps} steps, {self.n} images", "At least 1 and 2", "Use --steps 150 --n 500")
        if not self.model and self.data != "digits":
            raise ConfigError(
                f"An ablation on {self.data} without a model", "Only for digits is one trained first", "Pass --model"
            )


@dataclass(frozen=True)
class Cell:
    """One way to train, and what came of it.

    Attributes:
        group: name in GROUPS.
        name: name in the group.
        rows: one for each trained number of steps; the names of leaky ones say so.
        leaky: whether training started from data.
        warning: what the guard said before the training; empty for nothing.
    """

    group: str
    name: str
    rows: tuple[Row, ...]
    leaky: bool = False
    warning: str = ""


class Doing(NamedTuple):
    """What an ablation is at.

    Attributes:
        note: in words.
        advance: cells that are done with it, 0 or 1.
    """

    note: str
    advance: int = 0


class Ablation:
    """A table that is filled one cell at a time.

    Args:
        plan: what to do.
        folder: where the cells go; those that are there are not trained again.

    Attributes:
        cells: what is known so far.
        before: the model that every cell starts from, at 1 to 4 steps.
        measure: what the distances are; floor: which of them is as good as nothing. Known once all cells are.

    Raises:
        ConfigError: if the folder holds another ablation, or the images are not those of the model.
        DataError: if the images cannot be loaded.
    """

    def __init__(self, plan: AblatePlan, folder: str | Path) -> None:
        self.plan = plan
        self._data: Images = self._loaded()
        self.folder = output_dir(folder)
        self._refuse_another()
        self.cells: list[Cell] = []
        self.before: tuple[Row, ...] = ()
        self.measure = self.floor = ""

    def __len__(self) -> int:
        return sum(len(GROUPS[group]) for group in self._groups)

    def run(self) -> Iterator[Doing]:
        """Train and measure cell after cell, each of which is then among the cells; yields after every step."""
        start = self.plan.model or str(self.folder / "start")
        if not self.plan.model:
            yield from self._train_start(start)
        model = load_model(start)
        yardstick = yardstick_of(self._data, model, self.plan.n, self.plan.seed, judge_of(model))
        self.before = self._rows(model, (1, 2, 3, 4), "before", yardstick)
        for group in self._groups:
            for name in GROUPS[group]:
                yield from self._cell(group, name, start, yardstick)
        self.measure = yardstick.describe(self.plan.n)
        self.floor = yardstick.floor(self.rows, self.plan.n)

    @property
    def rows(self) -> list[Row]:
        """Everything that was measured."""
        return [*self.before, *(row for cell in self.cells for row in cell.rows)]

    def report(self) -> dict[str, Any]:
        """Everything that was measured, and how, JSON-able; once all cells are known."""
        cells, before = [asdict(cell) for cell in self.cells], [asdict(row) for row in self.before]
        said = {"plan": asdict(self.plan), "measure": self.measure, "floor": self.floor}
        return {**said, "before": before, "cells": cells}

    def config(self, group: str, name: str, start: str) -> RunConfig:
        """Write the run of a cell down."""
        train = replace(CHAINS, steps=self.plan.steps, seed=self.plan.seed, precision="no")
        run = RunConfig(data=self.plan.data, objective="e2e", e2e=E2EConfig(init=start), train=train)
        return override(run, GROUPS[group][name])

    @property
    def _groups(self) -> tuple[str, ...]:
        return self.plan.groups or tuple(GROUPS)

    def _loaded(self) -> Images:
        """The images, made to fit the model, and refused now if they do not."""
        if not self.plan.model:
            return load_data(self.plan.data)
        _, height, width = load_model(self.plan.model).shape
        data = load_data(self.plan.data, size=height if height == width else None)
        model_config(self.config("terms", "adv", self.plan.model), data)
        return data

    def _refuse_another(self) -> None:
        start = load_model(self.plan.model).fingerprint if self.plan.model else ""
        path, asked = self.folder / "plan.json", {**asdict(self.plan), "groups": None, "start": start}
        held = read_json(path) if path.exists() else asked
        if held != asked:
            raise ConfigError(
                f"{self.folder} holds an ablation with {held}", f"Asked is {asked}", "Choose another folder"
            )
        write_json(path, asked)

    def _train_start(self, folder: str) -> Iterator[Doing]:
        base = PRESETS["digits"]
        run = replace(base, train=replace(base.train, seed=self.plan.seed))
        for report in train_steps(run, folder, data=self._data):
            yield Doing(f"a model to start from, step {report.step} of {run.train.steps}")

    def _cell(self, group: str, name: str, start: str, yardstick: Yardstick) -> Iterator[Doing]:
        config, done = self.config(group, name, start), self.folder / f"{group}-{name}" / "cell.json"
        if done.exists():
            content = read_json(done)
            cell = Cell(**{**content, "rows": tuple(Row(**row) for row in content["rows"])})
        else:
            same = next((cell for cell in self.cells if self.config(cell.group, cell.name, start) == config), None)
            cell = same or (yield from self._trained(config, group, name, yardstick))
            said = f"{group}: {name}{' (reads data)' if cell.leaky else ''}"
            rows = tuple(replace(row, name=said) for row in cell.rows)
            cell = replace(cell, group=group, name=name, rows=rows)
            write_json(output_dir(done.parent) / done.name, asdict(cell))
        self.cells.append(cell)
        yield Doing(f"{group}: {name}", advance=1)

    def _trained(self, config: RunConfig, group: str, name: str, yardstick: Yardstick) -> Generator[Doing, None, Cell]:
        folder = self.folder / f"{group}-{name}"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", CollapseWarning)  # a cell that collapses is here to be seen
            reports = train_steps(config, folder, data=self._data)
        for report in reports:
            yield Doing(f"{group}: {name}, step {report.step} of {config.train.steps}")
        rows = self._rows(load_model(folder), config.e2e.counts, name, yardstick)
        warned = "; ".join(str(warning.message) for warning in said)
        return Cell(group, name, rows, config.e2e.coupling.name == "leaky", warned)

    def _rows(self, model: Model, counts: Iterable[int], name: str, yardstick: Yardstick) -> tuple[Row, ...]:
        seeds = seeds_of(self.plan.seed, self.plan.n)
        return tuple(sampled(model, chain_of(model, steps), seeds, name, yardstick)[0] for steps in counts)
