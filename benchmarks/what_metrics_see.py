"""What a metric sees: real CIFAR-10 test images, damaged in known ways, against other real test images.

    python -m benchmarks.what_metrics_see --cifar10 FOLDER --networks FOLDER --out benchmarks/results

FOLDER of ``--cifar10`` holds the parquet files, FOLDER of ``--networks`` the weights of the classifiers. Every split
shuffles the test set with its own seed, takes 5,000 images as the reference and 2,500 of the others as the sample;
undamaged they give the floor. A number that does not leave its floor does not see the damage. Writes
what_metrics_see.json, and what_metrics_see.png into ``--picture``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep._files import output_dir, require, write_json
from fewstep.data import ImageData, load_data, seeded, to_unit
from fewstep.experiments.demo import machine
from fewstep.features import ClassifierFeatures, Features, load_features
from fewstep.metrics import Moments, Polynomial, frechet_distance, kernel_mmd, prdc_values, round_to_8bit
from fewstep.training.classifier import ClassifierConfig, accuracy, train_classifier

REFERENCE, SAMPLE = 5000, 2500


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with a radius of 3 pixels, the border repeated."""
    row = torch.exp(-torch.arange(-3, 4).square() / (2 * sigma**2))
    kernel = torch.outer(row, row) / row.sum() ** 2
    padded = F.pad(x, (3, 3, 3, 3), mode="replicate")
    return F.conv2d(padded, kernel.expand(x.shape[1], 1, 7, 7), groups=x.shape[1])


def noise(x: Tensor, levels: float) -> Tensor:
    """Gaussian noise whose standard deviation is so many of the 255 grey levels."""
    return x + torch.randn(x.shape, generator=seeded("noise", levels)) * levels / 127.5


PIXELS: dict[str, Callable[[Tensor], Tensor]] = {
    "blur, sigma 0.4 px": lambda x: blur(x, 0.4),
    "blur, sigma 0.7 px": lambda x: blur(x, 0.7),
    "noise, sd 2/255": lambda x: noise(x, 2),
    "noise, sd 4/255": lambda x: noise(x, 4),
    "noise, sd 15/255": lambda x: noise(x, 15),
    "contrast x 0.9": lambda x: 0.9 * x,
}


def tilted(pool: Tensor, labels: Tensor, share: float) -> Tensor:
    """Images of which classes 0 to 4 have this share together."""
    low, high = pool[labels[pool] < 5], pool[labels[pool] >= 5]
    n = round(share * SAMPLE)
    return torch.cat([low[:n], high[: SAMPLE - n]])


