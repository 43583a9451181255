"""`fewstep calibrate`: from a model to a table beside its weights, whole or not at all, which sampling then takes."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cli.running import Cli, files, pixels, refuses
from fewstep import models
from fewstep._files import read_json
from fewstep.calibration import FILE, Progress, Table, load_table
from fewstep.cli import calibrate as command
from fewstep.data import to_uint8
from fewstep.models import load_model
from fewstep.noise import Karras
from fewstep.sampling import sample, start_noise
from fewstep.solvers import DEIS

QUICK = ("--trajectories", 16, "--iterations", 2, "--teacher-steps", 16, "--grids", "karras:rho=7", "--base", "ipndm")


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model, tmp_path / "model")


def fresh_error(folder: Path, table: Table, nfe: int) -> float:
    """RMSE to the teacher, with the table as it was written, over the last three of QUICK's trajectories."""
    loaded, seeds = load_model(folder), range(10**9 + 13, 10**9 + 16)
    cond, schedule = {"label": torch.tensor([seed % 10 for seed in seeds])}, loaded.denoiser.schedule
    student, grid = table.way(schedule, nfe)
    fine = Karras(kappa_max=80, kappa_min=0.002)(schedule, 16)
    ends = sample(loaded.denoiser, student, grid, start_noise(grid, loaded.shape, seeds), cond=cond).x
    want = sample(
        loaded.denoiser, DEIS(variable="log_kappa"), fine, start_noise(fine, loaded.shape, seeds), cond=cond
    ).x
    return float((ends - want).square().mean().sqrt())


