"""The figure of the calibrated solver: error against calls, one panel per target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.calibrated_parts import BUDGETS
from benchmarks.calibrated_tables import MINE, best_of_target, few, fixed
from benchmarks.exact_targets import TITLES
from benchmarks.quality_pictures import finish, panels_of, plain

# Okabe and Ito's colours, as in the other figures; every line has a marker of its own as well.
BEST = "best fixed"
LINES = {
    "dpmpp_2m": ("#E69F00", "s"),
    BEST: ("#0072B2", "v"),
    "evodiff": ("#CC79A7", "P"),
    MINE: ("#D55E00", "X"),
}


def draw(cells: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the figure.

    Args:
        cells: target -> its file.
        path: of the PNG.
    """
    shown = {name: content for name, content in cells.items() if f"{MINE} on own" in content["rows"] and fixed(content)}
    if not shown:
        return
    figure, axes = panels_of(len(shown), 4)
    for axis, (name, content) in zip(axes.flat, shown.items(), strict=False):
        best = best_of_target(content)
        for line, (colour, marker) in LINES.items():
            row = content["rows"].get(best if line == BEST else _key(content, line))
            if row is not None:
                style = {"color": colour, "marker": marker, "linewidth": 2.6 if line == MINE else 1.4}
                axis.errorbar(BUDGETS, row["rmse"], row["rmse_half"], label=line, markersize=5.5, elinewidth=1, **style)
        axis.set(title=TITLES.get(name, name), xscale="log", yscale="log", xticks=BUDGETS)
        axis.set_ylabel("RMSE to the solution" if axis is axes.flat[0] else "", fontsize=9)
        axis.text(0.03, 0.03, f"{BEST}: {best}", transform=axis.transAxes, fontsize=7.5)
        plain(axis)
    finish(figure, axes, len(shown), path)


def _key(content: Mapping[str, Any], rule: str) -> str:
    """The rule on its better grid."""
    own = {key: row for key, row in content["rows"].items() if row["rule"] == rule and "rmse" in row}
    return min(own, key=lambda key: few(own[key])) if own else ""
