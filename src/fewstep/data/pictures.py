"""Encoded pictures as 8-bit tensors: PNG, JPEG and their kind, of a file or of bytes.

Pictures are turned the way their camera noted, brought to 8 bits per channel, cropped and resized if asked. Grey values
of 16 bits are divided by 257, which maps 0..65535 onto 0..255; kinds whose range is not known (32-bit whole numbers,
floats) are refused, because guessing it would silently give white or black images.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep._files import require
from fewstep.errors import ConfigError, DataError

__all__ = ["check_form", "decode", "is_grey", "resized", "stack"]

_MODES = {1: "L", 3: "RGB"}
_SIXTEEN_BITS = ("PNG", "PPM")  # formats whose pictures of PIL's mode "I" have 16 bits, not 32


def check_form(size: int | None, channels: int = 3) -> None:
    """Refuse a size or a number of channels that no picture can have.

    Args:
        size: pixels of a side, or None.
        channels: 1 or 3.

    Raises:
        ConfigError: if one of them cannot be.
    """
    if size is not None and (type(size) is not int or size < 1):
        raise ConfigError(f"size={size!r}", "A size is a whole number of pixels, at least 1", "Use 32, or None")
    if channels not in _MODES:
        raise ConfigError(f"channels={channels!r}", "Images have 1 channel (grey) or 3 (colour)", "Use 1 or 3")


def decode(name: str, cell: Any, size: int | None, channels: int) -> Tensor:
    """Decode one picture.

    Args:
        name: what to call it in messages.
        cell: a file, encoded bytes, or HF's pair of bytes and path.
        size: crop it to its central square and resize that to size x size pixels; None takes it as it is.
        channels: 1 or 3.

    Returns:
        Its pixels, uint8, shape (channels, h, w).

    Raises:
        DataError: if it cannot be read, or has values of unknown range.
    """
    image = require("PIL.Image", "train")
    try:
        opened = image.open(io.BytesIO(_bytes_of(cell)))
        picture = _eight_bits(require("PIL.ImageOps", "train").exif_transpose(opened), opened.format, name)
        picture = picture.convert(_MODES[channels])
    except DataError:
        raise
    except Exception as error:  # PIL raises OSError, ValueError, SyntaxError... by kind of damage
        raise DataError(
            f"{name} cannot be read as a picture ({error})",
            "Every file is a whole picture in a common format",
            "Remove or replace that file",
        ) from error
    return _pixels(picture if size is None else _fitted(picture, size), channels)


def _eight_bits(picture: Any, encoding: str | None, name: str) -> Any:
    """Rescale 16-bit grey; PIL's own conversion would clip it to white."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    if picture.mode == "F" or (picture.mode == "I" and encoding not in _SIXTEEN_BITS):
        raise DataError(
            f"{name} has {'float' if picture.mode == 'F' else '32-bit'} values, of a range that is not known",
            "Pictures have 8 or 16 bits per channel",
            "Save it with 8 bits per channel",
        )
    values = torch.frombuffer(bytearray(picture.convert("I").tobytes()), dtype=torch.int32)
    grey = (values / 257).round().clamp(0, 255).to(torch.uint8)
    return require("PIL.Image", "train").frombytes("L", picture.size, grey.numpy().tobytes())


def _fitted(picture: Any, size: int) -> Any:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    lanczos = require("PIL.Image", "train").Resampling.LANCZOS
    return picture.crop((left, top, left + side, top + side)).resize((size, size), lanczos)


def _pixels(picture: Any, channels: int) -> Tensor:
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.reshape(picture.height, picture.width, channels).permute(2, 0, 1)


def resized(images: Tensor, size: int) -> Tensor:
    """Crop and resize grey images (n, 1, h, w), uint8, to (n, 1, size, size)."""
    image = require("PIL.Image", "train")
    pictures = (image.frombytes("L", tuple(grey[0].T.shape), grey.contiguous().numpy().tobytes()) for grey in images)
    return torch.stack([_pixels(_fitted(picture, size), 1) for picture in pictures])


def is_grey(cell: Any) -> bool:
    """Whether a picture has one channel; False if it cannot be read, which :func:`decode` will say better."""
    image = require("PIL.Image", "train")
    try:
        mode: str = image.open(io.BytesIO(_bytes_of(cell))).mode
    except Exception:  # as in decode
        return False
    return mode in ("1", "L", "F") or mode.startswith("I")


def _bytes_of(cell: Any) -> bytes:
    """Read an encoded image: a file, bytes, or HF's pair of bytes and path of which one may be missing."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or Path(cell["path"])
    return cell.read_bytes() if isinstance(cell, Path) else bytes(cell)


def stack(images: Iterable[Tensor], names: Iterable[str]) -> Tensor:
    """Stack pictures of one size.

    Args:
        images: uint8, each of shape (c, h, w).
        names: what to call them in messages.

    Returns:
        Shape (n, c, h, w).

    Raises:
        DataError: if one differs from the first in size.
    """
    stacked: list[Tensor] = []
    for picture, name in zip(images, names, strict=True):
        if stacked and picture.shape != stacked[0].shape:
            raise DataError(
                f"{name} has {picture.shape[2]}x{picture.shape[1]} pixels, "
                f"the first one {stacked[0].shape[2]}x{stacked[0].shape[1]}",
                "All pictures of a data set have one size",
                "Pass size= to crop and resize them",
            )
        stacked.append(picture)
    return torch.stack(stacked)
