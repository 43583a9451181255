r"""Distances between the distribution of samples and that of data, without pairs and without a critic.

Both look at feature vectors of the images. :class:`MMD` compares all moments that its kernel sees within one batch;
:class:`FrechetEma` compares means and covariances, which it averages over many batches. Either is 0 where the two
distributions agree in what it sees and leaves everything else free, the condition of an image among it: samples of the
right images under the wrong conditions cost nothing. One feature network gets gamed; use two or three.

Sums are taken outside of autocast, in float32 at least: differences of large sums do not survive bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol, TypeAlias

import torch
from torch import Generator, Tensor, nn

from fewstep._chunks import in_chunks
from fewstep.errors import ConfigError, DataError, ShapeError
from fewstep.features.kernels import Polynomial, gaussians, squared_distances
from fewstep.losses.base import Outcome, Role, check_draws
from fewstep.losses.frechet import EmaMoments, frechet_distance

__all__ = ["KERNELS", "MMD", "RBF", "FrechetEma", "Kernel", "Polynomial"]

Vectors: TypeAlias = Callable[[Tensor], Tensor]  # images (n, *d) -> feature vectors (n, dim)
Pairs: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # vectors (n, dim) and (m, dim) -> all pairs (n, m)

_MEDIAN_ROWS = 1000


class Kernel(Protocol):
    """A positive definite function of two vectors, whose scale may be taken from the data."""

    def fitted(self, real: Tensor) -> Pairs:
        """Return the function with its scale taken from the vectors of real images, (m, dim), as constants."""
        ...


@dataclass(frozen=True)
class RBF:
    r"""Mean of Gaussian kernels of several widths.

    .. math:: k(x, y) = \frac{1}{B} \sum_b \exp\Big( -\frac{|x - y|^2}{2 (w_b s)^2} \Big)

    Args:
        widths: w, in units of s, the median distance between two of the first 1,000 real images of the batch.

    Raises:
        ConfigError: if there are none, or one is not above 0.

    Source:
        Gretton et al. 2012, JMLR 13, Section 8; several widths as in Li et al. 2015, arXiv:1502.02761.
        Departs from it in: the median of the real images alone, so that samples cannot widen the kernel.
    """

    widths: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) <= 0:
            raise ConfigError(f"widths = {self.widths}", "At least one width, all above 0", "Use (0.5, 1, 2)")

    def fitted(self, real: Tensor) -> Pairs:
        """Return the kernel with its widths; DataError if more than half of the pairs of real vectors are equal."""
        centre = real.mean(0)  # distances do not change, and rounding is that of their size, not of the offset's
        median = _median_square(real - centre)

        def pairs(x: Tensor, y: Tensor) -> Tensor:
            return gaussians(squared_distances(x - centre, y - centre) / median, self.widths)

        return pairs


KERNELS: dict[str, type[Polynomial] | type[RBF]] = {"polynomial": Polynomial, "rbf": RBF}


@dataclass(frozen=True)
class MMD:
    r"""Squared maximum mean discrepancy of samples and data, unbiased.

    .. math:: \frac{1}{b (b-1)} \sum_{i \ne j} \big[ k(F_i, F_j) + k(x_i, x_j) - k(F_i, x_j) - k(x_i, F_j) \big]

    Draws and real sample of one row are never compared, so that the mean is right under every coupling and for
    conditional data too, where draws of one condition resemble each other; a kernel of several draws is the mean over
    them. Single values may be negative.

    Args:
        features: differentiable map from images (n, \*d) to vectors (n, dim).
        kernel: the kernel.
        chunk: images whose feature network is held in memory at once; None is all. The gradient stays exact, so that
            batches of thousands fit.

    Source:
        Gretton et al. 2012, JMLR 13, Lemma 6, Eq. 4. Departs from it in: several draws.
    """

    features: Vectors
    kernel: Kernel = RBF()
    chunk: int | None = None
    draws: ClassVar[int] = 1
    role: ClassVar[Role] = "marginal"

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        r"""Squared discrepancy of all draws and the real images, a scalar, units of the kernel.

        Args:
            outcome: samples (k, b, \*d) and real images (b, \*d), b >= 2.
            generator: not used.

        Returns:
            Scalar; its gradient reaches the samples alone.

        Raises:
            ShapeError: if the shapes do not fit, or b < 2.
        """
        fake, real = _vectors(self.features, outcome, self.chunk, "MMD")
        with torch.autocast(fake.device.type, enabled=False):
            pairs = self.kernel.fitted(real)
            (k, b), x = outcome.fake.shape[:2], fake
            within = pairs(x, x).reshape(k, b, k, b).mean((0, 2))
            across = pairs(x, real).reshape(k, b, b).mean(0)
            h = within + pairs(real, real) - across - across.mT
            return (h.sum() - h.diagonal().sum()) / (b * (b - 1))


class FrechetEma(nn.Module):
    r"""Fréchet distance of samples and data in features, from moments that are averaged over batches.

    A covariance of `dim` features needs many times `dim` samples, more than a batch has. The averages live in buffers,
    which belong into checkpoints; the gradient reaches the newest batch alone. Every call takes its batch in. Chains of
    each length have averages of their own: a mixture may fit the data while each of its parts errs another way.

    Args:
        features: differentiable map from images (n, \*d) to vectors (n, dim).
        dim: length of a feature vector.
        beta: memory of the averages, in [0, 1).
        ridge: share of the data's mean variance that is added to all variances; see :func:`frechet_distance`.
        chains: the lengths of the chains whose samples will come.
        real: mean (dim,) and covariance (dim, dim) of the data if they are known; else they are averaged as well.
        chunk: images whose feature network is held in memory at once; None is all.

    Raises:
        ConfigError: if beta is outside [0, 1) or the ridge not above 0.
        ShapeError: if the moments of the data do not have the shape of the features.
    """

    draws: ClassVar[int] = 1
    role: ClassVar[Role] = "marginal"

    def __init__(
        self,
        features: Vectors,
        dim: int,
        *,
        beta: float = 0.999,
        ridge: float = 1e-6,
        chains: Iterable[int] = (1, 2, 4),
        real: tuple[Tensor, Tensor] | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if not ridge > 0:
            raise ConfigError(f"ridge={ridge:g}", "The ridge is above 0", "Use 1e-6")
        self.features = partial(features)  # not a submodule: frozen features belong in no checkpoint of moments
        self.ridge, self.chunk, self.given = ridge, chunk, real is not None
        self.real = EmaMoments(dim, beta)
        self.fake = nn.ModuleDict({str(steps): EmaMoments(dim, beta) for steps in sorted(set(chains))})
        if real is not None:
            self._know(*real)

    def _know(self, mean: Tensor, cov: Tensor) -> None:
        dim = len(self.real.mean)
        if mean.shape != (dim,) or cov.shape != (dim, dim):
            raise ShapeError(
                f"Moments of shapes {tuple(mean.shape)} and {tuple(cov.shape)} for features of {dim} numbers",
                f"A mean ({dim},) and a covariance ({dim}, {dim})",
                "Compute them from the same features",
            )
        self.real.mean.copy_(mean)
        self.real.second.copy_(cov.to(self.real.second) + self.real.mean.outer(self.real.mean))

    def forward(self, outcome: Outcome, generator: Generator) -> Tensor:
        r"""Take in all draws and the real images, and measure the distance of the averages.

        Args:
            outcome: samples (k, b, \*d) and real images (b, \*d).
            generator: not used.

        Returns:
            Scalar in the dtype of the features, squared units of them; its gradient reaches the samples alone.

        Raises:
            ShapeError: if the shapes do not fit, or b < 2.
            ConfigError: if the samples are of a chain of another length than was said.
            DataError: if the data do not vary.
        """
        if str(outcome.steps) not in self.fake:
            raise ConfigError(
                f"Samples of a chain of {outcome.steps} steps for FrechetEma",
                f"It has averages for chains of {', '.join(self.fake)}: one distribution each",
                "Pass all lengths that are trained, such as chains=(1, 2, 4, 8)",
            )
        fake, real = _vectors(self.features, outcome, self.chunk, "FrechetEma")
        known = self.real(real) if not self.given else self._given()
        return frechet_distance(self.fake[str(outcome.steps)](fake), known, self.ridge).to(fake.dtype)

    def _given(self) -> tuple[Tensor, Tensor]:
        mean, second = self.real.moments()
        return mean, second - mean.outer(mean)


def _vectors(features: Vectors, outcome: Outcome, chunk: int | None, who: str) -> tuple[Tensor, Tensor]:
    """Compute features of all draws (k * b, dim), with gradient, and of the real images (b, dim), without."""
    check_draws(outcome, 1, who)
    if len(outcome.real) < 2:
        raise ShapeError(
            f"A batch of {len(outcome.real)} for {who}",
            "Distributions are compared from two samples on",
            "Train in larger batches; make them in chunks if memory is short",
        )
    images, _ = outcome.flat()
    fake = in_chunks(features, (images,), chunk or len(images))
    with torch.no_grad():
        real = in_chunks(features, (outcome.real,), chunk or len(outcome.real))
    dtype = torch.promote_types(fake.dtype, torch.float32)
    return fake.to(dtype), real.to(dtype).detach()  # features that return their input keep its graph


def _median_square(rows: Tensor) -> Tensor:
    rows = rows[:_MEDIAN_ROWS]
    upper = torch.triu_indices(len(rows), len(rows), 1, device=rows.device)
    median = squared_distances(rows, rows)[upper[0], upper[1]].quantile(0.5)
    if not bool(median > 0):
        raise DataError(
            f"{len(rows)} real images whose features have a median distance of 0",
            "A width for a kernel needs images that differ",
            "Use larger batches, or look whether the images are copies",
        )
    return median