def dropped(pool: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Images without the first so many classes."""
    return pool[labels[pool] >= classes][:SAMPLE]


def repeated(pool: Tensor, times: int) -> Tensor:
    """Every image so many times, and accordingly fewer of them."""
    return pool[: SAMPLE // times].repeat(times)


SETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "half of the classes: 60 %": lambda pool, labels: tilted(pool, labels, 0.6),
    "half of the classes: 80 %": lambda pool, labels: tilted(pool, labels, 0.8),
    "1 class dropped": lambda pool, labels: dropped(pool, labels, 1),
    "3 classes dropped": lambda pool, labels: dropped(pool, labels, 3),
    "every image twice": lambda pool, labels: repeated(pool, 2),
    "every image 10 times": lambda pool, labels: repeated(pool, 10),
}


@torch.no_grad()
def features_of(features: Features, images: Tensor) -> Tensor:
    """Features of 8-bit images given as floats, shape (n, dim)."""
    return torch.cat([features(round_to_8bit(part)) for part in images.split(250)])


def numbers(sample: Tensor, reference: Tensor) -> dict[str, float]:
    distance = frechet_distance(Moments(sample), Moments(reference))
    balls = prdc_values(real=reference[: len(sample)], fake=sample)  # as many of both, as in `prdc`
    return {"fd": distance, "kid": kernel_mmd(sample, reference, Polynomial()), **balls}


def networks(folder: Path, cifar10: Path) -> Iterator[tuple[str, Features]]:
    """Every feature network, with a short name for the figure."""
    shape = (3, 32, 32)
    for depth in (20, 32, 44):
        yield f"resnet{depth}", load_features(f"cifar-resnet:{folder}/cifar10_resnet{depth}.safetensors")
    yield "squeezenet", load_features(f"squeezenet:{folder}/squeezenet1_1.safetensors")
    yield "random-conv", load_features("random-conv", shape)
    train, test = (load_data(f"parquet:{cifar10}", split) for split in ("train", "test"))
    network = train_classifier(train, ClassifierConfig(epochs=3))
    print(f"the classifier trained on the spot: {accuracy(network, test):.1%} of the test set", flush=True)
    yield "in-domain", ClassifierFeatures(network, "cifar10-small", shape[1:])


def table(features: Features, data: ImageData, splits: int) -> dict[str, list[dict[str, float]]]:
    """Damage -> the numbers of every split; "none" is the floor, "halves" that of 5,000 images against the others."""
    x, labels = to_unit(data.images), data.labels
    if labels is None:
        raise SystemExit("this benchmark needs labelled images")
    clean = features_of(features, x)
    damaged = {name: features_of(features, damage(x)) for name, damage in PIXELS.items()}
    cells: dict[str, list[dict[str, float]]] = {}
    for split in range(splits):
        order = torch.randperm(len(x), generator=seeded("split", split))
        reference, pool = clean[order[:REFERENCE]], order[REFERENCE:]
        cells.setdefault("halves", []).append(numbers(clean[pool], reference))
        cells.setdefault("none", []).append(numbers(clean[pool[:SAMPLE]], reference))
        for name, rows in damaged.items():
            cells.setdefault(name, []).append(numbers(rows[pool[:SAMPLE]], reference))
        for name, choose in SETS.items():
            cells.setdefault(name, []).append(numbers(clean[choose(pool, labels)], reference))
    return cells


def draw(results: dict[str, Any], path: Path) -> None:
    """One panel per number, one column per network: how far the damage moves it from its floor."""
    require("matplotlib", "cli").use("Agg")
    plt = require("matplotlib.pyplot", "cli")
    nets = list(results["networks"])
    damages = [*PIXELS, *SETS]
    figure, axes = plt.subplots(1, 4, figsize=(19, 6.2), sharey=True, layout="constrained")
    for axis, column in zip(axes, ("fd", "kid", "precision", "recall"), strict=True):
        z, words = [], []
        for damage in damages:
            cells = [moved(results["networks"][net]["cells"], damage, column) for net in nets]
            z.append([score for score, _ in cells])
            words.append([word for _, word in cells])
        axis.imshow(torch.tensor(z).clamp(-12, 12), cmap="RdBu_r", vmin=-12, vmax=12, aspect="auto")
        axis.set_xticks(range(len(nets)), nets, rotation=35, ha="right")
        axis.set_yticks(range(len(damages)), damages)
        title = {"fd": "Fréchet distance / its floor", "kid": "KID / sd of its floor"}.get(column, f"{column} - floor")
        axis.set_title(title, fontsize=11)
        axis.axhline(len(PIXELS) - 0.5, color="white", linewidth=3)
        for i, row in enumerate(words):
            for j, word in enumerate(row):
                ink = "white" if abs(z[i][j]) > 8 else "black"
                axis.text(j, i, word, ha="center", va="center", fontsize=9, color=ink)
    figure.suptitle(
        f"What your metric sees: {SAMPLE:,} damaged CIFAR-10 test images against {REFERENCE:,} others. "
        "Colour: standard deviations from the floor (white: not seen, cut at 12)",
        fontsize=12,
    )
    figure.savefig(path, dpi=90)


def moved(cells: dict[str, list[dict[str, float]]], damage: str, column: str) -> tuple[float, str]:
    """How many standard deviations of the floor a number moved, and what to write into the cell."""
    floor = [cell[column] for cell in cells["none"]]
    value = statistics.mean(cell[column] for cell in cells[damage])
    centre, spread = statistics.mean(floor), statistics.stdev(floor)
    score = (value - centre) / spread
    if column == "fd":
        return score, f"{value / centre:.3g}"
    return score, f"{score:+.0f}" if column == "kid" else f"{value - centre:+.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--networks", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images"))
    parser.add_argument("--splits", type=int, default=6)
    options = parser.parse_args()
    data = load_data(f"parquet:{options.cifar10}", "test")
    folder = output_dir(options.out)
    results: dict[str, Any] = {"machine": machine(), "reference": REFERENCE, "sample": SAMPLE, "networks": {}}
    for name, features in networks(options.networks, options.cifar10):
        start = time.perf_counter()
        cells = table(features, data, options.splits)
        results["networks"][name] = {"features": features.name, "resize": features.resize, "cells": cells}
        seconds = time.perf_counter() - start
        floor = [cell["fd"] for cell in cells["none"]]
        line = f"{name}: floor {statistics.mean(floor):.4g} ± {statistics.stdev(floor):.2g}, {seconds:.0f} s"
        print(line, flush=True)
        write_json(folder / "what_metrics_see.json", results)
    draw(results, output_dir(options.picture) / "what_metrics_see.png")


if __name__ == "__main__":
    main()
