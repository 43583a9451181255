"""`fewstep sample`: pictures named by seed, measured costs, and any image again alone."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cli.running import Cli, files, pixels
from fewstep.data import to_uint8
from fewstep.experiments.runs import conditions, draw
from fewstep.models import load_model
from fewstep.networks import UNet
from fewstep.noise import Karras, UniformLam, UniformTime
from fewstep.sampling import sample, start_noise
from fewstep.solvers import DDIM


def sampled(cli: Cli, folder: Path, *words: object) -> dict[str, object]:
    ran = cli("sample", "--out", folder, *words)
    assert ran.code == 0, ran.err
    return json.loads((folder / "sample.json").read_text())


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes of every call that really reaches the network."""
    sizes: list[int] = []
    forward = UNet.forward

    def counted(self: UNet, x: Tensor, *rest: object) -> Tensor:
        sizes.append(len(x))
        return forward(self, x, *rest)

    monkeypatch.setattr(UNet, "forward", counted)
    return sizes


def test_what_is_written(cli: Cli, model: Path, tmp_path: Path) -> None:
    facts = sampled(cli, tmp_path, "--model", model, "--n", 7, "--seed", 12, "--nfe", 4)
    names = [f"{seed:06d}.png" for seed in range(12, 19)]
    assert files(tmp_path) == [*names, "grid.png", "sample.json"]
    assert facts["classes"] == [2, 3, 4, 5, 6, 7, 8], "image k has seed + k, and its class follows from its seed"
    assert facts["plan"]["seed"] == 12
    images = [pixels(tmp_path / name) for name in names]
    assert all(image.std() > 20 for image in images), "no image is flat"
    grid = pixels(tmp_path / "grid.png")
    for k, image in enumerate(images):
        top, left = (8 * 9 * place for place in divmod(k, 3))
        shown = grid[top : top + 64, left : left + 64]
        enlarged = image.repeat(8, axis=0).repeat(8, axis=1)[..., None]
        assert abs(shown - enlarged).max() == 0, f"image {k} is not in its place in grid.png"


@pytest.mark.parametrize(
    ("solver", "asked", "steps", "nfe", "guidance"),
    [("evodiff", 5, 5, 5, 1), ("heun", 7, 3, 6, 1), ("evodiff_paper", 5, 4, 5, 1), ("ddim", 3, 3, 3, 2)],
)
def test_costs_are_those_that_the_network_saw(
    cli: Cli, model: Path, tmp_path: Path, evaluated: list[int], solver: str, asked: int, steps: int, nfe: int,
    guidance: int,
) -> None:  # fmt: skip
    """6 images in batches of 4 and 2; guidance doubles what the network does, and not the calls."""
    words = ("--model", model, "--solver", solver, "--nfe", asked, "--n", 6, "--batch-size", 4, "--guidance", guidance)
    facts = sampled(cli, tmp_path, *words)
    assert (facts["steps"], facts["nfe"], facts["network_evals"]) == (steps, nfe, nfe * guidance)
    assert evaluated == [4 * guidance] * nfe + [2 * guidance] * nfe


@pytest.mark.parametrize("solver", ["evodiff", "euler_ancestral", "renoise"])
def test_an_image_is_made_again_alone(cli: Cli, model: Path, tmp_path: Path, solver: str) -> None:
    words = ("--model", model, "--nfe", 6, "--solver", solver)
    together = sampled(cli, tmp_path / "together", *words, "--seed", 0, "--n", 8)
    alone = sampled(cli, tmp_path / "alone", *words, "--seed", 5, "--n", 1)
    assert alone["classes"] == together["classes"][5:6] == [5]
    again, first, other = (
        pixels(tmp_path / folder / f"{seed:06d}.png")
        for folder, seed in (("alone", 5), ("together", 5), ("together", 6))
    )
    # A convolution over another batch size may differ by one rounding, and so may the 8-bit value beside an edge.
    difference = abs(again - first)
    assert difference.max() <= 1, f"max|a-b| = {difference.max()}"
    assert difference.sum() <= 1, f"{difference.sum()} of 64 pixels differ"
    assert abs(other - first).max() > 50, "another seed makes another image"


