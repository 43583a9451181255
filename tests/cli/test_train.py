"""`fewstep train`: options, a run that leaves a model, and a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cli.running import TINY, Cli, files, pixels, refuses
from fewstep.data import digits
from fewstep.experiments import PRESETS
from fewstep.models import load_model
from fewstep.training import RunConfig, checkpoints, override


@pytest.mark.parametrize("preset", PRESETS)
def test_a_dry_run_prints_what_would_be_trained(cli: Cli, tmp_path: Path, preset: str) -> None:
    """The printed JSON is a configuration: read again, it is the preset with exactly the changes asked for."""
    words = ["--preset", preset, "--data", "folder:[/pictures]", "--out", tmp_path / "run", "--dry-run"]
    start = PRESETS[preset].e2e.init  # a run from a model has that model's own parts
    edm = () if start else ("diffusion.prediction=edm", "diffusion.prediction.sigma_data=0.7")
    ran = cli("train", *words, "train.lr=0.25", *edm)
    assert ran.code == 0, ran.err
    printed = json.loads(ran.out)
    assert RunConfig.from_json(printed).to_json() == printed
    expected = override(PRESETS[preset], ("data=folder:[/pictures]", "train.lr=0.25", *edm)).to_json()
    if "e2e" in expected:  # written out: every argument of every term, and of coupling and gradient
        terms, asked = printed["e2e"].pop("terms"), expected["e2e"].pop("terms")
        assert {name: {**terms[name], **own} for name, own in asked.items()} == terms
        assert terms["energy"]["beta"] == 1
        assert printed["e2e"].pop("gradient") == {"name": "full", "arguments": {"every": 0}}
        del expected["e2e"]["gradient"]
    if start:
        model = load_model(start).config
        assert (printed.pop("network")["name"], printed["diffusion"]["prediction"]["name"]) == (
            model.network.name,
            model.prediction.name,
        )
        del expected["network"], expected["diffusion"], printed["diffusion"]
    assert printed == expected
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_what_the_run_would(cli: Cli, model: Path) -> None:
    words = ("train", "--objective", "e2e", "--init", model, "--dry-run")
    refuses(cli(*words, "diffusion.prediction=edm"), "ConfigError", "diffusion.prediction=edm", "scratch")


def test_a_run_leaves_a_model_that_samples(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "[run]"
    words = ("train.steps=4", "train.checkpoint_every=2", "diffusion.prediction=v", "name=mine")
    ran = cli("train", *TINY, *words, "--out", folder)
    assert ran.code == 0, ran.err
    assert "Step 4, 128 images: loss " in ran.out
    assert str(folder) in ran.out
    model = load_model(folder)
    assert (model.config.name, model.config.facts["steps"], model.config.facts["data"]) == ("mine", 4, "digits")
    assert model.config.prediction.name == "v"
    assert model.config.network.arguments["width"] == 8
    assert [path.name[-1] for path in checkpoints(folder / "checkpoints")] == ["2", "4"]

    sampled = cli("sample", "--model", folder, "--n", 2, "--nfe", 3, "--out", tmp_path / "samples")
    assert sampled.code == 0, sampled.err
    facts = json.loads((tmp_path / "samples" / "sample.json").read_text())
    assert (facts["model"], facts["model_fingerprint"], facts["nfe"]) == ("mine", model.fingerprint, 3)
    assert pixels(tmp_path / "samples" / "000000.png").shape == (8, 8)


def test_a_finished_run_is_left_and_a_longer_one_goes_on(cli: Cli, tmp_path: Path) -> None:
    words = [*TINY, "train.decay=0", "--out", tmp_path]
    assert cli("train", "train.steps=2", *words).code == 0
    weights = (tmp_path / "model.safetensors").read_bytes()
    again = cli("train", "train.steps=2", *words)
    assert "already holds a finished run" in again.out
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    longer = cli("train", "train.steps=3", *words)
    assert "Step 3, 96 images" in longer.out
    assert (tmp_path / "model.safetensors").read_bytes() != weights
    other = cli("train", "train.steps=4", *words, "train.lr=0.5")
    refuses(other, "CheckpointError", "train.lr was", "Restore the options")
    assert load_model(tmp_path).config.facts["steps"] == 3


def test_an_image_folder_becomes_a_model_of_its_classes(cli: Cli, tmp_path: Path) -> None:
    data = digits()
    for k in range(20):
        folder = tmp_path / "pictures" / ("even" if int(data.labels[k]) % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[k, 0].numpy()).resize((12, 10)).save(folder / f"{k}.png")
    words = ("--data", f"folder:{tmp_path / 'pictures'}", "size=8", "train.steps=2", "train.batch=8")
    ran = cli("train", *TINY, *words, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    model = load_model(tmp_path / "run")
    assert (model.config.classes, model.shape) == (("even", "odd"), (3, 8, 8))
    assert (model.config.facts["data"], model.config.facts["images"]) == ("pictures", 20)
    sampled = cli("sample", "--model", tmp_path / "run", "--n", 3, "--nfe", 1, "--out", tmp_path / "samples")
    assert sampled.code == 0, sampled.err
    assert files(tmp_path / "samples")[:3] == ["000000.png", "000001.png", "000002.png"]
