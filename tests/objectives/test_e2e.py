"""End to end: what is trained is what is sampled, its gradient is exact, and the data stay out of the chain's input."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Generator, Tensor, nn

from fewstep.data import Batch, digits, seeded
from fewstep.denoisers import PREDICTIONS, ClassifierFree, NetworkDenoiser
from fewstep.errors import ConfigError, UnknownName
from fewstep.losses import L2, EnergyScore, MomentReconstruction, Outcome, Paired, Ramp, Viewed
from fewstep.losses.adversarial import Adversarial
from fewstep.losses.views import eight_bit
from fewstep.models import Chain, Part
from fewstep.networks import UNet
from fewstep.networks.critic import VectorCritic
from fewstep.noise import EDM, Grid, LinearFlow, NoiseLevel, UniformFlow, UniformLam, UniformTime, VPCosine, VPLinear
from fewstep.objectives import (
    CRITIC,
    E2E,
    GENERATOR,
    Gradient,
    Guard,
    Independent,
    Leaky,
    NearestNoise,
    RandomExit,
    RandomSteps,
    Through,
    Weighted,
    normal_like,
)
from fewstep.sampling import Chained, Checkpointed, Full, LastSteps, LearnedChain, resolve, sample
from fewstep.solvers import DDIM, SOLVERS

F64 = torch.float64
SCHEDULE = LinearFlow()
ENERGY = {"energy": Weighted(EnergyScore())}


class Linear(nn.Module):
    """A network that is linear in x, and not in its weights' effect on a chain; float64."""

    def __init__(self, dim: int = 3) -> None:
        super().__init__()
        generator = seeded("linear")
        self.matrix = nn.Parameter(0.3 * torch.randn(dim, dim, dtype=F64, generator=generator))
        self.by_noise = nn.Parameter(0.3 * torch.randn(dim, dim, dtype=F64, generator=generator))
        self.by_class = nn.Parameter(torch.randn(4, dim, dtype=F64, generator=generator))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, noise_label: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        self.seen.append(x.detach().clone())
        told = self.by_class[cond["label"]] if cond else 0
        return x @ self.matrix + noise_label[:, None] * (x @ self.by_noise) + told


def vectors(n: int = 6, dim: int = 3, seed: int = 0) -> Batch:
    x0 = torch.randn(n, dim, dtype=F64, generator=seeded("x0", seed))
    return Batch(x0, {"label": torch.arange(n) % 4})


def chain(solver: str = "ddim", schedule: Any = SCHEDULE) -> Any:
    return partial(resolve, Chain(Part(solver)), schedule)


def linear(**changes: Any) -> E2E:
    denoiser = NetworkDenoiser(Linear(), PREDICTIONS["x0"](), SCHEDULE)
    return E2E(**{"denoiser": denoiser, "chain": chain(), "terms": ENERGY, "total_steps": 10, **changes})


def parameters(objective: E2E) -> list[nn.Parameter]:
    assert isinstance(objective.denoiser.network, nn.Module)
    return list(objective.denoiser.network.parameters())


def loss_and_gradient(objective: E2E, batch: Batch, step: int = 0) -> tuple[Tensor, list[Tensor]]:
    turn = next(iter(objective.turns(batch, step, seeded("step", step))))
    loss, _ = turn.loss()
    return loss.detach(), list(torch.autograd.grad(loss, parameters(objective)))


def loss_at(objective: E2E, batch: Batch, step: int = 0) -> Tensor:
    return next(iter(objective.turns(batch, step, seeded("step", step)))).loss()[0].detach()


def gap(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((one - other).detach().abs().max()) for one, other in zip(a, b, strict=True))


# What is trained is what is sampled.


@dataclasses.dataclass(frozen=True)
class Remembers:
    """The energy score, and what it was shown."""

    shown: list[Outcome]
    draws: int = 2
    role: str = "distribution"

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        self.shown.append(outcome)
        return EnergyScore()(outcome, generator)


