"""Bad input through the command line: exit code 2, three parts, no traceback, and nothing half-written."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cli.running import TINY, Cli, files, pixels, refuses
from fewstep import models
from fewstep._files import read_json, write_json
from fewstep.training import checkpoints, read_checkpoint

# What is asked for, with "MODEL" for the model; the kind of error, what it says was given, and what it says to do.
SAMPLE = {
    "solver": (["--solver", "evodif"], "UnknownName", "'evodif'", "Did you mean 'evodiff'?"),
    "grid": (["--grid", "karas"], "UnknownName", "'karas'", "Did you mean 'karras'?"),
    "no calls": (["--nfe", "0"], "BudgetError", "0 calls", "--nfe 1"),
    "fewer than no calls": (["--nfe", "-3"], "BudgetError", "-3 calls", "--nfe 1"),
    "heun, one call": (["--solver", "heun", "--nfe", "1"], "BudgetError", "1 calls for Heun", "--nfe 2"),
    "paper, two calls": (["--solver", "evodiff_paper", "--nfe", "2"], "BudgetError", "2 calls for EVODiff", "--nfe 3"),
    "paper, all noise": (["--solver", "evodiff_paper", "--grid", "uniform_time"], "LevelError", "alpha = 0", "default"),
    "class": (["--classes", "3,10"], "ConfigError", "Class 10", "0 to 9"),
    "negative class": (["--classes=-1"], "ConfigError", "Class -1", "0 to 9"),
    "words for classes": (["--classes", "three"], "ConfigError", "--classes three", "--classes 5,10,20"),
    "no images": (["--n", "0"], "ConfigError", "0 images", "--n 1"),
    "no batch": (["--batch-size", "0"], "ConfigError", "Batches of 0", "--batch-size 64"),
    "device": (["--device", "cudda"], "ConfigError", "--device cudda", "--device cpu"),
    "absent device": (["--device", "cuda:7"], "ConfigError", "--device cuda:7", "--device cpu"),
    "device without numbers": (["--device", "meta"], "ConfigError", "--device meta", "--device cpu"),
    "guidance": (["--guidance", "nan"], "ConfigError", "Guidance nan", "--guidance 1"),
    "swapped levels": (["--kappa-max", "0.1", "--kappa-min", "9"], "ConfigError", "0.1 to 9", "--kappa-max above"),
    "no last level": (["--kappa-min", "0"], "ConfigError", "80 to 0", "both above 0"),
    "levels beyond": (["--kappa-max", "1e-4", "--kappa-min", "1e-5"], "LevelError", "lam = 9.2", "inside that range"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "kind", "given", "hint"), SAMPLE.values(), ids=SAMPLE)
def test_sample(cli: Cli, model: Path, tmp_path: Path, words: list[str], kind: str, given: str, hint: str) -> None:
    ran = cli("sample", "--model", model, "--out", tmp_path / "out", *words)
    refuses(ran, kind, given, hint)
    assert ran.out.strip() == ""
    assert list(tmp_path.iterdir()) == [], "refused before anything is made"


COMPARE = {
    "solver": (["--solvers", "ddim,huen"], "UnknownName", "'huen'", "Did you mean 'heun'?"),
    "no solver": (["--solvers", ","], "ConfigError", "0 solvers", "--solvers ddim"),
    "no budget": (["--nfe", ""], "ConfigError", "0 budgets", "--nfe 5,10"),
    "words for budgets": (["--nfe", "5,ten"], "ConfigError", "--nfe 5,ten", "--nfe 5,10,20"),
    "budget": (["--nfe", "8,1", "--solvers", "heun"], "BudgetError", "heun at 1 calls", "--nfe 2"),
    "grid": (["--grid", "uniform-lam"], "UnknownName", "'uniform-lam'", "'uniform_lam'"),
    "one image": (["--n", "1"], "ConfigError", "1 images", "--n 2"),
    "guidance": (["--guidance", "inf"], "ConfigError", "Guidance inf", "--guidance 1"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "kind", "given", "hint"), COMPARE.values(), ids=COMPARE)
def test_compare(cli: Cli, model: Path, tmp_path: Path, words: list[str], kind: str, given: str, hint: str) -> None:
    ran = cli("compare", "--model", model, "--out", tmp_path / "out", *words)
    refuses(ran, kind, given, hint)
    assert list(tmp_path.iterdir()) == [], "refused before anything is made"


TRAIN = {
    "preset": (["--preset", "digit"], "UnknownName", "'digit'", "Did you mean 'digits'?"),
    "key": (["train.step=3"], "UnknownName", "'step'", "Did you mean 'steps'?"),
    "group": (["trian.steps=3"], "UnknownName", "'trian'", "Did you mean 'train'?"),
    "type": (["train.steps=many"], "ConfigError", "train.steps='many' (str)", "a whole number"),
    "fraction": (["train.batch=1.5"], "ConfigError", "train.batch=1.5 (float)", "a whole number"),
    "range": (["train.ema=1"], "ConfigError", "ema=1.0", "below 1"),
    "no value": (["train.lr"], "ConfigError", "'train.lr'", "key=value"),
    "part": (["diffusion.prediction=x1"], "UnknownName", "'x1'", "Did you mean 'x0'?"),
    "argument": (["network.with=8"], "UnknownName", "'with'", "Did you mean 'width'?"),
    "data": (["--data", "digitz"], "UnknownName", "'digitz'", "Did you mean 'digits'?"),
    "data without a place": (["--data", "folder:"], "ConfigError", "'folder:'", "after a colon"),
    "heads": (["network.heads=3"], "ConfigError", "3 attention heads", "number of heads"),
    "pixels": (["network=space_to_depth", "network.patch=3"], "ShapeError", "(32, 1, 8, 8)", "multiples of 3"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "kind", "given", "hint"), TRAIN.values(), ids=TRAIN)
def test_train(cli: Cli, tmp_path: Path, words: list[str], kind: str, given: str, hint: str) -> None:
    ran = cli("train", *TINY[2:], "train.steps=2", *words, "--out", tmp_path / "out")
    refuses(ran, kind, given, hint)
    assert files(tmp_path) == []


@pytest.mark.parametrize("command", ["sample", "compare"])
def test_unknown_model(cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    shutil.copytree(model, tmp_path / "weights" / "mnist")
    monkeypatch.setattr(models, "_BUNDLED", tmp_path / "weights")
    ran = cli(command, "--model", "mnits", "--out", tmp_path / "out")
    refuses(ran, "UnknownName", "'mnits'", "Did you mean 'mnist'?")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["sample", "compare"])
def test_guidance_needs_classes(cli: Cli, unconditional: Path, tmp_path: Path, command: str) -> None:
    ran = cli(command, "--model", unconditional, "--guidance", 2, "--out", tmp_path / "out")
    refuses(ran, "ConfigError", "Guidance 2 for the model 'plain'", "class-conditional")
    assert list(tmp_path.iterdir()) == []


def test_classes_need_classes(cli: Cli, unconditional: Path, tmp_path: Path) -> None:
    ran = cli("sample", "--model", unconditional, "--classes", "0", "--out", tmp_path / "out")
    refuses(ran, "ConfigError", "Class 0 of the model 'plain'", "Leave the classes out")


# Models and data that cannot be read


class Trap:
    """What a hostile pickle may hold: opening it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(folder / "sprung")))


