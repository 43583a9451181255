"""`fewstep compare` with calibrated tables: a row where one serves, on the levels of everything else, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.running import Cli, refuses
from cli.tables import zeros
from cli.test_compare import compared
from fewstep.models import load_model


def test_compare_has_a_row_for_it(cli: Cli, own: Path, model: Path, tmp_path: Path) -> None:
    """By default; a cell where the table has the budget, a dash where not; and a table by its path."""
    report = compared(cli, tmp_path / "a", "--model", own, "--nfe", "4,5")
    cells = {(cell["solver"], cell["nfe"]): cell for cell in report["cells"]}
    assert report["plan"]["solvers"][-1] == "calibrated"
    assert report["missing"] == [{"solver": "calibrated", "nfe": 5}]
    assert len(report["cells"]) == 2 * 7 + 1
    zeros(4, 5, model=load_model(model)).save(tmp_path / "t.json")
    again = compared(cli, tmp_path / "b", "--model", model, "--nfe", "4,5", "--solvers", f"ddim,{tmp_path / 't.json'}")
    assert [cell["solver"] for cell in again["cells"]] == ["ddim"] * 2 + [str(tmp_path / "t.json")] * 2
    assert again["cells"][2]["rmse"] == cells["calibrated", 4]["rmse"], "the same solver on the same levels"
    assert again["cells"][2]["rmse"] != cells["ddim", 4]["rmse"], "on levels of its own"
    assert again["missing"] == []


def test_how_a_missing_cell_looks(cli: Cli, own: Path, tmp_path: Path) -> None:
    ran = cli("compare", "--model", own, "--n", 4, "--nfe", "4,5", "--solvers", "calibrated", "--out", tmp_path)
    assert ran.code == 0, ran.err
    shown = [line.split() for line in ran.out.splitlines() if line.startswith("calibrated")]
    assert [words[1] for words in shown] == ["4", "5"]
    assert shown[1][2:] == ["-"] * 4
    again = f"fewstep calibrate --model {own} --nfe 4,5,10"
    assert f"no solver for that number of calls; fit it: {again}\n" in ran.out
    zeros(4, guidance=(1.0, 3.0)).save(tmp_path / "a table")
    ran = cli("compare", "--model", own, "--n", 4, "--nfe", "4,5", "--solvers", tmp_path / "a table", "--out", tmp_path)
    assert f"--model {own} --nfe 4,5 --guidance 1,3 --out '{tmp_path / 'a table'}'\n" in ran.out


def test_compare_forced(cli: Cli, own: Path, model: Path, tmp_path: Path) -> None:
    """Every budget with a smaller number of calls is served; the own table also where its guidance is not; no other."""
    words = ("--model", own, "--nfe", "3,4,9")
    report = compared(cli, tmp_path / "a", *words, "--solvers", "calibrated", "--force")
    assert [cell["nfe"] for cell in report["cells"]] == [4, 4]
    assert report["missing"] == [{"solver": "calibrated", "nfe": 3}]
    report = compared(cli, tmp_path / "b", "--model", own, "--nfe", 4, "--guidance", 2, "--force")
    assert report["plan"]["solvers"][-1] == "calibrated"
    for words in (("--model", own, "--solvers", "ddim,heun"), ("--model", model)):
        refuses(cli("compare", *words, "--force", "--out", tmp_path / "c"), "ConfigError", "--force with ddim, heun")
    assert not (tmp_path / "c").exists()


def test_compare_starts_and_ends_everything_alike(cli: Cli, own: Path, tmp_path: Path) -> None:
    """A table on other levels than the reference is refused if it is named, and left out if not."""
    for words, ends in (
        (("--kappa-max", 5), "5 to 0.002"),
        (("--kappa-min", 0.01), "80 to 0.01"),
        (("--kappa-max", 80.001), "80.001 to 0.002"),
        (("--grid", "uniform_flow"), "inf to"),
    ):
        start = ("--model", own, "--nfe", 4, *words)
        ran = cli("compare", *start, "--solvers", "calibrated,ddim", "--out", tmp_path / "out")
        refuses(ran, "ConfigError", f"beside a grid from {ends}", "--kappa-max 80 --kappa-min 0.002")
    assert not (tmp_path / "out").exists()
    report = compared(cli, tmp_path / "a", "--model", own, "--nfe", 4, "--kappa-max", 5)
    assert "calibrated" not in report["plan"]["solvers"]
    words = ("--kappa-max", 80.00001, "--solvers", "calibrated")
    assert len(compared(cli, tmp_path / "b", "--model", own, "--nfe", 4, *words)["cells"]) == 1


@pytest.mark.parametrize("words", [("--nfe", "5,6"), ("--nfe", "4", "--guidance", 2)])
def test_compare_leaves_out_a_table_that_serves_nothing(
    cli: Cli, own: Path, tmp_path: Path, words: tuple[object, ...]
) -> None:
    report = compared(cli, tmp_path, "--model", own, *words)
    assert "calibrated" not in report["plan"]["solvers"]
    assert report["missing"] == []
