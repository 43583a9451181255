"""From a configuration to the objective and the players of an end-to-end run, and to the model that it leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fewstep.data import Images
from fewstep.errors import ConfigError, GridError, LevelError, about
from fewstep.losses import VIEWS, Ramp
from fewstep.models import Chain, ModelConfig
from fewstep.noise import Schedule
from fewstep.objectives import E2E, GENERATOR, ChainSource, Guard, Objective, spread_of
from fewstep.sampling import Chained, LearnedChain, resolve
from fewstep.training.config import RunConfig
from fewstep.training.e2e_config import E2EConfig
from fewstep.training.e2e_couplings import COUPLINGS, GRADIENTS, TAUGHT
from fewstep.training.e2e_materials import Materials, Tell, quiet
from fewstep.training.e2e_terms import known_arguments, make_terms
from fewstep.training.processes import accelerator

__all__ = ["Parts", "end_to_end", "finished"]

_SOLVER = "solver"  # in e2e.trainable: the chain's own numbers
_LOOK = 10_000  # images on which the spread of the data within conditions is measured


class Parts(NamedTuple):
    """What the trainer of a run needs.

    Attributes:
        objective: what is minimised.
        players: name -> module, the generator among them.
    """

    objective: Objective
    players: dict[str, nn.Module]


class _WithChains(nn.Module):
    """A network and the trained numbers of its chains, one for each number of steps."""

    def __init__(self, network: nn.Module, chain: Chain, schedule: Schedule) -> None:
        super().__init__()
        self.network = network
        starts = {str(steps): resolve(chain, schedule, steps).grid for steps in chain.steps}
        self.chains = nn.ModuleDict({steps: LearnedChain(grid) for steps, grid in starts.items()})
        self.schedule = schedule

    def chain(self, steps: int) -> Chained:
        """Solver and grid with the numbers of now."""
        learned = self._learned()[str(steps)]
        return Chained(learned.solver(), learned.grid(self.schedule))

    def tables(self) -> dict[str, object]:
        """The numbers, as a model's chain keeps them."""
        return {steps: learned.table() for steps, learned in self._learned().items()}

    def _learned(self) -> dict[str, LearnedChain]:
        return {steps: learned for steps, learned in self.chains.items() if isinstance(learned, LearnedChain)}


def end_to_end(
    config: RunConfig, data: Images, described: ModelConfig, folder: str | Path, tell: Tell = quiet
) -> Parts:
    """Put an end-to-end run together.

    Args:
        config: the run.
        data: its images.
        described: the model that it makes, with its chain.
        folder: of the run.
        tell: hears of what takes its time.

    Returns:
        Objective and players.

    Raises:
        ConfigError: if options do not fit each other, or lack something.
        UnknownName: if a name is in no table.
    """
    e2e = config.e2e
    if "energy" in e2e.terms:
        _refuse_lone_draws({**known_arguments("energy"), **e2e.terms["energy"]}, config, described)
    _refuse_idle_teacher(e2e)
    given = Materials(described, data, Path(folder), accelerator().device, e2e.init, e2e.teacher, tell)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        network, drawn = described.body(), torch.get_rng_state()
    if e2e.init and isinstance(old := given.start.denoiser.network, nn.Module):
        network.load_state_dict(old.state_dict())
    denoiser = described.denoiser(network)
    wanted = described.chain or Chain()
    _refuse_spacing(wanted, denoiser.schedule)
    player, chain = _player(network, e2e.trainable, wanted, denoiser.schedule)
    coupling = e2e.coupling.build(COUPLINGS, "coupling")(given)
    with torch.random.fork_rng(devices=[]):  # last, since terms may have a classifier trained for them
        torch.set_rng_state(drawn)
        terms = make_terms(e2e.terms, e2e.view, given)
    objective = E2E(
        denoiser=denoiser,
        chain=chain,
        terms=terms,
        total_steps=config.train.steps,
        steps=e2e.steps,
        coupling=coupling,
        gradient=e2e.gradient.build(GRADIENTS, "gradient"),
        microbatch=e2e.microbatch,
        draws=e2e.draws,
        told=tuple(described.null),
        many=described.captions is not None,
        guard=Guard(_spread(given), VIEWS[e2e.view]),
    )
    return Parts(objective, {GENERATOR: player, **objective.others()})


