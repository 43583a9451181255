"""Images that a generator makes: to the disk at once, one PNG each, and measured as they are read from there.

A run that was killed goes on where it was, and what was measured can be looked at. A batch is drawn whole or read back
whole, so the images of a batch do not depend on when the run was stopped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep._files import output_dir, read_json, write_json
from fewstep.data import to_uint8
from fewstep.data.pictures import decode, is_grey
from fewstep.errors import DataError, NonFiniteError
from fewstep.experiments.evaluation.generators import Asked, Generator
from fewstep.experiments.evaluation.subjects import Pictures
from fewstep.experiments.pictures import save_pixels
from fewstep.metrics.protocol import Making

__all__ = ["Generated", "file_name"]


def file_name(name: str) -> str:
    """Turn the id of a prompt into a file name without suffix: what could leave the folder becomes an underscore."""
    plain = re.sub(r"\.(png|jpe?g|webp|bmp|gif|tiff?|ppm|pgm)$", "", name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]|^\.", "_", plain)


@dataclass(frozen=True)
class Generated:
    """Images that a generator makes, one per seed.

    Args:
        generator: makes them.
        folder: where the PNGs and cost.json go; made with the first image.
        seeds: one per image.
        asked: classes, shape (n,), or one prompt per image, or None.
        names: of the files; the seeds if empty.
        classes: names of the classes.
        condition: what is asked for, in words.
        batch_size: images per call of the generator.

    Raises:
        DataError: if two images would have the same file.
    """

    generator: Generator
    folder: Path
    seeds: Sequence[int]
    asked: Asked = None
    names: Sequence[str] = ()
    classes: tuple[str, ...] = ()
    condition: str = "none"
    batch_size: int = 64
    prepared: str = field(default="", init=False)
    facts: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        names = [file_name(name) for name in self.names] or [f"{seed:06d}" for seed in self.seeds]
        seen: dict[str, int] = {}
        for k, name in enumerate(names):
            # Some file systems do not tell capital letters from small ones.
            if (other := seen.setdefault(name.lower(), k)) != k:
                given = [list(self.names or names)[i] for i in (other, k)]
                raise DataError(
                    f"The images {given[0]!r} and {given[1]!r} would both be the file {name}.png",
                    "Every image has its own file, named by its id",
                    "Rename one of them in the prompt file",
                )
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "facts", self.generator.describe())

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.seeds)

    @property
    def labels(self) -> Tensor | None:
        """Their classes, or None."""
        return self.asked if isinstance(self.asked, Tensor) else None

    @property
    def texts(self) -> Sequence[str] | None:
        """Their prompts, or None."""
        return None if isinstance(self.asked, Tensor) else self.asked

    def read(self, index: range) -> Pictures:
        """Read those that are on the disk, and make the batches that are not.

        Args:
            index: numbers of the images.

        Returns:
            The images.

        Raises:
            NonFiniteError: if an image has NaN or infinity in it; the message names its seed.
            DataError: if a file is damaged.
            OutputError: if a file cannot be written.
        """
        batches = [index[k : k + self.batch_size] for k in range(0, len(index), self.batch_size)]
        return Pictures(torch.cat([self._batch(batch) for batch in batches]), torch.tensor(index))

    def _batch(self, index: range) -> Tensor:
        files = [self.folder / f"{self.names[k]}.png" for k in index]
        # Waiting for the disk at every image would cost more than drawing it, so a crash of the machine may leave
        # empty files; they are drawn again.
        if all(file.exists() and file.stat().st_size for file in files):
            channels = 1 if is_grey(files[0]) else 3
            return torch.stack([decode(str(file), file, None, channels) for file in files])
        seeds = [self.seeds[k] for k in index]
        drawn = self.generator(seeds, None if self.asked is None else self.asked[index.start : index.stop])
        self._check_finite(drawn.images, seeds)
        output_dir(self.folder)
        # Before the images: whoever reads them back later finds what they cost.
        write_json(self._cost, {"nfe": drawn.nfe, "network_evals": drawn.network_evals})
        images = to_uint8(drawn.images)
        for file, image in zip(files, images, strict=True):
            save_pixels(file, image, durable=False)
        return images

    @property
    def _cost(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.cost.json")

    def _check_finite(self, images: Tensor, seeds: Sequence[int]) -> None:
        broken = [seed for seed, image in zip(seeds, images, strict=True) if not image.isfinite().all()]
        if broken:
            raise NonFiniteError(
                f"{len(broken)} of {len(seeds)} images of {self.facts['model']} have NaN or infinity in them: "
                f"seed{'s' * (len(broken) > 1)} {', '.join(map(str, broken[:10]))}",
                "Images are finite; none is skipped",
                "Look at the sampler with these seeds: more calls, less guidance, or another solver",
            )

    def settings(self) -> dict[str, Any]:
        """Everything that the images depend on."""
        asked = self.asked.tolist() if isinstance(self.asked, Tensor) else self.asked
        told = repr((list(self.seeds), list(self.names), asked)).encode()
        return {
            **{f"generator.{name}": value for name, value in self.facts.items()},
            "n": self.n,
            "seeds": self._seeds(),
            "asked": hashlib.sha256(told).hexdigest()[:12],
            "batch_size": self.batch_size,
        }

    def _seeds(self) -> str:
        whole = list(self.seeds) == list(range(self.seeds[0], self.seeds[0] + self.n))
        return f"{self.seeds[0]}..{self.seeds[-1]}" if whole else f"{self.n:,} of the prompts"

    def making(self, digest: str) -> Making:
        """Say in a protocol what was measured; the counts are those of the images on the disk."""
        facts, cost = self.facts, read_json(self._cost)
        return Making(
            source=f"{facts['kind']} {facts['model']}",
            hash=facts["model_hash"],
            seeds=self._seeds(),
            solver=facts["solver"],
            grid=facts["grid"],
            nfe=cost["nfe"],
            network_evals=cost["network_evals"],
            guidance=facts["guidance"],
            condition=self.condition,
        )
