r"""Tables: the noise levels of discrete models, DDPM's and Stable Diffusion's.

A discrete model knows T timesteps k = 0 ... T - 1, each with its :math:`\bar\alpha_k = \alpha^2`, which diffusers calls
``alphas_cumprod``. The clock here is ``t = k + 1``: t = 0 is clean, t = 1 is timestep 0, and t = T the noisiest.

Between the entries the angle of :math:`(\alpha, \sigma)` runs on a straight line. It is finite at both ends: from clean
data to the first entry, and up to pure noise where the table has it. The angle is held from both of its axes,

.. math:: \phi = \operatorname{atan2}(\sigma, \alpha), \quad \psi = \operatorname{atan2}(\alpha, \sigma),
          \quad \sigma = \sin\phi, \quad \alpha = \sin\psi,

so that neither a small sigma nor a small alpha loses digits, and both zeros are exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from fewstep.errors import ConfigError
from fewstep.noise.level import NoiseLevel
from fewstep.noise.schedules import inside, lam_range_of

__all__ = ["Tabulated"]


def _ddpm() -> tuple[float, ...]:
    return Tabulated.linear().alphas_cumprod


@dataclass(frozen=True, repr=False)
class Tabulated:
    """The levels of a discrete model; clock ``t = timestep + 1``, between timesteps linear in the angle.

    JSON holds a table as a list; ``tabulated_linear`` and ``tabulated_scaled_linear`` write the usual ones shorter.

    Args:
        alphas_cumprod: alpha squared of each timestep, falling; 0 may be last, which is pure noise. DDPM's if omitted.

    Raises:
        ConfigError: if there are fewer than two entries, or they are not numbers in [0, 1) that fall strictly.

    Source:
        Ho, Jain, Abbeel 2020, arXiv:2006.11239, Eq. 4. Departs from it in: levels between the timesteps.
    """

    alphas_cumprod: tuple[float, ...] = field(default_factory=_ddpm)

    def __post_init__(self) -> None:
        object.__setattr__(self, "alphas_cumprod", _checked(_numbers(self.alphas_cumprod, "alphas_cumprod")))

    def __repr__(self) -> str:
        first, last = self.alphas_cumprod[0], self.alphas_cumprod[-1]
        return f"Tabulated({len(self.alphas_cumprod)} timesteps, alphas_cumprod {first:.6g} to {last:.6g})"

    @classmethod
    def of_betas(cls, betas: Iterable[float]) -> Tabulated:
        r"""Make the table of a model from its rates, :math:`\bar\alpha_k = \prod_{j \le k} (1 - \beta_j)`.

        Args:
            betas: the rate of each timestep, ``trained_betas`` of diffusers; each above 0, and 1 only last.

        Returns:
            The table.

        Raises:
            ConfigError: if a beta is not between 0 and 1, or the table is none.
        """
        rates = _numbers(betas, "betas")
        _refuse_rates(*rates)
        return cls(tuple(itertools.accumulate((1 - rate for rate in rates), lambda product, factor: product * factor)))

    @classmethod
    def linear(
        cls,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        num_train_timesteps: int = 1000,
        rescale_betas_zero_snr: bool = False,
    ) -> Tabulated:
        """Make the table whose betas lie on a line: DDPM.

        Args:
            beta_start: rate of timestep 0.
            beta_end: rate of the last timestep.
            num_train_timesteps: length of the table.
            rescale_betas_zero_snr: whether it ends at pure noise, see :meth:`zero_terminal_snr`.

        Returns:
            The table.

        Raises:
            ConfigError: if the table would be none.

        Source:
            Ho, Jain, Abbeel 2020, arXiv:2006.11239, Section 4. Departs from it in: nothing.
        """
        made = cls.of_betas(_line(beta_start, beta_end, num_train_timesteps))
        return made.zero_terminal_snr() if rescale_betas_zero_snr else made

    @classmethod
    def scaled_linear(
        cls,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        num_train_timesteps: int = 1000,
        rescale_betas_zero_snr: bool = False,
    ) -> Tabulated:
        """Make the table whose square roots of beta lie on a line: Stable Diffusion 1, 2 and XL.

        Args:
            beta_start: rate of timestep 0.
            beta_end: rate of the last timestep.
            num_train_timesteps: length of the table.
            rescale_betas_zero_snr: whether it ends at pure noise, see :meth:`zero_terminal_snr`.

        Returns:
            The table.

        Raises:
            ConfigError: if the table would be none.

        Source:
            Rombach et al. 2022, arXiv:2112.10752, published code (``make_beta_schedule``). Departs from it in: nothing.
        """
        _refuse_rates(beta_start, beta_end)
        roots = _line(math.sqrt(beta_start), math.sqrt(beta_end), num_train_timesteps)
        made = cls.of_betas(root**2 for root in roots)
        return made.zero_terminal_snr() if rescale_betas_zero_snr else made

    def zero_terminal_snr(self) -> Tabulated:
        r"""Stretch the table until its last timestep is pure noise; the first stays.

        .. math:: \alpha_k' = (\alpha_k - \alpha_{T-1}) \frac{\alpha_0}{\alpha_0 - \alpha_{T-1}}

        A network has to be trained, or trained on, with it; a prediction other than eps is needed at alpha = 0.

        Returns:
            The stretched table; its last entry is 0 exactly.

        Source:
            Lin et al. 2023, arXiv:2305.08891, Algorithm 1. Departs from it in: nothing.
        """
        alphas = [math.sqrt(entry) for entry in self.alphas_cumprod]
        first, last = alphas[0], alphas[-1]
        stretched = [((alpha - last) * (first / (first - last))) ** 2 for alpha in alphas[1:]]
        return Tabulated((self.alphas_cumprod[0], *stretched))

    def level(self, t: Tensor) -> NoiseLevel:
        """Level at ``t = timestep + 1``, or between two of them; whole numbers give float64 levels."""
        t = inside(t if t.is_floating_point() else t.double(), self)
        i = t.detach().floor().clamp(max=len(self.alphas_cumprod) - 1).long()
        fraction = t - i
        phi, psi = (
            torch.lerp(knots[i], knots[i + 1], fraction)
            for knots in (part.to(t.device, t.dtype) for part in _knots(self.alphas_cumprod))
        )
        return NoiseLevel(psi.sin(), phi.sin())

    def t_of_lam(self, lam: Tensor) -> Tensor:
        """Time by the angle, found between two entries and read from the nearer axis."""
        clean = lam >= 0
        small = torch.where(clean, -lam, lam).exp().atan()
        phi = torch.where(clean, small, math.pi / 2 - small)
        phis, psis = (part.to(lam.device, lam.dtype) for part in _knots(self.alphas_cumprod))
        i = torch.searchsorted(phis, phi.detach().contiguous(), right=True) - 1
        i = i.clamp(0, len(self.alphas_cumprod) - 1)
        from_clean = (small - phis[i]) / (phis[i + 1] - phis[i])
        from_noise = (psis[i] - small) / (psis[i] - psis[i + 1])
        return i + torch.where(clean, from_clean, from_noise)

    def t_range(self) -> tuple[float, float]:
        """The interval ``(1, T)``: the first timestep and the last."""
        return 1.0, float(len(self.alphas_cumprod))

    def lam_range(self) -> tuple[float, float]:
        """Values of lam at the last timestep (minus infinity where it is pure noise) and at the first."""
        return lam_range_of(self)


@lru_cache(maxsize=16)
def _knots(alphas_cumprod: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Angles from the axis of data and from that of noise, clean data first, shape (T + 1,), float64."""
    with torch.inference_mode(False):  # they are kept, and a gradient may need them later
        bar = torch.tensor((1.0, *alphas_cumprod), dtype=torch.float64, device="cpu")
        alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
        return torch.atan2(sigma, alpha), torch.atan2(alpha, sigma)


