"""`fewstep import`: a model of ours out of weights of others, which every other command takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from networks.test_diffusers_unet import TINY
from safetensors.torch import save_file

from cli.running import Cli, files, refuses
from fewstep._files import read_tensors
from fewstep.models import load_model

diffusers = pytest.importorskip("diffusers", reason="networks of diffusers need the extra 'diffusers'")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**TINY, num_class_embeds=3)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_a_folder_of_diffusers_becomes_a_model(cli: Cli, theirs: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    ran = cli("import", theirs, "--out", mine, "--licence", "mit")
    assert ran.code == 0, ran.err
    assert "fewstep sample --model" in ran.out
    assert files(mine) == ["README.md", "config.json", "model.safetensors"]
    model = load_model(mine)
    assert (model.config.name, model.config.classes, model.config.facts["license"]) == ("mine", ("0", "1", "2"), "mit")
    assert model.config.facts["imported"]["file"] == "theirs"
    ran = cli("sample", "--model", mine, "--n", 2, "--nfe", 3, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / "000001.png").is_file()
    chosen = ("--n", 4, "--nfe", "3,4", "--solvers", "ddim,evodiff")
    ran = cli("compare", "--model", mine, *chosen, "--out", tmp_path / "compared")
    assert ran.code == 0, ran.err
    refuses(cli("sample", "--model", mine, "--n", 1, "--guidance", 2, "--out", tmp_path / "no"), "ConfigError", "null")


def test_the_null_class_and_a_unet_alone(cli: Cli, theirs: Path, tmp_path: Path) -> None:
    arguments = ("import", theirs / "unet", "--scheduler", theirs / "scheduler", "--null", "--out", tmp_path / "mine")
    ran = cli(*arguments, "--name", "two")
    assert ran.code == 0, ran.err
    assert (load_model(tmp_path / "mine").config.name, load_model(tmp_path / "mine").config.n_classes) == ("two", 2)
    ran = cli("sample", "--model", tmp_path / "mine", "--n", 1, "--guidance", 2, "--nfe", 3, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    refuses(cli(*arguments, "--like", "mnist"), "ConfigError", "--like with --scheduler")


def test_a_file_needs_to_be_like_something(cli: Cli, model: Path, tmp_path: Path) -> None:
    refuses(cli("import", model / "model.safetensors", "--out", tmp_path / "x"), "CheckpointError", "without --like")


def test_another_model_is_never_replaced(cli: Cli, model: Path, own: Path, tmp_path: Path) -> None:
    """Nor is its table left beside other weights; the same weights may come again, and keep it."""
    before = {name: (own / name).read_bytes() for name in files(own)}
    weights = {name: tensor + 0.5 for name, tensor in read_tensors(own / "model.safetensors").items()}
    save_file(weights, tmp_path / "w.safetensors")
    for out in (own, theirs_alone(tmp_path)):
        refuses(
            cli("import", tmp_path / "w.safetensors", "--like", own, "--out", out),
            "OutputError",
            "holds another model",
            "Choose another --out",
        )
    assert {name: (own / name).read_bytes() for name in files(own)} == before
    ran = cli("import", model / "model.safetensors", "--like", model, "--out", own, "--name", "again")
    assert ran.code == 0, ran.err
    again = load_model(own)
    assert (again.config.name, again.fingerprint) == ("again", load_model(model).fingerprint)
    assert again.calibration == json.loads(before["calibration.json"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    assert cli("import", tmp_path / "w.safetensors", "--like", own, "--out", tmp_path / "notes").code == 0


def theirs_alone(tmp_path: Path) -> Path:
    """A table whose weights are gone."""
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "calibration.json").write_text("{}")
    return folder


def test_a_table_is_not_left_beside_weights_that_are_read_in_another_way(
    cli: Cli, theirs: Path, tmp_path: Path
) -> None:
    mine, flow = tmp_path / "mine", tmp_path / "flow"
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(flow)
    again = ("import", theirs / "unet", "--out", mine, "--scheduler")
    assert cli(*again, flow).code == 0
    assert cli(*again, theirs / "scheduler").code == 0, "no table is lost"
    (mine / "calibration.json").write_text("{}")
    assert cli(*again, theirs / "scheduler").code == 0
    refuses(cli(*again, flow), "OutputError", "read in another way")
