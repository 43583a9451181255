"""Whatever makes images from seeds, behind one call; here for models of fewstep, in pipelines.py for diffusers'.

An image depends on its own seed and condition alone, never on its batch, so a run can stop anywhere and go on in
batches of another size. What was called is counted where it happens, not computed from the settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from fewstep.errors import ShapeError
from fewstep.experiments.runs import (
    Drawn,
    GridChoice,
    captions_of,
    check_batch,
    check_guidance,
    conditions,
    draw,
)
from fewstep.experiments.ways import way_of
from fewstep.models import Model

__all__ = ["Asked", "Generator", "ModelGenerator", "check_asked"]

# What each image shall show: class indices (n,), int64, or n prompts; None leaves it to the generator.
Asked: TypeAlias = Tensor | Sequence[str] | None


class Generator(Protocol):
    """Images from seeds."""

    def __call__(self, seeds: Sequence[int], asked: Asked = None) -> Drawn:
        """Make one image per seed.

        Args:
            seeds: n of them, one per image.
            asked: class indices, shape (n,), or n prompts; None lets the generator choose or ask for nothing.

        Returns:
            Images on the host, float32, in [-1, 1] but for what a solver overshoots, with counts and time.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Say what makes the images, for a protocol.

        Returns:
            kind, model, model_hash, solver, grid, nfe (asked for; counted ones come with the images), guidance, and
            what else changes the images; JSON can hold it.
        """
        ...


class ModelGenerator:
    """A model of fewstep with its way of sampling.

    Args:
        model: what to sample.
        solver: a name in SOLVERS, or a calibrated table; what is None here and below is chosen by
            :func:`~fewstep.experiments.ways.way_of`.
        nfe: calls that may be made per image.
        grid: levels.
        guidance: scale; 1 is none.
        batch_size: images per call.
        steps: steps of the grid, in place of `nfe`.
        force: take a table that was fitted to something else.

    Raises:
        UnknownName: if there is no such solver or grid.
        GridError: if the solver cannot run on the grid.
        BudgetError: if it needs more calls.
        ConfigError: if the model cannot be guided so or has no chain of such steps, or the batches are empty; if
            a table does not fit the model.
        CheckpointError: if a table cannot be read.
    """

    def __init__(
        self,
        model: Model,
        solver: str | None = None,
        nfe: int | None = None,
        grid: GridChoice | None = None,
        guidance: float = 1.0,
        batch_size: int = 64,
        steps: int | None = None,
        *,
        force: bool = False,
    ) -> None:
        check_batch(batch_size)
        check_guidance(model, guidance)
        self.model, self.guidance, self.batch_size = model, guidance, batch_size
        self.way = way_of(model, solver, nfe, steps, grid, guidance, force=force)

    def __call__(self, seeds: Sequence[int], asked: Asked = None) -> Drawn:
        """Make one image per seed.

        Args:
            seeds: n of them.
            asked: class indices or prompts, as the model reads them; without any, a model with classes takes
                ``seed mod n_classes`` and one that reads the captions of the scenes that of scene number ``seed``.

        Returns:
            Images, counts and time.

        Raises:
            ShapeError: if there is not one condition per seed.
            ConfigError: if the model does not read what is asked, or has to be asked.
            UnknownName: if it does not know a word.
        """
        check_asked(seeds, asked)
        labels, captions = self._conditions(seeds, asked)
        return draw(
            self.model,
            self.way.rule,
            self.way.grid,
            seeds,
            labels=labels,
            cond=None if captions is None else self.model.cond_of_captions(captions),
            guidance=self.guidance,
            batch_size=self.batch_size,
        )

    def _conditions(self, seeds: Sequence[int], asked: Asked) -> tuple[Tensor | None, Sequence[str] | None]:
        """Classes and captions of the images."""
        if asked is None:
            return conditions(self.model, seeds), captions_of(self.model, seeds)
        if not isinstance(asked, Tensor):
            return None, asked
        conditions(self.model, seeds, asked.tolist())  # refuses classes that the model does not have
        return asked, None

    def describe(self) -> dict[str, Any]:
        """Say what makes the images, for a protocol; see :class:`Generator`."""
        return {
            "kind": "fewstep model",
            "model": self.model.config.name,
            "model_hash": self.model.fingerprint,
            "solver": self.way.solver,
            "grid": self.way.said,
            "nfe": self.way.nfe,
            "guidance": self.guidance,
        }


def check_asked(seeds: Sequence[int], asked: Asked) -> None:
    """Refuse an empty run, and conditions that are not one per seed."""
    if not seeds or (asked is not None and len(asked) != len(seeds)):
        raise ShapeError(
            f"{len(seeds)} seeds and {'nothing' if asked is None else len(asked)} asked for",
            "At least one seed, and one class or prompt for each",
            "Pass as many as there are images",
        )
