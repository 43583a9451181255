"""The figure of the calibrated solver: error against calls, one panel per target."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.calibrated_parts import BUDGETS
from benchmarks.calibrated_tables import MINE, best_of_target, few, fixed
from benchmarks.exact_targets import TITLES
from fewstep._files import require

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
    require("matplotlib", "cli").use("Agg")
    plt, ticker = require("matplotlib.pyplot", "cli"), require("matplotlib.ticker", "cli")
    columns = min(4, len(shown) + 1)
    rows = -(-(len(shown) + 1) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.7 * columns, 3.3 * rows), squeeze=False, layout="constrained")
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
        axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        axis.grid(True, alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    lines, names = axes.flat[0].get_legend_handles_labels()
    axes.flat[len(shown)].legend(lines[::-1], names[::-1], loc="center", frameon=False, fontsize=11, title="solver")
    figure.supxlabel("calls of the denoiser (NFE)", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=85)
    plt.close(figure)
    picture = require("PIL.Image", "cli").open(buffer).convert("RGB").quantize(128)
    picture.save(path, format="PNG", optimize=True)


def _key(content: Mapping[str, Any], rule: str) -> str:
    """The rule on its better grid."""
    own = {key: row for key, row in content["rows"].items() if row["rule"] == rule and "rmse" in row}
    return min(own, key=lambda key: few(own[key])) if own else ""
