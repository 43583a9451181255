r"""The diversity guard: what a configuration will do to variety, and what it has done so far.

Theory first. Where noise says nothing about its target,

.. math:: \mathbb E |F - x|^2 = \mathrm{Var}(x|c) + \mathrm{Var}(F|c) + |\mathbb E[F|c] - \mathbb E[x|c]|^2 ,

so a paired loss taxes the variety of the samples at any depth of the chain, from any initialisation, and pays nothing
for it: its minimum is one blurred mean for each condition. :func:`diagnose` says so before a run starts.

Then measurement, in every step: :class:`Guard` compares the variety of the draws with that of the data,

.. math:: \rho = \frac{\mathbb E_c\, \mathrm{tr\, Cov}_z F(z, c)}{\mathbb E_c\, \mathrm{tr\, Cov}(x | c)} ,

and :class:`Pulls` measures what the backward pass brings to the samples: from which term, and how far up the chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fewstep._cond import conditions_of
from fewstep.data import Batch
from fewstep.losses import Outcome, Ramp, Role, Term, View
from fewstep.losses.views import unchanged
from fewstep.objectives.coupled import Coupling, Independent

__all__ = ["Finding", "Guard", "Pulls", "Weighted", "diagnose", "spread_of"]

_FEW = 10  # real images of a condition below which their variance says little
_TAXED = 0.01  # paired weight, as a share of the rewarding weight, from which the tax shows; their units differ
_LEAST = 1e-6  # standard deviation of data that do not vary, data units
_CURES = (
    "Add a term that rewards variety (energy or adversarial; without captions also mmd or frechet), or pair noise with "
    "data (coupling teacher or inversion, in few dimensions ot) and reconstruct the pairs"
)
_BLIND = (
    " mmd and frechet see no conditions: where those hardly repeat, as captions, one picture for each satisfies them."
)


@dataclass(frozen=True)
class Weighted:
    """A term of an objective and its weight over the training.

    Args:
        term: what is computed.
        weight: fraction of the training -> weight.
    """

    term: Term
    weight: Ramp = Ramp()


class Finding(NamedTuple):
    """What is known of a configuration before it runs.

    Attributes:
        kind: "collapse" if its minimum has no variety or nothing asks for any, "tax" if it has less than the data.
        text: what was given, what follows from it, and what cures it.
    """

    kind: Literal["collapse", "tax"]
    text: str


def diagnose(terms: Mapping[str, Weighted], coupling: Coupling, many: bool = False) -> list[Finding]:
    """Say what the terms do to variety, by the weights that they end with.

    Args:
        terms: name -> term and weight.
        coupling: how noise and data are paired.
        many: whether conditions hardly repeat, as captions do, so that marginal terms hold no variety within them.

    Returns:
        At most one finding; none for a configuration that is safe.
    """
    rewarding: tuple[Role, ...] = ("distribution",) if many else ("distribution", "marginal")
    unseeing: tuple[Role, ...] = ("moment", "marginal", "reward") if many else ("moment", "reward")
    paired, others = _names(terms, "paired"), _names(terms, *unseeing)
    taxing, varied = _weight(terms, "paired"), _weight(terms, *rewarding)
    if coupling.pairing != "none" and (paired or varied > 0):
        return [Finding("tax", _dealt(paired))] if coupling.pairing == "part" and varied == 0 else []
    noise = _noise_of(coupling) if coupling.pairing == "none" else "pairs that no term compares"
    if varied == 0:
        blind = _BLIND if many and _names(terms, "marginal") else ""
        return [Finding("collapse", _collapse(paired, others or "Weights that all end at 0", noise) + blind)]
    if paired and taxing >= _TAXED * varied:
        return [Finding("tax", _tax(paired, noise, taxing, varied))]
    return []


def _noise_of(coupling: Coupling) -> str:
    known = isinstance(coupling, Independent)
    return "noise that is independent of the data" if known else "a start that shows little of the data"


def _collapse(paired: str, others: str, noise: str) -> str:
    if paired:
        return (
            f"{paired} with {noise}, and no term that rewards variety. E|F - x|^2 = Var(x) + Var(F) + bias^2, so the "
            "minimum is one blurred mean for each condition, at any depth and from any start: a ring of 8 Gaussians "
            f"comes out with less than 1 % of its spread and 0 of 8 modes. {_CURES}."
        )
    return f"{others} with {noise}. No term rewards variety, so nothing holds it where it is. {_CURES}."


def _tax(paired: str, noise: str, taxing: float, varied: float) -> str:
    return (
        f"{paired} with {noise}, at a weight of {taxing:g} against {varied:g} of the terms "
        "that reward variety. Samples vary less than the data: on a ring of 8 Gaussians, L2 beside a critic leaves "
        "0.85 of the spread at a tenth of its weight, and 0.42 and 0 of 8 modes at the same weight. Let the weight end "
        "at 0, or pair noise with data (coupling teacher)."
    )


def _dealt(paired: str) -> str:
    return (
        f"{paired} with noise that is dealt out within the batch, and no term that rewards variety. The images of a "
        "batch explain a part of each other's noise: nearly all in the plane, about 30 % of CIFAR-10's variance, none "
        "where every image has a caption of its own. The rest comes out as a blurred mean. Add a term that rewards "
        "variety (energy or adversarial; without captions also mmd or frechet), or pair noise with data one by one "
        "(coupling teacher or inversion)."
    )


def _weight(terms: Mapping[str, Weighted], *roles: Role) -> float:
    """Add up the weights that the terms of some roles end with."""
    return sum(own.weight.last for own in terms.values() if own.term.role in roles)


def _names(terms: Mapping[str, Weighted], *roles: Role) -> str:
    """List the terms of some roles that weigh something at the end."""
    return ", ".join(name for name, own in terms.items() if own.term.role in roles and own.weight.last > 0)


def spread_of(data: Batch) -> float | None:
    """Measure the variety of data within its conditions: the denominator of rho.

    Args:
        data: real samples (n, *d) with their conditions, as the network is told them; thousands of them.

    Returns:
        Trace of the covariance within a condition, unbiased, averaged over the samples whose condition has at least
        10 of them; None if no condition has, or the data within conditions are all alike.
    """
    variance, counts = _within(data.x0.double(), conditions_of(data.cond, len(data), data.x0.device))
    many = counts >= _FEW
    if not bool(many.any()):
        return None
    spread = float(_mean(variance[many], counts[many]))
    return spread if spread > data.x0[0].numel() * _LEAST**2 else None


def _within(x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """Trace of the covariance of samples (n, *d) within each of the conditions (n,) that have two, and their counts."""
    x = x.flatten(1)
    x = x - x.mean(dim=0)  # or the difference of squares below would cancel
    counts = condition.bincount()
    sums = x.new_zeros(len(counts), x.shape[1]).index_add(0, condition, x)
    squares = x.new_zeros(len(counts)).index_add(0, condition, x.square().sum(dim=1))
    several = counts > 1
    counts, sums, squares = counts[several], sums[several], squares[several]
    return (squares - sums.square().sum(dim=1) / counts) / (counts - 1), counts


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    return (values * counts).sum() / counts.sum()


@dataclass(frozen=True)
class Guard:
    """Measures the variety of what a training step made.

    Args:
        spread: of the data within its conditions, from :func:`spread_of`; None if it is not known.
        view: how samples are looked at; what lies beyond black and white is no variety of pictures.
    """

    spread: float | None = None
    view: View = unchanged

    @torch.no_grad()
    def __call__(self, outcome: Outcome) -> dict[str, Tensor]:
        """Compare samples with data, without gradient.

        Args:
            outcome: samples (k, b, *d) and real samples (b, *d).

        Returns:
            "contrast", the standard deviation of all numbers of the samples over that of the real ones; and where a
            condition has two draws, in one row or in several, "rho", the variety within conditions over that of the
            data, or, where the latter is not known, "diversity", its numerator.
        """
        fake, real = self.view(outcome.fake).float(), outcome.real.float()
        parts = {"contrast": fake.std(correction=0) / real.std(correction=0).clamp(min=_LEAST)}
        condition = conditions_of(outcome.cond, len(real), real.device).repeat(len(fake))
        variance, counts = _within(fake.flatten(0, 1), condition)
        if len(counts):
            variety = _mean(variance, counts)
            parts |= {"diversity": variety} if self.spread is None else {"rho": variety / self.spread}
        return parts


@dataclass(frozen=True)
class Pulls:
    """Norms of the gradients that arrive at chosen tensors; there are none before the backward pass."""

    squares: dict[str, list[Tensor]] = field(default_factory=dict)

    def at(self, name: str, x: Tensor) -> Tensor:
        """Note the gradient that will arrive at x, and at all other tensors of the same name together; returns x."""

        def note(gradient: Tensor) -> None:
            self.squares.setdefault(name, []).append(gradient.float().square().sum())

        if x.requires_grad:
            x.register_hook(note)  # type: ignore[no-untyped-call]
        return x

    def watch(self, step: int, x: Tensor) -> None:
        """Note the gradient at the samples after a step, as ``sample(..., watch=)`` tells it; the first step is 1."""
        self.at(f"grad_step_{step + 1}", x)

    def read(self) -> dict[str, Tensor]:
        """Give the norms of all gradients that have arrived."""
        return {name: torch.stack(squares).sum().sqrt() for name, squares in sorted(self.squares.items())}
