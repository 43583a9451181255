r"""Compare samples with reference samples that started from the same noise.

A solver with few steps is judged by how near it comes to a fine solution of the same equation: by the root mean square
error, and by the contrast gain, the slope of the samples on the reference about the data mean. A gain above 1 means
more contrast than the reference; it can flatter a distance of distributions while every sample is further off, so the
two numbers are read side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import ConfigError, NonFiniteError, ShapeError

__all__ = ["contrast_gain", "rmse"]


def rmse(x: Tensor, reference: Tensor) -> float:
    r"""Measure the root mean square error over all elements.

    .. math:: \sqrt{\mathrm{mean}\,(x - x_{ref})^2}

    Args:
        x: samples, shape (b, *d), data units (images in [-1, 1]).
        reference: samples from the same noise, same shape and units.

    Returns:
        The error in data units.

    Raises:
        ShapeError: if the shapes differ or are empty.
        NonFiniteError: if a value is NaN or infinite.
    """
    x, reference = _pair(x, reference)
    return float((x - reference).square().mean().sqrt())


def contrast_gain(x: Tensor, reference: Tensor, mean: Tensor) -> float:
    r"""Measure the slope of the samples on the reference about the data mean.

    .. math:: g = \frac{\sum (x - m)(x_{ref} - m)}{\sum (x_{ref} - m)^2}

    1 for the reference itself, below 1 for samples that are washed out, above 1 for too much contrast.

    Args:
        x: samples, shape (b, *d), data units.
        reference: samples from the same noise, same shape and units.
        mean: mean of the data, shape () or d or any shape that broadcasts to (b, *d), same units.

    Returns:
        The slope, without unit.

    Raises:
        ShapeError: if the shapes do not fit or are empty.
        ConfigError: if the reference is the mean everywhere, so that there is no contrast to compare with.
        NonFiniteError: if a value is NaN or infinite.
    """
    x, reference = _pair(x, reference)
    try:
        centre = torch.broadcast_to(_float64(mean), x.shape)
    except RuntimeError as error:
        raise ShapeError(
            f"A mean of shape {tuple(mean.shape)} for samples of shape {tuple(x.shape)}",
            "The mean has the shape of one sample, or is a scalar",
            "Average the data over its batch axis",
        ) from error
    contrast = reference - centre
    power = contrast.square().sum()
    if power == 0:
        raise ConfigError(
            "A reference equal to the mean everywhere",
            "A slope needs a reference that varies about the mean",
            "Pass the mean of the data, not of the reference itself",
        )
    return float(((x - centre) * contrast).sum() / power)


def _pair(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != reference.shape or x.numel() == 0:
        raise ShapeError(
            f"Samples of shape {tuple(x.shape)} and a reference of shape {tuple(reference.shape)}",
            "Both have the same shape (b, *d), with at least one element",
            "Sample both from the same noise",
        )
    for name, values in (("samples", x), ("reference", reference)):
        if not torch.isfinite(values).all():
            raise NonFiniteError(f"NaN or infinity in the {name}", "All values are finite", "Look at the sampler first")
    return _float64(x), _float64(reference)


def _float64(x: Tensor) -> Tensor:
    return x.detach().to("cpu").to(torch.float64)