def _numbers(given: Iterable[float], name: str) -> tuple[float, ...]:
    """Read a list of numbers, also out of an array or a tensor."""
    try:
        return tuple(float(number) for number in given)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} of type {type(given).__name__} ({error})", f"{name} is a list of numbers", f"Change {name}"
        ) from error


def _checked(table: tuple[float, ...]) -> tuple[float, ...]:
    """Refuse a table that is none, and say where."""
    if len(table) < 2:
        raise ConfigError(
            f"A table of {len(table)} entries", "A schedule has two timesteps or more", "Give all of alphas_cumprod"
        )
    faults = (k for k, entry in enumerate(table) if not 0 <= entry < (table[k - 1] if k else 1.0))
    if (k := next(faults, None)) is not None:
        before = f" after {table[k - 1]:.6g}" if k else ""
        raise ConfigError(
            f"A table of alphas_cumprod with {table[k]:.6g}{before} at timestep {k}",
            "The table falls strictly, from below 1 to 0 or above",
            "Give alphas_cumprod from the cleanest timestep to the noisiest, or the rates to Tabulated.of_betas",
        )
    return table


def _refuse_rates(*rates: float) -> None:
    wrong = [rate for rate in rates if not 0 < rate <= 1]
    if wrong:
        raise ConfigError(f"A beta of {wrong[0]:g}", "Rates are above 0, and at most 1", "Give the training's betas")


def _line(first: float, last: float, n: int) -> list[float]:
    if type(n) is not int or n < 2:
        raise ConfigError(f"num_train_timesteps={n!r}", "A whole number, 2 or more", "Use 1000")
    line: list[float] = torch.linspace(first, last, n, dtype=torch.float64).tolist()
    return line
