"""An evaluation as a user asks for it: words and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import ConfigError
from fewstep.experiments.evaluation.evaluate import Plan
from fewstep.experiments.runs import GridChoice

__all__ = ["MODEL_IMAGES", "SEED_STRIDE", "Request"]

SEED_STRIDE = 1_000_000  # between the first seeds of two seed sets
MODEL_IMAGES = 5000  # of a model, if nobody says how many


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Args:
        what: a bundled model, a model folder, pipeline:PATH_OR_ID, folder:PATH, npz:PATH, parquet:PATH or hf:NAME.
        plan: metrics and place.
        reference: a judge, npz:PATH with statistics, or images like `what`; "" for the model's own judge.
        split: of `what` and reference, where they have several.
        train: images that the generator learned from; "" for the split "train" of the reference.
        features: as :func:`fewstep.features.load_features` reads them, or "classifier" for one trained on the spot;
            empty for the judge's.
        n: images; None for 5,000 of a model, and for all that there are of anything else.
        seed: of the first image.
        sets: number of seed sets; their first seeds are 1,000,000 apart.
        solver: a name in SOLVERS, or a calibrated table; None for the model's own way. A pipeline keeps its own
            scheduler.
        nfe: calls per image; steps of a pipeline's scheduler; None leaves it to the model.
        guidance: scale; 1 is none.
        grid: levels; None leaves them to the model.
        batch_size: images per call of the generator.
        size: crop and resize pictures to size x size; for a pipeline, its image size.
        skip_bad: count and name pictures that cannot be read instead of stopping.
        prompts: a prompt file, one image a prompt.
        steps: steps of the grid, in place of `nfe`; of a few-step model, one of the trained numbers.
        force: take a table that was fitted to something else.
    """

    what: str
    plan: Plan
    reference: str = ""
    split: str = "test"
    train: str = ""
    features: tuple[str, ...] = ()
    n: int | None = None
    seed: int = 0
    sets: int = 1
    solver: str | None = None
    nfe: int | None = None
    guidance: float = 1.0
    grid: GridChoice | None = None
    batch_size: int = 64
    size: int | None = None
    skip_bad: bool = False
    prompts: Path | None = None
    steps: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.sets < 1 or (self.sets > 1 and (self.n or MODEL_IMAGES) > SEED_STRIDE):
            raise ConfigError(
                f"{self.sets} seed sets of {self.n} images",
                f"At least one set, and at most {SEED_STRIDE:,} images in each of several",
                "Use --seeds 3",
            )
        if self.n is not None and self.n < 2:
            raise ConfigError(f"{self.n} images", "Two or more, to see a spread", "Ask for --n 2 or more")