def test_the_whole_loop(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """Fit, then run the command that is suggested: its pictures are those of the table's solver, byte for byte."""
    before = files(folder)
    ran = cli("calibrate", "--model", folder, "--nfe", "3,5", *QUICK)
    assert ran.code == 0, ran.err
    assert files(folder) == sorted([*before, FILE])
    table = load_table(folder / FILE)
    assert sorted(table.entries) == [3, 5]
    words = " ".join(ran.out.split())
    for nfe, entry in table.entries.items():
        numbers = [f"{error:.4g}" for error in (entry.closed_form, entry.held, entry.fresh, entry.train)]
        assert f"{nfe} {entry.steps} {entry.base} " in words
        assert all(number in words for number in numbers), f"the printed table lacks one of {numbers}"
        missed = fresh_error(folder, table, nfe)
        assert missed == pytest.approx(entry.fresh, rel=0.01), f"{nfe} calls: {missed} made anew, {entry.fresh} written"
    assert f"{table.facts['network_evals']:,} evaluations of the network" in words

    suggested = shlex.split(re.search(r"fewstep (sample .*)", ran.out)[1])
    assert suggested == ["sample", "--model", str(folder), "--nfe", "5"]
    ran = cli(*suggested, "--n", 4, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "calibrated on " in ran.out
    facts, loaded = read_json(tmp_path / "out" / "sample.json"), load_model(folder)
    assert (facts["solver"], facts["nfe"], facts["steps"]) == ("calibrated", 5, table.entries[5].steps)
    rule, grid = table.way(loaded.denoiser.schedule, 5)
    x = start_noise(grid, loaded.shape, range(4))
    images = to_uint8(sample(loaded.denoiser, rule, grid, x, cond={"label": torch.arange(4)}).x)
    for k, image in enumerate(images):
        worst = abs(pixels(tmp_path / "out" / f"{k:06d}.png") - image[0].numpy().astype(int)).max()
        assert worst == 0, f"image {k}: max|a-b| = {worst}"


def test_what_is_written_down(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """Scales share a table, conditions are those that were asked for, and the file is where it was wanted."""
    out = tmp_path / "some" / "table.json"
    words = ("--guidance", "3,1,3", "--classes", "4,7", "--seed", 5, "--match-variance", "--first", "network")
    ran = cli("calibrate", "--model", folder, "--nfe", 4, *QUICK, *words, "--out", out)
    assert ran.code == 0, ran.err
    assert f"--solver {out} --nfe 4" in ran.out
    assert not (folder / FILE).exists()
    table, loaded = load_table(out), load_model(folder)
    assert (table.origin.model, table.origin.fingerprint) == (loaded.config.name, loaded.fingerprint)
    assert (table.origin.guidance, table.facts["guidance"]) == ((1.0, 3.0), [3.0, 1.0])
    assert (table.facts["seed"], table.facts["conditions"], table.facts["match_variance"]) == (5, ["4", "7"], True)
    assert table.facts["iterations"] == 2
    assert not table.entries[4].first, "the network was to be asked"
    assert table.facts["network_evals"] > 16 * 17, "the teacher alone makes 17 calls for 16 trajectories"


def test_a_table_is_written_over_and_nothing_else_is(cli: Cli, folder: Path) -> None:
    (folder / FILE).write_text("{")  # damaged: what the messages advise must work
    ran = cli("calibrate", "--model", folder, "--nfe", 3, *QUICK)
    assert ran.code == 0, ran.err
    assert "picked up by itself with --nfe 3. Next" in ran.out
    first = (folder / FILE).read_bytes()
    ran = cli("calibrate", "--model", folder, "--nfe", 4, *QUICK, "--out", folder)
    refuses(ran, "ConfigError", "would lose 3", "--nfe 3,4")
    assert (folder / FILE).read_bytes() == first
    ran = cli("calibrate", "--model", folder, "--nfe", "3,4", *QUICK, "--out", folder)
    assert ran.code == 0, ran.err
    assert "picked up by itself with --nfe 3 or 4. Next" in ran.out
    assert sorted(load_table(folder / FILE).entries) == [3, 4]
    before = (folder / "config.json").read_bytes()
    ran = cli("calibrate", "--model", folder, "--nfe", 3, *QUICK, "--out", folder / "config.json")
    refuses(ran, "ConfigError", "which is none", "another name for --out")
    assert (folder / "config.json").read_bytes() == before


def test_a_bundled_model_is_left_alone(cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(model, tmp_path / "weights" / "toy")
    before = files(tmp_path / "weights")
    monkeypatch.setattr(models, "_BUNDLED", tmp_path / "weights")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ran = cli("calibrate", "--model", "toy", "--nfe", 3, *QUICK)
    assert ran.code == 0, ran.err
    assert files(tmp_path / "weights") == before
    assert files(tmp_path / "here") == [FILE]
    assert "belongs to the package" in ran.out
    assert f"fewstep sample --model toy --solver {FILE} --nfe 3" in ran.out


@pytest.mark.parametrize("earlier", [False, True])
def test_an_interrupt_leaves_no_table_and_an_earlier_one_whole(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """Also when some numbers of calls are finished already."""
    if earlier:
        cli("calibrate", "--model", folder, "--nfe", 3, *QUICK)
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    whole, finished = command.calibrate, []

    def interrupted(*words: object) -> Iterator[Progress]:
        for made in whole(*words):
            yield made
            if made.table is not None:
                finished.append(made.nfe)
                raise KeyboardInterrupt

    monkeypatch.setattr(command, "calibrate", interrupted)
    ran = cli("calibrate", "--model", folder, "--nfe", "4,3", *QUICK, *(() if earlier else ("--out", folder / "nf/x/")))
    assert ran.code == 130, ran.err
    assert finished == [4]
    assert "No table was written" in ran.out
    assert (f"written: {folder / FILE} is as it was" in ran.out.replace("\n", "")) is earlier
    assert not (folder / "nf").exists()
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before


REFUSED = {
    "no calls": (["--nfe", ""], "ConfigError", "nfe=()", "nfe=(5, 8, 10)"),
    "words": (["--nfe", "five"], "ConfigError", "--nfe five", "--nfe 5,10,20"),
    "calls beyond the teacher": (["--nfe", "40"], "ConfigError", "A teacher of 64 steps", "Raise teacher_steps"),
    "scales": (["--guidance", "two"], "ConfigError", "--guidance two", "--guidance 1,2,3"),
    "no scale": (["--guidance", ","], "ConfigError", "No guidance scale", "--guidance 1"),
    "infinite scale": (["--guidance", "inf"], "ConfigError", "Guidance inf", "--guidance 1"),
    "trajectories": (["--trajectories", "3"], "ConfigError", "3 trajectories", "--trajectories 160"),
    "fewer than scales": (["--trajectories", "7", "--guidance", "1,2"], "ConfigError", "7 trajectories for 2", "160"),
    "class": (["--classes", "3,10"], "ConfigError", "Class 10", "0 to 9"),
    "captions": (["--captions", "a three"], "ConfigError", "Captions", "Leave the captions out"),
    "base": (["--base", "ipndn"], "UnknownName", "No base rule 'ipndn'", "'ipndm'"),
    "base of two calls": (["--base", "ddim,heun"], "ConfigError", "Heun", "Take ddim"),
    "grid": (["--grids", "gist"], "UnknownName", "No grid 'gist'", "'gits'"),
    "grid with its own end": (["--grids", "gits,trailing"], "ConfigError", "The grid trailing", "--kappa-max"),
    "first": (["--first", "mean"], "ConfigError", "first='mean'", "network, analytic, auto"),
    "iterations": (["--iterations", "-1"], "ConfigError", "iterations=-1", "not negative"),
    "weight": (["--distribution", "-1"], "ConfigError", "distribution=-1.0", "not negative"),
    "levels": (["--kappa-max", "1", "--kappa-min", "2"], "ConfigError", "kappa 1 to 2", "Begin for instance at 80"),
    "batch": (["--batch-size", "0"], "ConfigError", "Batches of 0", "--batch-size 64"),
    "device": (["--device", "cudda"], "ConfigError", "--device cudda", "--device cpu"),
    "place": (["--out", "{model}/config.json/t.json"], "OutputError", "config.json", "another output folder"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "kind", "given", "hint"), REFUSED.values(), ids=REFUSED)
def test_refusals(cli: Cli, folder: Path, words: list[str], kind: str, given: str, hint: str) -> None:
    """All of it before the teacher's first step, and nothing is left behind."""
    before = files(folder.parent)
    ran = cli("calibrate", "--model", folder, *(word.format(model=folder) for word in words))
    refuses(ran, kind, given, hint)
    assert ran.out.strip() == ""
    assert files(folder.parent) == before


def test_a_model_that_cannot_be_guided(cli: Cli, unconditional: Path) -> None:
    ran = cli("calibrate", "--model", unconditional, "--guidance", 2, "--out", unconditional.parent / "t.json")
    refuses(ran, "ConfigError", "Guidance 2", "class-conditional")


def test_a_model_without_conditions(cli: Cli, unconditional: Path, tmp_path: Path) -> None:
    """From a folder with a space in its name, into one that is made: what is suggested can be pasted."""
    folder = shutil.copytree(unconditional, tmp_path / "my model")
    ran = cli(
        "calibrate",
        "--model",
        folder,
        "--nfe",
        "3,10",
        *QUICK,
        "--teacher-steps",
        24,
        "--out",
        f"{tmp_path}/new tables/",
    )
    assert ran.code == 0, ran.err
    path = tmp_path / "new tables" / FILE
    table, loaded = load_table(path), load_model(folder)
    assert (table.facts["conditions"], table.origin.fingerprint) == ("none", loaded.fingerprint)
    suggested = shlex.split(re.search(r"fewstep (sample .*)", ran.out)[1])
    assert suggested == ["sample", "--model", str(folder), "--solver", str(path), "--nfe", "10"]
    ran = cli(*suggested, "--n", 1, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert read_json(tmp_path / "out" / "sample.json")["solver"] == "calibrated"
    ran = cli("calibrate", "--model", folder, "--nfe", "10", *QUICK, "--teacher-steps", 24)
    assert ran.code == 0, ran.err
    assert "picked up by itself from now on" in ran.out
