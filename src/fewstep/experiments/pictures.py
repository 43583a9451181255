"""Pictures: contact sheets and curves."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep._files import require, write_atomic
from fewstep.data import to_uint8

__all__ = ["contact_sheet", "curves", "interval_plot", "save_images", "save_picture", "save_pixels", "tile"]

_PAPER, _INK, _SOFT = (255, 255, 255), (32, 32, 36), (120, 120, 128)


def tile(images: Tensor, columns: int, gap: int = 1) -> Tensor:
    """Lay images out in rows.

    Args:
        images: shape (n, c, h, w), in [-1, 1]; overshoot is cut off.
        columns: images in a row.
        gap: pixels between images, in mid-grey.

    Returns:
        One RGB picture, uint8, shape (height, width, 3).
    """
    n, _, h, w = images.shape
    rows = -(-n // columns)
    canvas = torch.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 128, dtype=torch.uint8)
    for k, image in enumerate(to_uint8(images)):
        top, left = (k // columns) * (h + gap), (k % columns) * (w + gap)
        canvas[top : top + h, left : left + w] = image.permute(1, 2, 0).expand(h, w, 3)
    return canvas


def _picture(canvas: Tensor, scale: int = 1) -> Any:
    image = require("PIL.Image", "cli")
    picture = image.fromarray(canvas.numpy())
    return picture.resize((picture.width * scale, picture.height * scale), image.Resampling.NEAREST)


def _write(path: Path, save: Callable[[io.BytesIO], object], *, durable: bool = True) -> None:
    """Encode in memory, so that a full disk leaves no half of a picture."""
    buffer = io.BytesIO()
    save(buffer)
    write_atomic(path, buffer.getvalue(), durable=durable)


def save_picture(path: Path, canvas: Tensor, scale: int = 1) -> None:
    """Write a canvas of `tile` as PNG, enlarged without smoothing."""
    _write(path, partial(_picture(canvas, scale).save, format="PNG"))


def save_images(folder: Path, images: Tensor, seeds: Sequence[int]) -> None:
    """Write each image as a PNG named by its seed."""
    for pixels, seed in zip(to_uint8(images), seeds, strict=True):
        save_pixels(folder / f"{seed:06d}.png", pixels)


def save_pixels(path: Path, pixels: Tensor, *, durable: bool = True) -> None:
    """Write one 8-bit image of shape (c, h, w), grey or RGB, as PNG; `durable` is that of write_atomic."""
    image = require("PIL.Image", "cli")
    hwc = pixels.permute(1, 2, 0)
    array = hwc.squeeze(-1).numpy() if hwc.shape[-1] == 1 else hwc.numpy()
    _write(path, partial(image.fromarray(array).save, format="PNG"), durable=durable)


def contact_sheet(
    path: Path, rows: Mapping[str, Sequence[Tensor]], columns: Sequence[str], *, wide: int = 5, scale: int = 1
) -> None:
    """Write a table of small picture sets, one row per name.

    Args:
        path: PNG to write.
        rows: title -> one image tensor (n, c, h, w) per column.
        columns: headings.
        wide: images side by side in a cell.
        scale: enlargement.
    """
    image, drawing, fonts = (require(f"PIL.{name}", "cli") for name in ("Image", "ImageDraw", "ImageFont"))
    font = fonts.load_default(size=14)
    cells = {name: [_picture(tile(images, wide), scale) for images in sets] for name, sets in rows.items()}
    sample = next(iter(cells.values()))[0]
    pad, head, side = 10, 26, 12 + int(max(font.getlength(name) for name in rows))
    size = (side + len(columns) * (sample.width + pad), head + len(rows) * (sample.height + pad))
    sheet = image.new("RGB", size, _PAPER)
    pen = drawing.Draw(sheet)
    for j, title in enumerate(columns):
        pen.text((side + j * (sample.width + pad), 5), title, fill=_SOFT, font=font)
    for i, (name, sets) in enumerate(cells.items()):
        top = head + i * (sample.height + pad)
        pen.text((4, top + sample.height // 2 - 8), name, fill=_INK, font=font)
        for j, picture in enumerate(sets):
            sheet.paste(picture, (side + j * (sample.width + pad), top))
    _write(path, partial(sheet.save, format="PNG"))


def curves(
    path: Path,
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    x_label: str,
    lines: Mapping[str, tuple[str, float]],
) -> None:
    """Write quality against calls, one panel per measure, one line per solver, logarithmic upwards.

    Args:
        path: PNG to write.
        panels: title of the panel -> name of the line -> (x, y).
        x_label: what is spent.
        lines: title of a panel -> (name, height) of a horizontal line in it, such as a floor.
    """
    matplotlib = require("matplotlib", "cli")
    matplotlib.use("Agg")
    plt, ticker = require("matplotlib.pyplot", "cli"), require("matplotlib.ticker", "cli")
    figure, axes = plt.subplots(1, len(panels), figsize=(5.6 * len(panels), 4.2), squeeze=False, layout="constrained")
    for axis, (title, solvers) in zip(axes[0], panels.items(), strict=True):
        for k, (name, (x, y)) in enumerate(solvers.items()):
            bold = name.startswith("evodiff")
            axis.plot(x, y, marker="osD^vPX"[k % 7], markersize=5, linewidth=2.4 if bold else 1.3, label=name)
        if title in lines:
            name, height = lines[title]
            axis.axhline(height, color="0.4", linestyle=":", label=name)
        # An error of 0, a rule against itself, has no place on a logarithmic axis.
        heights = sorted(height for _, y in solvers.values() for height in y if height > 0) or [1.0]
        # A rule that diverges at few calls leaves the panel instead of flattening the others.
        axis.set(title=title, xlabel=x_label, yscale="log", ylim=(0.7 * heights[0], 8 * heights[len(heights) // 2]))
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        axis.grid(True, alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][-1].legend(frameon=False, fontsize=9)
    _write(path, partial(figure.savefig, format="png", dpi=110))
    plt.close(figure)


def interval_plot(
    path: Path, panels: Mapping[str, Mapping[str, tuple[float, float | None, float | None]]], *, columns: int = 4
) -> None:
    """Write numbers with their intervals, one small panel per measure.

    Args:
        path: PNG to write.
        panels: title of the panel -> name of the row -> (value, low, high); low and high may be None.
        columns: panels side by side.
    """
    matplotlib = require("matplotlib", "cli")
    matplotlib.use("Agg")
    plt = require("matplotlib.pyplot", "cli")
    wide, most = min(columns, len(panels)), max(map(len, panels.values()))
    size = (3.4 * wide, (1.0 + 0.45 * most) * -(-len(panels) // wide))
    figure, axes = plt.subplots(-(-len(panels) // wide), wide, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, rows) in zip(axes.flat, panels.items(), strict=False):
        for k, (value, low, high) in enumerate(rows.values()):
            if low is not None and high is not None:
                axis.plot([low, high], [k, k], color="0.6", linewidth=3, solid_capstyle="butt")
            axis.plot([value], [k], "o", color="C0")
        axis.set(title=title, yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.5))
        axis.grid(True, axis="x", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    _write(path, partial(figure.savefig, format="png", dpi=110))
    plt.close(figure)
