"""The table as a file: the same rule out of JSON bit for bit, and every slip of a hand refused."""

from __future__ import annotations

import base64
import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.inventory import f64, gap
from contracts.problems import batch
from contracts.refusals import refuses

from calibration.targets import MIXTURE, SCHEDULES, levels, problem
from fewstep import _files
from fewstep.calibration import Entry, Origin, Table, load_table, said_schedule
from fewstep.errors import CheckpointError, ConfigError, GridError, LevelError, OutputError
from fewstep.noise import EDM, LinearFlow, VPLinear
from fewstep.sampling import sample
from fewstep.solvers import TabulatedSolver

KAPPA = {2: (40.0, 1.0 / 3.0, 0.01), 3: (40.0, 2.0, 0.5, 0.01), 4: (40.0, 9.0, 2.0, 0.5, 0.1, 0.01)}
MEAN = torch.tensor([0.1, -0.2, 0.3]).half().float()


def entry(nfe: int, **more: Any) -> Entry:
    """Two and three calls in as many steps; four of them in five, with a first estimate that is given."""
    kappa = KAPPA[nfe]
    weights = tuple(tuple(map(float, batch((i,), seed=10 * nfe + i) / 3)) for i in range(1, len(kappa) - 1))
    given = {"first": nfe == 4, "base": "ddim", "grid": "gits", "train": 0.1, "held": 0.12, "closed_form": 1 / 3}
    return Entry(kappa, weights, **{**given, **more})


def some_table(**more: Any) -> Table:
    origin = Origin("digits", "0123456789ab", said_schedule(VPLinear()), (1.0, 3.0))
    return Table(origin, {nfe: entry(nfe) for nfe in (2, 3, 4)}, MEAN, {"trajectories": 16, "seconds": 0.1, **more})


def content() -> dict[str, Any]:
    return json.loads(json.dumps(some_table().to_json()))


# There and back


def test_out_of_a_file_it_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    own, path = some_table(), tmp_path / "table.json"
    own.save(path)
    again = load_table(path)
    assert again == own
    assert {nfe: (e.kappa, e.weights) for nfe, e in again.entries.items()} == {
        nfe: (e.kappa, e.weights) for nfe, e in own.entries.items()
    }
    assert again.origin == own.origin
    assert again.facts == own.facts
    assert again.mean is not None
    assert torch.equal(again.mean, MEAN)
    x = problem().noise
    for nfe in own.entries:
        one, two = (sample(MIXTURE, *table.way(EDM(), nfe), x).x for table in (own, again))
        assert torch.equal(one, two), f"{nfe} calls: max|a-b| = {gap(one, two):.2e}"
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 2, 3)])
def test_a_mean_of_any_shape(shape: tuple[int, ...]) -> None:
    mean = batch((*shape, 1), seed=1)[..., 0].half().float()
    made = Table(Origin(), {4: entry(4)}, mean)
    again = Table.from_json(json.loads(json.dumps(made.to_json()))).mean
    assert again is not None
    assert torch.equal(again, mean)


def test_without_a_mean() -> None:
    made = Table(Origin(), {3: entry(3)})
    again = Table.from_json(json.loads(json.dumps(made.to_json())))
    assert again.mean is None
    assert again == made


# What is sampled


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_way_is_the_solver_on_its_levels(name: str) -> None:
    own, schedule = some_table(), SCHEDULES[name]
    for nfe, kappa in KAPPA.items():
        way = own.way(schedule, nfe)
        alpha, sigma = way.grid.levels
        error = float((sigma / alpha / f64(kappa) - 1).abs().max())
        assert error <= 1e-8, f"{nfe} calls: levels off by {error:.2e}"
        assert way.solver == TabulatedSolver(entry(nfe).weights, kappa)
        first = way.solver.first if isinstance(way.solver, TabulatedSolver) else None
        assert (first is None) == (nfe != 4)
        made = sample(MIXTURE, way.solver, way.grid, problem(schedule=schedule).noise * way.grid.at(0).alpha)
        assert made.nfe == way.solver.nfe(way.grid) == nfe
        assert way.grid.steps == own.entries[nfe].steps == nfe + (nfe == 4)


def test_a_number_of_calls_that_it_lacks() -> None:
    own = some_table()
    error = refuses(ConfigError, "7 calls", lambda: own.way(EDM(), 7))
    assert "2, 3, 4" in error.allowed
    assert own.way(EDM(), 7, force=True).solver == own.way(EDM(), 4).solver
    only = Table(Origin(), {2: entry(2), 4: entry(4)}, MEAN)
    assert only.way(EDM(), 3, force=True).solver == only.way(EDM(), 2).solver
    for nfe in (1, 0, -1):
        refuses(ConfigError, f"{nfe} calls", lambda nfe=nfe: own.way(EDM(), nfe, force=True))


def test_another_grid_is_refused() -> None:
    way = some_table().way(EDM(), 3)
    own = problem()
    other = some_table().way(EDM(), 2).grid
    refuses(GridError, "were made for kappa", lambda: sample(MIXTURE, way.solver, other, own.noise))
    refuses(LevelError, "", lambda: some_table().way(EDM(sigma_max=10.0), 3))
    assert levels(own, 3).tolist() != list(KAPPA[3])


