"""End-to-end training against ordinary training of the same network, of equal wall clock, on MNIST.

    python -m benchmarks.mnist_few_steps --data parquet:FOLDER --seeds 0,1,2 --out benchmarks/results

For each seed: ordinary training for `--ordinary` steps; ordinary training for `--pretrain` steps, and from there end to
end for as long as the first took more, so that both spent the same seconds on this machine. Then 5,000 images a cell:
end to end at 1, 2 and 4 steps, ordinary at 1 to 20 by DDIM and by EVODiff.

FDr is the Fréchet distance of generated images to the test split over that of as many train images to it, in the
features of two judges that no training saw: the one that ships, and one of another width, seed and training that is
made here. With `--c2st`, the two-sample test of the named cells. Runs and rows are kept: what was stopped goes on.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep._files import output_dir, read_json, write_json
from fewstep.data import ImageData, load_data, to_uint8, to_unit
from fewstep.experiments.demo import machine
from fewstep.experiments.evaluation.evaluate import Plan
from fewstep.experiments.evaluation.outcome import finish
from fewstep.experiments.evaluation.prepare import prepare
from fewstep.experiments.evaluation.request import Request
from fewstep.experiments.presets import PRESETS
from fewstep.experiments.runs import conditions, draw
from fewstep.experiments.ways import way_of
from fewstep.features import Features, load_classifier, load_features, save_classifier
from fewstep.metrics import JUDGES, frechet_distance, image_moments, load_judge
from fewstep.models import load_model
from fewstep.training import RunConfig, override, train_steps
from fewstep.training.classifier import ClassifierConfig, classifier_steps, new_classifier

STEPS = (1, 2, 4)
METRICS = ("fd", "kid", "prdc", "rho", "memorisation")
_TIMED = 8  # steps of end-to-end training whose time plans the run


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


def second_judge(folder: Path, data: ImageData) -> Path:
    """Train a classifier that differs from the judge that ships, and from all that training uses."""
    if not (folder / "config.json").exists():
        config = ClassifierConfig(width=40, dim=96, epochs=3, seed=20261121)
        network = new_classifier(data, config)
        for _ in classifier_steps(network, data, config):
            pass
        save_classifier(folder, network, {"data": data.name, "seed": config.seed})
    load_classifier(folder)
    return folder


def floor(features: Features, train: ImageData, test: ImageData, n: int) -> float:
    """Distance of n train images to the test split."""
    some = train.images[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:n]]
    return frechet_distance(*(image_moments(features, to_unit(images)) for images in (some, test.images)))


def seconds_of(folder: Path) -> float:
    """Seconds of training that a model folder states."""
    return float(load_model(folder).config.facts["seconds"])


def trained(config: RunConfig, folder: Path, data: ImageData, curve: list[dict[str, Any]] | None = None) -> Path:
    """Train to the end; note a quick Fréchet distance at every checkpoint in `curve`."""
    for report in train_steps(config, folder, data=data):
        if report.at_every(50):
            print(folder.name, report.step, {key: round(value, 3) for key, value in report.losses.items()}, flush=True)
        if curve is not None and report.at_every(config.train.checkpoint_every):
            curve.append({"step": report.step, "seconds": seconds_of(folder), "fd": quick(folder)})
    return folder


def quick(folder: Path, n: int = 2000) -> dict[str, float]:
    """Fréchet distance of n images in the features of the judge that ships, at every trained number of steps."""
    model, judge, found = load_model(folder), load_judge("mnist-judge"), {}
    ways = [{"steps": steps} for steps in STEPS] if model.config.chain else [{"solver": "evodiff", "nfe": 20}]
    for asked in ways:
        way, seeds = way_of(model, **asked), range(n)
        images = draw(model, way.rule, way.grid, seeds, labels=conditions(model, seeds)).images
        found[str(way.grid.steps)] = float(judge.distance(to_unit(to_uint8(images))))
    return found


def arms(seed: int, options: argparse.Namespace, data: ImageData, curves: dict[str, Any]) -> Iterator[Arm]:
    """Train both arms of a seed and name their cells."""
    work = options.work / f"seed-{seed}"
    ordinary = override(PRESETS["mnist"], [f"train.seed={seed}", f"train.steps={options.ordinary}"])
    whole = trained(ordinary, work / "ordinary", data)
    first = trained(override(ordinary, [f"train.steps={options.pretrain}"]), work / "pretrained", data)
    chain = override(PRESETS["mnist-e2e"], [f"e2e.init={first}", f"train.seed={seed}"])
    budget = seconds_of(whole) - seconds_of(first)
    plan = work / "plan.json"
    if not plan.exists():
        timed = trained(override(chain, [f"train.steps={_TIMED}"]), work / "timed", data)
        write_json(plan, {"seconds": budget, "steps": round(budget / (seconds_of(timed) / _TIMED))})
    steps = read_json(plan)["steps"]
    curve = curves.setdefault(str(seed), [])
    made = trained(
        override(chain, [f"train.steps={steps}", f"train.checkpoint_every={max(1, steps // 6)}"]),
        work / "e2e",
        data,
        curve,
    )
    yield Arm("end to end", made, {f"{n} steps": {"steps": n} for n in STEPS})
    budgets = itertools.product(("ddim", "evodiff"), (1, 2, 4, 10, 20))
    ways = {f"{solver}, {nfe} calls": {"solver": solver, "nfe": nfe} for solver, nfe in budgets}
    yield Arm("ordinary", whole, ways)


def measured(arm: Arm, cell: str, options: argparse.Namespace, judges: dict[str, Path], seed: int) -> dict[str, Any]:
    """Every number of one cell."""
    key = f"{arm.name}, {cell}"
    metrics = (*METRICS, "c2st") if any(word and key.startswith(word) for word in options.c2st.split(";")) else METRICS
    plan = Plan(metrics, output_dir(options.work / f"seed-{seed}" / key.replace(", ", "-").replace(" ", "-")))
    request = Request(
        str(arm.folder),
        plan,
        reference=options.data,
        features=tuple(f"classifier:{folder}" for folder in judges.values()),
        n=options.n,
        seed=1_000_000 * seed,
        batch_size=250,
        **arm.ways[cell],
    )
    evaluation = prepare(request)
    for _ in evaluation.run():
        pass
    names = {load_features(f"classifier:{folder}").name: name for name, folder in judges.items()}
    numbers: dict[str, Any] = {}
    for result in finish(evaluation).results:
        judge = names.get(result.protocol.measuring.features, "")
        numbers[" ".join(filter(None, (result.name, judge and f"({judge})")))] = result.estimate.to_json()
    return {"numbers": numbers, "seconds of training": seconds_of(arm.folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="MNIST, such as parquet:FOLDER or hf:ylecun/mnist")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ordinary", type=int, default=3600)
    parser.add_argument("--pretrain", type=int, default=1800)
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument(
        "--c2st", default="", help="cells to test too, by how they begin: 'end to end;ordinary, evodiff, 20'"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/mnist_few_steps"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    train, test = (load_data(options.data, split) for split in ("train", "test"))
    judges = {"mnist-judge": JUDGES["mnist-judge"], "second judge": second_judge(options.work / "judge", train)}
    path = output_dir(options.out) / "mnist_few_steps.json"
    asked = {"ordinary": options.ordinary, "pretrain": options.pretrain, "n": options.n}
    earlier = read_json(path) if path.exists() else {}
    content: dict[str, Any] = earlier if all(earlier.get(key) == value for key, value in asked.items()) else {}
    content |= {"machine": machine(), **asked}
    content["floors"] = {
        name: floor(load_features(f"classifier:{folder}"), train, test, options.n) for name, folder in judges.items()
    }
    curves, rows = content.setdefault("curves", {}), content.setdefault("rows", {})
    for seed in map(int, options.seeds.split(",")):
        for arm in arms(seed, options, train, curves):
            for cell in arm.ways:
                key = f"{seed}: {arm.name}, {cell}"
                rows[key] = measured(arm, cell, options, judges, seed)
                fds = {
                    name: numbers["value"] for name, numbers in rows[key]["numbers"].items() if name.startswith("fd")
                }
                print(key, {name: round(value, 3) for name, value in fds.items()}, flush=True)
                write_json(path, content)


if __name__ == "__main__":
    main()
