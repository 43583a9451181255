"""Cells of the solver tables, the file they are kept in, and what is printed of them.

A cell is one rule on one grid at all budgets: RMSE to the exact or fine solution from the same noise, contrast gain
(slope of the samples on that solution about the data mean), and a distance of distributions. It carries the version of
the code that made it. Files hold target -> rule -> grid -> cell, so that a run goes on where it was stopped, and any
rule can be measured again alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.targets import BUDGETS, FAMILIES, FEW, GRIDS, RULES, STAND_INS, code_of
from fewstep._files import read_json, write_json
from fewstep.errors import choose
from fewstep.metrics import contrast_gain, over_seeds, rmse

Cell = dict[str, Any]
Table = Mapping[str, Mapping[str, Cell]]  # rule -> grid -> cell
Better = dict[str, tuple[str, Cell]]  # rule -> its better grid and the cell there

GOALS = ((("dpmpp_2m",), 0.75), (("unipc_3", "ipndm"), 1.0))  # the default EVODiff against the best of these


def make_cell(
    runs: Sequence[Tensor], exact: Tensor, mean: Tensor, n: int, distance: Callable[[Tensor], float], stochastic: bool
) -> Cell:
    """All numbers of one rule on one grid; n samples a seed, one after the other, in `runs` and `exact`."""
    numbers: Cell = {"distance": [_short(distance(run)) for run in runs]}
    if stochastic:  # an error to the solution of an equation that the rule does not solve means nothing
        return numbers
    parts = [list(zip(run.split(n), exact.split(n), strict=True)) for run in runs]
    errors = [over_seeds([rmse(x, y) for x, y in pairs]) for pairs in parts]
    half = [_short((error.high or error.value) - error.value) for error in errors]
    gain = [_short(over_seeds([contrast_gain(x, y, mean) for x, y in pairs]).value) for pairs in parts]
    return {"rmse": [_short(error.value) for error in errors], "rmse_half": half, "gain": gain, **numbers}


def _short(number: float) -> float:
    return float(f"{number:.5g}")


class Store:
    """The file of results; written after every cell.

    Args:
        path: the JSON file; what it holds under other settings is dropped, and the run says so.
        head: what was measured and how; everything in it must be equal for old cells to stay.
        machine: what is measured on.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        self.path, self.content = path, {**head, "machine": dict(machine), "targets": {}}
        for rule in RULES:  # before anybody can edit the files of the code that runs
            code_of(rule)
        if path.exists():
            earlier = read_json(path)
            if all(earlier.get(key) == value for key, value in head.items()):
                self.content["targets"] = earlier["targets"]
            else:
                print(f"{path} holds other settings; it is begun anew")

    def target(self, name: str, facts: Mapping[str, Any]) -> None:
        """Begin or go on with a target; cells under other facts are dropped."""
        known = self.content["targets"].get(name)
        same = known is not None and all(known.get(key) == value for key, value in facts.items())
        rules = known["rules"] if same else {}
        self.content["targets"][name] = {**facts, "rules": rules}

    def due(self, target: str, rule: str, grid: str) -> bool:
        """Whether a cell is missing, or was made by other code than there is now."""
        cell = self.content["targets"][target]["rules"].get(rule, {}).get(grid)
        return cell is None or cell["code"]["solvers"] != code_of(rule)["solvers"]

    def put(self, target: str, rule: str, grid: str, cell: Cell) -> None:
        rules = self.content["targets"][target]["rules"]
        rules.setdefault(rule, {})[grid] = {"code": code_of(rule), **cell}
        self.content["targets"][target]["rules"] = {name: rules[name] for name in sorted(rules)}
        write_json(self.path, self.content)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(value, 1e-12)) for value in values) / len(values))


def better(table: Table) -> Better:
    """Every rule on the grid of smaller error (of smaller distance if it draws noise), chosen once over all budgets."""

    def error(cell: Cell) -> float:
        return geometric_mean(cell["rmse"] if "rmse" in cell else cell["distance"])

    chosen = {rule: min(grids, key=lambda grid: error(grids[grid])) for rule, grids in table.items()}
    return {rule: (grid, table[rule][grid]) for rule, grid in chosen.items()}


def few(cell: Cell) -> float:
    """The error over the budgets that count."""
    return geometric_mean(cell["rmse"][:FEW])


