r"""A rule that chooses its order as it goes, per sample, from how steadily the denoised estimates change.

With :math:`\delta_k = m_{i-k} - m_{i-k-1}` and :math:`h_k` the changes and the widths in lam, newest first, the ratio

.. math:: \rho = \frac{\langle \delta_0, \delta_1 \rangle}{\langle \delta_1, \delta_1 \rangle} \, \frac{h_1}{h_0}

is 1 where m runs straight on in lam, and less where it comes to rest. Two rules follow from it:

* while the ratios move, m relaxes exponentially at the rate :math:`r = -2 \log \rho / (h_0 + h_1)`, with rho kept in
  [0.3, 1]: :math:`m(\tau) = m + \delta_0 (1 - e^{-r \tau}) / (e^{r h_0} - 1)`, of second order;
* once they have settled, m is the parabola through three estimates, of third order.

Each step mixes the two, with the share of the parabola the product of two numbers in [0, 1]: the mix of what the two
rules foresaw of the newest change that would have been nearest to it, and ``1 - |rho - rho of the step before|``. The
last step is taken again with the newest estimate at its end: by the trapezoid, and with the same share by the parabola
through three estimates. Whatever the shares are, the order is 2. Both numbers tend to 1 with the step where m keeps
changing, but not where a change passes through 0, so that orders of 2.3 to 3.4 are seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fewstep.noise import Grid
from fewstep.solvers.base import Denoise, NoiseSource, inner
from fewstep.solvers.coeffs import (
    Level,
    Number,
    ddim_weights,
    exponential_moments,
    lagrange,
    levels_of,
    nodes,
    noise_ratio,
)
from fewstep.solvers.multistep import weighted

__all__ = ["Automatic"]

_LEAST, _MOST = 0.3, 1.0  # of rho: no faster to rest, and no growth
# Gauss's rule on [0, 1]: places and weights.
_GAUSS = tuple((0.5 + side * math.sqrt(0.15), weight / 18) for side, weight in ((-1, 5), (0, 8), (1, 5)))


class _Step(NamedTuple):
    """Numbers of one step.

    Attributes:
        decay: of the sample.
        gain: of the newest estimate; both as in DDIM.
        known: how many changes may be used, 0 to 3.
        widths: of the step and of the known ones before it, newest first.
        ratio: kappa' / kappa.
        alpha: at the end of the step.
        parabola: weights of the last two changes, beside the gain, if two are known.
        corrector: the same for the step taken again, beside the trapezoid; weights of the last two changes then.
    """

    decay: Number
    gain: Number
    known: int
    widths: tuple[Number, ...]
    ratio: Number
    alpha: Number
    parabola: tuple[Number, Number] | None
    corrector: tuple[Number, Number] | None


class _Path(NamedTuple):
    """State: all numbers, where the last step began, what is remembered (newest first), and what was chosen.

    Attributes:
        steps: numbers of all steps.
        start: the sample at which the last step began.
        estimate: made there.
        changes: of the estimates, up to three.
        size: squared length of the newest change, (b, 1, ...), once it may be used.
        rho: not kept in its bounds.
        share: of the parabola.
    """

    steps: tuple[_Step, ...]
    start: Tensor | None = None
    estimate: Tensor | None = None
    changes: tuple[Tensor, ...] = ()
    size: Tensor | None = None
    rho: Tensor | None = None
    share: Tensor | None = None


@dataclass(frozen=True)
class Automatic:
    r"""Order chosen on line, per sample: an exponential relaxation while m is unsettled, a parabola once it is settled.

    See :mod:`fewstep.solvers.automatic` for the rule. One call a step, from one step up; constants are exact; ends at
    infinite lam are DDIM steps. Nothing is read back from the device: all choices are mixes, one number per sample.

    Source:
        Ours, with the corrector of Zhao et al. 2023, arXiv:2302.04867 (UniPC). Departs from it in: the predictor, and
        the order of the corrector, which are chosen per sample.
    """

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def nfe(self, grid: Grid) -> int:
        """One call a step."""
        return grid.steps

    def init(self, x: Tensor, grid: Grid) -> _Path:
        """Compute the numbers; nothing is remembered yet."""
        levels = levels_of(grid)
        return _Path(tuple(_step_of(levels, i) for i in range(grid.steps)))

    def step(
        self, denoise: Denoise, x: Tensor, grid: Grid, i: int, state: _Path, noise: NoiseSource | None = None
    ) -> tuple[Tensor, _Path]:
        """Take the last step again with the estimate at its end, then carry x from level i to level i + 1."""
        steps, now = state.steps, denoise(x, grid.at(i))
        own, changes, size, rho, share = steps[i], state.changes, None, None, None
        if state.start is not None and state.estimate is not None:
            changes = (now - state.estimate, *changes)[:3]
            x = _corrected(steps[i - 1], state.start, now, changes, state.share)
        there = weighted((own.gain, own.decay), (now, x))
        if own.known:
            size = _dot(changes[0], changes[0])
        if own.known == 1:
            there = there + own.gain * own.widths[0] / (2 * own.widths[1]) * changes[0]
        elif own.parabola is not None and state.size is not None:
            rho = _ratio(own, changes, state.size)
            relax = _relaxed(own, _rate(rho, own.widths[1], own.widths[2])).to(x.dtype)
            there = there + relax * changes[0]
            if own.known == 3 and state.rho is not None:
                share = _share(own, changes, rho, state.rho).to(x.dtype)
                newest, older = own.parabola
                there = there + share * ((newest - relax) * changes[0] + older * changes[1])
        return there, _Path(steps, x, now, changes, size, rho, share)


def _corrected(step: _Step, start: Tensor, now: Tensor, changes: Sequence[Tensor], share: Tensor | None) -> Tensor:
    """The step from `start` again, with the estimate at its end."""
    x = weighted((step.gain, -step.gain / 2, step.decay), (now, changes[0], start))
    if share is None or step.corrector is None:
        return x
    newest, older = step.corrector
    return x + share * (newest * changes[0] + older * changes[1])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over all numbers of a sample."""
    return inner(a, b, tuple(range(1, a.ndim)))


