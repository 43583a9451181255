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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fewstep._files import output_dir, read_json, write_json
from fewstep.data import Images, indices_of_step, load_data
from fewstep.errors import CollapseWarning, ConfigError, choose
from fewstep.experiments.compare import judge_of
from fewstep.experiments.few_steps import Row, Yardstick, chain_of, sampled
from fewstep.experiments.presets import PRESETS, configured
from fewstep.experiments.runs import seeds_of
from fewstep.models import load_model
from fewstep.training import RunConfig, train_steps

__all__ = ["GROUPS", "AblatePlan", "Ablation", "Cell"]

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
        rows: one for each trained number of steps.
        leaky: whether training started from data.
        warning: what the guard said before the training; empty for nothing.
    """

    group: str
    name: str
    rows: tuple[Row, ...]
    leaky: bool = False
    warning: str = ""


class Ablation:
    """A table that is filled one cell at a time.

    Args:
        plan: what to do.
        folder: where the cells go; those that are there are not trained again.

    Attributes:
        cells: what is known so far.

    Raises:
        ConfigError: if the folder holds another ablation.
    """

    def __init__(self, plan: AblatePlan, folder: str | Path) -> None:
        self.plan, self.folder = plan, output_dir(folder)
        self._data: Images = load_data(plan.data)
        self._refuse_another()
        self.cells: list[Cell] = []
        self._measure = ""

    def __len__(self) -> int:
        return sum(len(GROUPS[group]) for group in self._groups)

    def run(self) -> Iterator[Cell]:
        """Train and measure cell after cell; yields each as soon as it is known."""
        start = self._start()
        count = min(self.plan.n, len(self._data))
        batch = self._data.batch(indices_of_step(len(self._data), count, self.plan.seed, 0))
        yardstick = Yardstick(batch, f"{count} images of {self._data.name}", judge_of(load_model(start)))
        for group in self._groups:
            for name in GROUPS[group]:
                self.cells.append(self._cell(group, name, start, yardstick))
                yield self.cells[-1]
        self._measure = yardstick.describe(self.plan.n)

    def report(self) -> dict[str, Any]:
        """Everything that was measured, and how, JSON-able; once all cells are known."""
        return {"plan": asdict(self.plan), "measure": self._measure, "cells": [asdict(cell) for cell in self.cells]}

    def config(self, group: str, name: str, start: str) -> RunConfig:
        """Write the run of a cell down."""
        train = (f"train.steps={self.plan.steps}", f"train.seed={self.plan.seed}")
        changes = (*train, "e2e.terms.energy.features=pixels,random", *GROUPS[group][name])
        return configured("digits-e2e", init=start, data=self.plan.data, overrides=changes)

    @property
    def _groups(self) -> tuple[str, ...]:
        return self.plan.groups or tuple(GROUPS)

    def _refuse_another(self) -> None:
        path, asked = self.folder / "plan.json", {**asdict(self.plan), "groups": None}
        held = read_json(path) if path.exists() else asked
        if held != asked:
            raise ConfigError(
                f"{self.folder} holds an ablation with {held}", f"Asked is {asked}", "Choose another folder"
            )
        write_json(path, asked)

    def _start(self) -> str:
        """The model that every cell starts from; trained now if there is none."""
        if self.plan.model:
            return self.plan.model
        folder = self.folder / "start"
        base = PRESETS["digits"]
        for _ in train_steps(replace(base, train=replace(base.train, seed=self.plan.seed)), folder, data=self._data):
            pass
        return str(folder)

    def _cell(self, group: str, name: str, start: str, yardstick: Yardstick) -> Cell:
        config, done = self.config(group, name, start), self.folder / f"{group}-{name}" / "cell.json"
        if done.exists():
            content = read_json(done)
            return Cell(**{**content, "rows": tuple(Row(**row) for row in content["rows"])})
        same = next((cell for cell in self.cells if self.config(cell.group, cell.name, start) == config), None)
        cell = same or self._trained(config, group, name, yardstick)
        rows = tuple(replace(row, name=f"{group}: {name}") for row in cell.rows)
        cell = replace(cell, group=group, name=name, rows=rows)
        write_json(output_dir(done.parent) / done.name, asdict(cell))
        return cell

    def _trained(self, config: RunConfig, group: str, name: str, yardstick: Yardstick) -> Cell:
        folder, seeds = self.folder / f"{group}-{name}", seeds_of(self.plan.seed, self.plan.n)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", CollapseWarning)  # a cell that collapses is here to be seen
            reports = train_steps(config, folder, data=self._data)
        for _ in reports:
            pass
        model = load_model(folder)
        rows = [sampled(model, chain_of(model, steps), seeds, name, yardstick)[0] for steps in config.e2e.counts]
        leaky = config.e2e.coupling.name == "leaky"
        return Cell(group, name, tuple(rows), leaky, "; ".join(str(warning.message) for warning in said))
