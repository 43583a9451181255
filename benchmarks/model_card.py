"""The numbers of a model's card: quality against calls, for DDIM and EVODiff, with intervals and protocols.

    python -m benchmarks.model_card --model mnist --out benchmarks/results
    python -m benchmarks.model_card --model mnist-fewstep --solvers chain --nfe 1,2,4 --out benchmarks/results

The solver "chain" is a few-step model's own, and its calls are the steps that it was trained for.

Every cell is three seed sets of 5,000 images, judged in the features of the model's judge by `fewstep evaluate`'s own
machinery. Images and parts stay in ``--work``, so a run that was stopped goes on where it was; every row is written as
soon as it is known.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from fewstep._files import output_dir, read_json, write_json
from fewstep.errors import ConfigError
from fewstep.experiments.compare import judge_of
from fewstep.experiments.demo import machine
from fewstep.experiments.evaluation.evaluate import Plan
from fewstep.experiments.evaluation.outcome import finish
from fewstep.experiments.evaluation.prepare import prepare
from fewstep.experiments.evaluation.request import Request
from fewstep.metrics import frechet_bias
from fewstep.models import load_model

BUDGETS = (2, 4, 10, 20, 50)
METRICS = ("fd", "fd_inf", "kid", "prdc", "rho", "is")


def measure(options: argparse.Namespace, solver: str, nfe: int) -> dict[str, Any]:
    """One row: every number of one solver at one budget."""
    plan = Plan(METRICS, output_dir(options.work) / f"{solver}-{nfe}", device=options.device)
    asked: dict[str, Any] = {"steps": nfe} if solver == "chain" else {"solver": solver, "nfe": nfe}
    request = Request(options.model, plan, n=options.n, sets=options.seeds, batch_size=250, **asked)
    evaluation = prepare(request)
    for _ in evaluation.run():
        pass
    results = finish(evaluation).results
    numbers = {result.name: result.estimate.to_json() for result in results}
    return {"solver": solver, "nfe": nfe, "numbers": numbers, "protocol": results[0].protocol.line()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/card"), help="images and parts, for resuming")
    parser.add_argument("--solvers", default="ddim,evodiff")
    parser.add_argument("--nfe", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model = load_model(options.model)
    judge = judge_of(model)
    if judge is None:
        raise ConfigError(
            f"The model {options.model!r} names no judge",
            'A card needs one: "judge" among the facts of its config.json',
            "Add it, for instance mnist-judge",
        )
    path = output_dir(options.out) / f"model_card_{model.config.name}.json"
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    content = {
        "machine": machine(),
        "model": model.config.name,
        "model_fingerprint": model.fingerprint,
        "measure": judge.describe(options.n),
        "floors": judge.facts["floors"],
        "bias": frechet_bias(judge.reference, options.n, judge.reference.n),
        "n": options.n,
        "sets": options.seeds,
    }
    same = ("model_fingerprint", "measure", "n", "sets")
    if path.exists() and all((earlier := read_json(path)).get(key) == content[key] for key in same):
        rows = {(row["solver"], row["nfe"]): row for row in earlier["rows"]}
    budgets = [int(word) for word in options.nfe.split(",")]
    for nfe, solver in itertools.product(budgets, options.solvers.split(",")):
        rows[solver, nfe] = measure(options, solver, nfe)
        values = {name: round(number["value"], 4) for name, number in rows[solver, nfe]["numbers"].items()}
        print(f"{solver} at {nfe}: {values}", flush=True)
        write_json(path, content | {"rows": [rows[key] for key in sorted(rows)]})


if __name__ == "__main__":
    main()
