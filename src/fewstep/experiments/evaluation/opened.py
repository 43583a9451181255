"""From the words of a request to what is evaluated: models, pipelines, folders and images in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fewstep.data import ImageData
from fewstep.data.prompts import PromptSet, load_prompts
from fewstep.data.sources import folder_files
from fewstep.errors import ConfigError, DataError
from fewstep.experiments.evaluation.generated import Generated, file_name
from fewstep.experiments.evaluation.generators import Asked, Generator, ModelGenerator
from fewstep.experiments.evaluation.places import SPLIT, THERE, load_images, with_kind
from fewstep.experiments.evaluation.request import MODEL_IMAGES, SEED_STRIDE, Request
from fewstep.experiments.evaluation.subjects import ArraySubject, FolderSubject, Subject
from fewstep.experiments.runs import captions_of, conditions, said_of, seeds_of
from fewstep.experiments.ways import check_budget, refuse_force
from fewstep.metrics.grouping import random_rank
from fewstep.models import Model, load_model
from fewstep.solvers import DEFAULT_NFE

__all__ = ["Opened", "match_images", "open_subjects"]


@dataclass(frozen=True)
class Opened:
    """What is evaluated.

    Args:
        subjects: one per seed set.
        shape: (c, h, w) of the images; None for a pipeline that keeps its own size to itself.
        judge: the judge that the model names, or None.
    """

    subjects: tuple[Subject, ...]
    shape: tuple[int, int, int] | None
    judge: str | None = None


def open_subjects(request: Request, generator: Generator | None = None) -> Opened:
    """Open what a request wants evaluated.

    Args:
        request: what is asked for.
        generator: makes the images in place of what the request names.

    Returns:
        The subjects; nothing is sampled yet.

    Raises:
        UnknownName: if there is no such model, solver or grid.
        ConfigError: if options do not fit together.
        DataError: if images or prompts cannot be read, or do not match.
    """
    prompts = None if request.prompts is None else load_prompts(request.prompts)
    source = with_kind(request.what, models=True)
    kind, _, place = source.partition(":")
    if generator is not None or kind == "pipeline" or kind in THERE:
        refuse_force(request.force, request.what)
    if generator is None and kind in THERE:
        return _there(request, source, prompts)
    if generator is None and kind == "pipeline":
        generator = _pipeline(request, place)
    if generator is None:
        return _model(request, prompts)
    if prompts is None:
        raise ConfigError(f"No prompts for {request.what}", "One image is made per prompt", "Pass --prompts FILE")
    shape = (3, request.size, request.size) if request.size else None
    return Opened(_sets(_prompted(request, generator, prompts, number) for number in range(request.sets)), shape)


def _sets(subjects: Iterable[Generated]) -> tuple[Subject, ...]:
    return tuple(subjects)


def _model(request: Request, prompts: PromptSet | None) -> Opened:
    model = load_model(request.what, request.plan.device)
    makes = ModelGenerator(
        model,
        request.solver,
        request.nfe,
        request.grid,
        request.guidance,
        request.batch_size,
        request.steps,
        force=request.force,
    )
    made = [
        _in_turn(request, model, makes, number) if prompts is None else _prompted(request, makes, prompts, number)
        for number in range(request.sets)
    ]
    if prompts is not None:
        captions_of(model, range(len(prompts)), prompts.texts)  # refuses a model that reads none, and unknown words
    return Opened(_sets(made), model.shape, model.config.facts.get("judge"))


def _in_turn(request: Request, model: Model, generator: Generator, number: int) -> Generated:
    """Images of all classes in turn, or of the captions that the model was trained on."""
    seeds = seeds_of(request.seed + number * SEED_STRIDE, request.n or MODEL_IMAGES)
    labels, captions = conditions(model, seeds), captions_of(model, seeds)
    asked: Asked = labels if captions is None else captions
    return Generated(
        generator,
        request.plan.out / "images",
        seeds,
        asked,
        classes=model.config.classes,
        condition=said_of(labels, captions),
        batch_size=request.batch_size,
    )


def _prompted(request: Request, generator: Generator, prompts: PromptSet, number: int) -> Generated:
    """One image for each of the first prompts, under its id and from its own seed."""
    n = _count(request, len(prompts))
    seeds = [seed + number * SEED_STRIDE for seed in prompts.seeds(request.seed)[:n]]
    # The images of several sets have the same names, so each set has its own folder.
    folder = request.plan.out / "images" / (f"set_{number}" if request.sets > 1 else "")
    return Generated(
        generator,
        folder,
        seeds,
        asked=prompts.texts[:n],
        names=[prompt.id for prompt in prompts.prompts[:n]],
        condition=_said(prompts, n),
        batch_size=request.batch_size,
    )


def _said(prompts: PromptSet, n: int) -> str:
    part = "" if n == len(prompts) else f"the first {n:,} of "
    return f"prompts {prompts.name} ({part}{len(prompts):,}, {prompts.hash})"


def _count(request: Request, there: int) -> int:
    if request.n is not None and request.n > there:
        raise DataError(f"{request.n:,} images of {there:,}", f"There are {there:,}", f"Ask for --n {there} or less")
    return request.n or there


def _pipeline(request: Request, place: str) -> Generator:
    from fewstep.experiments.evaluation.pipelines import PipelineGenerator  # diffusers comes with an extra

    check_budget(request.nfe, request.steps)
    steps = next((count for count in (request.steps, request.nfe) if count is not None), DEFAULT_NFE)
    device, batch = request.plan.device, request.batch_size
    return PipelineGenerator(place, steps, request.guidance, request.size, device, batch_size=batch)


def _there(request: Request, source: str, prompts: PromptSet | None) -> Opened:
    """Images that somebody made before."""
    kind, _, place = source.partition(":")
    if request.sets > 1:
        raise ConfigError(
            f"{request.sets} seed sets of {request.what}",
            "Images that are there come from no seeds of ours",
            "Leave --seeds out",
        )
    if kind == "folder":
        folder = _folder(request, place, prompts)
        return Opened((folder,), folder.shape)
    if prompts is not None:
        raise ConfigError(
            f"--prompts for {request.what}", "Captions are matched with files by name", "Pass folder:PATH"
        )
    data = load_images(source, request.split, request.size)
    chosen = _some(len(data), _count(request, len(data)))
    if len(chosen) < len(data):
        labels = None if data.labels is None else data.labels[chosen]
        data = ImageData(data.images[chosen], labels, data.classes, f"{data.name} ({len(chosen):,} of {len(data):,})")
    split = f" {request.split}" if kind in SPLIT else ""
    return Opened((ArraySubject(replace(data, name=f"{data.name}{split}"), kind, request.size),), data.shape)


def _some(there: int, n: int) -> torch.Tensor:
    """Choose n of the images at random, always the same: neighbours, or every k-th image, are often of one class."""
    return random_rank(torch.arange(there)).argsort()[:n].sort().values


def _folder(request: Request, place: str, prompts: PromptSet | None) -> FolderSubject:
    files, labels, classes = folder_files(place)
    if prompts is None:
        chosen = _some(len(files), _count(request, len(files)))
        some = None if labels is None else labels[chosen]
        picked, texts, said = [files[k] for k in chosen.tolist()], None, "none"
    else:
        n = _count(request, len(prompts))
        # What is there beyond the prompts has classes of its own, if any: captions take their place.
        picked, some, classes = match_images(Path(place), files, prompts)[:n], None, ()
        texts, said = prompts.texts[:n], _said(prompts, n)
    return FolderSubject(
        place, picked, some, classes, size=request.size, skip_bad=request.skip_bad, texts=texts, condition=said
    )


def _doubled(names: Iterable[str]) -> list[str]:
    return sorted(name for name, times in Counter(names).items() if times > 1)


def match_images(folder: Path, files: Sequence[Path], prompts: PromptSet) -> list[Path]:
    """Find the picture of every prompt by its id.

    Args:
        folder: where the pictures are.
        files: the pictures; their names without suffix are ids.
        prompts: what they show.

    Returns:
        One file per prompt, in the order of the prompts.

    Raises:
        DataError: if captions have no picture, pictures no caption, or two of a kind the same id; counted and named.
    """
    names = [file_name(file.relative_to(folder).as_posix()) for file in files]
    asked = [file_name(prompt.id) for prompt in prompts.prompts]
    found, wanted = dict(zip(names, files, strict=True)), dict(zip(asked, prompts.prompts, strict=True))
    for left, what in (
        (
            [wanted[name].id for name in wanted if name not in found],
            f"captions of {prompts.name} have no image in {folder}",
        ),
        ([name for name in found if name not in wanted], f"images in {folder} have no caption in {prompts.name}"),
        (_doubled(names), f"ids in {folder} belong to two images"),
        (_doubled(asked), f"names of files belong to two captions of {prompts.name}"),
    ):
        if left:
            some = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
            raise DataError(
                f"{len(left):,} {what}: {some}",
                "Every caption has one image, whose file is named by its id, and every image has its caption",
                "Complete the folder or the prompt file; nothing is left out silently",
            )
    return [found[name] for name in wanted]