def test_batches_do_not_matter(cli: Cli, model: Path, tmp_path: Path) -> None:
    """Every image keeps its own seed and class, wherever a batch ends."""
    words = ("--model", model, "--nfe", 4, "--n", 7, "--seed", 4, "--classes", "8,0,5")
    sampled(cli, tmp_path / "whole", *words)
    sampled(cli, tmp_path / "parts", *words, "--batch-size", 4)
    for name in files(tmp_path / "whole")[:7]:
        worst = abs(pixels(tmp_path / "whole" / name) - pixels(tmp_path / "parts" / name)).max()
        assert worst <= 1, f"{name}: max|a-b| = {worst}"

    loaded, seeds = load_model(model), range(4, 11)
    grid, labels = UniformTime()(loaded.denoiser.schedule, 4), conditions(loaded, seeds)
    whole, parts = (draw(loaded, "ddim", grid, seeds, labels=labels, batch_size=size).images for size in (7, 4))
    assert float((whole - parts).abs().max()) < 1e-4


def test_the_same_command_makes_the_same_bytes(cli: Cli, model: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        sampled(cli, tmp_path / folder, "--model", model, "--n", 3, "--nfe", 3, "--grid", "uniform_lam")
    for name in files(tmp_path / "a"):
        if name.endswith(".png"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_classes_are_walked_through(cli: Cli, model: Path, tmp_path: Path) -> None:
    walked = sampled(cli, tmp_path / "walk", "--model", model, "--n", 5, "--nfe", 4, "--classes", "3,1")
    assert walked["classes"] == [3, 1, 3, 1, 3]
    zeros = sampled(cli, tmp_path / "zeros", "--model", model, "--n", 5, "--nfe", 4, "--classes", "0")
    assert zeros["classes"] == [0] * 5
    difference = [
        abs(pixels(tmp_path / "walk" / f"{k:06d}.png") - pixels(tmp_path / "zeros" / f"{k:06d}.png")) for k in range(5)
    ]
    assert min(image.max() for image in difference) > 20, "the network is told the class"


def test_a_model_without_classes(cli: Cli, unconditional: Path, tmp_path: Path) -> None:
    facts = sampled(cli, tmp_path, "--model", unconditional, "--n", 2, "--nfe", 2)
    assert facts["classes"] is None
    assert files(tmp_path) == ["000000.png", "000001.png", "grid.png", "sample.json"]


def test_the_grid_is_the_one_that_was_asked_for(cli: Cli, model: Path, tmp_path: Path) -> None:
    """Its name and both ends: the picture is the one that the spacing itself gives."""
    loaded = load_model(model)
    words = ("--model", model, "--n", 1, "--nfe", 4, "--solver", "ddim", "--grid")
    chosen = {
        ("karras",): Karras(kappa_max=80, kappa_min=0.002),
        ("karras", "--kappa-max", 5, "--kappa-min", 0.1): Karras(kappa_max=5, kappa_min=0.1),
        ("uniform_lam",): UniformLam(lam_min=-math.log(80), lam_max=-math.log(0.002)),
        ("uniform_time",): UniformTime(),
    }
    made = []
    for options, spacing in chosen.items():
        folder = tmp_path / str(len(made))
        sampled(cli, folder, *words, *options)
        made.append(pixels(folder / "000000.png"))
        grid = spacing(loaded.denoiser.schedule, 4)
        x = start_noise(grid, loaded.shape, [0])
        image = sample(loaded.denoiser, DDIM(), grid, x, cond={"label": torch.tensor([0])}).x
        worst = abs(made[-1] - to_uint8(image)[0, 0].numpy().astype(int)).max()
        assert worst <= 1, f"{options}: max|a-b| = {worst}"
    assert min(abs(a - b).max() for a, b in itertools.combinations(made, 2)) > 1, "the four grids can be told apart"


def test_a_folder_may_have_any_name(cli: Cli, model: Path, tmp_path: Path) -> None:
    """Names are printed as they are: brackets are no markup."""
    folder = tmp_path / "[old]" / "[/]"
    ran = cli("sample", "--model", model, "--n", 1, "--nfe", 1, "--out", folder)
    assert ran.code == 0, ran.err
    assert str(folder) in ran.out
    assert files(folder) == ["000000.png", "grid.png", "sample.json"]