def test_a_model_that_it_was_not_fitted_to() -> None:
    own, schedule = some_table(), VPLinear()
    for scale in (1.0, 2.0, 3.0):
        own.check("0123456789ab", schedule, scale)
    for print_, said in (("ba9876543210", "ba9876543210"), ("", "unknown")):
        error = refuses(ConfigError, said, lambda print_=print_: own.check(print_, schedule))
        assert "0123456789ab" in error.given
        assert "digits" in error.allowed
        assert "force" in error.todo
    refuses(ConfigError, "LinearFlow", lambda: own.check("0123456789ab", LinearFlow()))
    refuses(ConfigError, "beta", lambda: own.check("0123456789ab", VPLinear(beta_max=19.0)))
    for scale in (0.5, 3.1, math.nan):
        refuses(ConfigError, "under guidance 1 to 3", lambda scale=scale: own.check("0123456789ab", schedule, scale))
    plain = Table(Origin(fingerprint="0123456789ab", guidance=(1.0, 1.0)), {3: entry(3)})
    refuses(ConfigError, "under guidance 1, for guidance 2", lambda: plain.check("0123456789ab", schedule, 2.0))
    Table(Origin(), {3: entry(3)}).check("whatever", LinearFlow(), 7.5)  # nothing is said of any of them


