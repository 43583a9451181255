"""The numbers of a model's card: Fréchet distance against calls, for DDIM and EVODiff.

    python -m benchmarks.model_card --model mnist --out benchmarks/results

Each cell is n = 5,000 images judged in the features of the model's judge; three cells with different seeds give the
mean and the standard deviation. Prints the table as Markdown, for the card.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from fewstep._files import output_dir, write_json
from fewstep.errors import ConfigError
from fewstep.experiments.compare import judge_of
from fewstep.experiments.demo import machine
from fewstep.experiments.runs import GridChoice, conditions, draw, make_grid, seeds_of
from fewstep.models import load_model
from fewstep.solvers import SOLVERS

BUDGETS = (2, 4, 10, 20, 50)
RULES = ("ddim", "evodiff")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
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
    folder = output_dir(options.out)
    rows = []
    for rule in RULES:
        for nfe in BUDGETS:
            grid = make_grid(model, SOLVERS[rule](), choice, nfe)
            distances, seconds, counted = [], 0.0, 0
            for k in range(options.seeds):
                seeds = seeds_of(1_000_000 * k, options.n)
                drawn = draw(model, rule, grid, seeds, labels=conditions(model, seeds), batch_size=500)
                distances.append(judge.distance(drawn.images))
                seconds, counted = seconds + drawn.seconds, drawn.nfe
            spread = statistics.stdev(distances) if len(distances) > 1 else 0.0
            rows.append(
                {"solver": rule, "nfe": counted, "distances": distances, "mean": statistics.mean(distances)}
                | {"sd": spread, "seconds": seconds}
            )
            print(f"| {rule} | {counted} | {rows[-1]['mean']:.2f} ± {spread:.2f} |", flush=True)
    content = {
        "machine": machine(),
        "model": model.config.name,
        "model_fingerprint": model.fingerprint,
        "measure": judge.describe(options.n),
        "n": options.n,
        "seeds": [1_000_000 * k for k in range(options.seeds)],
        "grid": vars(choice),
        "rows": rows,
    }
    write_json(folder / f"model_card_{model.config.name}.json", content)


if __name__ == "__main__":
    main()
