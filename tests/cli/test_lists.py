"""`fewstep solvers` and `fewstep models`: everything there is, with the numbers of each."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from cli.running import Cli
from fewstep import models
from fewstep.models import Chain, Part, bundled, load_model, save_model
from fewstep.solvers import SOLVERS


def rows(text: str) -> dict[str, list[str]]:
    """Table rows by their first word."""
    return {words[0]: words[1:] for words in (line.split() for line in text.splitlines()) if words}


def test_solvers(cli: Cli) -> None:
    """Order, whether it draws noise, and calls for 10 steps; the numbers are those of the papers."""
    ran = cli("solvers")
    assert ran.code == 0, ran.err
    expected = {
        "ddim": ["1", "no", "10"],
        "deis": ["3", "no", "10"],
        "dpmpp_2m": ["2", "no", "10"],
        "dpmpp_2m_sde": ["1", "yes", "10"],
        "dpmpp_2s": ["2", "no", "10"],
        "dpmpp_3m": ["2", "no", "10"],
        "euler_ancestral": ["1", "yes", "10"],
        "evodiff": ["2", "no", "10"],
        "evodiff_paper": ["2", "no", "11"],
        "heun": ["2", "no", "20"],
        "ipndm": ["4*", "no", "10"],
        "unipc": ["2", "no", "10"],
        "unipc_3": ["3", "no", "10"],
    }
    assert {name: row for name, row in rows(ran.out).items() if name in expected} == expected
    assert "* on steps of equal length in kappa" in ran.out, "the condition of its order"
    assert SOLVERS.keys() <= rows(ran.out).keys(), "a solver is not listed"
    for spelled in ("ddim:eta=0.5", "unipc:order=3:variant=bh1", "deis:variable=log_kappa"):
        assert spelled in ran.out
        Part.spelled(spelled).build(SOLVERS, "solver")


def test_every_bundled_model_is_listed(cli: Cli) -> None:
    ran = cli("models")
    assert ran.code == 0, ran.err
    listed = rows(ran.out)
    for name in bundled():
        config = load_model(name).config
        assert listed[name][:2] == ["x".join(map(str, config.shape)), str(config.n_classes)]
    assert "mnist-judge" not in listed, "a judge is no model"


def test_a_bundled_model_samples_by_its_name(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, tmp_path / "weights" / "[toy]")
    toy = load_model(model)
    assert isinstance(toy.denoiser.network, nn.Module)
    save_model(tmp_path / "weights" / "fast", toy.denoiser.network, replace(toy.config, chain=Chain(steps=(1, 4))))
    monkeypatch.setattr(models, "_BUNDLED", tmp_path / "weights")
    listed = cli("models")
    assert rows(listed.out)["[toy]"] == ["1x8x8", "10", "-", "-", "digits"]
    assert rows(listed.out)["fast"] == ["1x8x8", "10", "1,4", "-", "digits"]
    ran = cli("sample", "--model", "[toy]", "--n", 1, "--nfe", 1, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / "000000.png").is_file()
