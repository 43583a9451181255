"""The shipped judge: whole, honest about itself, and the same as what MNIST says where MNIST is at hand."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.errors import CheckpointError, ShapeError, UnknownName
from fewstep.metrics import JUDGES, Moments, frechet_distance, image_moments, judge_images, load_judge, save_judge

ROOT = Path(__file__).resolve().parents[2]
MNIST = ROOT.parent / "shared" / "data" / "mnist"
FOLDER = JUDGES["mnist-judge"]

needs_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST as parquet is not at {MNIST}")


@pytest.fixture(scope="module")
def judge():
    return load_judge("mnist-judge")


@pytest.fixture(scope="module")
def mnist():
    from fewstep.data import parquet

    return parquet(MNIST / "test-00000-of-00001.parquet", split="test")


def digits_like(n, seed=0):
    """Blurred noise: no digits, but images of the right shape."""
    noise = torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 5, 1, 2).clamp(-1, 1)


def test_it_loads_without_mnist_and_knows_itself(judge):
    card = (FOLDER / "README.md").read_text()
    assert judge.features.name in card
    assert f"{judge.facts['accuracy']:.2%} on MNIST test" in card
    assert (judge.facts["data"], judge.facts["split"]) == ("MNIST", "test")
    assert judge.facts["accuracy"] >= 0.992
    for name, value in judge.facts["floors"].items():
        assert f"| {name} | {value:g} |" in card
    for part in ("CC BY-SA 3.0", "not FID", judge.facts["machine"], judge.facts["date"]):
        assert part in card


def test_its_statistics_are_a_covariance_of_the_test_split(judge):
    assert judge.reference.n == judge.facts["n"] == 10_000
    assert judge.reference.dim == judge.features.dim == 64
    assert judge.reference.cov.dtype == torch.float64
    assert float(torch.linalg.eigvalsh(judge.reference.cov)[0]) > 0
    assert frechet_distance(judge.reference, judge.reference) < 1e-12


def test_the_files_are_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1.3e6
    assert {file.name for file in FOLDER.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "rows.safetensors",
        "statistics.safetensors",
    }


def test_what_is_no_digit_is_far_away(judge):
    assert judge.distance(digits_like(300)) > 50 * max(judge.facts["floors"].values())


def test_distance_takes_images_or_their_moments(judge):
    x = digits_like(50)
    first, second = judge_images(judge, x[:20]), judge_images(judge, x[20:], batch_size=7)
    assert judge.distance(first.merge(second)) == pytest.approx(judge.distance(x), rel=1e-5)


def test_it_rounds_to_8_bits(judge):
    x = digits_like(20)
    stored = ((x + 1) * 127.5).round().to(torch.uint8).to(torch.float32) / 127.5 - 1
    assert judge.distance(x) == judge.distance(stored)


def test_the_line_names_features_split_and_counts(judge):
    line = judge.describe(5000)
    for part in (judge.features.name, "64-d", "5000", "test split of MNIST", "10000"):
        assert part in line
    assert re.search(r"mnist-judge@[0-9a-f]{12}", line)


def test_round_trip(judge, tmp_path):
    save_judge(tmp_path, judge)
    again = load_judge(tmp_path)
    assert again.features.name == judge.features.name
    # Dividing by n - 1 again may move the last bit, and with it the fingerprint of the statistics.
    assert {**again.facts, "statistics": ""} == {**judge.facts, "statistics": ""}
    x = digits_like(30)
    assert again.distance(x) == pytest.approx(judge.distance(x), rel=1e-12)


def test_a_judge_that_lost_its_vectors_can_be_saved(judge, tmp_path):
    save_judge(tmp_path, replace(judge, kept=None))
    again = load_judge(tmp_path)
    assert again.kept is None
    assert "rows" not in again.facts


def test_bad_input(judge, tmp_path):
    with pytest.raises(UnknownName, match="mnist-judge"):
        load_judge("mnist-juge")
    with pytest.raises(UnknownName):
        load_judge(tmp_path / "nowhere")
    with pytest.raises(CheckpointError):
        load_judge(tmp_path)
    for images in (torch.zeros(2, 3, 28, 28), torch.zeros(2, 1, 32, 32), torch.zeros(28, 28)):
        with pytest.raises(ShapeError):
            judge.distance(images)


def test_statistics_of_something_else_are_refused(judge, tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "other").mkdir()
    other = Moments(torch.randn(100, 64, generator=torch.Generator().manual_seed(0)))
    save_judge(tmp_path / "other", type(judge)(judge.features, other, judge.facts))
    shutil.copy(tmp_path / "other" / "statistics.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match="statistics"):
        load_judge(tmp_path)
    (tmp_path / "statistics.safetensors").write_bytes(b"\x80 no tensors")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_judge(tmp_path)


@needs_mnist
def test_the_accuracy_is_what_the_card_says(judge, mnist):
    from fewstep.data import ImageData
    from fewstep.training.classifier import accuracy

    chosen = torch.arange(0, 10_000, 5)
    some = ImageData(mnist.images[chosen], mnist.labels[chosen], mnist.classes, "some of MNIST test")
    measured, stated = accuracy(judge.features.network, some), judge.facts["accuracy"]
    error = (stated * (1 - stated) / len(some)) ** 0.5
    print(f"accuracy on {len(some)} images {measured:.4f}, card {stated:.4f}")
    assert abs(measured - stated) < 4 * error


@needs_mnist
def test_the_statistics_are_those_of_the_test_split(judge, mnist):
    # Every fifth image: its mean lies within four standard errors of the stored one in (nearly) all directions,
    # its distance to the reference near that of random real images, and far below that of slightly noisy ones.
    some = mnist.images[::5].to(torch.float32) / 127.5 - 1
    moments = image_moments(judge.features, some)
    scale = (judge.reference.cov.diagonal() / len(some)).sqrt()
    z = (moments.mean - judge.reference.mean) / scale
    distance = judge.distance(moments)
    print(f"largest z {float(z.abs().max()):.2f}, distance of 2,000 real images {distance:.3f}")
    assert float(z.abs().max()) < 4.5
    assert distance < 4 * judge.facts["floors"]["random half of the test split against the other"]
    noisy = some + torch.randn(some.shape, generator=torch.Generator().manual_seed(0)) * 10 / 255
    assert judge.distance(noisy) > 2 * distance


@pytest.mark.slow
@needs_mnist
def test_the_statistics_can_be_made_again(judge, mnist):
    moments = image_moments(judge.features, mnist.images.to(torch.float32) / 127.5 - 1)
    assert moments.n == judge.reference.n
    assert float((moments.mean - judge.reference.mean).abs().max()) < 1e-4
    assert float((moments.cov - judge.reference.cov).abs().max()) < 1e-3
    assert frechet_distance(moments, judge.reference) < 1e-6
