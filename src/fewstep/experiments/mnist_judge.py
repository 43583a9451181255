"""Train the MNIST judge that ships with fewstep, measure it, and write its folder and card.

    python -m fewstep.experiments.mnist_judge --train train.parquet --test test.parquet --out mnist-judge
    python -m fewstep.experiments.mnist_judge --rows --test test.parquet --out mnist-judge

The second line only writes the kept vectors of the reference anew, for the classifier that is there.

The classifier learns from the train split. The reference is the test split, which it has never seen: features of images
it knows by heart are sharper than those of new ones. One core takes about two minutes; on Linux, setting
MALLOC_TRIM_THRESHOLD_=4000000000 and MALLOC_MMAP_THRESHOLD_=1000000000 before keeps the allocator from slowing it down.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep._files import write_atomic, write_folder_atomic
from fewstep.data import ImageData, parquet, to_unit
from fewstep.errors import DataError
from fewstep.features import ClassifierFeatures
from fewstep.metrics import FeatureSet, Judge, Moments, frechet_distance, image_moments, load_judge, save_judge
from fewstep.metrics.reference_set import content_hash
from fewstep.networks.classifier import SmallClassifier
from fewstep.training.classifier import ClassifierConfig, accuracy, classifier_steps, new_classifier

__all__ = ["keep_rows", "main", "make_judge", "measure"]

_FLOOR_N = 5000
_KEPT = 5000


def measure(features: ClassifierFeatures, train: ImageData, test: ImageData) -> tuple[Moments, dict[str, Any]]:
    """Compute the reference moments, the distances between real images, and those of known damages.

    Args:
        features: the classifier's features.
        train: the split it was trained on.
        test: the reference split.

    Returns:
        Moments of the test split; a dict with "floors" (real against real) and "damages" (5,000 test images after
        something was done to them, against the other test images).
    """
    order = torch.Generator().manual_seed(0)
    x = to_unit(test.images)
    reference = image_moments(features, x)
    n = min(_FLOOR_N, len(x) // 2, len(train))
    seen = to_unit(train.images[torch.randperm(len(train), generator=order)[:n]])
    shuffled = torch.randperm(len(x), generator=order)
    some, others = x[shuffled[:n]], image_moments(features, x[shuffled[n:]])

    def real(a: Tensor, b: Tensor) -> float:
        return frechet_distance(image_moments(features, a), image_moments(features, b))

    floors = {
        f"{n:,} train images against the test split": frechet_distance(image_moments(features, seen), reference),
        "first half of the test split against the second": real(x[: len(x) // 2], x[len(x) // 2 :]),
        "random half of the test split against the other": frechet_distance(image_moments(features, some), others),
    }
    damages = {
        name: frechet_distance(image_moments(features, damaged), others)
        for name, damaged in _damages(x, test.labels, shuffled[:n]).items()
    }
    return reference, {"floor_n": n, "floors": _rounded(floors), "damages": _rounded(damages)}


def make_judge(train: ImageData, test: ImageData, config: ClassifierConfig) -> Judge:
    """Train a classifier on one split and make it a judge whose reference is the other one.

    Args:
        train: labelled images to learn from.
        test: labelled images of the same shape and classes, for the accuracy and the reference.
        config: how to train.

    Returns:
        The judge, with all facts of its card.

    Raises:
        DataError: if a split has no labels.
    """
    began = time.perf_counter()
    network = new_classifier(train, config)
    _train(network, train, config)
    seconds = time.perf_counter() - began
    features = ClassifierFeatures(network, "mnist-judge", train.shape[1:])
    reference, distances = measure(features, train, test)
    facts = {
        "data": "MNIST",
        "split": "test",
        "n": reference.n,
        "accuracy": accuracy(network, test),
        "training": {**vars(config), "n": len(train), "seconds": round(seconds)},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "machine": f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} thread used",
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        **distances,
    }
    return keep_rows(Judge(features, reference, facts), test)


def keep_rows(judge: Judge, test: ImageData) -> Judge:
    """Give a judge vectors of its reference, for metrics that look at single images or classes.

    Args:
        judge: its moments are those of `test`.
        test: the reference split, labelled.

    Returns:
        The judge with the vectors of 5,000 images, a random sample, and the spread inside each class of all.

    Raises:
        DataError: if the images are not those that the judge's moments are of.
    """
    x, features = to_unit(test.images), judge.features
    summary = FeatureSet(features.dim, keep=_KEPT, groups=1)
    for first in range(0, len(x), 250):
        here = slice(first, first + 250)
        index = torch.arange(len(x))[here]
        summary.update(features(x[here]), index, None if test.labels is None else test.labels[here])
    apart = frechet_distance(summary.moments(), judge.reference)
    if summary.n != judge.reference.n or apart > 1e-3:
        raise DataError(
            f"{summary.n:,} images at a distance of {apart:.3g} from the judge's reference of {judge.reference.n:,}",
            "The vectors that are kept are those of the reference itself",
            "Pass the split that the judge was made with",
        )
    told = {"images": content_hash(test.images, test.labels), "classes": list(test.classes)}
    return Judge(features, judge.reference, {**judge.facts, **told, "kept": len(summary.rows)}, summary)


def _train(network: SmallClassifier, data: ImageData, config: ClassifierConfig) -> None:
    began = time.perf_counter()
    for report in classifier_steps(network, data, config):
        if report.step % 100 == 0 or report.step == report.steps:
            seconds = time.perf_counter() - began
            line = f"step {report.step}/{report.steps}  loss {report.loss:.4f}  {seconds:.0f} s"
            print(line, file=sys.stderr, flush=True)


def _damages(x: Tensor, labels: Tensor | None, chosen: Tensor) -> dict[str, Tensor]:
    """Do things to the chosen images, so that the scale of the distance can be read."""
    y, mean, row = x[chosen], x.mean(0), torch.tensor([0.25, 0.5, 0.25])
    blur = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    damages = {
        "noise of standard deviation 5/255": y + noise * 10 / 255,
        "noise of standard deviation 15/255": y + noise * 30 / 255,
        "contrast about the mean image times 0.95": mean + 0.95 * (y - mean),
        "shifted by one pixel": y.roll(1, -1),
        "3x3 binomial blur": F.conv2d(F.pad(y, (1, 1, 1, 1), value=-1.0), blur, groups=y.shape[1]),
    }
    if labels is not None:
        means = torch.stack([x[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
        damages["every image replaced by the mean of its class"] = means[labels[chosen]]
    return damages


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def _card(judge: Judge) -> str:
    facts, training = judge.facts, judge.facts["training"]
    floors = "\n".join(f"| {name} | {value:g} |" for name, value in facts["floors"].items())
    dim, seen = judge.features.dim, f"{training['n']:,} images, {training['epochs']} epochs"
    damages = "\n".join(f"| {name} | {value:g} |" for name, value in facts["damages"].items())
    return f"""# mnist-judge

