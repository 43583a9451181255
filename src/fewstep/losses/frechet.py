r"""The Fréchet distance of two Gaussians as a loss: moments with a memory, and a distance with a finite gradient.

.. math:: d^2 = |\mu - \mu_r|^2 + \mathrm{tr}\Big( C + C_r - 2 \big(C_r^{1/2} C C_r^{1/2}\big)^{1/2} \Big)

is the squared 2-Wasserstein distance of :math:`N(\mu, C)` and :math:`N(\mu_r, C_r)`. A covariance of `dim` features
needs many times `dim` samples, more than a batch has, so the moments are averaged over batches. All is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.errors import ConfigError, DataError

__all__ = ["EmaMoments", "frechet_distance"]


class EmaMoments(nn.Module):
    r"""Mean and second moment of a stream of vectors, averaged over batches, with a gradient into the newest.

    .. math:: m_t = m_{t-1} + w_t (\hat m_t - m_{t-1}), \qquad w_t = \max(1 - \beta, 1/t)

    the plain mean of all batches until there are :math:`1/(1-\beta)` of them, and then a moving average. A sample of
    the newest batch moves the average by :math:`w_t` of what it moves its own batch; the gradient is divided by
    :math:`w_t`, so that the weight of a term means the same for every :math:`\beta`.

    Args:
        dim: length of a vector.
        beta: memory, in [0, 1); 0 is the newest batch alone.

    Raises:
        ConfigError: if beta is outside [0, 1).
    """

    mean: Tensor
    second: Tensor
    seen: Tensor

    def __init__(self, dim: int, beta: float) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ConfigError(f"beta={beta:g}", "beta is in [0, 1)", "Use 0.999, or 0 for the newest batch alone")
        self.beta = beta
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("second", torch.zeros(dim, dim, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a batch.

        Args:
            rows: vectors, shape (n, dim).

        Returns:
            Mean (dim,) and covariance (dim, dim) of the average, float64.
        """
        rows = rows.double()
        batch = rows.mean(0), rows.mT @ rows / len(rows)
        self.seen += 1
        share = (1 / self.seen.double()).clamp(min=1 - self.beta)
        for average, new in zip((self.mean, self.second), batch, strict=True):
            average.lerp_(new.detach().to(average), share.to(average))
        # The value of the average with the gradient of the batch: what is added is exactly 0.
        mean, second = (average + (new - new.detach()) for average, new in zip(self.moments(), batch, strict=True))
        return mean, second - mean.outer(mean)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return copies of the averages: mean (dim,) and second moment (dim, dim), without gradient."""
        return self.mean.clone(), self.second.clone()


def frechet_distance(fake: tuple[Tensor, Tensor], real: tuple[Tensor, Tensor], ridge: float) -> Tensor:
    r"""Measure the squared Fréchet distance of two Gaussians, differentiably in the first.

    Both covariances get the ridge :math:`e I` with :math:`e = ridge \cdot \mathrm{tr}\,C_r / dim`: the gradient is
    finite where one of them is singular, a direction in which all samples agree is still pulled apart, and the
    distance is 0 where the moments agree, and only there.

    Args:
        fake: mean (dim,) and covariance (dim, dim), float64, with gradient.
        real: the same of the data, constants.
        ridge: share of the data's mean variance that is added to all variances, above 0.

    Returns:
        Scalar, in squared units of the features.

    Raises:
        DataError: if the data do not vary.

    Source:
        Dowson, Landau 1982; Heusel et al. 2017, arXiv:1706.08500, Eq. 6. Departs from it in: the ridge.
    """
    (mean, cov), (mean_real, cov_real) = fake, (part.detach() for part in real)
    size = cov_real.diagonal().mean()
    if not bool(size > 0):
        raise DataError(
            f"Features of real images with a mean variance of {size.item():g}",
            "A Fréchet distance needs data that vary",
            "Use larger batches, or look whether the images are copies",
        )
    e = ridge * size * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    values, basis = torch.linalg.eigh(cov_real + e)
    root = (basis * values.clamp(min=ridge * size).sqrt()) @ basis.mT
    # No eigenvalue of the product is below (ridge * size)^2 but for rounding.
    squares = torch.linalg.eigvalsh(root @ (cov + e) @ root).clamp(min=(ridge * size) ** 2)
    shift = (mean - mean_real).square().sum()
    spread: Tensor = (cov + e).trace() + (cov_real + e).trace() - 2 * squares.sqrt().sum()
    return shift + spread
