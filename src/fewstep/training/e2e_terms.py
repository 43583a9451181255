"""Terms of an end-to-end run by name: what a configuration may ask of the end of a chain.

===============  ============  ===========================================================================
name             role          what it compares
===============  ============  ===========================================================================
l1, l2, huber    paired        the numbers of each sample with those of its target
perceptual       paired        maps of each sample with those of its target
self_perceptual  paired        the same in the hidden layers of the model that the run starts from
moment           moment        the mean of a condition's samples with their targets
bounds           reward        samples with the interval from black to white, whatever the view
energy           distribution  samples with data and with each other, in pixels and maps
adversarial      distribution  samples with data, by a critic that learns beside
mmd              marginal      the feature vectors of all samples with those of the data
frechet          marginal      mean and covariance of feature vectors, averaged over training
===============  ============  ===========================================================================

A recipe is called with the arguments of the configuration and returns what makes the term out of the run's materials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from fewstep.errors import ConfigError, about, choose
from fewstep.features import VectorMaps
from fewstep.losses import (
    L1,
    L2,
    VIEWS,
    Bounds,
    EnergyScore,
    Huber,
    MomentReconstruction,
    Paired,
    Perceptual,
    Ramp,
    SampleLoss,
    Term,
    View,
    Viewed,
)
from fewstep.losses.adversarial import ADVERSARIAL, Adversarial, Diffused
from fewstep.losses.distribution import KERNELS, MMD, FrechetEma
from fewstep.models import Chain
from fewstep.networks import PixelCritic, ProjectedCritic
from fewstep.objectives import Weighted
from fewstep.training.e2e_materials import Materials, joined
from fewstep.training.options import defaults_of

__all__ = ["TERMS", "known_arguments", "make_terms"]

Recipe: TypeAlias = Callable[[Materials, View], Term]
_SHARED: dict[str, Any] = {"weight": 1.0, "weight_end": None, "shape": "cosine"}


def known_arguments(name: str) -> dict[str, Any]:
    """Give a term's arguments and their defaults, those of every term first; UnknownName if there is no such term."""
    return {**_SHARED, **defaults_of(choose(name, TERMS, "term"))}


def make_terms(terms: Mapping[str, Mapping[str, Any]], view: str, given: Materials) -> dict[str, Weighted]:
    """Make the terms of a configuration.

    Args:
        terms: name in TERMS -> arguments.
        view: name in VIEWS of how all of them look at images.
        given: what they are made of.

    Returns:
        Name -> term and weight; those that never weigh anything are left out, and nothing is made for them.

    Raises:
        UnknownName: if an argument names what is in no table.
        ConfigError: if an argument is outside its range, or the run lacks what the term needs.
    """
    made = {}
    for name, arguments in terms.items():
        own = {**known_arguments(name), **arguments}
        with about(f"e2e.terms.{name}"):
            ramp = Ramp(*(own.pop(key) for key in _SHARED))
            if not ramp.is_off:
                made[name] = Weighted(TERMS[name](**own)(given, VIEWS[view]), ramp)
    return made


def _paired(loss: SampleLoss) -> Recipe:
    return lambda given, view: Viewed(Paired(loss), view)


def _l1() -> Recipe:
    return _paired(L1())


def _l2() -> Recipe:
    return _paired(L2())


def _huber(delta: float = 0.1) -> Recipe:
    return _paired(Huber(delta))


def _perceptual(features: str = "random", normalise: bool = True) -> Recipe:
    return lambda given, view: Viewed(Paired(Perceptual(joined(given.maps(features)), normalise)), view)


def _moment() -> Recipe:
    return lambda given, view: Viewed(MomentReconstruction(), view)


def _bounds(margin: float = 0.5) -> Recipe:
    return lambda given, view: Bounds(margin)


def _energy(features: str = "pixels,random", beta: float = 1.0, draws: int = 2) -> Recipe:
    def make(given: Materials, view: View) -> Term:
        some = given.some
        return Viewed(EnergyScore(given.maps(features), beta, draws).fitted(view(some.x0), some.cond), view)

    return make


def _mmd(features: str = "random", kernel: str = "rbf", chunk: int = 0) -> Recipe:
    made = choose(kernel, KERNELS, "kernel")()
    return lambda given, view: Viewed(MMD(given.vectors(features), made, chunk or None), view)


def _frechet(features: str = "random", beta: float = 0.999, chunk: int = 0) -> Recipe:
    def make(given: Materials, view: View) -> Term:
        vectors, chain = given.vectors(features), given.described.chain or Chain()
        lengths = range(1, chain.longest + 1)  # a random exit makes chains shorter
        return Viewed(FrechetEma(vectors, vectors.dim, beta=beta, chains=lengths, chunk=chunk or None), view)

    return make


def _adversarial(
    critic: str = "pixel",
    loss: str = "relativistic",
    width: int = 32,
    residual: bool = True,
    features: str = "random",
    diffuse: bool = False,
    gamma_real: float = 0.01,
    gamma_fake: float = 0.01,
    eps: float = 0.02,
    fraction: float = 0.25,
    center: float = 0.001,
) -> Recipe:
    game, diffused = choose(loss, ADVERSARIAL, "adversarial loss")(), Diffused() if diffuse else None
    new = choose(critic, _CRITICS, "critic")
    if critic == "pixel" and features != "random":
        raise ConfigError(
            f"e2e.terms.adversarial.features={features} for the critic pixel",
            "It looks at the images themselves; the critic projected looks at features",
            "Add e2e.terms.adversarial.critic=projected, or leave the features out",
        )

    def make(given: Materials, view: View) -> Term:
        network = new(given, width=width, residual=residual, features=features, noise=diffuse)
        return Adversarial(network, game, view, diffused, gamma_real, gamma_fake, eps, fraction, center)

    return make


def _pixel_critic(given: Materials, *, width: int, residual: bool, features: str, noise: bool) -> nn.Module:
    channels, *sides = given.described.shape
    return PixelCritic(channels, max(sides), width, residual=residual, noise=noise, **given.described.conditions)


def _projected_critic(given: Materials, *, width: int, residual: bool, features: str, noise: bool) -> nn.Module:
    maps = joined(tuple(maps for maps in given.maps(features) if not isinstance(maps, VectorMaps)))
    with torch.no_grad():
        channels = [of.shape[1] for of in maps(torch.zeros(1, *given.described.shape, device=given.device))]
    return ProjectedCritic(maps, channels, width, noise=noise, **given.described.conditions)


_CRITICS = {"pixel": _pixel_critic, "projected": _projected_critic}

TERMS: dict[str, Callable[..., Recipe]] = {
    "l1": _l1,
    "l2": _l2,
    "huber": _huber,
    "perceptual": _perceptual,
    "self_perceptual": partial(_perceptual, features="self"),
    "moment": _moment,
    "bounds": _bounds,
    "energy": _energy,
    "adversarial": _adversarial,
    "mmd": _mmd,
    "frechet": _frechet,
}
