"""What the files of the calibrated solver say, as Markdown: cells, ratios to the best fixed solver, goals, studies.

The best fixed solver is taken in two ways: *of a target*, one rule on one grid with the least geometric mean of the
RMSE over 5, 6, 8 and 10 calls, and *of a cell*, whatever has the least number there, which nobody could know before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.calibrated_parts import BUDGETS, KINDS, code_of
from benchmarks.calibrated_study_tables import print_cost, print_headline, print_transfer
from benchmarks.quality import geometric_mean, wanted
from benchmarks.targets import FAMILIES, RULES
from fewstep._files import read_json
from fewstep.metrics import over_seeds

FEW = tuple(BUDGETS.index(nfe) for nfe in (5, 6, 8, 10))
MANY = tuple(BUDGETS.index(nfe) for nfe in (15, 20))
MINE = "calibrated"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Contents:
    """All files of a folder of results.

    Args:
        cells: target -> its file.
        cost: model -> its file.
        transfer: model -> its file.
        headline: model -> its file.
    """

    cells: Mapping[str, Mapping[str, Any]]
    cost: Mapping[str, Mapping[str, Any]]
    transfer: Mapping[str, Mapping[str, Any]]
    headline: Mapping[str, Mapping[str, Any]]


def read(folder: Path) -> Contents:
    """Read a folder of results; exact targets first."""
    order = [name for members in FAMILIES.values() for name in members]
    files = [read_json(path) for path in sorted(folder.glob("*.json"))]
    files.sort(key=lambda file: order.index(file["subject"]) if file["subject"] in order else len(order))
    kinds = ("cells", "cost", "transfer", "headline")
    return Contents(*({file["subject"]: file for file in files if file["part"] == kind} for kind in kinds))


def fixed(content: Mapping[str, Any]) -> dict[str, Row]:
    """The fixed rules of a target that solve the equation, on every grid."""
    rows = content["rows"]
    return {key: row for key, row in rows.items() if row["rule"] not in KINDS and "rmse" in row}


def few(row: Row) -> float:
    return geometric_mean([row["rmse"][k] for k in FEW])


def best_of_target(content: Mapping[str, Any]) -> str:
    """The rule and grid with the least error over 5 to 10 calls."""
    found = fixed(content)
    return min(found, key=lambda key: few(found[key]))


def best_of_cell(content: Mapping[str, Any], k: int) -> str:
    """The rule and grid with the least error at one budget."""
    found = fixed(content)
    return min(found, key=lambda key: found[key]["rmse"][k])


def mine(content: Mapping[str, Any], kind: str = MINE) -> Row:
    row: Row = content["rows"][f"{kind} on own"]
    return row


def peers(content: Mapping[str, Any], by_cell: bool) -> list[str]:
    """Whom to compare with, at every budget."""
    if by_cell:
        return [best_of_cell(content, k) for k in range(len(BUDGETS))]
    return [best_of_target(content)] * len(BUDGETS)


def ratios(content: Mapping[str, Any], by_cell: bool, kind: str = MINE) -> list[float]:
    """The error over that of the best fixed solver, at every budget."""
    rows, own = content["rows"], mine(content, kind)
    return [own["rmse"][k] / rows[peer]["rmse"][k] for k, peer in enumerate(peers(content, by_cell))]


def together(cells: Mapping[str, Mapping[str, Any]], by_cell: bool, which: Sequence[int], kind: str = MINE) -> str:
    """The geometric mean of all ratios, taken for each seed set, with its interval over these."""
    found = []
    for s in range(min(content["seeds"] for content in cells.values())):
        parts = []
        for content in cells.values():
            own, rows, against = mine(content, kind), content["rows"], peers(content, by_cell)
            parts += [own["rmse_sets"][k][s] / rows[against[k]]["rmse_sets"][k][s] for k in which]
        found.append(math.log(geometric_mean(parts)))
    mean = over_seeds(found)
    interval = "" if mean.low is None else f" [{math.exp(mean.low):.3f}, {math.exp(mean.high or 0):.3f}]"
    return f"{math.exp(mean.value):.3f}{interval}"


def print_all(contents: Contents, only: str = "") -> None:
    """Print everything; `only` names the rules that the tables of the targets show, with commas."""
    # A run that is still going on has subjects without the one or the others.
    begun = contents.cells.items()
    whole = {name: content for name, content in begun if f"{MINE} on own" in content["rows"] and fixed(content)}
    for name, content in contents.cells.items():
        _print_target(name, content, wanted(only, {**KINDS, **RULES}))
    if whole:
        for by_cell in (False, True):
            _print_ratios(whole, by_cell)
        _print_kinds(whole)
        _print_distances(whole)
        _print_goals(whole)
        _print_choices(whole)
    print_cost(contents.cost, contents.cells)
    print_transfer(contents.transfer)
    print_headline(contents.headline)
    _print_versions(contents)


def _print_target(name: str, content: Mapping[str, Any], rules: Sequence[str]) -> None:
    floor, rows = content["floor"], _better(content)
    interval = f" [{figure(floor[1])}, {figure(floor[2])}]" if len(floor) > 1 else ""
    bias = f", of which a perfect generator would have about {figure(content['bias'])}" if content["bias"] else ""
    print(f"\n**{name}**, {content['n']} samples in each of {content['seeds']} seed sets; {content['what']}.")
    gap = f"Two ways to the reference differ by {content['reference_gap']:.1e}."
    print(f"Distance of the reference: {figure(floor[0])}{interval}{bias}. {gap}")
    print("\nRMSE to the reference, with half of its interval over seed sets:\n")
    head = f"| solver | grid | {' | '.join(map(str, BUDGETS))} |\n|---|---|{'---|' * len(BUDGETS)}"
    print(head)
    shown = [row for row in rows if row["rule"] in rules]
    solving = [row for row in shown if "rmse" in row]
    for row in sorted(solving, key=few):
        numbers = zip(row["rmse"], row["rmse_half"], strict=True)
        print(_line(row, [f"{figure(value)} ± {figure(half)}" for value, half in numbers]))
    print(f"\n{content['measure']}:\n\n{head}")
    for row in shown:
        print(_line(row, _distances(row)))
    gains = " | ".join(f"{BUDGETS[k]}" for k in FEW)
    print(f"\nContrast gain:\n\n| solver | grid | {gains} |\n|---|---|{'---|' * len(FEW)}")
    for row in sorted(solving, key=few):
        print(_line(row, [f"{row['gain'][k]:.3f}" for k in FEW]))
    failed = [f"{key}: {row['failed']}" for key, row in content["rows"].items() if "failed" in row]
    if failed:
        print(f"\nFailed: {'; '.join(failed)}.")


def _better(content: Mapping[str, Any]) -> list[Row]:
    """Every rule on the grid of smaller error over 5 to 10 calls, or of smaller distance if it draws noise."""

    def error(row: Row) -> float:
        return few(row) if "rmse" in row else geometric_mean([row["distance"][k] for k in FEW])

    rows = [row for row in content["rows"].values() if "failed" not in row]
    names = list(dict.fromkeys(row["rule"] for row in rows))
    return [min((row for row in rows if row["rule"] == name), key=error) for name in names]


def _line(row: Row, numbers: Sequence[str]) -> str:
    return f"| {row['rule']} | {row['grid']} | {' | '.join(numbers)} |"


def _distances(row: Row) -> list[str]:
    if "distance_low" not in row:
        return [figure(value) for value in row["distance"]]
    ends = zip(row["distance"], row["distance_low"], row["distance_high"], strict=True)
    return [f"{figure(value)} [{figure(low)}, {figure(high)}]" for value, low, high in ends]


def figure(value: float) -> str:
    """Three figures."""
    return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"


def _said(by_cell: bool) -> str:
    return "the best fixed solver of every cell" if by_cell else "the best fixed solver of a target"


def _print_ratios(cells: Mapping[str, Mapping[str, Any]], by_cell: bool) -> None:
    print(f"\nRMSE of `{MINE}` over that of {_said(by_cell)} (below 1 is better):\n")
    print(f"| target | {'best fixed | ' * (not by_cell)}{' | '.join(map(str, BUDGETS))} | 5 to 10 |")
    print(f"|---|{'---|' * (len(BUDGETS) + 1 + (not by_cell))}")
    for name, content in cells.items():
        found = ratios(content, by_cell)
        peer = [] if by_cell else [best_of_target(content)]
        numbers = [f"{ratio:.2f}" for ratio in found]
        print(f"| {' | '.join([name, *peer, *numbers, f'{geometric_mean([found[k] for k in FEW]):.2f}'])} |")
    for words, members in _groups(cells).items():
        print(f"\n{words}, geometric mean over 5 to 10 calls: {together(members, by_cell, FEW)}.")


def _groups(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The families of exact targets, the models, and all."""
    exact = {name for members in FAMILIES.values() for name in members}
    groups = {family: {name: cells[name] for name in members if name in cells} for family, members in FAMILIES.items()}
    groups["models"] = {name: content for name, content in cells.items() if name not in exact}
    return {words: members for words, members in groups.items() if members} | {"all": dict(cells)}