@pytest.fixture(scope="module")
def images() -> Batch:
    return digits().batch(torch.arange(6))


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    network = UNet(channels=1, n_classes=10, width=8, multipliers=(1, 2), blocks=1, heads=2, embedding=16)
    with torch.no_grad():
        for parameter in network.parameters():  # fresh residual branches end in zeros, where any two would agree
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("unroll", [Full(), Checkpointed(), LastSteps(1)], ids=lambda unroll: type(unroll).__name__)
@pytest.mark.parametrize("solver", ["ddim", "evodiff", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_training_makes_what_sample_makes_bit_for_bit(
    unet: UNet, images: Batch, steps: int, solver: str, unroll: Any, bf16: bool
) -> None:
    denoiser, shown = NetworkDenoiser(unet, PREDICTIONS["flow"](), SCHEDULE), []
    terms: dict[str, Any] = {"spy": Weighted(Remembers(shown))}
    objective = E2E(denoiser, chain(solver), terms, 10, (steps,), gradient=Through(unroll))
    turn = next(iter(objective.turns(images, 0, seeded("identity"))))
    generator = seeded("identity")
    z = torch.cat([normal_like(images.x0, generator), normal_like(images.x0, generator)])
    assert images.cond is not None
    labels = images.cond["label"].repeat(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, _ = turn.loss()
        rule, grid = SOLVERS[solver](), UniformFlow()(SCHEDULE, steps)
        expected = sample(denoiser, rule, grid, z, cond={"label": labels}).x
    assert loss.requires_grad
    assert torch.equal(shown[0].fake.flatten(0, 1), expected)
    assert expected.std() > 0.1


def test_microbatches_make_what_sample_makes_of_the_same_batches(unet: UNet, images: Batch) -> None:
    denoiser, shown = NetworkDenoiser(unet, PREDICTIONS["flow"](), SCHEDULE), []
    terms: dict[str, Any] = {"spy": Weighted(Remembers(shown))}
    objective = E2E(denoiser, chain(), terms, 10, (2,), microbatch=5)
    next(iter(objective.turns(images, 0, seeded("identity")))).loss()
    generator = seeded("identity")
    z = torch.cat([normal_like(images.x0, generator), normal_like(images.x0, generator)])
    assert images.cond is not None
    labels, grid = images.cond["label"].repeat(2), UniformFlow()(SCHEDULE, 2)
    for rows in (slice(0, 5), slice(5, 10), slice(10, 12)):
        expected = sample(denoiser, DDIM(), grid, z[rows], cond={"label": labels[rows]}).x
        assert torch.equal(shown[0].fake.flatten(0, 1)[rows], expected)


def test_a_narrow_schedule_starts_at_pure_noise_too() -> None:
    for schedule in (EDM(), VPLinear(), VPCosine()):
        denoiser = NetworkDenoiser(Linear(), PREDICTIONS["v"](), schedule)
        objective = linear(denoiser=denoiser, chain=chain(schedule=schedule))
        loss, gradient = loss_and_gradient(objective, vectors())
        assert bool(loss.isfinite())
        assert all(bool(part.isfinite().all()) for part in gradient)


def test_pure_noise_of_any_size_is_the_same_start() -> None:
    plain, batch = linear(steps=(2,)), vectors()
    (alpha, sigma), t = plain.chain(2).grid
    grown = Grid(NoiseLevel(alpha, torch.cat([3 * sigma[:1], sigma[1:]])), t)
    scaled = linear(steps=(2,), chain=lambda steps: Chained(DDIM(), grown))
    fakes = [objective.outcome(batch, 0, seeded("a")).fake for objective in (plain, scaled)]
    assert gap(fakes[:1], fakes[1:]) <= 1e-12


# The gradient.


@pytest.mark.parametrize("solver", ["ddim", "evodiff", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_gradient_equals_finite_differences(steps: int, solver: str) -> None:
    terms = {**ENERGY, "l2": Weighted(Paired(L2()), Ramp(0.04, 0.0))}
    objective, batch = linear(steps=(steps,), chain=chain(solver), terms=terms), vectors()
    _, gradient = loss_and_gradient(objective, batch)
    for parameter, exact in zip(parameters(objective), gradient, strict=True):
        found = torch.zeros_like(exact)
        for place in range(parameter.numel()):
            sides = []
            for h in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[place] += h
                    sides.append(loss_at(objective, batch))
                    parameter.view(-1)[place] -= h
            found.view(-1)[place] = (sides[0] - sides[1]) / 2e-5
        error = float((found - exact).abs().max())
        assert error <= 1e-8, f"{solver}, {steps} steps: off by {error:.1e}"
        assert exact.abs().max() > 1e-3


def by_hand(network: Linear, z: Tensor, label: Tensor, steps: int, differentiated: int = 8) -> Tensor:
    """DDIM on the straight path, x' = t'/t x + (1 - t'/t) D(x, t), by plain arithmetic."""
    x = z
    for i in range(steps):
        if i == steps - differentiated:
            x = x.detach()
        t, there = 1 - i / steps, 1 - (i + 1) / steps
        angle = math.atan2(t, 1 - t) * 2 / math.pi
        denoised = network(x, torch.full((len(x),), angle, dtype=F64), {"label": label})
        x = there / t * x + (1 - there / t) * denoised
    return x


def l2_objective(**changes: Any) -> E2E:
    with pytest.warns(match="independent"):
        return linear(terms={"l2": Weighted(Paired(L2()), Ramp(3.0))}, **changes)


def l2_by_hand(objective: E2E, batch: Batch, steps: int, differentiated: int = 8) -> list[Tensor]:
    z = normal_like(batch.x0, seeded("step", 0))
    assert isinstance(objective.denoiser.network, Linear)
    assert batch.cond is not None
    fake = by_hand(objective.denoiser.network, z, batch.cond["label"], steps, differentiated)
    return list(torch.autograd.grad(3 * ((fake - batch.x0) ** 2).mean(), parameters(objective)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient": Through(Checkpointed())}, {"gradient": Through(Checkpointed(3))}, {"microbatch": 4}],
    ids=["full", "checkpointed", "checkpointed_3", "microbatch"],
)
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_gradient_equals_a_plain_unroll(steps: int, changes: dict[str, Any]) -> None:
    full = partial(resolve, Chain(steps=(1, 2, 4, 8)), SCHEDULE)
    objective, batch = l2_objective(steps=(steps,), chain=full, **changes), vectors()
    error = gap(loss_and_gradient(objective, batch)[1], l2_by_hand(objective, batch, steps))
    assert error <= 1e-12, f"off by {error:.1e}"


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_last_k_steps_are_differentiated_and_no_others(k: int) -> None:
    objective, batch = l2_objective(steps=(4,), gradient=Through(LastSteps(k))), vectors()
    gradient = loss_and_gradient(objective, batch)[1]
    assert gap(gradient, l2_by_hand(objective, batch, 4, k)) <= 1e-12
    assert gap(gradient, l2_by_hand(objective, batch, 4, k + 1)) > 1e-3


def test_random_steps_are_uniform_and_at_most_the_chain() -> None:
    grid = UniformFlow()(SCHEDULE, 4)
    for rule, most in ((RandomSteps(), 4), (RandomSteps(3), 3)):
        depths = [rule(grid, seeded("depth", i)) for i in range(3000)]
        assert all(depth.grid is grid for depth in depths)
        found = Counter(depth.unroll for depth in depths)
        assert set(found) == {LastSteps(k + 1) for k in range(most)}
        p = 1 / most
        assert all(abs(count - 3000 * p) < 4 * math.sqrt(3000 * p * (1 - p)) for count in found.values())


def test_random_exit_leaves_every_level_equally_often() -> None:
    grid = UniformFlow()(SCHEDULE, 4)
    depths = [RandomExit()(grid, seeded("exit", i)) for i in range(3000)]
    assert {depth.unroll for depth in depths} == {LastSteps(1)}
    taken = Counter(tuple(depth.grid.t.mul(4).round().div(4).tolist()) for depth in depths)
    assert set(taken) == {(1.0, 0.0), (1.0, 0.75, 0.0), (1.0, 0.75, 0.5, 0.0), (1.0, 0.75, 0.5, 0.25, 0.0)}
    assert all(abs(count - 750) < 4 * math.sqrt(3000 * 0.25 * 0.75) for count in taken.values())


def test_an_exit_trains_the_last_step_of_the_shortened_chain() -> None:
    objective, batch = l2_objective(steps=(2,), gradient=RandomExit()), vectors()
    left = RandomExit()(UniformFlow()(SCHEDULE, 2), seeded("depth", 0)).grid.steps
    z, network = normal_like(batch.x0, seeded("step", 0)), objective.denoiser.network
    assert isinstance(network, Linear)
    assert batch.cond is not None
    label = batch.cond["label"]
    x = z if left == 1 else by_hand_halfway(network, z, label).detach()
    t = 1.0 if left == 1 else 0.5
    angle = torch.full((len(z),), math.atan2(t, 1 - t) * 2 / math.pi, dtype=F64)
    expected = torch.autograd.grad(
        3 * ((network(x, angle, {"label": label}) - batch.x0) ** 2).mean(), parameters(objective)
    )
    assert gap(loss_and_gradient(objective, batch)[1], list(expected)) <= 1e-12


def test_all_processes_go_equally_deep() -> None:
    """Other data and other noise; else processes would wait for each other, and miss each other's gradients."""
    for gradient in (RandomExit(), RandomSteps()):
        visited = [_visits(gradient, process) for process in range(3)]
        assert visited[0] == visited[1] == visited[2]
        assert len(set(visited[0])) > 1, "and steps differ"


def _visits(gradient: Gradient, process: int) -> list[tuple[int, int]]:
    """Calls of the network, and nodes of its graph, in twelve training steps of a process."""
    found = []
    for step in range(12):
        objective = linear(steps=(4,), gradient=gradient)
        outcome = objective.outcome(vectors(seed=process), step, seeded("step", step, process))
        assert isinstance(objective.denoiser.network, Linear)
        found.append((len(objective.denoiser.network.seen), _matrix_products(outcome.fake)))
    return found


def _matrix_products(x: Tensor) -> int:
    """Products in the graph behind x."""
    seen, left = set(), [x.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [parent for parent, _ in node.next_functions]
    return sum(type(node).__name__ == "MmBackward0" for node in seen)


def test_terms_are_told_whether_the_first_draw_knows_the_real_samples() -> None:
    shown: list[Outcome] = []
    terms: dict[str, Any] = {"spy": Weighted(Remembers(shown))}
    for coupling in (Independent(), NearestNoise(2)):
        next(iter(linear(terms=terms, coupling=coupling).turns(vectors(), 0, seeded(0)))).loss()
    assert [outcome.tied for outcome in shown] == [False, True]
    assert [len(outcome.through(eight_bit).free) for outcome in shown] == [2, 1]


def by_hand_halfway(network: Linear, z: Tensor, label: Tensor) -> Tensor:
    return 0.5 * z + 0.5 * network(z, torch.ones(len(z), dtype=F64), {"label": label})


def test_half_precision_casts_of_steps_without_gradient_are_not_reused(unet: UNet, images: Batch) -> None:
    """Autocast caches weights; a cast made without gradient must not cut the steps that have one."""
    denoiser = NetworkDenoiser(unet, PREDICTIONS["flow"](), SCHEDULE)
    objective = E2E(denoiser, chain(), ENERGY, 10, (4,), gradient=Through(LastSteps(1)))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = next(iter(objective.turns(images, 0, seeded("bf16")))).loss()
    gradient = torch.autograd.grad(loss, unet.parameters(), allow_unused=True)
    assert all(part is not None and part.abs().max() > 0 for part in gradient)


def test_a_learned_chain_is_trained_through_its_own_numbers() -> None:
    learned = {steps: LearnedChain(UniformFlow()(SCHEDULE, steps)) for steps in (2, 4)}
    objective = linear(chain=lambda steps: Chained(learned[steps].solver(), learned[steps].grid(SCHEDULE)), steps=(4,))
    fixed = linear(steps=(4,))
    turn = next(iter(objective.turns(vectors(), 0, seeded("step", 0))))
    loss, _ = turn.loss()
    assert abs(float(loss.detach() - loss_at(fixed, vectors()))) <= 1e-12
    gradient = torch.autograd.grad(loss, list(learned[4].parameters()))
    assert all(bool(part.isfinite().all()) and part.abs().max() > 1e-6 for part in gradient)


# What comes in, and what does not.


def test_the_data_never_reach_the_chain() -> None:
    batch = vectors()
    order = torch.tensor([1, 0, 3, 2, 5, 4])
    other = Batch(batch.x0[order] + 7, batch.cond)
    seen, fakes = [], []
    for data in (batch, other):
        objective = linear(steps=(4,))
        assert isinstance(objective.denoiser.network, Linear)
        fakes.append(objective.outcome(data, 0, seeded("a")).fake)
        seen.append(objective.denoiser.network.seen)
    assert torch.equal(*fakes)
    assert len(seen[0]) == 4
    assert all(torch.equal(one, same) for one, same in zip(*seen, strict=True))


def test_samples_have_no_derivative_in_the_data() -> None:
    batch = vectors()
    x0 = batch.x0.clone().requires_grad_(True)
    fake = linear().outcome(Batch(x0, batch.cond), 0, seeded("a")).fake
    assert torch.autograd.grad(fake.sum(), x0, allow_unused=True) == (None,)


def test_draws_share_their_condition_and_nothing_else() -> None:
    objective, batch = linear(draws=3, steps=(1,)), vectors()
    outcome = objective.outcome(batch, 0, seeded("a"))
    network = objective.denoiser.network
    assert isinstance(network, Linear)
    (z,) = network.seen
    z = z.view(3, 6, 3)
    assert torch.equal(z[0], normal_like(batch.x0, seeded("a")))
    assert len({tuple(row.flatten().tolist()) for row in z}) == 3
    assert batch.cond is not None
    for draw, start in zip(outcome.fake, z, strict=True):
        assert gap([draw], [by_hand(network, start, batch.cond["label"], 1)]) <= 1e-12
    assert torch.equal(outcome.target, batch.x0)


def test_only_what_is_told_is_told() -> None:
    batch = vectors()
    blind = linear(told=())
    assert blind.outcome(batch, 0, seeded("a")).cond is None
    assert linear(told=("label",)).outcome(batch, 0, seeded("a")).cond == batch.cond
    with pytest.raises(UnknownName, match="'tokens'"):
        linear(told=("tokens",)).outcome(batch, 0, seeded("a"))


def test_only_a_leaky_coupling_starts_with_data() -> None:
    grid = UniformTime(end="zero")(VPLinear(), 2)

    def from_data(steps: int) -> Chained:
        return Chained(DDIM(), grid)

    changes = {"chain": from_data, "denoiser": NetworkDenoiser(Linear(), PREDICTIONS["v"](), VPLinear()), "steps": (2,)}
    with pytest.raises(ConfigError, match=r"alpha = 0\.006572.*PureNoise around another"):
        linear(**changes)
    objective, batch = linear(**changes, coupling=Leaky(VPLinear(), grid.at(0).lam.item())), vectors()
    objective.outcome(batch, 0, seeded("a"))
    assert isinstance(objective.denoiser.network, Linear)
    generator = seeded("a")
    alpha, sigma = grid.at(0)
    starts = [alpha * batch.x0 + sigma * normal_like(batch.x0, generator) for _ in range(2)]
    assert gap([objective.denoiser.network.seen[0]], [torch.cat(starts)]) <= 1e-12
    with pytest.raises(ConfigError, match=r"coupling that starts at alpha 0\.1341.*chain starts.*Give both the same"):
        linear(**changes, coupling=Leaky(VPLinear(), -2.0))


def test_a_rule_that_cannot_take_a_chain_s_grid_is_refused_before_it_runs() -> None:
    with pytest.raises(ConfigError, match=r"A chain of 2 EVODiff.*such as ddim"):
        linear(chain=lambda steps: Chained(SOLVERS["evodiff_paper"](), UniformFlow()(SCHEDULE, steps)), steps=(2,))


def test_the_outcome_says_how_many_steps_were_taken() -> None:
    taken = [linear(steps=(4,), gradient=RandomExit()).outcome(vectors(), i, seeded(i)).steps for i in range(40)]
    assert set(taken) == {1, 2, 3, 4}
    assert linear(steps=(4,)).outcome(vectors(), 0, seeded(0)).steps == 4


# The loss.


def test_the_loss_is_the_weighted_sum_and_weights_move() -> None:
    terms = {
        "energy": Weighted(EnergyScore(), Ramp(2.0, 1.0, "linear")),
        "moment": Weighted(MomentReconstruction(), Ramp(0.0, 0.5, "linear")),
        "off": Weighted(Paired(L2()), Ramp(0.0)),
    }
    objective, batch = linear(terms=terms, total_steps=11), vectors()
    assert set(objective.terms) == {"energy", "moment"}
    for step, weights in ((0, (2.0, 0.0)), (5, (1.5, 0.25)), (10, (1.0, 0.5))):
        turn = next(iter(objective.turns(batch, step, seeded(step))))
        loss, parts = turn.loss()
        expected = weights[0] * parts["loss_energy"] + weights[1] * parts["loss_moment"]
        assert abs(float(loss.detach() - expected)) <= 1e-12
        assert float(parts["steps"]) == objective.steps_at(step)


def test_every_length_is_drawn_as_often_as_it_is_written() -> None:
    objective = linear(steps=(1, 2, 2, 4))
    drawn = [objective.steps_at(step) for step in range(400)]
    assert all(sorted(drawn[i : i + 4]) == [1, 2, 2, 4] for i in range(0, 400, 4))
    assert len({tuple(drawn[i : i + 4]) for i in range(0, 400, 4)}) == 12, "all orders occur"


def duel(**changes: Any) -> E2E:
    torch.manual_seed(1)
    critic = VectorCritic(3, width=8, n_classes=4).to(F64)
    return linear(terms={**ENERGY, "adversarial": Weighted(Adversarial(critic))}, **changes)


def test_the_critic_judges_the_samples_that_the_generator_made(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, batch, seen = duel(), vectors(), []
    monkeypatch.setattr(
        Adversarial, "critic_loss", lambda self, outcome, generator: (seen.append(outcome) or torch.zeros(()), {})
    )
    turns = objective.turns(batch, 0, seeded("step", 0))
    next(turns).loss()
    with torch.no_grad():
        for parameter in parameters(objective):
            parameter.add_(1)  # the generator's step
    next(turns).loss()
    expected = duel().outcome(batch, 0, seeded("step", 0)).fake
    assert torch.equal(seen[0].fake, expected)
    assert not seen[0].fake.requires_grad


def test_every_player_and_only_it_gets_gradient() -> None:
    objective = duel()
    others = objective.others()
    assert set(others) == {CRITIC}
    mine, theirs = parameters(objective), list(others[CRITIC].parameters())
    for turn in objective.turns(vectors(), 0, seeded(0)):
        loss, _ = turn.loss()
        loss.backward()
        got, other = (mine, theirs) if turn.player == GENERATOR else (theirs, mine)
        assert all(parameter.grad is not None and bool(parameter.grad.abs().max() > 0) for parameter in got)
        assert all(parameter.grad is None for parameter in other)
        for parameter in got:
            parameter.grad = None


def test_pulls_are_the_gradients_at_the_samples() -> None:
    terms = {**ENERGY, "moment": Weighted(MomentReconstruction(), Ramp(0.5))}
    for changes in ({}, {"gradient": Through(Checkpointed(2))}, {"microbatch": 5}):
        objective, batch = linear(terms=terms, steps=(4,), **changes), vectors()
        turn = next(iter(objective.turns(batch, 0, seeded(0))))
        loss, _ = turn.loss()
        assert turn.after() == {}
        loss.backward()
        pulls = turn.after()
        plain = linear(terms=terms, steps=(4,))
        z = torch.cat([normal_like(batch.x0, g) for g in [seeded(0)] for _ in range(2)])
        assert batch.cond is not None
        labels = {"label": batch.cond["label"].repeat(2)}
        run = sample(plain.denoiser, *plain.chain(4), z, cond=labels, unroll=Full())
        outcome = Outcome(run.x.view(2, 6, 3), batch.x0, batch.x0, batch.cond)
        values = {name: own.weight(0) * own.term(outcome, seeded(1)) for name, own in terms.items()}
        for name, value in values.items():
            (exact,) = torch.autograd.grad(value, run.x, retain_graph=True)
            assert abs(float(pulls[f"grad_{name}"] - exact.norm())) <= 1e-6
        exact_steps = torch.autograd.grad(sum(values.values()), run.trajectory[1:])
        assert set(pulls) == {"grad_energy", "grad_moment", *(f"grad_step_{i}" for i in (1, 2, 3, 4))}
        for i, exact in enumerate(exact_steps):
            assert abs(float(pulls[f"grad_step_{i + 1}"] - exact.norm())) <= 1e-6


def test_the_guard_reports_in_every_step() -> None:
    for guard, name in ((Guard(), "diversity"), (Guard(2.0), "rho")):
        objective = linear(guard=guard)
        _, parts = next(iter(objective.turns(vectors(), 0, seeded(0)))).loss()
        fake = objective.outcome(vectors(), 0, seeded(0)).fake.detach()
        groups = [fake[:, torch.arange(6) % 4 == c].flatten(0, 1) for c in range(4)]
        variety = sum(len(rows) * rows.var(0).sum() for rows in groups) / 12
        assert float(parts[name]) == pytest.approx(float(variety / (guard.spread or 1)), rel=1e-5)  # in float32
        assert "contrast" in parts


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": {}}, r"without a term of positive weight.*At least one term.*Add one: energy"),
        ({"terms": {"energy": Weighted(EnergyScore(), Ramp(0.0))}}, "without a term of positive weight"),
        ({"steps": ()}, r"steps=\(\).*from 1 to 8.*\(1, 2, 4\)"),
        ({"steps": (0, 1)}, r"steps=\(0, 1\)"),
        ({"steps": (9,)}, r"steps=\(9,\)"),
        ({"draws": 1}, r"draws=1 for the term 'energy'.*compares 2 samples.*draws=2, or 0"),
        (
            {"denoiser": ClassifierFree(NetworkDenoiser(Linear(), PREDICTIONS["x0"](), SCHEDULE), 2.0, {})},
            r"ClassifierFree inside the chain.*plain network.*'teacher' with a guided teacher",
        ),
        (
            {"denoiser": NetworkDenoiser(Linear(), PREDICTIONS["eps"](), SCHEDULE)},
            r"eps-prediction on LinearFlow.*x0-, v- and flow.*Convert the network",
        ),
        (
            {"chain": lambda steps: Chained(DDIM(), UniformTime()(SCHEDULE, steps))},
            r"ends at sigma = 0\.001.*no noise is left.*end='zero'",
        ),
        (
            {"chain": lambda steps: Chained(DDIM(), UniformLam(lam_min=-3.0, end="zero")(SCHEDULE, steps))},
            r"starts at alpha = 0\.04743.*shows the data.*uniform_flow",
        ),
        (
            {"terms": {"gan": Weighted(Viewed(Adversarial(VectorCritic(3))))}},
            r"'gan', an Adversarial inside Viewed.*view of its own.*view=",
        ),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        linear(**changes)


def test_a_chain_that_draws_noise_is_refused() -> None:
    class Stochastic(DDIM):
        stochastic: ClassVar[bool] = True

    with pytest.raises(ConfigError, match=r"A chain of .*no step draws noise.*ddim"):
        linear(chain=lambda steps: Chained(Stochastic(), UniformFlow()(SCHEDULE, steps)))


def test_eps_prediction_is_fine_where_the_schedule_ends_before_pure_noise() -> None:
    denoiser = NetworkDenoiser(Linear(), PREDICTIONS["eps"](), VPLinear())
    loss, _ = loss_and_gradient(linear(denoiser=denoiser, chain=chain(schedule=VPLinear())), vectors())
    assert bool(loss.isfinite())


def test_random_steps_are_at_least_one() -> None:
    with pytest.raises(ConfigError, match=r"most=0.*1 or more.*RandomSteps\(\)"):
        RandomSteps(0)
