r"""E2ED2: the whole chain from noise to data, trained by what comes out of its end.

.. math::
    y_0 &= z \sim N(0, I), \qquad y_{i+1} = \mathrm{step}(y_i, D_\theta(y_i, t_i, c)), \qquad F_\theta(z, c) = y_T \\
    L_G &= \textstyle\sum_j w_j\, L_j\bigl(F_\theta(z, c), x\bigr), \qquad
    L_D = \textstyle\sum_j L_{D_j}\bigl(x, \mathrm{stopgrad}\, F_\theta(z, c)\bigr)

The chain is one call of :func:`fewstep.sampling.sample`, the very function that samples the trained model, and the
gradient runs through all of its steps. So what is trained is what is sampled, bit for bit, and any loss that can judge
a finished image is a loss of the diffusion model. The data enter as targets; they never reach the chain's input.

Which noise belongs to which target is the coupling's business, how deep to differentiate the gradient rule's, and what
becomes of diversity the guard's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Generator, Tensor, nn

from fewstep._chunks import in_chunks
from fewstep._cond import repeated
from fewstep._tensor import normal_like
from fewstep.data import Batch, indices_of_step, seeded
from fewstep.denoisers import Cond, NetworkDenoiser
from fewstep.errors import CollapseWarning, NonFiniteError
from fewstep.losses import Outcome
from fewstep.losses.adversarial import Adversarial
from fewstep.noise import NoiseLevel, perturb
from fewstep.objectives.base import CRITIC, GENERATOR, Turn
from fewstep.objectives.checks import (
    behind_view,
    check_chain,
    check_denoiser,
    check_rule,
    check_start,
    check_steps,
    check_terms,
    checked_draws,
)
from fewstep.objectives.coupled import Coupled, Coupling, Independent, Leaky
from fewstep.objectives.gradients import Gradient, Through
from fewstep.objectives.guard import Guard, Pulls, Weighted, diagnose
from fewstep.sampling import Chained, Unroll, sample

__all__ = ["E2E", "MEMORY", "ChainSource"]

MEMORY = "memory"  # holds the statistics that terms keep from step to step; it has nothing to train

ChainSource: TypeAlias = Callable[[int], Chained]  # number of steps -> solver and grid, with learned parts or without


@dataclass(frozen=True)
class E2E:
    r"""End-to-end training of a chain of one to eight steps.

    Args:
        denoiser: network, prediction and schedule; plain, as guidance inside the chain is not what gets sampled.
        chain: number of steps -> solver and grid, for instance ``partial(resolve, Chain(), denoiser.schedule)``.
        terms: name -> term and its weight over the training; those of weight 0 throughout are left out.
        total_steps: training steps of the run, over which the weights change.
        steps: numbers of steps of the chain; each training step takes one of them, and in every len(steps) training
            steps each is taken once, in random order.
        coupling: how noise and data are paired.
        gradient: how deep to differentiate.
        microbatch: samples of which the graph is kept at a time, at the price of computing them twice; 0 keeps all.
        draws: samples per condition; 0 makes as many as the terms need.
        told: names of the conditions that the network is told; None tells it all.
        many: whether conditions hardly repeat, as captions do; see `diagnose`.
        guard: measures the variety of the samples.

    Raises:
        ConfigError: if all weights are 0, a number of steps is outside 1..8, there are fewer draws than a term needs,
            the denoiser is guided or cannot start from pure noise, or the chain is stochastic or does not run from
            pure noise to clean data.

    Warns:
        CollapseWarning: if the minimum of the terms has less variety than the data; see `diagnose`.

    Source:
        Tan et al. 2024, arXiv:2412.21044, of which only the abstract was at hand: a chain trained from Gaussian noise
        to data by reconstruction, perceptual and adversarial losses on its end. Departs from it in: everything else is
        ours.
    """

    denoiser: NetworkDenoiser
    chain: ChainSource
    terms: Mapping[str, Weighted]
    total_steps: int
    steps: tuple[int, ...] = (1, 2, 4)
    coupling: Coupling = Independent()
    gradient: Gradient = Through()
    microbatch: int = 0
    draws: int = 0
    told: tuple[str, ...] | None = None
    many: bool = False
    guard: Guard = Guard()

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", {name: own for name, own in self.terms.items() if not own.weight.is_off})
        check_terms(self.terms)
        needed = {name: own.term.draws for name, own in self.terms.items()}
        object.__setattr__(self, "draws", checked_draws(self.draws, needed))
        check_denoiser(self.denoiser, self.coupling.leaky)
        check_steps(self.steps)
        for steps in sorted(set(self.steps)):
            chain = self.chain(steps)
            check_chain(chain, self.coupling.leaky)
            check_rule(chain, steps)
            if isinstance(self.coupling, Leaky):
                check_start(chain.grid.at(0), self.coupling.level)
        for finding in diagnose(self.terms, self.coupling, self.many):
            warnings.warn(finding.text, CollapseWarning, stacklevel=3)

    @property
    def adversaries(self) -> dict[str, Adversarial]:
        """The terms that have a critic to train."""
        return {name: own.term for name, own in self.terms.items() if isinstance(own.term, Adversarial)}

    def others(self) -> dict[str, nn.Module]:
        """Make the players beside the generator: the critics, and the memory of terms, where there are any."""
        critics = {name: term.critic for name, term in self.adversaries.items()}
        terms = {name: behind_view(own.term) for name, own in self.terms.items()}
        memory: dict[str, nn.Module] = {name: term for name, term in terms.items() if isinstance(term, nn.Module)}
        groups = {CRITIC: critics, MEMORY: memory}
        return {player: nn.ModuleDict(group) for player, group in groups.items() if group}

    def turns(self, batch: Batch, step: int, generator: Generator) -> Iterator[Turn]:
        """Yield the critics' turn, then the generator's, on the same samples.

        The critics go first: each step has a chain of another length, and a critic that has not seen what just came out
        of this one would judge the last one's.

        Args:
            batch: data, on the device of the networks.
            step: steps done so far.
            generator: the step's own randomness, on the host.

        Yields:
            One turn, or two if a term has a critic.
        """
        pulls = Pulls()
        made: list[Outcome] = []

        def criticise() -> tuple[Tensor, Mapping[str, Tensor]]:
            made.append(self.outcome(batch, step, generator, pulls))
            return self._critic_loss(made[0]._replace(fake=made[0].fake.detach()), generator)

        def generate() -> tuple[Tensor, Mapping[str, Tensor]]:
            outcome = made.pop() if made else self.outcome(batch, step, generator, pulls)
            return self._generator_loss(outcome, step, generator, pulls)

        if self.adversaries:
            yield Turn(CRITIC, criticise)
        yield Turn(GENERATOR, generate, pulls.read)

    def steps_at(self, step: int) -> int:
        """Say how many steps the chain takes in a training step; every process takes the same."""
        return self.steps[int(indices_of_step(len(self.steps), 1, 0, step))]

    def outcome(self, batch: Batch, step: int, generator: Generator, pulls: Pulls | None = None) -> Outcome:
        """Run the chain of one training step.

        Args:
            batch: data, on the device of the networks.
            step: steps done so far.
            generator: the step's own randomness, on the host.
            pulls: where to note the gradient at the samples of every step.

        Returns:
            What the terms judge: samples (k, b, *d), their targets, real samples and conditions.
        """
        coupled = self.coupling(batch if self.told is None else batch.told(self.told), generator)
        solver, grid = self.chain(self.steps_at(step))
        starts = self._starts(coupled, grid.at(0), generator)
        depth = self.gradient(grid, seeded("depth", step))  # the same in every process, as the number of steps
        x, cond = starts.flatten(0, 1), repeated(coupled.cond, len(starts))
        watch = pulls.watch if pulls else None
        try:
            fake = self.run(Chained(solver, depth.grid), x, cond, unroll=depth.unroll, watch=watch)
        except NonFiniteError as error:  # it may show in the critics' turn, which comes first
            raise NonFiniteError(f"The generator's chain: {error.given}", error.allowed, error.todo) from error
        return Outcome(fake.view_as(starts), coupled.target, coupled.real, coupled.cond, coupled.tied, depth.grid.steps)

    def run(
        self,
        chain: Chained,
        x: Tensor,
        cond: Cond = None,
        *,
        unroll: Unroll | None = None,
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Carry samples through a chain: what :func:`fewstep.sampling.sample` makes of them, in microbatches.

        Args:
            chain: solver and grid.
            x: samples at the first level of the grid, shape (n, *d).
            cond: conditions, batch first.
            unroll: how to differentiate; NoGrad() if omitted.
            watch: called with (step, x) after every step of every microbatch.

        Returns:
            Samples at the last level, shape (n, *d).
        """

        def whole(x: Tensor, cond: Cond) -> Tensor:
            return sample(self.denoiser, chain.solver, chain.grid, x, cond=cond, unroll=unroll, watch=watch).x

        return in_chunks(whole, (x, cond), self.microbatch or len(x))

    def _starts(self, coupled: Coupled, here: NoiseLevel, generator: Generator) -> Tensor:
        """Where the draws begin, (k, b, *d): the first as it was coupled, the others with noise of their own."""
        own = [normal_like(coupled.z, generator) for _ in range(self.draws - 1)]
        if coupled.start is None:
            return here.sigma * torch.stack([coupled.z, *own])
        check_start(here, coupled.start)
        return torch.stack([coupled.z, *(perturb(coupled.target, eps, coupled.start) for eps in own)])

    def _generator_loss(
        self, outcome: Outcome, step: int, generator: Generator, pulls: Pulls
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Weigh the terms, each of which pulls at the samples through an alias of its own."""
        done = step / max(self.total_steps - 1, 1)
        loss, parts = outcome.fake.new_zeros(()), dict[str, Tensor]()
        for name, own in self.terms.items():
            alias = pulls.at(f"grad_{name}", outcome.fake.view_as(outcome.fake))
            value = own.term(outcome._replace(fake=alias), generator)
            loss = loss + own.weight(done) * value
            parts[f"loss_{name}"] = value.detach()
        counted = {"loss": loss.detach(), "steps": loss.new_tensor(self.steps_at(step))}
        return loss, {**counted, **parts, **self.guard(outcome)}

    def _critic_loss(self, outcome: Outcome, generator: Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Add up what the critics minimise; they share nothing."""
        loss, parts = outcome.fake.new_zeros(()), dict[str, Tensor]()
        for name, term in self.adversaries.items():
            value, own = term.critic_loss(outcome, generator)
            loss = loss + value
            parts |= {f"loss_{name}": value.detach(), **{f"{name}_{part}": number for part, number in own.items()}}
        return loss, parts
