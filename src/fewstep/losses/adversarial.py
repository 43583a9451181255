r"""The adversarial game on final samples: a generator against a critic D that is trained beside it.

.. math::
    L_G &= \mathbb E\, g(D(x), D(F)) \\
    L_D &= \mathbb E\, d(D(x), D(F)) + \tfrac{\gamma_{real}}{2} R_1 + \tfrac{\gamma_{fake}}{2} R_2
           + c\, \mathbb E\, D^2, \qquad
    R_1 = \mathbb E\, |\nabla D(x)|^2, \quad R_2 = \mathbb E\, |\nabla D(F)|^2 .

Real x and fake F of a pair share the condition, and the noise level if the critic sees noisy samples. R1 and R2 make
the game converge; they are found by finite differences in a random direction, one more forward pass of a part of the
batch and no double backward. The last term holds the logits near 0, where a loss of differences leaves them free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fewstep._cond import repeated, rows_of
from fewstep._tensor import normal_like
from fewstep.denoisers import Cond
from fewstep.errors import ConfigError
from fewstep.losses.base import Outcome, Role, View, check_draws
from fewstep.losses.views import unchanged
from fewstep.noise import NoiseLevel, perturb

__all__ = ["ADVERSARIAL", "Adversarial", "AdversarialLoss", "Diffused", "Hinge", "Relativistic", "gradient_penalty"]


class AdversarialLoss(Protocol):
    """What the players make of the logits of pairs; all tensors broadcast to the shape of the pairs."""

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the generator minimises, for each pair."""
        ...

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the critic minimises, for each pair."""
        ...


@dataclass(frozen=True)
class Relativistic:
    r"""The critic ranks the two of a pair; each side wants its own above the other.

    .. math:: d = \mathrm{softplus}(D(F) - D(x)), \qquad g = \mathrm{softplus}(D(x) - D(F))

    Every fake is held against a real sample, so no mode can be dropped by moving all fakes to one side of a boundary.

    Source:
        Huang et al. 2024, arXiv:2501.05441, Eq. 2. Departs from it in: nothing.
    """

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """``softplus(real - fake)``."""
        return functional.softplus(real - fake)

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """``softplus(fake - real)``."""
        return functional.softplus(fake - real)


@dataclass(frozen=True)
class Hinge:
    r"""The critic pushes real logits above 1 and fake ones below -1, and no farther.

    .. math:: d = \max(0, 1 - D(x)) + \max(0, 1 + D(F)), \qquad g = -D(F)

    Source:
        Zhang et al. 2018, arXiv:1805.08318, Eq. 4. Departs from it in: nothing.
    """

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """``-fake``."""
        return -fake

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """``max(0, 1 - real) + max(0, 1 + fake)``."""
        return functional.relu(1 - real) + functional.relu(1 + fake)


ADVERSARIAL: dict[str, type[Relativistic] | type[Hinge]] = {"relativistic": Relativistic, "hinge": Hinge}


@dataclass(frozen=True)
class Diffused:
    r"""Noise levels at which a critic looks at samples: where clean distributions do not meet, noisy ones do.

    A level kappa is visited as :math:`\alpha^2 + \sigma^2 = 1, \sigma / \alpha = \kappa`.

    Args:
        kappas: noise per unit of data of each level, above 0, each as likely as the others.
        clean: share of samples that stay clean; in [0, 1].

    Raises:
        ConfigError: if there is no level, one is not above 0 or not finite, or the share is none.

    Source:
        Wang et al. 2022, arXiv:2206.02262, Section 3. Departs from it in: a few fixed levels, where the paper adapts
        the noisiest one to how much the critic overfits.
    """

    kappas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8)
    clean: float = 0.5

    def __post_init__(self) -> None:
        if not self.kappas or not all(0 < kappa < math.inf for kappa in self.kappas):
            raise ConfigError(
                f"Noise levels kappas={self.kappas}", "At least one, above 0 and finite", "Use (0.05, 0.2, 0.8)"
            )
        if not 0 <= self.clean <= 1:
            raise ConfigError(f"clean={self.clean:g}", "A share lies between 0 and 1", "Use 0.5")

    def draw(self, n: int, generator: Generator) -> NoiseLevel:
        """Draw the levels of n samples, shape (n,), float32 on the host; sigma is the critic's noise label."""
        kappa = torch.tensor(self.kappas)[torch.randint(len(self.kappas), (n,), generator=generator)]
        kappa = torch.where(torch.rand(n, generator=generator) < self.clean, 0, kappa)
        alpha = (1 + kappa**2).rsqrt()
        return NoiseLevel(alpha, kappa * alpha)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], x: Tensor, logits: Tensor, eps: float, generator: Generator
) -> Tensor:
    r"""Squared gradient of a critic, from one step in a random direction.

    .. math:: \Bigl(\frac{D(x + \epsilon u) - D(x)}{\epsilon}\Bigr)^2, \quad u \sim N(0, I), \qquad
              \mathbb E_u = |\nabla D|^2 + O(\epsilon^2)

    For a quadratic D of Hessian H the second is :math:`\tfrac{\epsilon^2}{4} (2 |H|_F^2 + (\mathrm{tr} H)^2)`.

    Args:
        critic: samples of x's shape -> logits.
        x: samples, shape (\*n, \*d).
        logits: critic(x), shape (\*n,).
        eps: standard deviation of the step in each number of x, data units, above 0.
        generator: of the directions, on the host.

    Returns:
        One estimate per sample, shape (\*n,); differentiable in the critic's weights.

    Source:
        Lin et al. 2025, arXiv:2511.22475, for the idea; written from the formula above. Departs from it in: possibly
        the scale, which is that of the exact gradient here.
    """
    return ((critic(x + eps * normal_like(x, generator)) - logits) / eps) ** 2


