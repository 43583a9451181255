r"""Classifier two-sample test: can a small network tell generated images from real ones? With its controls.

A fixed convolutional network learns, on one half of both sets, which image is from which, and is asked about the other
half. An accuracy of 0.5 says that it cannot tell; 1.0 that it always can. What makes the number mean something:

- 8-bit images on both sides, as many of each class on both sides and in both halves, so that neither rounding nor class
  frequencies give anything away. Images that find no partner are left out; the result says how many were compared.
- One network, one number of epochs, no stopping by the held-out half, no augmentation. The *highest* of several
  training seeds counts: a run that failed to train says 0.5 of anything. Its interval is that of a maximum.
- Controls on real images alone, cut class by class into the disjoint halves A and B: B with noise of sd 4/255, rounded
  to 8 bits again, against A must reach 0.95, or the network is blind; B against A must have 0.5 in its interval, or
  something gives the sides away. Otherwise the number is void, and there is none. By chance the second control fails
  in at most 5 % of tests; another `split_seed` then tells chance from fault.

Generated images are compared with A, so with 10,000 real images every part of the test is 5,000 against 5,000. Controls
do not depend on the generated images: make them once, and pass them to the tests of all models.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from fewstep._files import fingerprint
from fewstep.errors import ConfigError
from fewstep.metrics.c2st_results import C2stConfig, C2stControls, C2stProgress, C2stResult, C2stTrial
from fewstep.metrics.c2st_training import trial_steps
from fewstep.metrics.matching import Labelled, Pair, match

__all__ = [
    "C2stConfig",
    "C2stControls",
    "C2stProgress",
    "C2stResult",
    "C2stTrial",
    "c2st",
    "c2st_controls",
    "c2st_steps",
]

_NOISE_SD = 4.0  # of 255, as C2stControls.why says


def c2st(
    fake: Tensor,
    real: Tensor,
    config: C2stConfig | None = None,
    *,
    fake_labels: Tensor | None = None,
    real_labels: Tensor | None = None,
    controls: C2stControls | None = None,
    device: str | torch.device = "cpu",
) -> C2stResult:
    """Test whether generated images can be told from real ones, from nothing to the end.

    Args:
        fake: generated images, uint8, shape (n, c, h, w).
        real: real images, uint8, shape (m, c, h, w), in any order; one half of them serves the controls only.
        config: how the test is done.
        fake_labels: classes of the generated images, integers, shape (n,); both sides have labels, or none.
        real_labels: classes of the real images, shape (m,).
        controls: those of the same real images and config, if they were made before.
        device: where the classifiers are trained.

    Returns:
        The result; without a number if the controls failed.

    Raises:
        ShapeError: if the images are not of one shape, or the labels do not fit them.
        DtypeError: if the images are not 8-bit.
        DataError: if only one side has labels, or too few images find a partner of their class.
        ConfigError: if the controls are of other images or another config.
        NonFiniteError: if a loss is NaN or infinite.

    Source:
        Lopez-Paz, Oquab 2017, arXiv:1610.06545, Section 3. Departs from it in: matched classes, the highest of several
        seeds with its interval, and the controls.
    """
    steps = c2st_steps(
        fake, real, config, fake_labels=fake_labels, real_labels=real_labels, controls=controls, device=device
    )
    return next(step for step in steps if isinstance(step, C2stResult))


def c2st_steps(
    fake: Tensor,
    real: Tensor,
    config: C2stConfig | None = None,
    *,
    fake_labels: Tensor | None = None,
    real_labels: Tensor | None = None,
    controls: C2stControls | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[C2stProgress | C2stResult]:
    """Do what :func:`c2st` does, yielding after each epoch of each classifier; the last item is the result.

    Args:
        fake: as for c2st.
        real: as for c2st.
        config: as for c2st.
        fake_labels: as for c2st.
        real_labels: as for c2st.
        controls: as for c2st.
        device: as for c2st.

    Yields:
        The report of each epoch, and in the end the result.

    Raises:
        ShapeError: as c2st.
        DtypeError: as c2st.
        DataError: as c2st.
        ConfigError: as c2st.
        NonFiniteError: as c2st.
    """
    config, whole = config or C2stConfig(), Labelled(real, real_labels)
    half, rest = whole.halves(config.split_seed)
    pair = _matched(Labelled(fake, fake_labels), half, config)
    name = _name(whole)
    if controls is None:
        controls = yield from _controls(half, rest, name, config, device)
    elif (controls.config, controls.images) != (config, name):
        raise ConfigError(
            "Controls of other real images or of another config",
            "Controls hold for the test they were made with",
            "Make them again with c2st_controls, or leave them out",
        )
    # A void number is not even computed, so that nobody can report it.
    yield C2stResult(controls, None if controls.why else (yield from trial_steps("generated", pair, config, device)))


def c2st_controls(
    real: Tensor,
    config: C2stConfig | None = None,
    *,
    real_labels: Tensor | None = None,
    device: str | torch.device = "cpu",
) -> C2stControls:
    """Find out whether the test works on these real images; one result serves the tests of many models.

    Args:
        real: as for c2st.
        config: as for c2st.
        real_labels: as for c2st.
        device: as for c2st.

    Returns:
        The controls; `why` says what failed.

    Raises:
        ShapeError: as c2st.
        DtypeError: as c2st.
        DataError: as c2st.
        NonFiniteError: as c2st.
    """
    config, whole = config or C2stConfig(), Labelled(real, real_labels)
    steps = _controls(*whole.halves(config.split_seed), _name(whole), config, device)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            controls: C2stControls = end.value
            return controls


def _controls(
    half: Labelled, rest: Labelled, images: str, config: C2stConfig, device: str | torch.device
) -> Generator[C2stProgress, None, C2stControls]:
    noisy = Labelled(_noisy(rest.images, config.split_seed), rest.labels)
    noise = yield from trial_steps("noise", _matched(noisy, half, config), config, device)
    real = yield from trial_steps("real", _matched(rest, half, config), config, device)
    return C2stControls(noise, real, config, images)


def _matched(first: Labelled, second: Labelled, config: C2stConfig) -> Pair:
    # Both halves of both sides must fill one batch between them.
    return match(first, second, most=config.n, least=config.batch_size, seed=config.split_seed)


def _noisy(images: Tensor, seed: int) -> Tensor:
    """Add Gaussian noise of sd 4/255 to 8-bit images, and round to 8 bits again."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images.to(torch.float32) + _NOISE_SD * noise).round().clamp(0, 255).to(torch.uint8)


def _name(real: Labelled) -> str:
    parts = {"images": real.images} | ({} if real.labels is None else {"labels": real.labels})
    return fingerprint(parts)
