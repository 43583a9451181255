"""What an end-to-end objective refuses, each with its cure."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fewstep._chain import MOST_STEPS, are_steps
from fewstep.denoisers import Denoiser, Eps, NetworkDenoiser
from fewstep.errors import ConfigError, FewstepError
from fewstep.losses import Term, Viewed
from fewstep.losses.adversarial import Adversarial
from fewstep.noise import NoiseLevel
from fewstep.objectives.guard import Weighted
from fewstep.sampling import Chained

__all__ = [
    "behind_view",
    "check_chain",
    "check_denoiser",
    "check_rule",
    "check_start",
    "check_steps",
    "check_terms",
    "checked_draws",
]


def behind_view(term: Term) -> Term:
    """The term that sees through a view, or the term itself."""
    return behind_view(term.term) if isinstance(term, Viewed) else term


def check_terms(terms: Mapping[str, Weighted]) -> None:
    """Refuse an objective that asks for nothing, and critics behind a view, which nobody would train."""
    if not terms:
        raise ConfigError(
            "An end-to-end objective without a term of positive weight",
            "At least one term weighs something at some time of the training",
            "Add one: energy needs neither pairs nor a critic",
        )
    for name, own in terms.items():
        if isinstance(own.term, Viewed) and isinstance(behind_view(own.term), Adversarial):
            raise ConfigError(
                f"The term {name!r}, an Adversarial inside Viewed",
                "A critic is trained on what it sees, so it has a view of its own",
                "Write Adversarial(critic, view=...)",
            )


def checked_draws(draws: int, needed: Mapping[str, int]) -> int:
    """Return the draws per condition, 0 for as many as are needed (term -> draws); refuse fewer."""
    name = max(needed, key=lambda name: needed[name])
    if draws == 0:
        return needed[name]
    if draws < needed[name]:
        raise ConfigError(
            f"draws={draws} for the term {name!r}",
            f"It compares {needed[name]} samples of the same condition",
            f"Use draws={needed[name]}, or 0 for as many as the terms need",
        )
    return draws


def check_steps(steps: tuple[int, ...]) -> None:
    """Refuse lengths that no chain has."""
    if not steps or not are_steps(steps):
        raise ConfigError(
            f"A chain of steps={steps!r}",
            f"Whole numbers from 1 to {MOST_STEPS}; one that is written twice is drawn twice as often",
            "Write for instance steps=(1, 2, 4)",
        )


def check_denoiser(denoiser: Denoiser, leaky: bool) -> None:
    """Refuse guidance, and predictions that are infinite where the chain starts."""
    if not isinstance(denoiser, NetworkDenoiser):
        raise ConfigError(
            f"A {type(denoiser).__name__} inside the chain",
            "The chain trains a plain network: guided samples are not those of the network that is trained",
            "Train the network itself, and bake guidance in by the coupling 'teacher' with a guided teacher",
        )
    if isinstance(denoiser.prediction, Eps) and denoiser.schedule.lam_range()[0] == -math.inf and not leaky:
        raise ConfigError(
            f"An eps-prediction on {denoiser.schedule}, whose noisy end holds no data",
            "At alpha = 0 the noise is known and tells nothing of the data; x0-, v- and flow-prediction are finite",
            "Convert the network to one of these, or use a schedule that ends before, such as VPLinear",
        )


def check_chain(chain: Chained, leaky: bool) -> None:
    """Refuse chains that draw noise on the way, or do not run from pure noise to clean data."""
    solver, grid = chain
    first, last = grid.at(0), grid.at(-1)
    if solver.stochastic:
        raise ConfigError(
            f"A chain of {solver}",
            "What is trained is a function of the noise at the start, so no step draws noise of its own",
            "Use a deterministic solver, such as ddim",
        )
    if bool(first.alpha != 0) and not leaky:
        raise ConfigError(
            f"A chain that starts at alpha = {first.alpha.item():.4g}",
            "It starts at alpha = 0: at any other level the start shows the data, which no sampler has",
            "Use the spacing uniform_flow, or PureNoise around another; only the coupling 'leaky' starts elsewhere",
        )
    if bool(last.sigma != 0):
        raise ConfigError(
            f"A chain that ends at sigma = {last.sigma.item():.4g}",
            "Its end is judged as an image, so no noise is left in it",
            "Use the spacing uniform_flow, or end='zero' of another",
        )


def check_rule(chain: Chained, steps: int) -> None:
    """Refuse rules that cannot take this many steps on this grid."""
    solver, grid = chain
    try:
        solver.init(torch.zeros(1), grid)
    except FewstepError as error:
        raise ConfigError(
            f"A chain of {steps} {solver} steps: {error.given}",
            error.allowed,
            "Take another solver, such as ddim, which runs on every grid of a chain",
        ) from error


def check_start(here: NoiseLevel, start: NoiseLevel) -> None:
    """Refuse a coupling that starts elsewhere than the chain."""
    if not all(torch.allclose(mine, other.to(mine)) for mine, other in zip(here, start, strict=True)):
        lam = (start.alpha / start.sigma).log().item()
        raise ConfigError(
            f"A coupling that starts at alpha {start.alpha.item():.4g}, sigma {start.sigma.item():.4g}",
            f"The chain starts at alpha {here.alpha.item():.4g}, sigma {here.sigma.item():.4g}",
            f"Give both the same level: for e2e.coupling=leaky with e2e.coupling.lam={lam:.4g}, "
            f"e2e.spacing=uniform_lam e2e.spacing.lam_min={lam:.4g} e2e.spacing.end=zero",
        )
