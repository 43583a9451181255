"""What the parts of an end-to-end run are made of: data, models to start and to learn from, features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fewstep._files import output_dir, write_folder_atomic
from fewstep.data import Batch, ImageData, Images, indices_of_step
from fewstep.denoisers import Cond
from fewstep.errors import ConfigError, UnknownName, choose
from fewstep.features import (
    ClassifierFeatures,
    ClassifierMaps,
    Features,
    Maps,
    NetworkMaps,
    PixelMaps,
    RandomConv,
    RandomMaps,
    VectorMaps,
    load_classifier,
    load_features,
    save_classifier,
)
from fewstep.features.squeezenet import read_squeezenet
from fewstep.losses import DenoiserMaps
from fewstep.models import Model, ModelConfig, load_model
from fewstep.training.classifier import ClassifierConfig, classifier_steps, new_classifier
from fewstep.training.processes import accelerator

__all__ = ["MAPS", "Materials", "Tell", "joined", "quiet"]

Tell: TypeAlias = Callable[[str], None]  # is told in a line what is being made

_PLACED = ("classifier", "squeezenet")  # maps that may name a folder or file
_FILTERS = 20_241_129  # seed of the random filters that training sees; judges have others, 0 in `fewstep evaluate`
_SOME = 1000
_SEEN = 120_000  # images that the classifier on the spot sees, epochs included, up to 10 of them


def quiet(line: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Materials:
    """What a run's parts are made of; what costs something is made when it is first asked for, and once.

    Args:
        described: the model in training.
        data: the images.
        folder: of the run; keeps what was made.
        device: where the run computes.
        init: name of the model it starts from; empty from scratch.
        teacher_name: name of the model that couplings learn from; empty takes `init`.
        tell: hears of what takes its time.
    """

    described: ModelConfig
    data: Images
    folder: Path
    device: torch.device
    init: str = ""
    teacher_name: str = ""
    tell: Tell = field(default=quiet)

    @cached_property
    def start(self) -> Model:
        """The model that the run starts from, as it was; ConfigError from scratch."""
        if not self.init:
            raise ConfigError(
                "The maps 'self', which self_perceptual sees too, in a run from scratch",
                "They are the hidden layers of the model that a run starts from",
                "Add e2e.init=MODEL, or choose other features, such as random",
            )
        return load_model(self.init, self.device)

    @property
    def has_teacher(self) -> bool:
        """Whether there is a model that couplings learn from."""
        return bool(self.teacher_name or self.init)

    @cached_property
    def teacher(self) -> Model:
        """The model that couplings learn from; ConfigError if there is none."""
        if not self.has_teacher:
            raise ConfigError(
                "A coupling without its teacher, in a run from scratch",
                "teacher and inversion sample a model: e2e.teacher, or else the one that the run starts from",
                "Add e2e.teacher=MODEL or e2e.init=MODEL, or choose e2e.coupling=independent",
            )
        return load_model(self.teacher_name, self.device) if self.teacher_name else self.start

    @cached_property
    def some(self) -> Batch:
        """A thousand of the images, with what the network is told of them: for units and other rough numbers."""
        return self.some_of(_SOME).to(self.device)

    def some_of(self, n: int) -> Batch:
        """The same n images in every run, or all if there are fewer, with what the network is told of them."""
        return self.data.batch(indices_of_step(len(self.data), min(len(self.data), n), 0, 0)).told(self.described.null)

    @cached_property
    def classifier(self) -> ClassifierFeatures:
        """A classifier of the training images, from the run's folder if it has been trained; never a judge."""
        folder, facts = self.folder / "classifier", {"data": self.data.name, "images": len(self.data)}
        # The critics' weights are drawn after it, whether it was trained here, by another process, or long ago.
        with torch.random.fork_rng(devices=[]):
            with accelerator().main_process_first():
                if not folder.exists() or load_classifier(folder)[1].get("facts") != facts:
                    self._train_classifier(folder, facts)
            return load_classifier(folder)[0].to(self.device)

    def _train_classifier(self, folder: Path, facts: Mapping[str, Any]) -> None:
        if not isinstance(self.data, ImageData) or self.data.labels is None:
            raise ConfigError(
                f"Features of a classifier for {self.data.name!r}",
                "It is trained on the spot, on images with classes",
                "Choose among pixels, random, self and classifier:FOLDER",
            )
        n = len(self.data)
        epochs, batch = min(10, math.ceil(_SEEN / n)), min(128, n)
        config = ClassifierConfig(width=24, dim=48, epochs=epochs, batch_size=batch, seed=7)
        network = new_classifier(self.data, config)
        for done in classifier_steps(network, self.data, config):
            self.tell(f"training a classifier of {n:,} images: step {done.step} of {done.steps}, loss {done.loss:.3f}")
        features = ClassifierFeatures(network, "on-the-spot", self.data.shape[1:])
        output_dir(self.folder)
        with write_folder_atomic(folder) as temporary:
            save_classifier(temporary, features, facts)

    def maps(self, words: str) -> tuple[Maps, ...]:
        """Make maps of images.

        Args:
            words: names in MAPS, with commas; "classifier:FOLDER" and "squeezenet:FILE" name what is there.

        Returns:
            The maps, on the run's device.

        Raises:
            UnknownName: if there are no such maps.
            ConfigError: if the run cannot make them.
            MissingWeights: if their weights are missing.
        """
        made = (maps for word in words.split(",") for maps in self._named(*word.strip().split(":", maxsplit=1)))
        return tuple(maps.to(self.device) if isinstance(maps, nn.Module) else maps for maps in made)

    def vectors(self, word: str) -> Features:
        """Make feature vectors.

        Args:
            word: "pixels", "random", "classifier" (trained on the spot), or what else `load_features` knows.

        Returns:
            The features, on the run's device.

        Raises:
            UnknownName: if there are no such features.
            ConfigError: if the run cannot make them.
            MissingWeights: if their weights are missing.
        """
        if word == "classifier":
            return self.classifier
        own = word == "random"
        features = RandomConv(self.data.shape[0], seed=_FILTERS) if own else self._loaded(word)
        return features.to(self.device) if isinstance(features, nn.Module) else features

    def _loaded(self, word: str) -> Features:
        try:
            return load_features(word, self.described.shape)
        except UnknownName as error:
            own = "One of random and classifier, which the run makes, and what fewstep knows; not several"
            raise UnknownName(error.given, f"{own}. {error.allowed}", error.todo) from error

    def _named(self, name: str, place: str = "") -> Iterable[Maps]:
        if place and name not in _PLACED:
            raise ConfigError(f"The maps {name}:{place}", f"Only {', '.join(_PLACED)} have a place", f"Write {name}")
        return choose(name, MAPS, "maps")(self, place)


def _classifier(given: Materials, place: str) -> list[Maps]:
    features = load_classifier(place)[0] if place else given.classifier
    return [ClassifierMaps(features), VectorMaps(features)]


MAPS: dict[str, Callable[[Materials, str], Iterable[Maps]]] = {
    "pixels": lambda given, place: [PixelMaps()],
    "random": lambda given, place: [RandomMaps(given.data.shape[0], seed=_FILTERS)],
    "classifier": _classifier,
    "self": lambda given, place: [DenoiserMaps(given.start.denoiser)],
    "squeezenet": lambda given, place: [NetworkMaps(read_squeezenet(place))],
}


@dataclass(frozen=True)
class _Joined:
    """Several maps as one."""

    parts: Sequence[Maps]

    @property
    def name(self) -> str:
        return " + ".join(maps.name for maps in self.parts)

    def __call__(self, images: Tensor, cond: Cond = None) -> list[Tensor]:
        return [found for maps in self.parts for found in maps(images, cond)]


def joined(parts: Sequence[Maps]) -> Maps:
    """Put the lists of several maps behind each other."""
    return _Joined(parts)