# Slips of a hand


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Set the entry at a path to the last argument."""
    *keys, last, value = path

    def spoil(made: dict[str, Any]) -> None:
        at: Any = made
        for key in keys:
            at = at[key]
        at[last] = value

    return spoil


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    *keys, last = path

    def spoil(made: dict[str, Any]) -> None:
        at: Any = made
        for key in keys:
            at = at[key]
        del at[last]

    return spoil


def moved(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def spoil(made: dict[str, Any]) -> None:
        made["entries"][new] = made["entries"].pop(old)

    return spoil


SILENT = {**entry(2).__dict__, "kappa": [2.0, 1.0], "weights": [], "first": True}
ZEROS = base64.b64encode(bytes(6)).decode()
SLIPS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a weight that is NaN": (put("entries", "3", "weights", 0, 0, math.nan), "nan"),
    "an infinite weight": (put("entries", "3", "weights", 1, 0, math.inf), "inf"),
    "a huge weight": (put("entries", "3", "weights", 1, 0, -2e6), "2000000"),
    "a huge whole weight": (put("entries", "3", "weights", 1, 0, 10**400), "Finite"),
    "a word for a weight": (put("entries", "3", "weights", 0, 0, "0.5"), "'0.5'"),
    "nothing for a weight": (put("entries", "3", "weights", 0, 0, None), "None"),
    "a number for a row": (put("entries", "3", "weights", 0, 0.5), "TypeError"),
    "a number for all rows": (put("entries", "3", "weights", 0.5), "TypeError"),
    "a row too long": (put("entries", "3", "weights", 0, [0.1, 0.2]), "[2, 2]"),
    "a row too short": (put("entries", "3", "weights", 1, [0.1]), "[1, 1]"),
    "a row too many": (put("entries", "3", "weights", [[0.1], [0.1, 0.2], [0.1, 0.2, 0.3]]), "4 levels"),
    "a row too few": (put("entries", "3", "weights", [[0.1]]), "4 levels"),
    "levels that rise": (put("entries", "3", "kappa", 1, 50.0), "50.0"),
    "levels that stay": (put("entries", "3", "kappa", 1, 0.5), "fall"),
    "a level of zero": (put("entries", "3", "kappa", 3, 0.0), "above 0"),
    "a level below zero": (put("entries", "3", "kappa", 3, -0.1), "above 0"),
    "a level that is NaN": (put("entries", "3", "kappa", 1, math.nan), "nan"),
    "an infinite level": (put("entries", "3", "kappa", 0, math.inf), "inf"),
    "a level too few": (put("entries", "3", "kappa", [40.0, 2.0, 0.5]), "3 levels"),
    "one level": (put("entries", "3", "kappa", [40.0]), "Levels"),
    "no levels": (put("entries", "3", "kappa", []), "Levels"),
    "a word for levels": (put("entries", "3", "kappa", "40"), "'4'"),
    "no list of levels": (drop("entries", "3", "kappa"), "kappa"),
    "no weights": (drop("entries", "3", "weights"), "weights"),
    "no base": (drop("entries", "3", "base"), "base"),
    "a number for a base": (put("entries", "3", "base", 5), "base=5"),
    "no error": (drop("entries", "3", "held"), "held"),
    "an error that is NaN": (put("entries", "3", "held", math.nan), "nan"),
    "a word for an error": (put("entries", "3", "train", "small"), "small"),
    "an option of nobody's": (put("entries", "3", "order", 2), "order"),
    "a word for a choice": (put("entries", "3", "first", "no"), "first='no'"),
    "a number for a choice": (put("entries", "3", "first", 0), "first=0"),
    "a first estimate that is not there": (put("entries", "3", "first", True), "2 calls under the number 3"),
    "an entry under another number": (moved("3", "5"), "3 calls under the number 5"),
    "an entry under a word": (moved("3", "three"), "three"),
    "an entry that is a list": (put("entries", "3", []), "TypeError"),
    "an entry that is nothing": (put("entries", "3", None), "TypeError"),
    "entries in a list": (put("entries", []), "AttributeError"),
    "no entry": (put("entries", {}), "without an entry"),
    "no entries": (drop("entries"), "entries"),
    "no call at all": (put("entries", {"0": SILENT}), "1 steps"),
    "no mean": (put("mean", None), "no mean"),
    "no word of a mean": (drop("mean"), "mean"),
    "a mean that is NaN": (put("mean", "float16", base64.b64encode(b"\x00\x7e" * 3).decode()), "not finite"),
    "an infinite mean": (put("mean", "float16", base64.b64encode(b"\x00\x7c" * 3).decode()), "not finite"),
    "a mean of another size": (put("mean", "shape", [2]), "RuntimeError"),
    "a mean of a word's shape": (put("mean", "shape", "wide"), "TypeError"),
    "a mean that is no base64": (put("mean", "float16", f"{ZEROS[:4]}%{ZEROS[4:]}"), "Error"),
    "a mean cut off": (put("mean", "float16", ZEROS[:-1]), "Error"),
    "half a number": (put("mean", "float16", base64.b64encode(bytes(5)).decode()), "ValueError"),
    "an empty mean": (put("mean", "float16", ""), "ValueError"),
    "a mean that is a list": (put("mean", [0.1, 0.2, 0.3]), "TypeError"),
    "a mean without numbers": (drop("mean", "float16"), "float16"),
    "a mean without a shape": (drop("mean", "shape"), "shape"),
    "another version": (put("fewstep_table", 2), "version 2"),
    "no version": (drop("fewstep_table"), "fewstep_table"),
    "no origin": (drop("origin"), "origin"),
    "no guidance": (drop("origin", "guidance"), "guidance"),
    "one guidance": (put("origin", "guidance", [1.0]), "ValueError"),
    "guidance the wrong way": (put("origin", "guidance", [3.0, 1.0]), "guidance from 3 to 1"),
    "guidance that is NaN": (put("origin", "guidance", [math.nan, 1.0]), "guidance from nan"),
    "guidance in words": (put("origin", "guidance", ["low", "high"]), "low"),
    "an origin of nobody's": (put("origin", "colour", "red"), "colour"),
    "an origin that is a word": (put("origin", "digits"), "TypeError"),
    "no facts": (drop("facts"), "facts"),
    "a number for facts": (put("facts", 5), "TypeError"),
    "a word for facts": (put("facts", "many"), "ValueError"),
}  # fmt: skip


@pytest.mark.parametrize("name", SLIPS)
def test_a_table_edited_into_nonsense_is_refused(name: str, tmp_path: Path) -> None:
    spoil, shows = SLIPS[name]
    made = copy.deepcopy(content())
    spoil(made)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(made))  # as Python writes it, NaN and Infinity included
    error = refuses(CheckpointError, shows, lambda: load_table(path))
    assert str(path) in error.given
    assert "fewstep calibrate" in error.todo


def test_what_slips_are_made_of_is_a_table() -> None:
    assert Table.from_json(content()) == some_table()


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "\ud800".encode("utf-16", "surrogatepass").decode("latin-1")])
def test_a_file_that_is_no_table(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    refuses(CheckpointError, str(path), lambda: load_table(path))
    refuses(CheckpointError, "missing.json", lambda: load_table(tmp_path / "missing.json"))


def test_refusals_before_any_file() -> None:
    refuses(ConfigError, "3 calls under the number 5", lambda: Table(Origin(), {5: entry(3)}))
    refuses(ConfigError, "no mean", lambda: Table(Origin(), {4: entry(4)}))
    refuses(ConfigError, "without an entry", lambda: Table(Origin(), {}))
    refuses(ConfigError, "nan", lambda: entry(3, held=math.nan))


# Saving


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.json"
    some_table().save(path)
    before = path.read_bytes()

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    for where, break_off in (("fsync", full), ("replace", full), ("fsync", interrupted), ("replace", interrupted)):
        with monkeypatch.context() as patch:
            patch.setattr(_files.os, where, lambda *args, how=break_off: how(args))
            if break_off is full:
                refuses(OutputError, "No space left", lambda: some_table(seed=1).save(path))
            else:
                with pytest.raises(KeyboardInterrupt):
                    some_table(seed=1).save(path)
        assert path.read_bytes() == before, f"{where} broke off"
        assert [file.name for file in tmp_path.iterdir()] == ["table.json"], f"{where} broke off"
    other = tmp_path / "new.json"
    with monkeypatch.context() as patch:
        patch.setattr(_files.os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            some_table().save(other)
    assert not other.exists()


def test_what_json_cannot_hold_is_written_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    refuses(ConfigError, "JSON", lambda: some_table(seconds=math.nan).save(path))
    assert list(tmp_path.iterdir()) == []