Features and test-set statistics for judging generated MNIST digits without having MNIST.

| | |
|---|---|
| features | {judge.features.name}: the {judge.features.dim} penultimate features of a small convolutional classifier |
| network | {facts["parameters"]:,} parameters: four 3x3 convolutions, 2x2 mean pool, {dim} features, 10 logits |
| trained on | MNIST train, {seen}, random shifts of up to {training["max_shift"]} pixels |
| accuracy | {facts["accuracy"]:.2%} on MNIST test ({facts["n"]:,} images) |
| statistics | mean and unbiased covariance (float64) of the features of MNIST test, n = {facts["n"]:,} |
| rows | vectors of a random {facts["kept"]:,} of its images in float16, with classes; spread per class of all |
| reference | images and labels of MNIST test have the hash {facts["images"]} |
| training took | {training["seconds"]} s on {facts["machine"]}, torch {facts["torch"]} |
| seed, date | {training["seed"]}, {facts["date"]} |

This is **not FID**. Quote the name of the features with its fingerprint, the split and the number of images. A distance
falls as the number of images grows, so compare equal numbers only.

## What a distance means

Between sets of real images. No generator can be told apart from real data below this:

| floor | Fréchet distance |
|---|---|
{floors}

The two halves of the test split come from different groups of writers, so they differ by more than random halves do.

{facts["floor_n"]:,} real test images after something was done to them, against the other half of the test split:

| damage | Fréchet distance |
|---|---|
{damages}

## Made by

    python -m fewstep.experiments.mnist_judge --train train.parquet --test test.parquet --out mnist-judge

with MNIST as parquet files with the columns `image` and `label`. The images are read in [-1, 1] and rounded to 8 bits
before they are judged.

## Licences

The weights and statistics: Apache-2.0, like fewstep. The data they were made from: MNIST, Y. LeCun, C. Cortes,
C. J. C. Burges, CC BY-SA 3.0. No image of it is contained here.
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the whole experiment from the command line.

    Args:
        arguments: the words after the program's name; None reads them from the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m fewstep.experiments.mnist_judge", description=__doc__)
    parser.add_argument("--train", help="MNIST train as parquet; not needed with --rows")
    parser.add_argument("--test", required=True, help="MNIST test as parquet")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; an old one is replaced")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and shifts (default 0)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--rows", action="store_true", help="keep the judge that is there, and write its vectors anew")
    options = parser.parse_args(arguments)
    if not options.rows and not options.train:
        parser.error("a judge is trained on --train; --rows keeps the one that is there")
    torch.set_num_threads(options.threads)
    test = parquet(options.test, split="test")
    if options.rows:
        judge = keep_rows(load_judge(options.out), test)
    else:
        judge = make_judge(parquet(options.train), test, ClassifierConfig(seed=options.seed))
    with write_folder_atomic(options.out) as folder:
        save_judge(folder, judge)
        write_atomic(folder / "README.md", _card(judge).encode())
    print(f"{options.out}: accuracy {judge.facts['accuracy']:.2%}, floors {judge.facts['floors']}")


if __name__ == "__main__":
    main()
