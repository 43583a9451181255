"""From a request to an evaluation: features, reference and training images opened and checked against each other."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from fewstep._files import output_dir
from fewstep.errors import ConfigError, DataError
from fewstep.experiments.evaluation.evaluate import Evaluation
from fewstep.experiments.evaluation.generators import Generator
from fewstep.experiments.evaluation.measured import METRICS
from fewstep.experiments.evaluation.opened import Opened, open_subjects
from fewstep.experiments.evaluation.places import SPLIT, load_images, open_real, with_kind
from fewstep.experiments.evaluation.processes import Processes
from fewstep.experiments.evaluation.references import Real, RealImages, RealJudge
from fewstep.experiments.evaluation.request import Request
from fewstep.features import FEATURES, ClassifierFeatures, Features, load_classifier, load_features, save_classifier
from fewstep.metrics.judge import load_judge
from fewstep.metrics.reference_set import cache_folder, content_hash
from fewstep.training.classifier import ClassifierConfig, train_classifier

__all__ = ["prepare"]


def prepare(request: Request, processes: Processes | None = None, generator: Generator | None = None) -> Evaluation:
    """Open everything that a request names.

    Args:
        request: what is asked for.
        processes: this process among others.
        generator: makes the images in place of what the request names, for generators of other libraries.

    Returns:
        The evaluation, checked, with nothing sampled yet.

    Raises:
        UnknownName: if a name is in no table.
        ConfigError: if options do not fit together.
        DataError: if images or prompts cannot be read, or there are too few.
        ProtocolError: if a metric cannot be had from this reference.
        MissingWeights: if the weights of a feature network are not there.
    """
    processes = processes or Processes()
    opened = open_subjects(request, generator)
    place = request.reference or opened.judge or ""
    metrics = [METRICS[name] for name in request.plan.metrics]
    real = _reference(request, place) if any(metric.held_against for metric in metrics) else None
    train = None
    if "memorisation" in request.plan.metrics or "classifier" in request.features:
        train = _training_images(request, place)
    if train is not None and "memorisation" in request.plan.metrics:
        _check_held_out(real, train)
    features = _features(request, real, opened, train, processes)
    _check_shapes(features, opened, real, request)
    learned = train if "memorisation" in request.plan.metrics else None
    return Evaluation(opened.subjects, features, request.plan, real, learned, processes)


def _reference(request: Request, place: str) -> Real:
    if not place:
        raise ConfigError(
            f"No reference for {request.what}",
            f"The metrics {', '.join(request.plan.metrics)} are held against real images",
            "Pass --reference: a judge, parquet:PATH, folder:PATH, hf:NAME or npz:PATH",
        )
    return open_real(place, request.split, request.size)


def _training_images(request: Request, place: str) -> RealImages:
    """The images that the generator learned from: what --train says, or the split "train" of the reference."""
    source = with_kind(request.train or place)
    if not request.train and source.partition(":")[0] not in SPLIT:
        raise ConfigError(
            f"No training images beside the reference {place!r}",
            "They come from the split train of a parquet or hf reference, or from --train",
            "Pass --train parquet:PATH, folder:PATH or hf:NAME",
        )
    data = load_images(source, "train", request.size)
    return RealImages(data, "train", cache_folder(), keep=len(data))


def _check_held_out(real: Real | None, train: RealImages) -> None:
    """Refuse a reference that is the training images: what was held out is the yardstick of memorisation."""
    if isinstance(real, RealImages) and content_hash(real.data.images) == content_hash(train.data.images):
        raise ConfigError(
            f"The same {len(train.data):,} images as the reference and as the training images",
            "Held-out images are not those that were learned from",
            "Pass --split test, or --train with other images",
        )


def _features(
    request: Request, real: Real | None, opened: Opened, train: RealImages | None, processes: Processes
) -> list[Features]:
    """Load the features that are asked for, or those of the judge."""
    judge = real.judge if isinstance(real, RealJudge) else load_judge(opened.judge) if opened.judge else None
    if not request.features and judge is not None:
        return [_placed(judge.features, request.plan.device)]
    if not request.features and set(request.plan.metrics) != {"c2st"}:
        raise ConfigError(
            f"No features for {request.what} against {request.reference}",
            "A judge brings its own; anything else is measured in features that are named",
            f"Pass --features, one or more of {', '.join(FEATURES)}; random-conv needs no weights",
        )
    made = []
    for spec in request.features:
        if spec == "classifier" and train is not None:
            one: Features = _trained(train, processes)
        else:
            one = load_features(spec, opened.shape)
        made.append(_placed(one, request.plan.device))
    return made


def _placed(features: Features, device: str) -> Features:
    return features.to(device) if isinstance(features, nn.Module) else features


def _trained(train: RealImages, processes: Processes) -> Features:
    """Train a small classifier on labelled images, once for each data set; seeded, so that it is the same again."""
    data, config = train.data, ClassifierConfig()
    told = f"{content_hash(data.images, data.labels)} {config} {torch.__version__}"
    folder = cache_folder() / "classifiers" / hashlib.sha256(told.encode()).hexdigest()[:12]
    if processes.first and not (folder / "config.json").exists():
        network = train_classifier(data, config)
        facts = {"data": data.name, "split": train.split, "training": vars(config)}
        save_classifier(
            output_dir(folder), ClassifierFeatures(network, f"{data.name}-classifier", data.shape[1:]), facts
        )
    processes.wait()
    return load_classifier(folder)[0]


@torch.no_grad()
def _check_shapes(features: list[Features], opened: Opened, real: Real | None, request: Request) -> None:
    """Let the features see an empty picture, so that what they cannot read is known before anything is sampled."""
    if opened.shape is None:
        return
    for one in features:
        one(torch.zeros(1, *opened.shape, device=request.plan.device))
    strict = [one.name for one in features if one.resize == "none"] + ["c2st"] * ("c2st" in request.plan.metrics)
    if strict and isinstance(real, RealImages) and real.data.shape != opened.shape:
        raise DataError(
            f"Images of shape {opened.shape} against real ones of shape {real.data.shape} in {', '.join(strict)}",
            "Both have one shape, except in features that resize them",
            "Bring them to one size (--size) and one mode, or choose features that resize, such as inception:FILE",
        )