def _print_kinds(cells: Mapping[str, Mapping[str, Any]]) -> None:
    print("\nGeometric mean over all cells at 5 to 10 calls, and at 15 and 20, over the best fixed solver:\n")
    print("| | of a target, 5 to 10 | of a cell, 5 to 10 | of a target, 15 and 20 | of a cell, 15 and 20 |")
    print("|---|---|---|---|---|")
    for kind in KINDS:
        if all(f"{kind} on own" in content["rows"] for content in cells.values()):
            numbers = [together(cells, by_cell, which, kind) for which in (FEW, MANY) for by_cell in (False, True)]
            print(f"| {kind} | {' | '.join(numbers)} |")


def above(content: Mapping[str, Any], by_cell: bool) -> list[tuple[int, float, float]]:
    """Budgets at which the distance is above the interval of the best fixed solver: (k, mine, its high end)."""
    rows, own = content["rows"], mine(content)
    named = {key: row for key, row in rows.items() if row["rule"] not in KINDS and "distance_high" in row}
    found = []
    for k in range(len(BUDGETS)):
        peer = best_of_target(content)
        if by_cell:
            peer = min(named, key=lambda key: named[key]["distance"][k])
        if own["distance"][k] > rows[peer]["distance_high"][k]:
            found.append((k, own["distance"][k], rows[peer]["distance_high"][k]))
    return found


