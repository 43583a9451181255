"""`fewstep sample --captions`, and a training run on scenes by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.running import Cli, files, pixels, refuses

TINY = ("network.width=16", "network.blocks=1", "network.embedding=16", "network.detail=4", "train.precision=no")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fewstep.experiments import PRESETS
    from fewstep.training import override, train_model

    folder = tmp_path_factory.mktemp("models") / "scenes"
    train_model(override(PRESETS["scenes"], (*TINY, "train.steps=2", "train.batch=4")), folder)
    return folder


def sampled(cli: Cli, out: Path, *words: object) -> list[str]:
    ran = cli("sample", *words, "--nfe", 1, "--out", out)
    assert ran.code == 0, ran.err
    captions: list[str] = json.loads((out / "sample.json").read_text())["captions"]
    return captions


def test_captions_are_walked_through(cli: Cli, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a large cyan cross at the top\n\na small white circle on the left\n")
    one = "a small red circle left of a large blue square"
    said = ("--captions", one, "--captions", tmp_path / "list.txt")
    captions = sampled(cli, tmp_path / "a", "--model", scenes, "--n", 4, "--seed", 3, *said, "--guidance", 2)
    three = [one, "a large cyan cross at the top", "a small white circle on the left"]
    assert captions == [three[seed % 3] for seed in (3, 4, 5, 6)]
    assert files(tmp_path / "a") == [*(f"00000{k}.png" for k in (3, 4, 5, 6)), "grid.png", "sample.json"]
    alone = sampled(cli, tmp_path / "b", "--model", scenes, "--n", 1, "--seed", 4, *said, "--guidance", 2)
    assert alone == captions[1:2]
    assert abs(pixels(tmp_path / "a" / "000004.png") - pixels(tmp_path / "b" / "000004.png")).max() <= 1


def test_captions_of_the_scenes_if_none_are_given(cli: Cli, scenes: Path, tmp_path: Path) -> None:
    from fewstep.data import Scenes

    captions = sampled(cli, tmp_path, "--model", scenes, "--n", 3, "--seed", 7)
    assert captions == [Scenes().caption(k) for k in (7, 8, 9)]


def test_captions_that_are_refused(cli: Cli, scenes: Path, model: Path, tmp_path: Path) -> None:
    words = ("sample", "--out", tmp_path / "out", "--nfe", 1, "--n", 1)
    purpel = cli(*words, "--model", scenes, "--captions", "a small purpel circle at the top")
    refuses(purpel, "UnknownName", "No word 'purpel'", "Did you mean 'purple'")
    long = cli(*words, "--model", scenes, "--captions", "a " * 11)
    refuses(long, "ConfigError", "The caption", "1 to 10 words")
    refuses(cli(*words, "--model", scenes, "--classes", "1"), "ConfigError", "Class 1", "It has no classes")
    told = cli(*words, "--model", model, "--captions", "a small red circle at the top")
    refuses(told, "ConfigError", "Captions for the model", "It is told a class")
    (tmp_path / "empty.txt").write_text("\n\n")
    empty = cli(*words, "--model", scenes, "--captions", tmp_path / "empty.txt")
    refuses(empty, "ConfigError", "empty lines", "Write one")
    assert not (tmp_path / "out").exists()


def test_training_on_scenes_by_name(cli: Cli, tmp_path: Path) -> None:
    ran = cli("train", "--data", "scenes:64", "--preset", "scenes", "--dry-run", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["data"] == "scenes:64"
    refuses(
        cli("train", "--data", "scenes:40", "--out", tmp_path / "run"), "ConfigError", "Scenes of 40", "32x32 or 64x64"
    )


def test_compare_asks_for_the_captions_of_the_scenes(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from fewstep.data import Scenes
    from fewstep.experiments import compare
    from fewstep.models import load_model

    told, draw = [], compare.draw
    monkeypatch.setattr(compare, "draw", lambda *given, **more: told.append(more["cond"]) or draw(*given, **more))
    plan = compare.Plan(("ddim",), (1,), n=3, seed=7, reference_steps=1)
    assert len(list(compare.Comparison(load_model(scenes), plan).run())) == 2
    expected = Scenes().batch(torch.arange(7, 10)).cond
    assert expected is not None
    assert [torch.equal(cond["tokens"], expected["tokens"]) for cond in told] == [True, True]


def test_evaluate_asks_for_the_captions_of_a_file_under_guidance(
    cli: Cli, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from fewstep._files import output_dir
    from fewstep.data import Scenes
    from fewstep.experiments.pictures import save_pixels

    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.txt").write_text("a large cyan cross at the top\na small white circle on the left\n")
    real, out = output_dir(tmp_path / "real"), tmp_path / "out"
    for k, image in enumerate(Scenes().images(torch.arange(4))):
        save_pixels(real / f"{k}.png", image)
    words = ("evaluate", scenes, "--reference", real, "--features", "random-conv", "--metrics", "sw", "--nfe", 1)
    ran = cli(*words, "--n", 2, "--prompts", tmp_path / "own.txt", "--guidance", 2, "--out", out)
    assert ran.code == 0, ran.err
    protocol = json.loads((out / "results.json").read_text())["results"][0]["protocol"]
    assert protocol["measuring"]["parameters"]["condition"].startswith("prompts own (2, ")
    assert (protocol["making"]["nfe"], protocol["making"]["network_evals"]) == (1, 2)
    own = cli(*words, "--n", 2, "--out", tmp_path / "in turn", "--against", out)
    assert "parameters.condition: 'prompts own" in own.out
    assert "captions of its data in turn" in own.out


def test_calibrating_a_model_that_reads_captions(cli: Cli, scenes: Path, tmp_path: Path) -> None:
    """Those that are asked for stand in the table, which samples the model."""
    said, path = "a large cyan cross at the top", tmp_path / "t.json"
    cheap = ("--trajectories", 8, "--iterations", 0, "--teacher-steps", 8, "--grids", "karras:rho=7", "--base", "ddim")
    ran = cli("calibrate", "--model", scenes, "--nfe", 2, *cheap, "--captions", said, "--out", path)
    assert ran.code == 0, ran.err
    assert json.loads(path.read_text())["facts"]["conditions"] == [said]
    ran = cli("sample", "--model", scenes, "--n", 1, "--nfe", 2, "--solver", path, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "out" / "sample.json").read_text())["solver"] == "calibrated"
