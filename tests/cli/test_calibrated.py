"""Tables where a solver is named, and the one beside the weights where none is; refused where it does not belong."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from cli.running import Cli, pixels, refuses
from cli.tables import ddim, zeros
from cli.test_compare import compared
from cli.test_lists import rows
from cli.test_sample import sampled
from fewstep import models
from fewstep._files import read_json, write_json
from fewstep.calibration import FILE, load_table
from fewstep.data import to_uint8
from fewstep.models import load_model, save_model

JUDGED = ("--reference", "digits", "--features", "random-conv", "--metrics", "fd")


def differs(folder: Path, want: torch.Tensor) -> int:
    """max|a-b| between the pictures in a folder, from seed 0 on, and images."""
    return max(
        int(abs(pixels(folder / f"{seed:06d}.png") - image[0].numpy().astype(int)).max())
        for seed, image in enumerate(to_uint8(want))
    )


def retrained(folder: Path) -> None:
    """Other weights in the folder of an older table, as after more training."""
    old = load_model(folder)
    network = old.denoiser.network
    assert isinstance(network, nn.Module)
    with torch.no_grad():
        next(network.parameters()).add_(0.01)
    save_model(folder, network, old.config)
    assert load_model(folder).fingerprint != old.fingerprint


@pytest.mark.parametrize(("words", "nfe"), [((), 10), (("--nfe", 4), 4), (("--nfe", 4, "--solver", "calibrated"), 4)])
def test_the_own_table_is_the_default(cli: Cli, own: Path, tmp_path: Path, words: tuple[object, ...], nfe: int) -> None:
    facts = sampled(cli, tmp_path / "out", "--model", own, "--n", 2, *words)
    assert (facts["solver"], facts["steps"], facts["nfe"]) == ("calibrated", nfe, nfe)
    assert str(facts["grid"]).startswith(f"karras:rho=5, kappa 80 to 0.002, {nfe} steps (table ")
    worst = differs(tmp_path / "out", ddim(load_model(own), nfe, [0, 1]))
    assert worst == 0, f"max|a-b| = {worst}"


ORDINARY: dict[str, tuple[tuple[object, ...], str]] = {
    "calls it lacks": (("--nfe", 5), "karras, kappa 80 to 0.002, 5 steps"),
    "guidance it lacks": (("--guidance", 2), "karras, kappa 80 to 0.002, 10 steps"),
    "steps": (("--steps", 4), "karras, kappa 80 to 0.002, 4 steps"),
    "grid": (("--grid", "uniform_lam", "--nfe", 4), "uniform_lam, kappa 80 to 0.002, 4 steps"),
    "range": (("--kappa-max", 9, "--nfe", 4), "karras, kappa 9 to 0.002, 4 steps"),
    "a solver": (("--nfe", 4, "--solver", "evodiff"), "karras, kappa 80 to 0.002, 4 steps"),
}


@pytest.mark.parametrize(("words", "grid"), ORDINARY.values(), ids=ORDINARY)
def test_where_it_is_not(cli: Cli, own: Path, tmp_path: Path, words: tuple[object, ...], grid: str) -> None:
    facts = sampled(cli, tmp_path / "out", "--model", own, "--n", 1, *words)
    assert (facts["solver"], facts["grid"]) == ("evodiff", grid)


def test_a_chain_comes_before_it(cli: Cli, own: Path, tmp_path: Path) -> None:
    write_json(own / "config.json", {**read_json(own / "config.json"), "chain": {"steps": [1, 2]}})
    assert sampled(cli, tmp_path / "chain", "--model", own, "--n", 1)["grid"] == "uniform_flow, 2 steps (chain)"
    assert sampled(cli, tmp_path / "table", "--model", own, "--n", 1, "--nfe", 4)["solver"] == "calibrated"


def test_a_table_is_named(cli: Cli, model: Path, tmp_path: Path) -> None:
    """With or without the usual ending; under guidance inside its range; in an evaluation's protocol."""
    loaded = load_model(model)
    for name in ("t.json", "table"):
        zeros(4, model=loaded, guidance=(1.0, 3.0)).save(tmp_path / name)
        words = ("--model", model, "--n", 2, "--nfe", 4, "--guidance", 2, "--solver", tmp_path / name)
        sampled(cli, tmp_path / "out", *words)
        worst = differs(tmp_path / "out", ddim(loaded, 4, [0, 1], guidance=2.0))
        assert worst <= 1, f"max|a-b| = {worst}"
    ran = cli(
        "evaluate", model, *JUDGED, "--n", 70, "--nfe", 4, "--solver", tmp_path / "table", "--out", tmp_path / "e"
    )
    assert ran.code == 0, ran.err
    making = read_json(tmp_path / "e" / "results.json")["results"][0]["protocol"]["making"]
    assert (making["solver"], making["nfe"]) == ("calibrated", 4)
    assert making["grid"].startswith("karras:rho=5, kappa 80 to 0.002, 4 steps (table ")