def _print_distances(cells: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"\nDistance of `{MINE}`, and the least of all fixed solvers, those that draw noise among them:\n")
    print(f"| target | | {' | '.join(map(str, BUDGETS))} |\n|---|---|{'---|' * len(BUDGETS)}")
    for name, content in cells.items():
        print(f"| {name} | {MINE} | {' | '.join(_distances(mine(content)))} |")
        rows = [row for row in content["rows"].values() if row["rule"] not in KINDS and "failed" not in row]
        least = [min(rows, key=lambda row: row["distance"][k]) for k in range(len(BUDGETS))]
        numbers = [f"{_distances(row)[k]} {row['rule']}" for k, row in enumerate(least)]
        print(f"| | least | {' | '.join(numbers)} |")


def _print_goals(cells: Mapping[str, Mapping[str, Any]]) -> None:
    print("\nGoals:\n")
    for by_cell in (False, True):
        value = geometric_mean([ratios(content, by_cell)[k] for content in cells.values() for k in FEW])
        words = "reached" if value <= 0.75 else "not reached"
        print(f"- RMSE at most 0.75 of {_said(by_cell)}, geometric mean at 5 to 10 calls: {value:.3f}, {words}")
        for calls, which in (("5 to 10", FEW), ("15 and 20", MANY)):
            found = {name: _behind(ratios(content, by_cell), which) for name, content in cells.items()}
            listed = "; ".join(f"{name} at {', '.join(words)}" for name, words in found.items() if words)
            goal = f"RMSE never above {_said(by_cell)} at {calls}"
            print(f"- {goal}: {f'not reached: {listed}' if listed else 'reached'}")
        judged = {name: content for name, content in cells.items() if "distance_high" in mine(content)}
        if judged:
            listed = "; ".join(
                f"{name} at {BUDGETS[k]} ({figure(own)} above {figure(high)})"
                for name, content in judged.items()
                for k, own, high in above(content, by_cell)
            )
            goal = f"Fréchet distance never above the interval of {_said(by_cell)}"
            print(f"- {goal}: {f'not reached: {listed}' if listed else 'reached'}")


def _behind(found: Sequence[float], which: Sequence[int]) -> list[str]:
    return [f"{BUDGETS[k]} (x {found[k]:.2f})" for k in which if found[k] > 1]


def _print_choices(cells: Mapping[str, Mapping[str, Any]]) -> None:
    print("\nWhat was chosen on held-out trajectories, in the first seed set:\n")
    print(f"| target | {' | '.join(map(str, BUDGETS))} |\n|---|{'---|' * len(BUDGETS)}")
    for name, content in cells.items():
        own = mine(content)
        words = [said[0] + ", first given" * saved[0] for said, saved in zip(own["from"], own["saved"], strict=True)]
        print(f"| {name} | {' | '.join(words)} |")


def _print_versions(contents: Contents) -> None:
    """Name the rows that were made by other code than there is now."""
    stale: dict[str, set[str]] = {}
    for kind, files in vars(contents).items():
        for name, content in files.items():
            for row in content["rows"].values():
                rule = row.get("rule") or row.get("kind") or row.get("source", "")
                known = rule if rule in {*KINDS, *RULES} else MINE
                if row["code"]["hash"] != code_of(known)["hash"]:
                    stale.setdefault(f"{kind} of {name}", set()).add(rule)
    for where, rules in stale.items():
        print(f"\n**Made by other code than there is now, {where}: {', '.join(sorted(rules))}.**")
