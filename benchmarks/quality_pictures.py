"""The figures of the solver tables: error against calls, one panel per target."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality import better
from benchmarks.targets import BUDGETS
from fewstep._files import require

# Okabe and Ito's colours, which stay apart for colour-blind eyes; every line has a marker of its own as well.
LINES = {
    "ddim": ("#999999", "o"),
    "dpmpp_2m": ("#E69F00", "s"),
    "dpmpp_3m": ("#56B4E9", "D"),
    "unipc_3": ("#009E73", "^"),
    "ipndm": ("#0072B2", "v"),
    "evodiff_paper": ("#CC79A7", "P"),
    "evodiff": ("#D55E00", "X"),
}


def draw(content: Mapping[str, Any], panels: Mapping[tuple[str, str], str], path: Path) -> None:
    """Write a figure.

    Args:
        content: of the JSON file.
        panels: (target, "rmse" or "distance") -> title.
        path: of the PNG.
    """
    figure, axes = panels_of(len(panels), 3)
    for axis, ((target, number), title) in zip(axes.flat, panels.items(), strict=False):
        best = better(content["targets"][target]["rules"])
        for rule, (colour, marker) in LINES.items():
            if rule in best:
                y, thick = best[rule][1][number], 2.6 if rule == "evodiff" else 1.4
                axis.plot(BUDGETS, y, color=colour, marker=marker, markersize=5.5, linewidth=thick, label=rule)
        if number == "distance":
            axis.axhline(content["targets"][target]["floor"], color="black", linestyle=":", linewidth=1.2)
        words = {"rmse": "RMSE to the solution", "distance": content["measure"]}[number]
        axis.set(title=title, xscale="log", yscale="log", xticks=BUDGETS)
        axis.set_ylabel(words if axis is axes.flat[0] or number == "distance" else "", fontsize=9)
        plain(axis)
    finish(figure, axes, len(panels), path)


def panels_of(n: int, most: int) -> tuple[Any, Any]:
    """A figure with room for n panels and the legend, at most so many in a row."""
    require("matplotlib", "cli").use("Agg")
    columns = min(most, n + 1)
    rows = -(-(n + 1) // columns)
    size = (3.7 * columns, 3.3 * rows)
    made: tuple[Any, Any] = require("matplotlib.pyplot", "cli").subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained"
    )
    return made


def plain(axis: Any) -> None:
    """Numbers as they are on logarithmic axes, once all lines are drawn."""
    ticker = require("matplotlib.ticker", "cli")
    axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5)))
    axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axis.grid(True, alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def finish(figure: Any, axes: Any, n: int, path: Path) -> None:
    """Put the legend beside n panels and write a small PNG."""
    for axis in axes.flat[n:]:
        axis.set_axis_off()
    lines, names = axes.flat[0].get_legend_handles_labels()
    axes.flat[n].legend(lines[::-1], names[::-1], loc="center", frameon=False, fontsize=11, title="solver")
    figure.supxlabel("calls of the denoiser (NFE)", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=85)
    require("matplotlib.pyplot", "cli").close(figure)
    picture = require("PIL.Image", "cli").open(buffer).convert("RGB").quantize(128)
    picture.save(path, format="PNG", optimize=True)
