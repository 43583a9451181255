"""End-to-end training against ordinary training of the same network, of equal wall clock.

    python -m benchmarks.few_steps --preset mnist --data parquet:FOLDER --seeds 0,1,2
    python -m benchmarks.few_steps --preset cifar10-small --data parquet:FOLDER --seeds 0 --ordinary 2400 \
        --pretrain 1200 --judges cifar-resnet:FILE,cifar-resnet:FILE

For each seed: ordinary training for `--ordinary` steps; ordinary training for `--pretrain` steps, and from there end to
end for as long as the first took more, so that both spent the same seconds on this machine; what chains need before
their first step, such as a classifier of the training images, counts. Then 5,000 images a cell: end to end at 1, 2,
and 4 steps, ordinary at 1 to 20 by DDIM and by EVODiff.

FDr is the Fréchet distance of generated images to the test split over that of as many train images to it, in the
features of judges that no training saw. Unless some are named, there are two: the one that ships with MNIST, and one of
another width, seed and training that is made here. With `--c2st`, the two-sample test of the named cells. Runs and rows
are kept: what was stopped goes on.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fewstep._files import output_dir, read_json, write_folder_atomic, write_json
from fewstep.data import ImageData, load_data, to_uint8, to_unit
from fewstep.experiments.demo import machine
from fewstep.experiments.evaluation.evaluate import Plan
from fewstep.experiments.evaluation.outcome import finish
from fewstep.experiments.evaluation.prepare import prepare
from fewstep.experiments.evaluation.request import Request
from fewstep.experiments.pictures import curves
from fewstep.experiments.presets import PRESETS, configured
from fewstep.experiments.runs import conditions, draw
from fewstep.experiments.ways import way_of
from fewstep.features import ClassifierFeatures, Features, load_features, save_classifier
from fewstep.metrics import JUDGES, Moments, frechet_distance, image_moments
from fewstep.models import load_model
from fewstep.training import RunConfig, override, train_steps
from fewstep.training.classifier import ClassifierConfig, train_classifier

STEPS = (1, 2, 4)
METRICS = ("fd", "kid", "prdc", "rho", "class_accuracy", "memorisation")


@dataclass(frozen=True)
class Arm:
    """One way of spending the time, and the cells it is measured at.

    Args:
        name: of the arm.
        folder: of its model.
        ways: what :func:`way_of` takes, by the name of the cell.
    """

    name: str
    folder: Path
    ways: dict[str, dict[str, Any]]


def second_judge(folder: Path, data: ImageData) -> str:
    """Train a classifier that differs from the judge that ships, and from all that training uses."""
    if not folder.exists():
        config = ClassifierConfig(width=40, dim=96, epochs=3, seed=20261121)
        features = ClassifierFeatures(train_classifier(data, config), "second-judge", data.shape[1:])
        with write_folder_atomic(folder) as temporary:
            save_classifier(temporary, features, {"data": data.name, "seed": config.seed})
    return f"classifier:{folder}"


def floor(features: Features, train: ImageData, test: ImageData, n: int) -> float:
    """Distance of n train images to the test split."""
    some = train.images[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:n]]
    return frechet_distance(*(image_moments(features, to_unit(images)) for images in (some, test.images)))


def seconds_of(folder: Path) -> float:
    """Seconds of training that a model folder states."""
    return float(load_model(folder).config.facts["seconds"])


def trained(config: RunConfig, folder: Path, data: ImageData, look: Callable[[int], None] | None = None) -> Path:
    """Train to the end; `look` is called with the steps done whenever a checkpoint has been written."""
    for report in train_steps(config, folder, data=data):
        if report.at_every(50):
            print(folder.name, report.step, {key: round(value, 3) for key, value in report.losses.items()}, flush=True)
        if look is not None and report.at_every(config.train.checkpoint_every):
            look(report.step)
    return folder


def quick(folder: Path, features: Features, reference: Moments, n: int = 2000) -> dict[str, float]:
    """Fréchet distance of n images in the features of the first judge, at every trained number of steps."""
    model, found = load_model(folder), {}
    for steps in STEPS:
        way, seeds = way_of(model, steps=steps), range(n)
        images = draw(model, way.rule, way.grid, seeds, labels=conditions(model, seeds)).images
        found[str(steps)] = frechet_distance(image_moments(features, to_unit(to_uint8(images))), reference)
    return found


def timed(config: RunConfig, folder: Path, data: ImageData) -> tuple[float, float]:
    """Seconds before the first step of training chains, and of a step: the mean of one round of all lengths."""
    n, began = len(config.e2e.steps), time.perf_counter()
    steps = train_steps(override(config, [f"train.steps={2 * n}"]), folder, data=data)
    took = [report.seconds for report in steps]
    return time.perf_counter() - began - sum(took), statistics.mean(took[n:])


def arms(seed: int, options: argparse.Namespace, data: ImageData, look: Callable[[int, Path], None]) -> Iterator[Arm]:
    """Train both arms of a seed and name their cells; `look` is called at six times of the training of chains."""
    work = options.work / f"seed-{seed}"
    ordinary = override(PRESETS[options.preset], [f"train.seed={seed}", f"train.steps={options.ordinary}"])
    whole = trained(ordinary, work / "ordinary", data)
    first = trained(override(ordinary, [f"train.steps={options.pretrain}"]), work / "pretrained", data)
    chain = configured(f"{options.preset}-e2e", init=str(first), overrides=[f"train.seed={seed}"])
    plan, made = work / "plan.json", work / "e2e"
    if not plan.exists():
        preparing, of_step = timed(chain, work / "timed", data)
        budget = seconds_of(whole) - seconds_of(first)
        if (work / "timed" / "classifier").exists():  # it is paid for
            shutil.copytree(work / "timed" / "classifier", made / "classifier", dirs_exist_ok=True)
        write_json(
            plan, {"seconds": budget, "preparing": preparing, "steps": max(1, round((budget - preparing) / of_step))}
        )
    steps = read_json(plan)["steps"]
    own = [f"train.steps={steps}", f"train.checkpoint_every={max(1, steps // 6)}"]
    yield Arm(
        "end to end",
        trained(override(chain, own), made, data, partial(look, folder=made)),
        {f"{n} step{'s' * (n > 1)}": {"steps": n} for n in STEPS},
    )
    budgets = itertools.product(("ddim", "evodiff"), (1, 2, 4, 10, 20))
    ways = {f"{solver}, {nfe} call{'s' * (nfe > 1)}": {"solver": solver, "nfe": nfe} for solver, nfe in budgets}
    yield Arm("ordinary", whole, ways)


def measured(arm: Arm, cell: str, options: argparse.Namespace, judges: dict[str, str], seed: int) -> dict[str, Any]:
    """Every number of one cell."""
    key = f"{arm.name}, {cell}"
    metrics = (*METRICS, "c2st") if any(word and key.startswith(word) for word in options.c2st.split(";")) else METRICS
    plan = Plan(metrics, output_dir(options.work / f"seed-{seed}" / key.replace(", ", "-").replace(" ", "-")))
    request = Request(
        str(arm.folder),
        plan,
        reference=options.data,
        features=tuple(judges.values()),
        n=options.n,
        seed=1_000_000 * seed,
        batch_size=250,
        **arm.ways[cell],
    )
    evaluation = prepare(request)
    for _ in evaluation.run():
        pass
    names = {load_features(spec).name: name for name, spec in judges.items()}
    numbers: dict[str, Any] = {}
    for result in finish(evaluation).results:
        judge = names.get(result.protocol.measuring.features, "")
        numbers[" ".join(filter(None, (result.name, judge and f"({judge})")))] = result.estimate.to_json()
    return {"numbers": numbers, "seconds of training": seconds_of(arm.folder)}


def table(content: Mapping[str, Any]) -> str:
    """The rows as Markdown: FDr in every judge, mean (least to largest) over seeds; the rest in the first judge."""
    cells: dict[str, list[Mapping[str, Any]]] = {}
    for key, row in content["rows"].items():
        cells.setdefault(key.split(": ", maxsplit=1)[1], []).append(row["numbers"])
    judges = list(content["judges"])
    others = [f"{name} ({judges[0]})" for name in ("precision", "recall", "rho", "class_accuracy", "memorised")]
    head = ["cell", *(f"FDr, {judge}" for judge in judges), "precision", "recall", "rho", "class", "memorised", "C2ST"]
    lines = [head, ["---"] * len(head)]
    for cell, found in cells.items():
        distances = [_over_seeds(found, f"fd ({judge})", content["floors"][judge]) for judge in judges]
        lines.append([cell, *distances, *(_over_seeds(found, name) for name in (*others, "c2st"))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _over_seeds(found: list[Mapping[str, Any]], name: str, unit: float = 1.0) -> str:
    values = [numbers[name]["value"] / unit for numbers in found if name in numbers]
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.3g}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3g} to {max(values):.3g})"


def draw_curves(content: Mapping[str, Any], path: Path) -> None:
    """Draw FDr of 2,000 images in the first judge over the minutes of training chains, a panel for each length."""
    unit = next(iter(content["floors"].values()))

    def of_seed(curve: list[dict[str, Any]], steps: int) -> tuple[list[float], list[float]]:
        return [at["seconds"] / 60 for at in curve], [at["fd"][str(steps)] / unit for at in curve]

    panels = {
        f"FDr, {steps} step{'s' * (steps > 1)}": {
            f"seed {seed}": of_seed(curve, steps) for seed, curve in content["curves"].items()
        }
        for steps in STEPS
    }
    curves(path, panels, x_label="minutes of training whole chains", lines={})


def judges_of(options: argparse.Namespace, train: ImageData) -> dict[str, str]:
    """What judges, by name: as `load_features` reads it."""
    if options.judges:
        return {f"judge {i + 1}": spec for i, spec in enumerate(options.judges.split(","))}
    return {
        "mnist-judge": f"classifier:{JUDGES['mnist-judge']}",
        "second judge": second_judge(options.work / "judge", train),
    }


class Seed:
    """The rows and the curve of one seed, in a file of its own, since other seeds may be running beside."""

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.path, self.asked = output_dir(folder) / "rows.json", dict(asked)
        earlier: dict[str, Any] = read_json(self.path) if self.path.exists() else {}
        same = earlier.get("asked") == self.asked
        self.curve: list[dict[str, Any]] = earlier["curve"] if same else []
        self.rows: dict[str, Any] = earlier["rows"] if same else {}

    def write(self) -> None:
        write_json(self.path, {"asked": self.asked, "curve": self.curve, "rows": self.rows})


def together(said: Mapping[str, Any], asked: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """What all seeds found that were asked the same."""
    found = {folder.name.removeprefix("seed-"): Seed(folder, asked) for folder in sorted(work.glob("seed-*"))}
    rows = {f"{seed}: {cell}": row for seed, own in found.items() for cell, row in own.rows.items()}
    return {**said, "curves": {seed: own.curve for seed, own in found.items() if own.rows}, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mnist", help="of ordinary training; that of chains is called PRESET-e2e")
    parser.add_argument("--data", required=True, help="such as parquet:FOLDER or hf:ylecun/mnist")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ordinary", type=int, default=3600)
    parser.add_argument("--pretrain", type=int, default=1800)
    parser.add_argument(
        "--judges", default="", help="features, as `fewstep evaluate` takes them; the first draws the curves"
    )
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument(
        "--c2st", default="", help="cells to test too, by how they begin: 'end to end;ordinary, evodiff, 20'"
    )
    parser.add_argument("--work", type=Path, help="runs and images; default runs/few_steps_PRESET")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.work = options.work or Path(f"runs/few_steps_{options.preset}")
    train, test = (load_data(options.data, split) for split in ("train", "test"))
    judges = judges_of(options, train)
    features = load_features(next(iter(judges.values())))
    reference = image_moments(features, to_unit(test.images))
    path = output_dir(options.out) / f"few_steps_{options.preset}.json"
    asked = {name: getattr(options, name) for name in ("preset", "ordinary", "pretrain", "n")}
    said: dict[str, Any] = {"machine": machine(), **asked}
    said["judges"] = {name: load_features(spec).name for name, spec in judges.items()}
    said["floors"] = {name: floor(load_features(spec), train, test, options.n) for name, spec in judges.items()}
    for seed in map(int, options.seeds.split(",")):
        kept = Seed(options.work / f"seed-{seed}", asked)

        def look(step: int, folder: Path, kept: Seed = kept) -> None:
            kept.curve.append({"step": step, "seconds": seconds_of(folder), "fd": quick(folder, features, reference)})
            kept.write()

        for arm in arms(seed, options, train, look):
            for cell in arm.ways:
                row = measured(arm, cell, options, judges, seed)
                kept.rows[f"{arm.name}, {cell}"] = row
                kept.write()
                write_json(path, together(said, asked, options.work))
                fds = {name: value["value"] for name, value in row["numbers"].items() if name.startswith("fd")}
                print(f"{seed}: {arm.name}, {cell}", {name: round(value, 3) for name, value in fds.items()}, flush=True)
    draw_curves(read_json(path), options.work / "curves.png")
    print(table(read_json(path)))


if __name__ == "__main__":
    main()
