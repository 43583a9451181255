"""Train a small classifier on labelled images, for the features in front of its last layer.

Plain cross-entropy, AdamW under a one-cycle learning rate, random shifts by a pixel or two, and nothing that would
press the features of a class into a point (no label smoothing, no mixing of images): a judge has to see the variety
inside a class, not only the class.

:func:`classifier_steps` yields after each step, so that the caller draws the progress bar; :func:`train_classifier`
runs it to its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fewstep.data import ImageData, to_unit
from fewstep.errors import ConfigError, DataError, NonFiniteError
from fewstep.networks.classifier import SmallClassifier

__all__ = ["ClassifierConfig", "ClassifierStep", "accuracy", "classifier_steps", "new_classifier", "train_classifier"]


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained.

    Args:
        width: channels of its first convolution.
        dim: number of its penultimate features.
        epochs: passes over the data.
        batch_size: images per step; a last, smaller batch is left out.
        lr: largest learning rate of the one-cycle schedule.
        weight_decay: of AdamW.
        max_shift: largest random shift, pixels; the border is filled with the darkest value.
        seed: of the initial weights, the order of the images and the shifts.
        bf16: compute in bfloat16 where torch's autocast does; the weights stay float32.
    """

    width: int = 32
    dim: int = 64
    epochs: int = 5
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 1e-2
    max_shift: int = 2
    seed: int = 0
    bf16: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers that cannot train anything."""
        for name in ("epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)}", f"{name} is positive", f"Raise {name} above 0")
        if self.max_shift < 0:
            raise ConfigError(f"max_shift = {self.max_shift}", "A shift is 0 or more pixels", "Pass max_shift >= 0")


@dataclass(frozen=True)
class ClassifierStep:
    """What one training step reports.

    Args:
        step: number of finished steps, from 1.
        steps: number of steps in the whole training.
        loss: cross-entropy of this batch, nats.
    """

    step: int
    steps: int
    loss: float


def new_classifier(data: ImageData, config: ClassifierConfig) -> SmallClassifier:
    """Make the untrained classifier that fits some data.

    Args:
        data: labelled images.
        config: width, number of features and seed.

    Returns:
        The network, its weights drawn from config.seed alone; the global random state is left as it was.

    Raises:
        DataError: if the images have no labels.
    """
    _labels(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return SmallClassifier(data.shape[0], data.n_classes, config.width, config.dim)


def classifier_steps(network: SmallClassifier, data: ImageData, config: ClassifierConfig) -> Iterator[ClassifierStep]:
    """Train a classifier in place, yielding after each step; it is in evaluation mode at the end.

    Args:
        network: the classifier, on the device to train on.
        data: labelled images.
        config: length and manner of the training.

    Yields:
        The report of each step.

    Raises:
        DataError: if the images have no labels or do not fill one batch.
        NonFiniteError: if a loss is NaN or infinite.
    """
    labels, device = _labels(data), next(network.parameters()).device
    per_epoch = len(data) // config.batch_size
    if per_epoch == 0:
        raise DataError(
            f"{len(data)} images for batches of {config.batch_size}",
            "There must be at least one full batch",
            f"Pass batch_size <= {len(data)}",
        )
    steps, generator = per_epoch * config.epochs, torch.Generator().manual_seed(config.seed)
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=steps, pct_start=0.2)
    for step, chosen in enumerate(_batches(len(data), config, generator), start=1):
        x = _shift(to_unit(data.images[chosen]), config.max_shift, generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            logits = network(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels[chosen].to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        rate.step()
        yield ClassifierStep(step, steps, _finite(loss, step))
    network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def train_classifier(data: ImageData, config: ClassifierConfig | None = None) -> SmallClassifier:
    """Train a classifier on labelled images, from nothing to the end.

    Args:
        data: labelled images.
        config: length and manner of the training; the defaults suit MNIST (two minutes on one core).

    Returns:
        The trained classifier, in evaluation mode, on the CPU.

    Raises:
        DataError: if the images have no labels or do not fill one batch.
        NonFiniteError: if a loss is NaN or infinite.
    """
    config = config or ClassifierConfig()
    network = new_classifier(data, config)
    for _ in classifier_steps(network, data, config):
        pass
    return network


@torch.no_grad()
def accuracy(network: SmallClassifier, data: ImageData, batch_size: int = 500) -> float:
    """Measure the share of images whose largest logit is at their label.

    Args:
        network: the classifier; it is put into evaluation mode.
        data: labelled images.
        batch_size: images per forward pass.

    Returns:
        A number in [0, 1].

    Raises:
        DataError: if the images have no labels.
    """
    labels, device = _labels(data), next(network.parameters()).device
    network.eval()
    right = 0
    for start in range(0, len(data), batch_size):
        here = slice(start, start + batch_size)
        right += int((network(to_unit(data.images[here]).to(device)).argmax(1).cpu() == labels[here]).sum())
    return right / len(data)


def _labels(data: ImageData) -> Tensor:
    if data.labels is None:
        raise DataError(f"{data.name} has no labels", "A classifier needs one label per image", "Choose labelled data")
    return data.labels


def _batches(n: int, config: ClassifierConfig, generator: Generator) -> Iterator[Tensor]:
    for _ in range(config.epochs):
        order = torch.randperm(n, generator=generator)
        yield from torch.split(order[: n - n % config.batch_size], config.batch_size)


def _shift(x: Tensor, most: int, generator: Generator) -> Tensor:
    """Move each image by its own whole number of pixels, up to `most` along both axes."""
    if most == 0:
        return x
    b, _, h, w = x.shape
    padded = F.pad(x, (most,) * 4, value=-1.0)
    corner = torch.randint(0, 2 * most + 1, (2, b, 1), generator=generator)
    rows, columns = corner[0] + torch.arange(h), corner[1] + torch.arange(w)
    return padded[torch.arange(b)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _finite(loss: Tensor, step: int) -> float:
    value = loss.item()
    if value != value or abs(value) == float("inf"):
        raise NonFiniteError(f"The loss is {value} at step {step}", "A loss is finite", "Lower lr, or turn bf16 off")
    return value