def test_two_fits_are_told_apart(cli: Cli, own: Path, tmp_path: Path) -> None:
    """An evaluation is not continued with another table of the same name."""
    words = ("evaluate", own, *JUDGED, "--n", 70, "--nfe", 4, "--out", tmp_path / "e")
    assert cli(*words).code == 0
    table = load_table(own / FILE)
    other = dataclasses.replace(table.entries[4], weights=((0.1,), *table.entries[4].weights[1:]))
    dataclasses.replace(table, entries={**table.entries, 4: other}).save(own / FILE)
    refuses(cli(*words), "ProtocolError", "grid")


MISFITS = {
    "calls": (("--nfe", 5), "5 calls with a calibrated table", "fitted for 4, 10"),
    "guidance": (("--nfe", 4, "--guidance", 2), "under guidance 1, for guidance 2", "--force"),
}


@pytest.mark.parametrize(("words", "given", "hint"), MISFITS.values(), ids=MISFITS)
@pytest.mark.parametrize("command", ["sample", "evaluate", "compare"])
@pytest.mark.parametrize("named", ["path", "word"])
def test_misfits(
    cli: Cli, own: Path, tmp_path: Path, command: str, named: str, words: tuple[object, ...], given: str, hint: str
) -> None:
    solver = own / FILE if named == "path" else "calibrated"
    start = {
        "sample": ("sample", "--model", own, "--solver", solver),
        "evaluate": ("evaluate", own, *JUDGED, "--solver", solver),
        "compare": ("compare", "--model", own, "--solvers", solver),
    }[command]
    refuses(cli(*start, *words, "--out", tmp_path / "out"), "ConfigError", given, hint)
    assert not (tmp_path / "out").exists()


def test_another_model(cli: Cli, own: Path, unconditional: Path, tmp_path: Path) -> None:
    """By its weights, and by its schedule; forced, it is run, and its report says so."""
    words = ("--model", unconditional, "--solver", own / FILE, "--n", 1, "--nfe", 4)
    refuses(cli("sample", *words, "--out", tmp_path / "out"), "ConfigError", "fitted to the weights", "--force")
    facts = sampled(cli, tmp_path / "out", *words, "--force")
    assert "; forced)" in str(facts["grid"])
    worst = differs(tmp_path / "out", ddim(load_model(unconditional), 4, [0]))
    assert worst == 0, f"max|a-b| = {worst}"

    table = load_table(own / FILE)
    origin = dataclasses.replace(table.origin, fingerprint="", schedule="VPCosine()")
    dataclasses.replace(table, origin=origin).save(tmp_path / "t.json")
    words = ("--model", own, "--solver", tmp_path / "t.json", "--nfe", 4, "--out", tmp_path / "out")
    refuses(cli("sample", *words), "ConfigError", "A table fitted on VPCosine()", "--force")


def test_forced_where_numbers_are_made(cli: Cli, own: Path, unconditional: Path, tmp_path: Path) -> None:
    """A number from a solver that was fitted to something else carries it in its protocol."""
    words = ("--nfe", 4, "--force", "--solver", own / FILE)
    ran = cli("evaluate", unconditional, *JUDGED, "--n", 70, *words, "--out", tmp_path / "e")
    assert ran.code == 0, ran.err
    assert "; forced)" in read_json(tmp_path / "e" / "results.json")["results"][0]["protocol"]["making"]["grid"]
    words = ("--model", unconditional, "--nfe", 4, "--solvers", own / FILE)
    refuses(cli("compare", *words, "--out", tmp_path / "c"), "ConfigError", "fitted to the weights", "--force")
    assert compared(cli, tmp_path / "c", *words, "--force")["cells"][0]["nfe"] == 4


def test_force_takes_the_next_smaller_number_of_calls(cli: Cli, own: Path, tmp_path: Path) -> None:
    words = ("--model", own, "--solver", "calibrated", "--n", 2, "--nfe", 9, "--force")
    facts = sampled(cli, tmp_path / "out", *words)
    assert (facts["steps"], facts["nfe"]) == (4, 4)
    worst = differs(tmp_path / "out", ddim(load_model(own), 4, [0, 1]))
    assert worst == 0, f"max|a-b| = {worst}"
    words = ("--model", own, "--solver", "calibrated", "--nfe", 3, "--force", "--out", tmp_path / "none")
    refuses(cli("sample", *words), "ConfigError", "3 calls", "fitted for 4, 10")


LEVELS = [("--steps", 4), ("--grid", "karras"), ("--kappa-max", 9), ("--kappa-min", 0.1)]


@pytest.mark.parametrize("words", LEVELS, ids=[name for name, _ in LEVELS])
def test_a_table_has_its_own_levels(cli: Cli, own: Path, tmp_path: Path, words: tuple[object, ...]) -> None:
    for solver in ("calibrated", own / FILE):
        for start in (("sample", "--model", own), ("evaluate", own, *JUDGED)):
            ran = cli(*start, "--solver", solver, *words, "--force", "--out", tmp_path / "out")
            refuses(ran, "ConfigError", f"for the calibrated solver {solver}", "--nfe chooses")
    assert not (tmp_path / "out").exists()