def _torch_saved(folder: Path) -> None:
    torch.save({"trap": Trap(folder / "sprung")}, folder / "model.safetensors")


def _foreign_config(folder: Path) -> None:
    write_json(folder / "config.json", {"_class_name": "UNet2DModel", "sample_size": 8})


def _config_cut(folder: Path) -> None:
    (folder / "config.json").write_text('{"name": "ti')


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


DAMAGES = {
    "cut": (_cut, "model.safetensors is damaged", "copy"),
    "pickle": (_pickled, "is a pickle", "runs the code inside"),
    "torch archive": (_torch_saved, "is a PyTorch archive", "runs the code inside"),
    "other library": (_foreign_config, "does not describe a fewstep model", "written by this version"),
    "half a config": (_config_cut, "config.json is not JSON", "copy"),
    "no weights": (_no_weights, "model.safetensors cannot be read", "Check the path"),
}


@pytest.mark.parametrize(("damage", "given", "hint"), DAMAGES.values(), ids=DAMAGES)
def test_model_folders_that_cannot_be_read(
    cli: Cli, model: Path, tmp_path: Path, damage: Callable[[Path], None], given: str, hint: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    damage(folder)
    for command in ("sample", "compare"):
        ran = cli(command, "--model", folder, "--out", tmp_path / "out")
        refuses(ran, "CheckpointError", given, hint)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (folder / "sprung").exists(), "the pickle was opened"


def test_a_run_with_a_damaged_checkpoint(cli: Cli, tmp_path: Path) -> None:
    words = ("train", *TINY, "train.checkpoint_every=1", "--out", tmp_path)
    assert cli(*words, "train.steps=2").code == 0
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    pickled = pickle.dumps(Trap(tmp_path / "sprung"))
    (newest / "optimizer.safetensors").write_bytes(pickled)
    before = files(tmp_path)
    refuses(cli(*words, "train.steps=3"), "CheckpointError", "optimizer.safetensors is a pickle", "safetensors")
    assert not (tmp_path / "sprung").exists()
    assert files(tmp_path) == before


def test_image_folders_that_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"

    def trained() -> object:
        return cli("train", *TINY, "train.steps=1", "--data", f"folder:{pictures}", "--out", tmp_path / "out")

    refuses(trained(), "DataError", "pictures is no folder", "Check the path")
    pictures.mkdir()
    (pictures / "notes.txt").write_text("no picture")
    refuses(trained(), "DataError", "pictures holds no picture", ".png")
    Image.new("RGB", (8, 8)).save(pictures / "a.png")
    (pictures / "b.png").write_bytes((pictures / "a.png").read_bytes()[:40])
    refuses(trained(), "DataError", "b.png cannot be read", "Remove or replace")
    Image.new("RGB", (9, 8)).save(pictures / "b.png")
    refuses(trained(), "DataError", "b.png has 9x8 pixels, the first one 8x8")
    assert files(tmp_path / "out") == []


# Places that cannot be written

COMMANDS = {
    "sample": ("sample", "--n", "2", "--nfe", "1"),
    "compare": ("compare", "--n", "2", "--nfe", "1", "--solvers", "ddim"),
    "train": ("train", *TINY, "train.steps=1"),
}


def command(name: str, model: Path, out: Path) -> tuple[object, ...]:
    return (*COMMANDS[name], *(() if name == "train" else ("--model", model)), "--out", out)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_the_place_of_the_folder(cli: Cli, model: Path, tmp_path: Path, name: str, below: str) -> None:
    (tmp_path / "out").write_text("mine")
    ran = cli(*command(name, model, tmp_path / "out" / below))
    refuses(ran, "OutputError", f"{tmp_path / 'out' / below} cannot be written", "choose another output folder")
    assert files(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_is_read_only(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The system's answer is played, because nothing is read only to the superuser."""
    make = os.mkdir

    def refused(path: object, *rest: object) -> None:
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        make(path, *rest)

    monkeypatch.setattr(os, "mkdir", refused)
    ran = cli(*command(name, model, tmp_path / "out"))
    refuses(ran, "OutputError", "(Permission denied)", "writable folder")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the disk full after some files have been flushed to it."""

    def after(count: int) -> None:
        flush, left = os.fsync, [count]

        def flushed(handle: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(handle)

        monkeypatch.setattr(os, "fsync", flushed)

    return after


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flushes", [0, 2, 4, 6])
def test_a_full_disk(
    cli: Cli, model: Path, tmp_path: Path, full: Callable[[int], None], name: str, flushes: int
) -> None:
    """Whenever it fills up, every file that is there is whole, and the list of what was done is not there."""
    full(flushes)
    ran = cli(*command(name, model, tmp_path / "out"))
    refuses(ran, "OutputError", "(No space left on device)", "Free some space")
    left = files(tmp_path)
    assert not [path for path in left if "tmp" in path or "probe" in path], f"half of something: {left}"
    for path in left:
        if path.endswith(".png"):
            assert pixels(tmp_path / path).size > 0
        if path.endswith(".json"):
            assert read_json(tmp_path / path)
    assert "out/sample.json" not in left
    assert "out/model.safetensors" not in left


def test_a_disk_that_fills_up_in_training_leaves_the_last_checkpoint(
    cli: Cli, tmp_path: Path, full: Callable[[int], None]
) -> None:
    words = ("train", *TINY, "train.checkpoint_every=1", "--out", tmp_path)
    assert cli(*words, "train.steps=1").code == 0
    whole = models.load_model(tmp_path).fingerprint
    full(4)
    refuses(cli(*words, "train.steps=2"), "OutputError", "(No space left on device)")
    (last,) = checkpoints(tmp_path / "checkpoints")
    assert read_checkpoint(last).step == 1
    assert models.load_model(tmp_path).fingerprint == whole
