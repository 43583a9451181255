r"""From a training run to a model that ships: half precision, a judge, and a card with measured numbers.

    fewstep train --preset mnist --data parquet:train.parquet --out runs/mnist
    python -m fewstep.experiments.bundle --run runs/mnist --judge mnist-judge --out src/fewstep/weights/mnist
    python -m benchmarks.model_card --model mnist --out benchmarks/results
    python -m fewstep.experiments.bundle --card benchmarks/results/model_card_mnist.json \
        --c2st benchmarks/results/c2st_controls.json --out src/fewstep/weights/mnist

and a few-step model, which carries its chain:

    fewstep train --preset mnist-e2e --data parquet:train.parquet --out runs/fewstep
    python -m fewstep.experiments.bundle --run runs/fewstep --name mnist-fewstep --out src/fewstep/weights/mnist-fewstep
    python -m benchmarks.model_card --model mnist-fewstep --solvers chain --nfe 1,2,4 --out benchmarks/results
    python -m fewstep.experiments.bundle --card benchmarks/results/model_card_mnist-fewstep.json \
        --c2st benchmarks/results/c2st_controls.json --out src/fewstep/weights/mnist-fewstep

The numbers are measured on the half-precision weights, since those are what people load; so bundling writes a card
without numbers, and ``--card`` writes it again with them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fewstep._files import read_json, require, write_atomic
from fewstep.errors import CheckpointError, ConfigError, choose
from fewstep.metrics import JUDGES, Estimate, Judge, load_judge
from fewstep.models import Model, load_model, save_model

__all__ = ["bundle", "card", "main"]

_COLUMNS = {
    "fd": "FD",
    "fd_inf": "FD inf",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
    "rho": "rho",
}
_CARD = Path(__file__).with_name("card.md.j2")
_LICENCES = {
    "mnist": "MNIST, Y. LeCun, C. Cortes, C. J. C. Burges, CC BY-SA 3.0",
    "cifar10": "CIFAR-10, A. Krizhevsky, Tiny Images tech report 2009; no licence stated",
    "digits": "Optical Recognition of Handwritten Digits, E. Alpaydin, C. Kaynak, UCI, CC BY 4.0",
    "scenes": "scenes, drawn by fewstep, Apache-2.0",
}


def bundle(run: Path, out: Path, *, name: str = "", judge: str = "", machine: str = "") -> None:
    """Write the model of a run as float16, with the name of its judge, and a card that has no numbers yet.

    Args:
        run: folder of a finished run; of a conversion, too.
        out: folder to write.
        name: of the model; that of the run if empty.
        judge: name in JUDGES; that of the run's own start, if it had one, if empty.
        machine: what it was trained on, in words.

    Raises:
        ConfigError: if the run's model has no weights of its own.
        UnknownName: if there is no such judge.
    """
    model = load_model(run)
    if judge:
        choose(judge, JUDGES, "judge")
    if not isinstance(model.denoiser.network, nn.Module):
        raise ConfigError(f"The network of {run}", "A module with weights can be bundled", "Train one of NETWORKS")
    facts = {**model.config.facts, "judge": judge or model.config.facts.get("judge", ""), "machine": machine}
    config = replace(model.config, name=name or model.config.name, facts=_without_places(facts))
    save_model(out, model.denoiser.network, config, half=True)
    write_atomic(out / "README.md", card(load_model(out)).encode())


def _without_places(facts: dict[str, Any]) -> dict[str, Any]:
    """Name the models that a run began with, in place of the folders they lay in."""
    if "e2e" not in facts:
        return facts
    places = {key: Path(facts["e2e"].get(key, "")).name for key in ("init", "teacher")}
    if "init" in facts:
        places["init"] = facts["init"]["name"]
    return {**facts, "e2e": {**facts["e2e"], **places}}


def card(
    model: Model,
    judge: Judge | None = None,
    measured: Mapping[str, Any] | None = None,
    told: Mapping[str, Any] | None = None,
) -> str:
    """Write the card of a bundled model.

    Args:
        model: the model.
        judge: what measured it.
        measured: what `benchmarks.model_card` wrote; None says that nothing was measured.
        told: "solver-nfe" -> what `benchmarks.c2st` wrote of these images; None leaves the column out.

    Returns:
        Markdown.

    Raises:
        CheckpointError: if the numbers were measured on other weights.
    """
    if measured and measured["model_fingerprint"] != model.fingerprint:
        raise CheckpointError(
            f"Numbers of the weights {measured['model_fingerprint']} for the weights {model.fingerprint}",
            "A card shows what was measured on its own weights",
            "Run benchmarks.model_card again",
        )
    module, data = model.denoiser.network, str(model.config.facts.get("data", "not stated"))
    tables = [(solver, list(_rows(measured, solver, told))) for solver in _solvers(measured)] if measured else []
    environment = require("jinja2", "cli").Environment(trim_blocks=True, keep_trailing_newline=True)
    text: str = environment.from_string(_CARD.read_text(encoding="utf-8")).render(
        config=model.config,
        facts=model.config.facts,
        fingerprint=model.fingerprint,
        parameters=sum(p.numel() for p in module.parameters()) if isinstance(module, nn.Module) else 0,
        data=data if data.startswith("samples of") else f"{data} train",
        steps=_either(model.config.chain.steps) if model.config.chain else "",
        terms=_terms(model.config.facts.get("e2e", {}).get("terms", {})),
        measured=measured,
        tables=tables,
        columns=[*_COLUMNS.values(), *(["C2ST"] if told else [])],
        told=told,
        floors=judge.facts["floors"] if judge else {},
        licence=_LICENCES.get(data.split()[-1], "see its source"),
    )
    return text


def _either(steps: Sequence[int]) -> str:
    """List numbers as words do: 1, 2 or 4."""
    *most, last = map(str, steps)
    return f"{', '.join(most)} or {last}" if most else last


def _terms(terms: Mapping[str, Mapping[str, Any]]) -> str:
    """List the terms that weigh something, with what was said of them."""
    said = []
    for name, own in terms.items():
        start = own.get("weight", 1.0)
        end = start if own.get("weight_end") is None else own["weight_end"]
        others = [f"{key} {value}" for key, value in own.items() if key not in ("weight", "weight_end")]
        if start or end:
            weight = f"{start:g}" if start == end else f"{start:g} to {end:g}"
            said.append(f"{name} {weight}" + (f" ({'; '.join(others)})" if others else ""))
    return ", ".join(said)


def _solvers(measured: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["solver"] for row in measured["rows"]))


def _rows(measured: Mapping[str, Any], solver: str, told: Mapping[str, Any] | None) -> Iterator[list[str]]:
    """The cells of one solver's table, a row for each budget."""
    for row in measured["rows"]:
        if row["solver"] == solver:
            numbers = [str(Estimate.from_json(row["numbers"][name])) for name in _COLUMNS]
            one = (told or {}).get(f"{solver}-{row['nfe']}")
            test = [str(Estimate.from_json(one["accuracy"])) if one else "not run"] if told else []
            yield [str(row["nfe"]), *numbers, *test]


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run to bundle")
    parser.add_argument("--name", default="", help="of the model; the run's if omitted")
    parser.add_argument("--judge", default="", help="name of its judge; that of the model it began with if omitted")
    parser.add_argument("--machine", default="", help="what it was trained on, in words")
    parser.add_argument("--card", type=Path, help="numbers from benchmarks.model_card; writes the card")
    parser.add_argument("--c2st", type=Path, help="what benchmarks.c2st wrote, for a column of the card")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.run:
        bundle(options.run, options.out, name=options.name, judge=options.judge, machine=options.machine)
    if options.card:
        model = load_model(options.out)
        judge = load_judge(str(model.config.facts["judge"]))
        told = read_json(options.c2st)["data"][model.config.name] if options.c2st else None
        write_atomic(options.out / "README.md", card(model, judge, read_json(options.card), told).encode())


if __name__ == "__main__":
    main()
