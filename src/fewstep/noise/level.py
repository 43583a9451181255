r"""A noise level, and what it does to data.

Every sample of a diffusion is :math:`x = \alpha x_0 + \sigma \varepsilon`. The pair :math:`(\alpha, \sigma)` *is* the
level: three numbers follow from it, and nothing else in fewstep is called by their names.

* ``lam`` :math:`\lambda = \log(\alpha / \sigma)`; ``logsnr`` is :math:`2\lambda`, never its negative;
* ``kappa`` :math:`\kappa = \sigma / \alpha`, which EDM and ComfyUI call "sigma".

Pure noise is ``alpha = 0`` (``lam = -inf``), clean data ``sigma = 0`` (``lam = inf``); both ends are legal levels.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fewstep._tensor import expand
from fewstep.errors import ShapeError

__all__ = ["NoiseLevel", "perturb"]


class NoiseLevel(NamedTuple):
    """The pair in ``x = alpha * x0 + sigma * eps``.

    Attributes:
        alpha: scale of the data, shape () or (b,), no unit.
        sigma: scale of the noise, same shape, data units.
    """

    alpha: Tensor
    sigma: Tensor

    @property
    def lam(self) -> Tensor:
        """Half the log signal-to-noise ratio, ``log(alpha / sigma)``."""
        return self.alpha.log() - self.sigma.log()

    @property
    def logsnr(self) -> Tensor:
        """The log signal-to-noise ratio, ``2 * lam``."""
        return 2 * self.lam

    @property
    def kappa(self) -> Tensor:
        """Noise per unit of data, ``sigma / alpha``."""
        return self.sigma / self.alpha


def perturb(x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
    r"""Bring data to a noise level.

    .. math:: x = \alpha x_0 + \sigma \varepsilon

    Args:
        x0: data, shape (b, *d), data units (images in [-1, 1]).
        eps: standard normal noise, same shape.
        level: where to go, shape () or (b,).

    Returns:
        Noisy samples, shape and dtype of x0.

    Raises:
        ShapeError: if data and noise differ in shape, or the level has neither shape () nor (b,).
    """
    if x0.shape != eps.shape:
        raise ShapeError(
            f"Data of shape {tuple(x0.shape)} and noise of shape {tuple(eps.shape)}",
            "One draw of noise for every number of the data",
            "Draw the noise with torch.randn_like(x0)",
        )
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps
