"""Every example runs in its smoke mode, and what it claims to show is there to be measured."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from fewstep.data import digits, to_uint8, to_unit
from fewstep.metrics import load_judge
from fewstep.models import load_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def smoke(name: str, folder: Path, *words: str) -> str:
    """Run an example in a folder of its own; returns what it printed."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), "--smoke", *words]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tiles(path: Path, side: int, scale: int) -> torch.Tensor:
    """Cut a picture of `save_picture` into its grey tiles, uint8, shape (rows, columns, side, side)."""
    with Image.open(path) as picture:
        canvas = numpy.asarray(picture)[::scale, ::scale, 0]
    rows, columns = ((length + 1) // (side + 1) for length in canvas.shape)
    assert canvas.shape == (rows * (side + 1) - 1, columns * (side + 1) - 1)
    cut = [
        [torch.tensor(canvas[y * (side + 1) :, x * (side + 1) :][:side, :side]) for x in range(columns)]
        for y in range(rows)
    ]
    return torch.stack([torch.stack(row) for row in cut])


def test_all_are_tested_short_and_listed() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    tested = set(re.findall(r'smoke\("(\w+\.py)"', Path(__file__).read_text(encoding="utf-8")))
    listed = set(re.findall(r"`(\w+\.py)`", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert scripts == tested == listed
    lengths = {name: len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) for name in scripts}
    assert max(lengths.values()) <= 60, lengths


def test_sample_bundled(tmp_path: Path) -> None:
    """The judge reads in the picture the digits that were asked for; by chance it would read two of twenty."""
    printed = smoke("sample_bundled.py", tmp_path)
    assert f"20 digits in digits.png: 10 steps, NFE 10, weights {load_model('mnist').fingerprint}" in printed
    images = to_unit(tiles(tmp_path / "digits.png", 28, 2).flatten(0, 1)[:, None])
    classifier = load_judge("mnist-judge").features.network
    with torch.no_grad():
        read = classifier(images).argmax(1)
    right = int((read == torch.arange(10).repeat_interleave(2)).sum())
    assert right >= 17, f"{right} of 20 digits are what they should be: {read.tolist()}"


def test_edit_bundled(tmp_path: Path) -> None:
    """Little strength leaves the digit, much changes it; known halves stay; the noise that was found gives it back."""
    printed = smoke("edit_bundled.py", tmp_path)
    assert "strength 0.3: 6 of 20 steps, NFE 6\n" in printed
    pixels = tiles(tmp_path / "edits.png", 28, 2)
    images = to_unit(pixels.flatten(0, 1)[:, None]).reshape(9, 10, 1, 28, 28)
    classifier = load_judge("mnist-judge").features.network
    with torch.no_grad():
        read = torch.stack([classifier(row).argmax(1) for row in images])
    digit = torch.arange(10)
    for row, label in ((0, digit), (1, digit), (3, (digit + 1) % 10), (8, digit)):
        right = int((read[row] == label).sum())
        assert right >= 9, f"row {row}: {read[row].tolist()}"
    known = (images[5:7] - images[0])[..., :14].abs().max()
    assert known < 0.15, "a grid that ends at kappa 0.02 leaves five deviations of it, and two roundings to 8 bits"
    (plain, few), (found, many) = re.findall(r"inversion, \d+ iterations: NFE (\d+), largest error ([\d.]+)", printed)
    assert (int(plain), int(found)) == (20, 80)
    assert float(many) < 0.25 * float(few)


def test_own_denoiser(tmp_path: Path) -> None:
    """Errors fall with the calls, no slower than the order of each solver lets expect, and the points are on a ring."""
    printed = smoke("own_denoiser.py", tmp_path)
    found = re.findall(r"(\w+) +NFE +(\d+): error ([\d.]+), distance from the ring ([\d.]+)", printed)
    error = {(solver, int(nfe)): float(value) for solver, nfe, value, _ in found}
    assert list(error) == [("Heun", 128), *((s, n) for s in ("DDIM", "DPMpp2M", "EVODiff") for n in (4, 8, 16))]
    assert error["DDIM", 4] > 1.5 * error["DDIM", 8] > 2.25 * error["DDIM", 16] > 0
    for solver in ("DPMpp2M", "EVODiff"):
        assert error[solver, 16] < 0.5 * error["DDIM", 16]
    ring = {(solver, int(nfe)): float(value) for solver, nfe, _, value in found}
    # A standard normal point of the plane is 0.51 from the ring, on average.
    assert ring["Heun", 128] < 0.2


def test_diffusers_pipeline(tmp_path: Path) -> None:
    """Pipeline and core make the same pictures; the fitted solver is the nearest to 100 steps at every number."""
    printed = smoke("diffusers_pipeline.py", tmp_path)
    (gap,) = re.findall(r"NFE 8: differ by at most (\S+)", printed)
    assert float(gap) < 1e-6
    found = re.findall(r"(\w+) +error after \[5, 8, 10\] steps: ([\d.]+), ([\d.]+), ([\d.]+)", printed)
    error = {scheduler: [*map(float, errors)] for scheduler, *errors in found}
    assert list(error) == ["DDIMScheduler", "EVODiffScheduler", "CalibratedScheduler"]
    for stock, evodiff, calibrated in zip(*error.values(), strict=True):
        assert calibrated < 0.6 * evodiff < 0.6 * stock, error
    # More of it would be all that is left: pictures of such a network are no flat grey.
    assert error["DDIMScheduler"][0] > 0.05


def test_through_the_sampler(tmp_path: Path) -> None:
    """The completion is the most probable one: the lower half is predicted as well as linear regression predicts it."""
    printed = smoke("through_the_sampler.py", tmp_path)
    (difference,) = re.findall(r"differ by at most (\S+)", printed)
    assert float(difference) < 1e-12
    upper, lower = (tuple(map(float, pair)) for pair in re.findall(r"error ([\d.]+) before, ([\d.]+) after", printed))
    assert upper[1] < 0.3 * upper[0]

    zeros = to_unit(digits().images[digits().labels == 0]).double().flatten(1)
    real, known = zeros[:8], zeros[8:]
    mean, cov = known.mean(0), known.T.cov()
    # A weight of 0.1 / 64 on the noise against 1 / 32 on the misfit stands for a misfit of variance 0.05.
    gain = cov[32:, :32] @ torch.linalg.inv(cov[:32, :32] + 0.05 * torch.eye(32))
    regressed = mean[32:] + (real[:, :32] - mean[:32]) @ gain.T
    expected = float((regressed - real[:, 32:]).square().mean().sqrt())
    assert abs(lower[1] - expected) < 0.02, f"{lower[1]} is not the {expected:.3f} of a regression"
    assert lower[1] < 0.7 * lower[0]

    shown = tiles(tmp_path / "halves.png", 8, 8)
    assert len(shown) == 4
    assert torch.equal(shown[0].flatten(1), to_uint8(real.float()))
    assert int(shown[1][:, 4:].max()) == 0
    assert float((to_unit(shown[3]) - to_unit(shown[0]))[:, :4].square().mean().sqrt()) == pytest.approx(
        upper[1], abs=0.02
    )


def test_train_on_folder(tmp_path: Path) -> None:
    """Of the classes' samples, each is nearer to the mean picture of its own class than to that of the other."""
    printed = smoke("train_on_folder.py", tmp_path, "--out", "run")
    losses = [float(value) for value in re.findall(r"step \d+: loss ([\d.]+)", printed)]
    assert len(losses) == 10
    assert losses[-1] < 0.3 * losses[0], losses
    model = load_model(tmp_path / "run")
    assert (model.config.classes, model.shape) == (("ones", "zeros"), (3, 8, 8))
    assert model.config.facts["steps"] == 60
    assert "80 pictures, classes ('ones', 'zeros'); NFE 10" in printed

    data = digits()
    means = torch.stack([to_unit(data.images[data.labels == label]).mean(0) for label in (1, 0)])
    samples = to_unit(tiles(tmp_path / "run" / "grid.png", 8, 2)).flatten(0, 1)
    nearest = (samples[:, None] - means[None, :, 0]).square().mean((2, 3)).argmin(1)
    right = int((nearest == torch.arange(64) % 2).sum())
    assert right >= 48, f"{right} of 64 samples look like their class"


def test_end_to_end(tmp_path: Path) -> None:
    """The chain is the sampler, bit for bit; the score falls, and digits are nearest to the mean of their own class."""
    printed = smoke("end_to_end.py", tmp_path)
    assert "NFE 2; chain and sampler differ by at most 0.0\n" in printed
    scores = [float(value) for value in re.findall(r"energy score ([\d.]+), rho [\d.]+", printed)]
    assert len(scores) == 10
    assert sum(scores[-3:]) < 0.85 * sum(scores[:3]), scores

    data = digits()
    means = torch.stack([to_unit(data.images[data.labels == label]).mean(0) for label in range(10)])
    drawn = to_unit(tiles(tmp_path / "end_to_end.png", 8, 4).flatten(0, 1))
    nearest = (drawn[:, None] - means[None, :, 0]).square().mean((2, 3)).argmin(1)
    right = int((nearest == torch.arange(10).repeat_interleave(8)).sum())
    # By chance, 8 of them would be.
    assert right >= 20, f"{right} of 80 digits are nearest to the mean of their class"
