"""The two-sample test on real images: does it work at all, and what does it say of generated ones?

    python -m benchmarks.c2st --data mnist=parquet:FOLDER --generated mnist:ddim-50=runs/card/ddim-50/images

For each data set, on its test split: the two controls (noise of sd 4/255 must be found, real against real must not be
told apart), a 3x3 binomial blur, the train split as a set that a perfect model of it would generate, and folders of
generated images: PNGs named by their seeds, classes in turn, as `fewstep evaluate` and `make card` leave them; the
first 5,000 seeds count. Writes c2st_controls.json after every line, and keeps what it has of other data sets.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import conv2d, pad

from fewstep._files import output_dir, read_json, write_json
from fewstep.data import ImageData, load_data
from fewstep.data.pictures import decode
from fewstep.experiments.demo import machine
from fewstep.metrics.c2st import C2stConfig, c2st, c2st_controls
from fewstep.metrics.matching import Labelled


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Apply the binomial filter (1, 2, 1)/4 along both axes, and round to 8 bits again."""
    kernel = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16
    channels = images.shape[1]
    smooth = conv2d(pad(images.float(), (1,) * 4, mode="replicate"), kernel.expand(channels, 1, 3, 3), groups=channels)
    return smooth.round().to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=SOURCE")
    parser.add_argument("--generated", action="append", default=[], metavar="DATA:NAME=FOLDER")
    parser.add_argument("--train-split", action="store_true", help="also the train split against the test split")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    config, path = C2stConfig(), output_dir(options.out) / "c2st_controls.json"
    content: dict[str, Any] = {
        "machine": machine(),
        "config": asdict(config) | {"seeds": list(config.seeds)},
        "data": {},
    }
    if path.exists() and (earlier := read_json(path))["config"] == content["config"]:
        content["data"] = earlier["data"]
    for entry in options.data:
        name, _, source = entry.partition("=")
        mine = [
            text.removeprefix(f"{name}:").partition("=") for text in options.generated if text.startswith(f"{name}:")
        ]
        rows = content["data"].setdefault(name, {})
        for line in measure(source, config, {key: Path(file) for key, _, file in mine}, options.train_split):
            rows |= line
            print(f"{name}: {line}", flush=True)
            write_json(path, content)


def measure(source: str, config: C2stConfig, files: dict[str, Path], train: bool) -> Iterator[dict[str, Any]]:
    """The lines of one data set, each as name -> accuracies; a void number stays void."""
    real, began = load_data(source, "test"), time.perf_counter()
    controls = c2st_controls(real.images, config, real_labels=real.labels)
    minutes = (time.perf_counter() - began) / 60
    yield {"controls failed": controls.why, "minutes per classifier": round(minutes / (2 * len(config.seeds)), 2)}
    yield {"noise of sd 4/255": controls.noise.to_json(), "real against real": controls.real.to_json()}
    for name, images, labels in compared(real, source, config, files, train):
        result = c2st(images, real.images, config, fake_labels=labels, real_labels=real.labels, controls=controls)
        yield {name: result.trial.to_json() if result.trial else "void"}


def compared(
    real: ImageData, source: str, config: C2stConfig, files: dict[str, Path], train: bool
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """Name, images and labels of everything that is compared with the test split."""
    # The half that the test does not compare with.
    rest = Labelled(real.images, real.labels).halves(config.split_seed)[1]
    yield "binomial blur 3x3", blurred(rest.images), rest.labels
    if train:
        data = load_data(source, "train")
        yield "train split", data.images, data.labels
    for name, folder in files.items():
        chosen = [file for file in sorted(folder.glob("*.png")) if int(file.stem) < config.n]
        labels = torch.tensor([int(file.stem) % real.n_classes for file in chosen])
        yield name, torch.stack([decode(str(file), file, None, real.shape[0]) for file in chosen]), labels


if __name__ == "__main__":
    main()
