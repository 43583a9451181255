"""The numbers of a model's card: Fréchet distance against calls, for DDIM and EVODiff.

    python -m benchmarks.model_card --model mnist --out benchmarks/results

Each cell is n = 5,000 images judged in the features of the model's judge; three cells with different seeds give the
mean and the standard deviation. Every row is written as soon as it is known; `--solvers evodiff` measures that solver
anew and keeps the other rows of the same protocol.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Any

from fewstep._files import output_dir, read_json, write_json
from fewstep.errors import ConfigError
from fewstep.experiments.compare import judge_of
from fewstep.experiments.demo import machine
from fewstep.experiments.runs import GridChoice, conditions, draw, make_grid, seeds_of
from fewstep.metrics import Judge
from fewstep.models import Model, load_model
from fewstep.solvers import SOLVERS

BUDGETS = (2, 4, 10, 20, 50)


def kept_rows(path: Path, content: dict[str, Any], rules: list[str]) -> list[dict[str, Any]]:
    """Rows of an earlier run under the same protocol, of the solvers that are not measured now."""
    if not path.exists():
        return []
    earlier = read_json(path)
    same = all(earlier[key] == content[key] for key in ("model_fingerprint", "measure", "n", "seeds", "grid"))
    return [row for row in earlier["rows"] if row["solver"] not in rules] if same else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--solvers", default="ddim,evodiff")
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model, choice = load_model(options.model, options.device), GridChoice()
    judge = judge_of(model)
    if judge is None:
        raise ConfigError(
            f"The model {options.model!r} names no judge",
            'A card needs one: "judge" among the facts of its config.json',
            "Add it, for instance mnist-judge",
        )
    path = output_dir(options.out) / f"model_card_{model.config.name}.json"
    content = {
        "machine": machine(),
        "model": model.config.name,
        "model_fingerprint": model.fingerprint,
        "measure": judge.describe(options.n),
        "n": options.n,
        "seeds": [1_000_000 * k for k in range(options.seeds)],
        "grid": vars(choice),
    }
    rules = options.solvers.split(",")
    rows = kept_rows(path, content, rules)
    for rule, nfe in itertools.product(rules, BUDGETS):
        rows.append(measure(model, judge, rule, choice, nfe, content["seeds"], options.n))
        print(f"| {rule} | {rows[-1]['nfe']} | {rows[-1]['mean']:.2f} ± {rows[-1]['sd']:.2f} |", flush=True)
        write_json(path, content | {"rows": rows})


def measure(
    model: Model, judge: Judge, rule: str, choice: GridChoice, nfe: int, firsts: list[int], n: int
) -> dict[str, Any]:
    """One cell: the distance of n images, for each first seed."""
    grid = make_grid(model, SOLVERS[rule](), choice, nfe)
    distances, seconds, counted = [], 0.0, 0
    for first in firsts:
        seeds = seeds_of(first, n)
        drawn = draw(model, rule, grid, seeds, labels=conditions(model, seeds), batch_size=500)
        distances.append(judge.distance(drawn.images))
        seconds, counted = seconds + drawn.seconds, drawn.nfe
    spread = statistics.stdev(distances) if len(distances) > 1 else 0.0
    mean = statistics.mean(distances)
    return {"solver": rule, "nfe": counted, "distances": distances, "mean": mean, "sd": spread, "seconds": seconds}


if __name__ == "__main__":
    main()
