"""Scenes: pictures without end whose captions, and whose distribution given a caption, are known exactly.

A caption is drawn first: one thing or two with probability 1/2 each, then each caption of that kind alike. What the
caption leaves open is drawn next, every number on its own and uniform on an interval: the middle of each thing (x, y),
its radius, the shade of its colour (a factor on all three channels), and the grey of the background. Nothing else is
random, so ``of_caption`` draws from the true conditional distribution, and ``law`` states it.

Image k is a function of (seed, k): its random numbers are SplitMix64 hashes of both, not a stream that must be walked.

Source: SplitMix64: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", Fig. 17.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.data.images import Batch, to_unit
from fewstep.data.scene_captions import (
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    VOCABULARY,
    Scene,
    parse_caption,
    scenes,
)
from fewstep.data.scene_render import Drawing, render
from fewstep.errors import ConfigError
from fewstep.networks import Vocabulary

__all__ = ["NUISANCES", "Law", "Scenes", "law"]

NUISANCES = ("x", "y", "radius", "shade")  # of each thing; besides, the background

_JITTER = 0.04  # of a thing's middle, both ways
_ACROSS = (0.35, 0.65)  # where the things of a pair lie, across the direction of their relation
_RADII = ((0.09, 0.11), (0.145, 0.175))  # small, large
_SHADES = (0.8, 1.0)
_BACKGROUNDS = (20.0, 76.0)
_COLUMNS = 11  # random numbers of an image: kind, caption, background, and four of each of two things


class Law(NamedTuple):
    """What a caption leaves open: independent uniform numbers between two bounds.

    Attributes:
        low: lower bounds of NUISANCES for each of two things, float64, shape (b, 2, 4).
        high: upper bounds; the same as `low` for a thing that is not there.
        background: bounds of the background's grey, the same for all scenes.
    """

    low: Tensor
    high: Tensor
    background: tuple[float, float] = _BACKGROUNDS


def _codes(scene: Scene) -> list[int]:
    """A scene as numbers: place, then shape, colour and size of each thing, -1 for one that is not there."""
    places, colours = (*PLACES, *RELATIONS), list(COLOURS)
    codes = [places.index(scene.place)]
    for thing in (scene.first, scene.second):
        if thing is None:
            codes += [-1, -1, -1]
        else:
            codes += [SHAPES.index(thing.shape), colours.index(thing.colour), SIZES.index(thing.size)]
    return codes


@lru_cache(maxsize=1)
def _tables() -> tuple[dict[Scene, int], Tensor, Tensor]:
    """Number every scene; codes (n, 7) and word numbers (n, length) of all of them."""
    every = scenes()
    codes, tokens = torch.tensor([_codes(scene) for scene in every]), VOCABULARY.encode([str(s) for s in every])
    return {scene: i for i, scene in enumerate(every)}, codes, tokens


@lru_cache(maxsize=1)
def _boxes() -> Tensor:
    """Bounds of the things' middles, shape (places and relations, 2 things, x and y, low and high)."""
    near, middle, far = ((at - _JITTER, at + _JITTER) for at in (0.25, 0.5, 0.75))
    columns = (near, middle, far)
    alone = [[(columns[i % 3], columns[i // 3])] * 2 for i in range(len(PLACES))]
    left, right, top, bottom = (near, _ACROSS), (far, _ACROSS), (_ACROSS, near), (_ACROSS, far)
    pairs = [[left, right], [right, left], [top, bottom], [bottom, top]]
    return torch.tensor([*alone, *pairs], dtype=torch.float64)


def _law(codes: Tensor) -> Law:
    middles, size = _boxes()[codes[:, 0]], codes[:, (3, 6)]
    radii = torch.tensor(_RADII, dtype=torch.float64)[size]
    shades = torch.tensor(_SHADES, dtype=torch.float64).expand_as(radii)
    low, high = torch.cat([middles, radii[:, :, None], shades[:, :, None]], dim=2).unbind(-1)
    return Law(low, torch.where((size < 0)[:, :, None], low, high))


def law(scenes: list[Scene]) -> Law:
    """State what is left open by some scenes.

    Args:
        scenes: b of them; "first" and "second" thing are in the order in which the scene names them.

    Returns:
        The bounds, with the scenes as their first axis.
    """
    return _law(torch.tensor([_codes(scene) for scene in scenes]).reshape(-1, 7))


_GOLDEN, _FIRST, _SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift to the right as if without sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's finaliser; products wrap around."""
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    mixed: Tensor = z ^ _shifted(z, 31)
    return mixed


def _uniforms(key: str, indices: Tensor) -> Tensor:
    """Random numbers in [0, 1) with 53 bits, shape (b, columns), each a function of key, index and column alone."""
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)
    rows = _mixed(_mixed(indices[:, None] * _GOLDEN + start) + (torch.arange(_COLUMNS) + 1) * _GOLDEN)
    return _shifted(rows, 11).to(torch.float64) * 2.0**-53


def _drawing(codes: Tensor, uniforms: Tensor) -> Drawing:
    bounds = _law(codes)
    own = bounds.low + (bounds.high - bounds.low) * uniforms[:, 3:].reshape(-1, 2, len(NUISANCES))
    low, high = bounds.background
    bright = torch.tensor(list(COLOURS.values()), dtype=torch.float64)[codes[:, (2, 5)]]
    background = low + (high - low) * uniforms[:, 2]
    parts = (own[:, :, :2], own[:, :, 2], bright * own[:, :, 3:], background)
    return Drawing(codes[:, (1, 4)], *(part.float() for part in parts))


@dataclass(frozen=True)
class Scenes:
    """Captioned pictures without end: images 0, 1, 2...

    Args:
        size: pixels of a side, 32 or 64.
        seed: of everything that is random; sets of different seeds share no image.
        n: images in what training calls an epoch; images from number n on are as good as any.

    Raises:
        ConfigError: if there are no scenes of that size, or the other numbers cannot be.
    """

    size: int = 32
    seed: int = 0
    n: int = 1_000_000

    def __post_init__(self) -> None:
        if self.size not in (32, 64):
            raise ConfigError(f"Scenes of {self.size} pixels", "Scenes have 32x32 or 64x64 pixels", "Use 32 or 64")
        if type(self.seed) is not int or type(self.n) is not int or self.n < 1:
            raise ConfigError(f"Scenes with seed={self.seed!r}, n={self.n!r}", "Whole numbers, n above 0", "Use 0")

    def __len__(self) -> int:
        return self.n

    @property
    def name(self) -> str:
        """What the data set is called in reports."""
        return f"scenes-{self.size}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return 3, self.size, self.size

    @property
    def classes(self) -> tuple[str, ...]:
        """Scenes have captions, no classes."""
        return ()

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of the captions."""
        return VOCABULARY

    def batch(self, indices: Tensor, mirrored: Tensor | None = None) -> Batch:
        """Draw some images.

        Args:
            indices: which ones, int64 from 0 on, shape (b,).
            mirrored: None; captions say left and right.

        Returns:
            The images, and their captions as the condition "tokens".

        Raises:
            ConfigError: if images are to be mirrored, or a number is below 0.
        """
        if mirrored is not None:
            raise ConfigError("Mirrored scenes", "Their captions say left and right", "Set train.flip=false")
        return Batch(to_unit(self.images(indices)), {"tokens": _tables()[2][self._which(indices)]})

    def images(self, indices: Tensor) -> Tensor:
        """Draw some images as bytes: uint8, shape (b, 3, size, size)."""
        # In pieces, because what is computed with then stays in the processor's cache.
        return torch.cat([render(self.drawing(some), self.size) for some in torch.split(indices, 128)])

    def drawing(self, indices: Tensor) -> Drawing:
        """Everything that is to be seen in some images, as numbers."""
        return _drawing(_tables()[1][self._which(indices)], self._uniforms(indices))

    def shown(self, indices: Tensor) -> list[Scene]:
        """What some images show."""
        return [scenes()[i] for i in self._which(indices).tolist()]

    def scene(self, k: int) -> Scene:
        """What image k shows."""
        return self.shown(torch.tensor([k]))[0]

    def caption(self, k: int) -> str:
        """What image k shows, in words."""
        return str(self.scene(k))

    def captions(self) -> dict[str, float]:
        """All captions there are, with their probabilities."""
        alone = _n_alone()
        return {str(scene): 0.5 / (alone if scene.second is None else len(scenes()) - alone) for scene in scenes()}

    def of_caption(self, caption: str | Scene, n: int, seed: int = 0) -> Tensor:
        """Draw true images of one caption.

        Args:
            caption: a caption, or what it says.
            n: how many.
            seed: of this draw; other seeds and other captions give unrelated images, none of them image k of the set.

        Returns:
            uint8, shape (n, 3, size, size).

        Raises:
            UnknownName: if the caption has a word that occurs in none.
            ConfigError: if it is no caption, or n is below 0.
        """
        scene = caption if isinstance(caption, Scene) else parse_caption(caption)
        if n < 0:
            raise ConfigError(f"{n} images of a caption", "None or more", "Ask for 1 or more")
        codes = _tables()[1][_tables()[0][scene]].expand(n, -1)
        return render(_drawing(codes, _uniforms(f"{self.seed}:{seed}:{scene}", torch.arange(n))), self.size)

    def _uniforms(self, indices: Tensor) -> Tensor:
        if indices.numel() and int(indices.min()) < 0:
            raise ConfigError(f"Image {int(indices.min())} of the scenes", "Images 0, 1, 2...", "Ask for those")
        return _uniforms(str(self.seed), indices)

    def _which(self, indices: Tensor) -> Tensor:
        """Number of each image's scene."""
        kind, which = self._uniforms(indices)[:, :2].unbind(1)
        alone, every = _n_alone(), len(scenes())
        return torch.where(kind < 0.5, which * alone, alone + which * (every - alone)).to(torch.int64)


def _n_alone() -> int:
    return len(PLACES) * len(SIZES) * len(COLOURS) * len(SHAPES)