def test_tables_that_are_none(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("ddim")
    write_json(tmp_path / "other.json", {"entries": {}})
    for solver, kind, given, hint in (
        ("calibrated", "ConfigError", "A calibrated solver for the model 'tiny'", "fewstep calibrate"),
        (tmp_path / "absent.json", "CheckpointError", "absent.json cannot be read", "Check the path"),
        (tmp_path / "words.txt", "CheckpointError", "words.txt is not JSON", ""),
        (tmp_path / "other.json", "CheckpointError", "other.json that cannot be read", "fewstep calibrate"),
        (tmp_path, "UnknownName", "No solver", ""),
    ):
        ran = cli("sample", "--model", model, "--solver", solver, "--out", tmp_path / "out")
        refuses(ran, kind, given, hint)
    assert not (tmp_path / "out").exists()


def test_a_file_called_like_a_solver_is_none(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ddim").write_text("")
    monkeypatch.chdir(tmp_path)
    assert sampled(cli, tmp_path / "out", "--model", model, "--n", 1, "--solver", "ddim")["solver"] == "ddim"


def test_a_table_of_older_weights_is_refused_not_passed_over(cli: Cli, own: Path, tmp_path: Path) -> None:
    retrained(own)
    for words in ((), ("--solver", "calibrated")):
        ran = cli("sample", "--model", own, *words, "--out", tmp_path / "out")
        refuses(ran, "ConfigError", "fitted to the weights", f"delete {FILE}")
    ran = cli("evaluate", own, *JUDGED, "--out", tmp_path / "out")
    refuses(ran, "ConfigError", "fitted to the weights", "fewstep calibrate --model")
    refuses(cli("compare", "--model", own, "--out", tmp_path / "out"), "ConfigError", "fitted to the weights")
    assert not (tmp_path / "out").exists()
    assert sampled(cli, tmp_path / "a", "--model", own, "--n", 1, "--solver", "evodiff")["solver"] == "evodiff"
    assert sampled(cli, tmp_path / "b", "--model", own, "--n", 1, "--nfe", 5)["solver"] == "evodiff", "not its business"
    assert "; forced)" in str(sampled(cli, tmp_path / "c", "--model", own, "--n", 1, "--force")["grid"])


@pytest.mark.parametrize("damage", ['{"fewstep_table": 1', "{}", "[]"])
def test_a_damaged_table_is_refused_where_it_would_be_used(cli: Cli, own: Path, tmp_path: Path, damage: str) -> None:
    (own / FILE).write_text(damage)
    for words in ((), ("--solver", "calibrated"), ("--force",)):
        ran = cli("sample", "--model", own, *words, "--out", tmp_path / "out")
        refuses(ran, "CheckpointError", FILE, "Fit it again, fewstep calibrate")
    assert sampled(cli, tmp_path / "a", "--model", own, "--n", 1, "--solver", "evodiff")["solver"] == "evodiff"


def test_force_without_a_table(cli: Cli, own: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for words in (
        ("sample", "--model", model),
        ("sample", "--model", own, "--solver", "ddim"),
        ("evaluate", model, *JUDGED),
        ("evaluate", f"folder:{tmp_path / 'images'}", *JUDGED),
    ):
        refuses(cli(*words, "--force", "--out", tmp_path / "out"), "ConfigError", "--force with ", "name a table")
    assert not (tmp_path / "out").exists()


def test_the_list_of_models_says_what_is_fitted(
    cli: Cli, own: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    for name in ("fitted", "older", "broken"):
        shutil.copytree(own, weights / name)
    shutil.copytree(model, weights / "plain")
    retrained(weights / "older")
    (weights / "broken" / FILE).write_text("")
    monkeypatch.setattr(models, "_BUNDLED", weights)
    listed = rows(cli("models").out)
    assert {name: " ".join(listed[name][3:-1]) for name in ("fitted", "older", "broken", "plain")} == {
        "fitted": "4,10",
        "older": "of other weights",
        "broken": "damaged",
        "plain": "-",
    }


def test_a_first_estimate_of_another_shape(cli: Cli, own: Path, tmp_path: Path) -> None:
    """Forced on a model with other images, a table that brings its first estimate cannot be run."""
    table = zeros(4, model=load_model(own))
    first = dataclasses.replace(table.entries[4], first=True)
    dataclasses.replace(table, entries={3: first}, mean=torch.zeros(3, 8, 8)).save(tmp_path / "t.json")
    words = ("--model", own, "--solver", tmp_path / "t.json", "--nfe", 3, "--force", "--out", tmp_path / "out")
    refuses(cli("sample", *words), "ShapeError", "Samples of shape", "the model that it was fitted to")
    assert not (tmp_path / "out").exists()