def _refuse_lone_draws(energy: Mapping[str, Any], config: RunConfig, described: ModelConfig) -> None:
    """One draw each compares rows of one condition, of which only a batch larger than the classes has two for sure."""
    batch, told = config.train.batch, f"{described.n_classes} classes" if described.captions is None else "captions"
    with about("e2e.terms.energy"):
        off = Ramp(energy["weight"], energy["weight_end"]).is_off
    sure = described.captions is None and batch > max(1, described.n_classes)
    if off or sure or max(energy["draws"], config.e2e.draws) > 1:
        return
    raise ConfigError(
        f"e2e.terms.energy.draws=1 with batches of {batch} images of {told}",
        "With one draw of each image, some condition has to come twice in every batch: more images than classes",
        "Use e2e.terms.energy.draws=2, or a larger train.batch where there are classes",
    )


def _refuse_idle_teacher(e2e: E2EConfig) -> None:
    """A teacher that nothing asks would be a distillation that does not happen."""
    if e2e.teacher and e2e.coupling.name not in TAUGHT:
        raise ConfigError(
            f"e2e.teacher={e2e.teacher} with e2e.coupling={e2e.coupling.name}",
            f"Only the couplings {', '.join(TAUGHT)} learn from a teacher",
            "Add e2e.coupling=teacher, or leave e2e.teacher out",
        )


def _refuse_spacing(chain: Chain, schedule: Schedule) -> None:
    """Refuse levels that no grid can have, and say how a run writes others."""
    try:
        for steps in chain.steps:
            resolve(chain, schedule, steps)
    except (GridError, LevelError) as error:
        raise ConfigError(
            f"e2e.spacing={chain.spacing}: {error.given}",
            error.allowed,
            "Use e2e.spacing=uniform_flow; karras needs e2e.spacing.kappa_max=80 e2e.spacing.end=zero",
        ) from error


def _player(network: nn.Module, trainable: str, chain: Chain, schedule: Schedule) -> tuple[nn.Module, ChainSource]:
    """Choose what is trained: parameters of the network, numbers of the chain, or both."""
    words = [word.strip() for word in trainable.split(",")]
    _choose_trainable(network, ["*" if word == "all" else word for word in words if word != _SOLVER])
    if _SOLVER not in words:
        return network, partial(resolve, chain, schedule)
    if chain.solver != Chain().solver:
        raise ConfigError(
            f"e2e.solver={chain.solver.name} with e2e.trainable={trainable}",
            "A chain whose own numbers are trained begins as ddim, and has no other solver's rule",
            "Leave e2e.solver out, or take 'solver' out of e2e.trainable",
        )
    player = _WithChains(network, chain, schedule)
    return player, player.chain


def finished(average: nn.Module, described: ModelConfig) -> tuple[nn.Module, ModelConfig]:
    """Give the network to be saved, and the model's description with what its chains have learned.

    Args:
        average: of the generator that :func:`end_to_end` returned.
        described: the model.

    Returns:
        Network and description.
    """
    if not isinstance(average, _WithChains) or described.chain is None:
        return average, described
    return average.network, replace(described, chain=replace(described.chain, learned=average.tables()))


def _choose_trainable(network: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze every parameter whose name fits none of some patterns."""
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ConfigError(
                f"e2e.trainable with {pattern!r}, which no parameter's name fits",
                f"'all', 'solver', or patterns of names such as {', '.join(names[:: max(1, len(names) // 5)])}",
                "Write for instance e2e.trainable=*norm*,*attention*",
            )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in patterns))


def _spread(given: Materials) -> float | None:
    """Variety of the data within their conditions; captions have too few images each."""
    return None if given.described.captions is not None else spread_of(given.some_of(_LOOK))
