"""`fewstep sample` and `fewstep evaluate` on a few-step model: its chain by default, and said everywhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cli.running import Cli, pixels, refuses
from cli.test_sample import sampled
from fewstep._files import read_json, write_json
from fewstep.data import to_uint8
from fewstep.models import load_model
from fewstep.noise import UniformFlow
from fewstep.sampling import sample, start_noise
from fewstep.solvers import DDIM

Make = Callable[..., Path]


@pytest.fixture
def chained(model: Path, tmp_path: Path) -> Make:
    """The model with a chain in its configuration."""

    def make(**chain: object) -> Path:
        folder = shutil.copytree(model, tmp_path / "chained")
        write_json(folder / "config.json", {**read_json(folder / "config.json"), "chain": chain})
        return folder

    return make


@pytest.mark.parametrize(("words", "steps"), [((), 4), (("--steps", 2), 2), (("--steps", 1), 1)])
def test_the_chain_is_sampled(cli: Cli, chained: Make, tmp_path: Path, words: tuple[object, ...], steps: int) -> None:
    folder = chained(steps=[1, 2, 4])
    facts = sampled(cli, tmp_path / "out", "--model", folder, "--n", 1, *words)
    assert (facts["solver"], facts["grid"]) == ("ddim", f"uniform_flow, {steps} steps (chain)")
    assert (facts["steps"], facts["nfe"], facts["network_evals"]) == (steps, steps, steps)
    loaded = load_model(folder)
    grid = UniformFlow()(loaded.denoiser.schedule, steps)
    x = start_noise(grid, loaded.shape, [0])
    image = sample(loaded.denoiser, DDIM(), grid, x, cond={"label": torch.tensor([0])}).x
    worst = abs(pixels(tmp_path / "out" / "000000.png") - to_uint8(image)[0, 0].numpy().astype(int)).max()
    assert worst == 0, f"max|a-b| = {worst}"


ORDINARY: dict[str, tuple[tuple[object, ...], str, str]] = {
    "calls": (("--nfe", 3), "evodiff", "karras, kappa 80 to 0.002, 3 steps"),
    "solver": (("--solver", "heun", "--steps", 3), "heun", "karras, kappa 80 to 0.002, 3 steps"),
    "grid": (("--grid", "uniform_flow"), "evodiff", "uniform_flow, 10 steps"),
    "range": (("--kappa-max", 5, "--steps", 2), "evodiff", "karras, kappa 5 to 0.002, 2 steps"),
}


@pytest.mark.parametrize(("words", "solver", "grid"), ORDINARY.values(), ids=ORDINARY)
def test_ordinary_sampling_on_request(
    cli: Cli, chained: Make, tmp_path: Path, words: tuple[object, ...], solver: str, grid: str
) -> None:
    facts = sampled(cli, tmp_path / "out", "--model", chained(steps=[1]), "--n", 1, *words)
    assert (facts["solver"], facts["grid"]) == (solver, grid)


def test_steps_of_an_ordinary_model(cli: Cli, model: Path, tmp_path: Path) -> None:
    facts = sampled(cli, tmp_path / "out", "--model", model, "--n", 1, "--steps", 3, "--solver", "heun")
    assert (facts["steps"], facts["nfe"]) == (3, 6)


def test_a_leaky_chain_is_labelled(cli: Cli, chained: Make, tmp_path: Path) -> None:
    spacing = {"name": "uniform_lam", "arguments": {"lam_min": -2.0}}
    ran = cli("sample", "--model", chained(spacing=spacing, leaky=True), "--n", 1, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "leaky start: reads data" in ran.out
    assert "leaky start: reads data" in read_json(tmp_path / "out" / "sample.json")["grid"]


def test_an_evaluation_names_the_chain(cli: Cli, chained: Make, tmp_path: Path) -> None:
    words = (chained(steps=[1, 2]), "--reference", "digits", "--features", "random-conv", "--n", 70, "--metrics", "fd")
    ran = cli("evaluate", *words, "--steps", 2, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    making = read_json(tmp_path / "out" / "results.json")["results"][0]["protocol"]["making"]
    assert (making["solver"], making["grid"], making["nfe"]) == ("ddim", "uniform_flow, 2 steps (chain)", 2)


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_steps_that_are_refused(cli: Cli, chained: Make, tmp_path: Path, command: str) -> None:
    folder, out = chained(steps=[1, 2]), tmp_path / "out"
    words = ("sample", "--model", folder) if command == "sample" else ("evaluate", folder, "--reference", "digits")
    for more, given, hint in (
        (("--steps", 3), "3 steps of a chain", "name a solver"),
        (("--steps", 2, "--nfe", 2), "nfe=2 and steps=2", "Leave one out"),
    ):
        refuses(cli(*words, *more, "--out", out), "ConfigError", given, hint)
        assert not out.exists()
