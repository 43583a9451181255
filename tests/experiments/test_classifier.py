"""Training small classifiers, and the judge's experiment in miniature."""

from __future__ import annotations

import dataclasses
import io

import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from fewstep.data import ImageData, digits
from fewstep.errors import ConfigError, DataError, NonFiniteError
from fewstep.experiments import mnist_judge
from fewstep.metrics import load_judge
from fewstep.training import classifier as training
from fewstep.training.classifier import (
    ClassifierConfig,
    accuracy,
    classifier_steps,
    new_classifier,
    train_classifier,
)

QUICK = ClassifierConfig(width=8, dim=16, epochs=1, batch_size=50, max_shift=1, bf16=False)


def part(data, where, name="part"):
    return ImageData(data.images[where], data.labels[where], data.classes, name)


@pytest.fixture(scope="module")
def data():
    return digits()


def test_it_learns_real_digits(data):
    train, test = part(data, slice(0, 1400)), part(data, slice(1400, None))
    network = train_classifier(train, dataclasses.replace(QUICK, epochs=8, max_shift=0))
    right = accuracy(network, test)
    print(f"accuracy on {len(test)} digits it has not seen: {right:.3f}")
    assert right > 0.9
    assert not network.training


def test_a_seed_fixes_everything_and_the_global_state_stays(data):
    few = part(data, slice(0, 200))
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = train_classifier(few, QUICK)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    second, other = train_classifier(few, QUICK), train_classifier(few, dataclasses.replace(QUICK, seed=1))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert float((first.hidden.weight - other.hidden.weight).detach().abs().max()) > 1e-3


def test_every_step_is_reported(data):
    few = part(data, slice(0, 170))
    reports = list(classifier_steps(new_classifier(few, QUICK), few, dataclasses.replace(QUICK, epochs=2)))
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert {report.steps for report in reports} == {6}
    # With fresh weights, cross-entropy is near log(10).
    assert reports[0].loss == pytest.approx(2.30, abs=0.5)


def test_a_shift_moves_whole_images_into_the_dark():
    x = torch.rand(40, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    moved = training._shift(x, 2, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), value=-1.0)
    windows = [padded[:, :, i : i + 6, j : j + 7] for i in range(5) for j in range(5)]
    hits = torch.stack([(moved == window).flatten(1).all(1) for window in windows])
    assert bool((hits.sum(0) == 1).all())
    assert int(hits.any(1).sum()) > 12  # many of the 25 shifts occur among 40 images
    assert training._shift(x, 0, torch.Generator()) is x


def test_bad_input(data):
    unlabelled = ImageData(data.images, None, (), "nameless")
    with pytest.raises(DataError, match="nameless has no labels"):
        train_classifier(unlabelled, QUICK)
    with pytest.raises(DataError, match="10 images for batches of 50"):
        train_classifier(part(data, slice(0, 10)), QUICK)
    for wrong in ({"epochs": 0}, {"lr": -1.0}, {"lr": float("nan")}, {"batch_size": 0}, {"max_shift": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ClassifierConfig(**wrong)
    network = new_classifier(data, QUICK)
    with torch.no_grad():
        network.logits.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="step 1"):
        next(classifier_steps(network, data, QUICK))


def write_parquet(path, data):
    """Write images as MNIST comes: PNG bytes in a column `image`, numbers in a column `label`."""
    rows = []
    for picture in data.images[:, 0].numpy():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    parquet.write_table(pyarrow.table({"image": rows, "label": data.labels.tolist()}), path)


def test_the_judge_is_made_from_two_files_on_the_command_line(data, tmp_path, capsys):
    train, test = part(data, slice(0, 300)), part(data, slice(300, 500))
    write_parquet(tmp_path / "train.parquet", train)
    write_parquet(tmp_path / "test.parquet", test)
    files = ["--train", str(tmp_path / "train.parquet"), "--test", str(tmp_path / "test.parquet")]
    mnist_judge.main([*files, "--out", str(tmp_path / "judge"), "--seed", "3"])
    judge, card = load_judge(tmp_path / "judge"), (tmp_path / "judge" / "README.md").read_text()
    assert (judge.facts["n"], judge.facts["floor_n"], judge.facts["training"]["seed"]) == (200, 100, 3)
    assert judge.facts["accuracy"] == accuracy(judge.features.network, test)
    assert set(judge.facts["damages"]) >= {"3x3 binomial blur", "every image replaced by the mean of its class"}
    assert judge.features.name in card
    assert f"accuracy {judge.facts['accuracy']:.2%}" in capsys.readouterr().out
    # The reference is the test split: its own distance to it is zero but for the order of float32 sums.
    assert judge.distance(test.images.to(torch.float32) / 127.5 - 1) < 1e-6