@dataclass(frozen=True)
class Adversarial:
    r"""A critic and the game that it and the generator play; for the generator a term like any other.

    Args:
        critic: a network (x, cond, noise_label) -> logits (b,); a player of its own.
        loss: what the players make of logits.
        view: how the critic sees samples, real and fake alike.
        diffused: noise levels at which it sees them; None for clean.
        gamma_real: weight of R1. The default is for images and PixelCritic, whose residuals make gradients large; for
            vectors take 1.
        gamma_fake: weight of R2.
        eps: step of their finite differences, data units.
        fraction: share of the batch that they are measured on, in (0, 1].
        center: weight of the mean squared logit.

    Attributes:
        draws: the fewest draws per condition that it needs; more are all used.
        role: what it does to diversity.

    Raises:
        ConfigError: if a number is outside its range.

    Source:
        Huang et al. 2024, arXiv:2501.05441, Eqs. 2 to 4. Departs from it in: finite differences and centring, from Lin
        et al. 2025, arXiv:2511.22475; the choice of losses, views and noise.
    """

    critic: nn.Module
    loss: AdversarialLoss = Relativistic()
    view: View = unchanged
    diffused: Diffused | None = None
    gamma_real: float = 0.01
    gamma_fake: float = 0.01
    eps: float = 0.02
    fraction: float = 0.25
    center: float = 0.001

    draws: ClassVar[int] = 1
    role: ClassVar[Role] = "distribution"

    def __post_init__(self) -> None:
        for name in ("gamma_real", "gamma_fake", "center"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name):g}", "A weight is 0 or above", "Use 0 to leave it out")
        if not 0 < self.eps < math.inf:
            raise ConfigError(f"eps={self.eps:g}", "A finite difference needs a step above 0", "Use 0.02")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction={self.fraction:g}", "A share of the batch, above 0 and at most 1", "Use 0.25")

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        """Compute the generator's loss."""
        return self.generator_loss(outcome, generator)

    def generator_loss(self, outcome: Outcome, generator: Generator) -> Tensor:
        r"""Judge all draws by a critic that stands still.

        Args:
            outcome: fakes (k, b, \*d), real samples (b, \*d) and their conditions.
            generator: randomness of the noise, on the host.

        Returns:
            Scalar; gradients flow to the fakes, and none to the critic.

        Raises:
            ShapeError: if fakes and real samples do not belong together.
        """
        fakes, reals, level = self._seen(outcome, generator)
        critic = _frozen(self.critic)
        real, fake = (_logits(critic, x, outcome.cond, level) for x in (reals, fakes))
        return self.loss.generator(real, fake).mean()

    def critic_loss(self, outcome: Outcome, generator: Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        r"""Compute what the critic minimises.

        Args:
            outcome: fakes (k, b, \*d), real samples (b, \*d) and their conditions; gradients flow to none of them.
            generator: randomness of noise and directions, on the host.

        Returns:
            Scalar, and detached parts: "accuracy", the share of pairs whose real sample has the larger logit, and "r1",
            "r2", the mean squared gradients at real and fake samples, unless neither has a weight.

        Raises:
            ShapeError: if fakes and real samples do not belong together.
        """
        fakes, reals, level = self._seen(outcome, generator)
        seen = torch.cat([reals, fakes]).detach()
        logits = _logits(self.critic, seen, outcome.cond, level)
        real, fake = logits[:1], logits[1:]
        loss = self.loss.critic(real, fake).mean() + self.center * logits.square().mean()
        parts = {"accuracy": (real > fake).float().mean()}
        if self.gamma_real or self.gamma_fake:
            r1, r2 = self._penalties(seen, logits, outcome.cond, level, generator)
            loss = loss + (self.gamma_real * r1 + self.gamma_fake * r2) / 2
            parts |= {"r1": r1.detach(), "r2": r2.detach()}
        return loss, parts

    def _seen(self, outcome: Outcome, generator: Generator) -> tuple[Tensor, Tensor, NoiseLevel | None]:
        """What the critic sees of fakes (k, b, *d) and real samples (1, b, *d), and the noise level of each pair."""
        check_draws(outcome, self.draws, "the adversarial term")
        outcome = outcome.through(self.view)
        fakes, reals = outcome.fake, outcome.real[None]
        if self.diffused is None:
            return fakes, reals, None
        level = self.diffused.draw(len(outcome.real), generator)
        return _noisy(fakes, level, generator), _noisy(reals, level, generator), level

    def _penalties(
        self, seen: Tensor, logits: Tensor, cond: Cond, level: NoiseLevel | None, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """R1 and R2 at the first of the real samples and of their first draws."""
        n = math.ceil(self.fraction * seen.shape[1])
        cond = rows_of(cond, slice(n))
        level = level and NoiseLevel(level.alpha[:n], level.sigma[:n])

        def judge(x: Tensor) -> Tensor:
            return _logits(self.critic, x, cond, level)

        r1, r2 = gradient_penalty(judge, seen[:2, :n], logits[:2, :n], self.eps, generator).mean(dim=1)
        return r1, r2


def _logits(critic: Callable[..., Any], x: Tensor, cond: Cond, level: NoiseLevel | None) -> Tensor:
    """Judge samples (k, b, *d), whose conditions and levels (b,) hold for every draw; logits (k, b)."""
    label = level and level.sigma.to(x).repeat(len(x))
    out: Tensor = critic(x.flatten(0, 1), repeated(cond, len(x)), label)
    return out.view(x.shape[:2])


def _noisy(x: Tensor, level: NoiseLevel, generator: Generator) -> Tensor:
    """Bring every draw of samples (k, b, *d) to its pair's level (b,), each with its own noise."""
    rows = x.flatten(0, 1)
    everywhere = NoiseLevel(level.alpha.repeat(len(x)), level.sigma.repeat(len(x)))
    return perturb(rows, normal_like(rows, generator), everywhere).view_as(x)


def _frozen(critic: nn.Module) -> Callable[..., Any]:
    """The critic with constants for weights: gradients go through it, and none to it."""
    weights = {name: weight.detach() for name, weight in critic.named_parameters()}
    return lambda *arguments: functional_call(critic, weights, arguments)
