"""The tables of the studies: what a fit costs, where a table serves, and the headline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.metrics import Estimate

Files = Mapping[str, Mapping[str, Any]]


def print_cost(files: Files, cells: Files) -> None:
    """Seconds and calls of the tables of the main run, then errors against the number of trajectories."""
    fitted = {name: content["rows"] for name, content in cells.items() if "calibrated on own" in content["rows"]}
    if fitted:
        print("\nA fit of all seven budgets, mean of the seed sets:\n")
        print("| target | kind | seconds | samples seen by the network | device |\n|---|---|---|---|---|")
    for name, rows in fitted.items():
        for row in rows.values():
            if "fits" in row:
                fits = row["fits"]
                seconds, seen = (sum(fit[key] for fit in fits) / len(fits) for key in ("seconds", "network_evals"))
                print(f"| {name} | {row['rule']} | {seconds:.0f} | {seen:,.0f} | {fits[0]['machine']['device']} |")
    for name, content in files.items():
        nfe = content["nfe"]
        print(f"\n**{name}**: a fit of {' and '.join(map(str, nfe))} calls, mean of {content['seeds']} seed sets:\n")
        titles = [f"{what}, {calls} calls" for calls in nfe for what in ("fitted", "held out", "test")]
        print(f"| kind | trajectories | seconds | samples | {' | '.join(titles)} |")
        print(f"|---|---|---|---|{'---|' * len(titles)}")
        for row in content["rows"].values():
            numbers = []
            for k in range(len(nfe)):
                numbers += [_mean(row["train"][k]), _mean(row["held"][k])]
                numbers += [f"{row['rmse'][k]:.3g} ± {row['rmse_half'][k]:.2g}"]
            seen = f"{sum(row['network_evals']) / len(row['network_evals']):,.0f}"
            start = [row["kind"], str(row["trajectories"]), _mean(row["seconds"]), seen]
            print(f"| {' | '.join([*start, *numbers])} |")
        devices = {machine["device"] for row in content["rows"].values() for machine in row["machine"]}
        print(f"\nDevice: {', '.join(sorted(devices))}.")


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3g}"


def print_transfer(files: Files) -> None:
    """The error of tables used where they were not fitted, over the best fixed rule there."""
    for name, content in files.items():
        nfe, rows = content["nfe"], list(content["rows"].values())
        calls = " and ".join(map(str, nfe))
        print(f"\n**{name}**: RMSE at {calls} calls under guidance, and over the best fixed rule there:\n")
        scales = sorted({row["guidance"] for row in rows})
        print(f"| table | {' | '.join(f'guidance {scale:g}' for scale in scales)} |\n|---|{'---|' * len(scales)}")
        fixed = {
            scale: [row for row in rows if row["guidance"] == scale and not row["source"].startswith("fitted")]
            for scale in scales
        }
        for source in dict.fromkeys(row["source"] for row in rows if row["source"].startswith("fitted")):
            found = {row["guidance"]: row for row in rows if row["source"] == source}
            print(f"| {source} | {' | '.join(_against(found.get(scale), fixed[scale]) for scale in scales)} |")
        words = [", ".join(_least(fixed[scale], k) for k in range(len(nfe))) for scale in scales]
        print(f"| best fixed | {' | '.join(words)} |")


def _against(row: Mapping[str, Any] | None, fixed: list[Mapping[str, Any]]) -> str:
    if row is None or not fixed:
        return "–" if row is None else ", ".join(f"{value:.3g}" for value in row["rmse"])
    least = [min(other["rmse"][k] for other in fixed) for k in range(len(row["rmse"]))]
    return ", ".join(f"{mine:.3g} (x {mine / best:.2f})" for mine, best in zip(row["rmse"], least, strict=True))


def _least(fixed: list[Mapping[str, Any]], k: int) -> str:
    if not fixed:
        return "–"
    row = min(fixed, key=lambda row: row["rmse"][k])
    return f"{row['rmse'][k]:.3g} {row['source']}"


def print_headline(files: Files) -> None:
    """Distances at ten calls, and per cent lower than the baseline."""
    for name, content in files.items():
        bases = list(next(iter(content["rows"].values()))["per cent lower than"])
        print(f"\n**{name}**, {content['nfe']} calls; {content['what']}. The paper: 45.5 % lower FID of CIFAR-10.\n")
        print(f"| solver | distance | {' | '.join(f'% lower than {base}' for base in bases)} |")
        print(f"|---|---|{'---|' * len(bases)}")
        for key, row in content["rows"].items():
            lower = [str(Estimate.from_json(row["per cent lower than"][base])) for base in bases]
            print(f"| {key} | {Estimate.from_json(row['distance'])} | {' | '.join(lower)} |")