def families(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The targets of each family, stand-ins where CIFAR-10 was not there."""
    if not {name for family in (*FAMILIES.values(), *STAND_INS.values()) for name in family} & set(names):
        return {name: (name,) for name in names}
    complete = {name for family in FAMILIES.values() for name in family} <= set(names)
    return {
        family: tuple(name for name in members if name in names)
        for family, members in (FAMILIES if complete else STAND_INS).items()
    }


def print_tables(content: Mapping[str, Any], measure: str, only: str = "") -> None:
    """Print everything as Markdown; `only` names the rules that the tables of the targets show, with commas."""
    chosen = {name: better(target["rules"]) for name, target in content["targets"].items() if target["rules"]}
    print(f"RMSE at each budget, then {measure} and contrast gain at 5 and at 10 calls.")
    for name, best in chosen.items():
        _print_target(name, content["targets"][name], best, wanted(only, best))
    groups = families(list(chosen))
    _print_ratios(chosen, groups)
    _print_goals(chosen, groups)
    _print_losses(chosen)
    _print_versions(content)


def _print_target(name: str, target: Mapping[str, Any], best: Better, rules: Sequence[str]) -> None:
    shown = (BUDGETS.index(5), BUDGETS.index(10))
    print(f"\n**{name}**, distance of the {target['reference']}: {target['floor']:.3g}\n")
    budgets = " | ".join(map(str, BUDGETS))
    print(f"| solver | grid | {budgets} | distance 5 | 10 | gain 5 | 10 |\n|---|---|{'---|' * (len(BUDGETS) + 4)}")
    solving = [rule for rule, (_, cell) in best.items() if "rmse" in cell]
    least = [min(best[rule][1]["rmse"][k] for rule in solving) for k in range(len(BUDGETS))]
    drawing = [rule for rule in best if rule not in solving]
    for rule in [*sorted(solving, key=lambda rule: few(best[rule][1])), *drawing]:
        if rule not in rules:
            continue
        grid, cell = best[rule]
        errors = ["–"] * len(BUDGETS)
        gains = ["–", "–"]
        if rule in solving:
            errors = [_bold(e, m) for e, m in zip(cell["rmse"], least, strict=True)]
            gains = [f"{cell['gain'][k]:.3f}" for k in shown]
        distances = [_figure(cell["distance"][k]) for k in shown]
        print(f"| {rule} | {grid} | {' | '.join([*errors, *distances, *gains])} |")


def _bold(value: float, least: float) -> str:
    return f"**{_figure(value)}**" if value == least else _figure(value)


def _figure(value: float) -> str:
    """Three figures, without an exponent where five decimals show them."""
    return f"{value:.1e}" if value < 1e-4 else f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _print_ratios(chosen: Mapping[str, Better], groups: Mapping[str, Sequence[str]]) -> None:
    print("\nGeometric mean over 5, 6, 8 and 10 calls, as a ratio to DPM-Solver++ 2M (below 1 is better):\n")
    rows = {
        rule: [few(best[rule][1]) / few(best["dpmpp_2m"][1]) if rule in best else math.nan for best in chosen.values()]
        for rule in next(iter(chosen.values()))
        if all("rmse" in best[rule][1] for best in chosen.values() if rule in best)
    }
    together = {rule: [ratio(chosen, group, rule, ("dpmpp_2m",)) for group in groups.values()] for rule in rows}
    extra = [] if [*groups] == [*chosen] else [*groups, "families"]
    print(f"| solver | {' | '.join([*chosen, *extra])} |\n|---|{'---|' * (len(chosen) + len(extra))}")
    for rule in sorted(rows, key=lambda rule: geometric_mean(together[rule])):
        numbers = [*rows[rule], *([*together[rule], geometric_mean(together[rule])] if extra else [])]
        print(f"| {rule} | {' | '.join(f'{number:.2f}' for number in numbers)} |")
    if extra:
        print("\n" + "; ".join(f"{family}: {', '.join(members)}" for family, members in groups.items()) + ".")


def ratio(chosen: Mapping[str, Better], group: Sequence[str], rule: str, peers: Sequence[str]) -> float:
    """Error of a rule over that of the best of its peers, both as geometric means over the targets of a family."""
    if any(name not in chosen[target] for target in group for name in (rule, *peers)):
        return math.nan
    mine = geometric_mean([few(chosen[target][rule][1]) for target in group])
    return mine / min(geometric_mean([few(chosen[target][peer][1]) for target in group]) for peer in peers)


def _print_goals(chosen: Mapping[str, Better], groups: Mapping[str, Sequence[str]]) -> None:
    print("\nGoals for the default EVODiff, geometric mean of the RMSE over 5 to 10 calls:\n")
    for family, members in groups.items():
        for peers, goal in GOALS:
            reached = ratio(chosen, members, "evodiff", peers)
            words = "reached" if reached <= goal else "not reached"
            against = f"the better of {' and '.join(peers)}" if len(peers) > 1 else peers[0]
            print(f"- {family}, at most {goal:.2f} of {against}: {reached:.2f}, {words}")


def _print_losses(chosen: Mapping[str, Better]) -> None:
    """Where the default is behind one of the rules that its goals name."""
    print("\nWhere the default EVODiff is behind:\n")
    for target, best in chosen.items():
        words = []
        for peer in (peer for peers, _ in GOALS for peer in peers):
            pairs = zip(BUDGETS, best["evodiff"][1]["rmse"], best[peer][1]["rmse"], strict=True)
            behind = [f"{nfe} (x {mine / theirs:.2f})" for nfe, mine, theirs in pairs if mine > theirs]
            words += [f"{peer} at {', '.join(behind)}"] if behind else []
        print(f"- {target}: {'; '.join(words) or 'nowhere'}")


def _print_versions(content: Mapping[str, Any]) -> None:
    """Say which revisions the numbers are from, and which were made by other code than there is now."""
    cells = [
        (rule, cell["code"])
        for target in content["targets"].values()
        for rule, grids in target["rules"].items()
        for cell in grids.values()
    ]
    revisions: dict[str, set[str]] = {}
    for rule, code in cells:
        revisions.setdefault(code["revision"], set()).add(rule)
    parts = [f"{revision} ({', '.join(sorted(rules))})" for revision, rules in revisions.items()]
    print(f"\nRevisions: {'; '.join(parts) if len(parts) > 1 else ', '.join(revisions)}.")
    stale = {rule for rule, code in cells if rule not in RULES or code["solvers"] != code_of(rule)["solvers"]}
    if stale:
        print(f"\n**Made by other solver code than there is now: {', '.join(sorted(stale))}.**")


def wanted(only: str, rules: Mapping[str, Any]) -> list[str]:
    """The rules to measure or to show: those named, or all."""
    for name in only.split(",") if only else ():
        choose(name, rules, "rule")
    return only.split(",") if only else list(rules)


def all_cells(rules: Sequence[str]) -> list[tuple[str, str]]:
    return [(rule, grid) for rule in rules for grid in GRIDS]