def _ratio(step: _Step, changes: Sequence[Tensor], size: Tensor) -> Tensor:
    """Rho of every sample; 1, the plain rule, where nothing changes."""
    tiny = torch.finfo(size.dtype).tiny
    return (step.widths[2] / step.widths[1] * _dot(changes[0], changes[1]) + tiny) / (size + tiny)


def _rate(rho: Tensor, newest: Number, older: Number) -> Tensor:
    """At which changes come to rest, per unit of lam."""
    return -rho.clamp(_LEAST, _MOST).log() * 2 / (newest + older)


def _relaxed(step: _Step, rate: Tensor) -> Tensor:
    """Weight of the newest change where m relaxes: the integral over the step, by Gauss's rule."""
    width, last, *_ = step.widths
    parts = [w * at * step.ratio ** (1 - at) * _growth(-rate * (at * width)) for at, w in _GAUSS]
    return step.alpha * width**2 / last * sum(parts[1:], start=parts[0]) / _growth(rate * last)


def _growth(z: Tensor) -> Tensor:
    """``(exp(z) - 1) / z``, 1 at 0."""
    small = z.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, 1 + z / 2 + z * z / 6, safe.expm1() / safe)


def _share(step: _Step, changes: Sequence[Tensor], rho: Tensor, before: Tensor) -> Tensor:
    """Share of the parabola: which rule foresaw the newest change, and how settled the ratios are."""
    _, newest, last, oldest = step.widths
    rate = _rate(before, last, oldest)
    relaxed = newest / last * _growth(-rate * newest) / _growth(rate * last)
    # The parabola foresaw a d_1 + b d_2, the relaxation `relaxed` d_1.
    bend = newest * (newest + last) / (last + oldest)
    gap = (newest / last + bend / last - relaxed) * changes[1] - bend / oldest * changes[2]
    tiny = torch.finfo(rho.dtype).tiny
    nearest = _dot(changes[0] - relaxed.to(gap.dtype) * changes[1], gap) / (_dot(gap, gap) + tiny)
    return nearest.clamp(0, 1) * (1 - (rho - before).abs()).clamp(0, 1)


def _step_of(levels: Sequence[Level], i: int) -> _Step:
    here, there = levels[i], levels[i + 1]
    known = nodes(levels, i, 4)
    decay, gain = ddim_weights(here, there)
    plain = _Step(decay, gain, 0, (), noise_ratio(here, there), there.alpha, None, None)
    if len(known) < 2:
        return plain
    widths = [a.lam - b.lam for a, b in zip([there, *known], known, strict=False)]
    plain = plain._replace(known=len(known) - 1, widths=tuple(widths))
    if len(known) < 3:
        return plain
    width, last, before, *_ = widths
    moments = exponential_moments(width, 3)
    _, second, third = lagrange([0.0, -last, -last - before], moments)
    ahead, _, behind = lagrange([width, 0.0, -last], moments)
    return plain._replace(
        parabola=(-there.alpha * (second + third), -there.alpha * third),
        corrector=(there.alpha * ahead - gain / 2, -there.alpha * behind),
    )
