"""`fewstep compare`: a cell for every solver and budget, measured against one fine solution."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest

from cli.conftest import random_features
from cli.running import Cli, files, pixels
from fewstep.data import digits, to_uint8, to_unit
from fewstep.experiments.runs import GridChoice, conditions, draw
from fewstep.metrics import frechet_distance, image_moments
from fewstep.models import load_model
from fewstep.solvers import DDIM, SOLVERS, Heun

N, SEED = 12, 3
SOME = ("--n", N, "--seed", SEED)


def compared(cli: Cli, folder: Path, *words: object) -> dict[str, object]:
    ran = cli("compare", *SOME, "--out", folder, *words)
    assert ran.code == 0, ran.err
    report: dict[str, object] = json.loads((folder / "compare.json").read_text())
    for cell in report["cells"]:
        assert f"{cell['rmse']:.4f}" in ran.out, f"the printed table lacks {cell}"
    return report


def test_every_solver_at_every_budget(cli: Cli, model: Path, tmp_path: Path) -> None:
    report = compared(cli, tmp_path, "--model", model, "--nfe", "5,6", "--solvers", ",".join(SOLVERS))
    assert files(tmp_path) == ["compare.json", "quality.png", "sheet.png"]
    cells = report["cells"]
    assert [cell["solver"] for cell in cells] == [solver for solver in SOLVERS for _ in range(2)]
    counts = {solver: [(c["steps"], c["nfe"]) for c in cells if c["solver"] == solver] for solver in SOLVERS}
    expected = {solver: [(5, 5), (6, 6)] for solver in SOLVERS}
    expected |= {"heun": [(2, 4), (3, 6)], "evodiff_paper": [(4, 5), (5, 6)]}
    assert counts == expected
    assert all(cell["network_evals"] == cell["nfe"] for cell in cells)
    assert all(cell["rmse"] > 0 and cell["seconds"] > 0 and cell["distance"] is None for cell in cells)


def test_errors_are_those_to_the_fine_solution(cli: Cli, model: Path, tmp_path: Path) -> None:
    """Drawn again here, by hand; and Heun on the grid of the reference is the reference."""
    words = ("--model", model, "--solvers", "ddim,heun", "--nfe", "4,16,128", "--guidance", 2)
    report = compared(cli, tmp_path, *words)
    cells = {(cell["solver"], cell["nfe"]): cell for cell in report["cells"]}
    reference = report["reference"]
    assert (reference["solver"], reference["nfe"], reference["network_evals"]) == ("heun", 128, 256)
    assert cells["heun", 128]["rmse"] < 1e-6
    assert cells["heun", 128]["contrast_gain"] == pytest.approx(1, abs=1e-6)
    assert cells["ddim", 4]["network_evals"] == 8, "guidance is two evaluations a call"

    loaded, seeds = load_model(model), range(SEED, SEED + N)
    options = {"labels": conditions(loaded, seeds), "guidance": 2.0}
    schedule = loaded.denoiser.schedule
    spacing = GridChoice().rule(schedule)
    fine = draw(loaded, Heun(), spacing(schedule, 64), seeds, **options).images
    coarse = draw(loaded, DDIM(), spacing(schedule, 4), seeds, **options).images
    assert cells["ddim", 4]["rmse"] == pytest.approx(float((coarse - fine).square().mean().sqrt()), abs=1e-5)
    ddim = [cells["ddim", nfe]["rmse"] for nfe in (4, 16, 128)]
    assert ddim[0] > 2 * ddim[1] > 4 * ddim[2], f"DDIM converges to the reference: {ddim}"


def test_distances_come_from_the_models_own_judge(cli: Cli, judged: Path, tmp_path: Path) -> None:
    report = compared(cli, tmp_path, "--model", judged, "--solvers", "ddim,evodiff", "--nfe", "3")
    assert report["measure"].startswith("Fréchet distance in the features random@")
    loaded, seeds = load_model(judged), range(SEED, SEED + N)
    schedule = loaded.denoiser.schedule
    grid = GridChoice().rule(schedule)(schedule, 3)
    images = draw(loaded, DDIM(), grid, seeds, labels=conditions(loaded, seeds)).images
    features = random_features()
    real = image_moments(features, to_unit(digits().images))
    expected = frechet_distance(image_moments(features, images), real)
    assert report["cells"][0]["distance"] == pytest.approx(expected, rel=1e-4)
    assert report["reference"]["distance"] > 0
    for cell in report["cells"]:
        assert cell["quality"]["fd"]["value"] == cell["distance"]
        assert cell["quality"]["fd"]["low"] < cell["distance"] < cell["quality"]["fd"]["high"]
        assert f"solver {cell['solver']}" in cell["lines"][0]
        assert "in random@" in cell["lines"][0]


def held(sheet: numpy.ndarray, picture: numpy.ndarray) -> int:
    """How often a picture stands in a sheet, pixel for pixel."""
    height, width = picture.shape[:2]
    windows = numpy.lib.stride_tricks.sliding_window_view(sheet[..., 0], (height, width))
    return int((windows == picture).all((-1, -2)).sum())


def test_the_pictures_show_what_was_drawn(cli: Cli, model: Path, tmp_path: Path) -> None:
    words = ("--model", model, "--solvers", "ddim,evodiff", "--nfe", "2,4")
    compared(cli, tmp_path, *words)
    loaded, seeds = load_model(model), range(SEED, SEED + N)
    schedule = loaded.denoiser.schedule
    spacing, labels = GridChoice().rule(schedule), conditions(loaded, seeds)
    sheet = pixels(tmp_path / "sheet.png")
    for rule, steps, times in ((DDIM(), 2, 1), (DDIM(), 4, 1), (SOLVERS["evodiff"](), 4, 1), (Heun(), 64, 2)):
        images = to_uint8(draw(loaded, rule, spacing(schedule, steps), seeds, labels=labels).images)
        for k, image in enumerate(images[:, 0].numpy()):
            found, expected = held(sheet, image), times if k < 10 else 0
            assert found == expected, (
                f"image {k} of {rule}, {steps} steps, is {found} times in sheet.png, not {expected}"
            )
    curves = pixels(tmp_path / "quality.png")[..., :3].reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):
        assert (abs(curves - colour).max(1) == 0).sum() > 100, f"no line of the colour {colour} in quality.png"


def test_nothing_is_sampled_before_everything_is_checked(cli: Cli, model: Path, tmp_path: Path) -> None:
    """A budget that one of the solvers cannot meet, or a grid that it cannot run, is known at once."""
    for words, name in ((("--nfe", "10,2"), "evodiff_paper at 2 calls"), (("--grid", "uniform_time"), "paper variant")):
        ran = cli("compare", "--model", model, "--n", 100000, "--out", tmp_path / "out", *words)
        assert ran.code == 2
        assert name in ran.parts[1]
        assert not (tmp_path / "out").exists()
