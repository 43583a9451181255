"""The adversarial game: its values by hand, its penalties in expectation, its convergence on the Dirac GAN."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.data import seeded
from fewstep.denoisers import Cond
from fewstep.errors import ConfigError, ShapeError
from fewstep.losses.adversarial import ADVERSARIAL, Adversarial, Diffused, Hinge, Relativistic, gradient_penalty
from fewstep.losses.base import Outcome
from fewstep.losses.views import eight_bit
from fewstep.networks import PixelCritic, VectorCritic

PLAIN = {"gamma_real": 0.0, "gamma_fake": 0.0, "center": 0.0}


class Quadratic(nn.Module):
    """D(x) = w . x + x . H x / 2, times the label if there is one; remembers what it was shown."""

    def __init__(self, w: list[float], hessian: list[list[float]] | None = None) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))
        self.register_buffer("hessian", torch.tensor(hessian or [[0.0] * len(w)] * len(w), dtype=torch.float64))
        self.shown: list[tuple[Tensor, Cond, Tensor | None]] = []

    def forward(self, x: Tensor, cond: Cond = None, noise_label: Tensor | None = None) -> Tensor:
        self.shown.append((x.detach(), cond, noise_label))
        scale = cond["label"] if cond else 1
        return scale * (x @ self.w + torch.einsum("bi,ij,bj->b", x, self.hessian, x) / 2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=seeded("samples", seed))


def outcome(draws: int = 2, batch: int = 5, dim: int = 3, cond: Cond = None) -> Outcome:
    # The game never looks at what the first draw is paired with.
    target = torch.full((batch, dim), math.nan, dtype=torch.float64)
    return Outcome(normal(draws, batch, dim, seed=1), target, normal(batch, dim, seed=2), cond)


def close(a: Tensor | float, b: Tensor | float, tolerance: float = 1e-12) -> bool:
    return float((torch.as_tensor(a) - torch.as_tensor(b)).detach().abs().max()) < tolerance


def test_values_by_hand() -> None:
    real, fake = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([-0.5, 2.0], dtype=torch.float64)
    log = torch.tensor([math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))], dtype=torch.float64)
    assert close(Relativistic().critic(real, fake), log)
    assert close(Relativistic().generator(real, fake), log + torch.tensor([1.0, -3.0]))
    assert close(Hinge().critic(real, fake), torch.tensor([0.5 + 0.5, 2.0 + 3.0]))
    assert close(Hinge().generator(real, fake), torch.tensor([0.5, -2.0]))


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_players_pull_fake_logits_in_opposite_directions(name: str) -> None:
    loss, real, fake = ADVERSARIAL[name](), torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    assert bool((torch.autograd.grad(loss.generator(real, fake).sum(), fake)[0] < 0).all())
    by_real, by_fake = torch.autograd.grad(loss.critic(real, fake).sum(), [real, fake])
    assert bool((by_real < 0).all())
    assert bool((by_fake > 0).all())


@pytest.mark.parametrize("eps", [0.02, 1.0])
def test_the_penalty_is_the_squared_gradient_on_average(eps: float) -> None:
    # H makes both the trace and the norm felt at eps = 1: without the second term 4 sigma would be far exceeded.
    n, w, h = 200_000, [0.3, -1.0, 0.5], [[1.0, 0.4, 0.0], [0.4, -0.3, 0.2], [0.0, 0.2, 0.6]]
    critic, x = Quadratic(w, h), torch.tensor([0.2, 0.5, -0.7], dtype=torch.float64)
    gradient = critic.w.detach() + critic.hessian @ x
    expected = gradient.square().sum() + eps**2 / 4 * (2 * critic.hessian.square().sum() + critic.hessian.trace() ** 2)
    rows = x.expand(n, 3)
    with torch.no_grad():
        estimates = gradient_penalty(critic, rows, critic(rows), eps, seeded("directions"))
    assert abs(float(estimates.mean() - expected)) < 4 * float(estimates.std()) / math.sqrt(n)


def test_the_penalty_leads_the_weights() -> None:
    # For a linear critic the penalty is (w . u)^2 at any step, and its gradient 2 (w . u) u.
    critic, x = Quadratic([0.3, -1.0]), normal(4, 2)
    u = torch.randn(4, 2, dtype=torch.float64, generator=seeded("directions"))
    penalty = gradient_penalty(critic, x, critic(x), 0.02, seeded("directions"))
    assert close(penalty, (u @ critic.w) ** 2)
    gradient = torch.autograd.grad(penalty.sum(), critic.w)[0]
    assert close(gradient, (2 * (u @ critic.w)[:, None] * u).sum(0), 1e-10)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_critic_loss_is_its_parts(name: str) -> None:
    critic, pair = Quadratic([0.3, -1.0, 0.5]), outcome(draws=2, batch=40)
    game = Adversarial(critic, ADVERSARIAL[name](), gamma_real=0.7, gamma_fake=0.2, fraction=0.6, center=0.05)
    loss, parts = game.critic_loss(pair, seeded("step"))
    real, fake = pair.real @ critic.w, pair.fake @ critic.w
    expected = torch.stack([game.loss.critic(real, draw) for draw in fake]).mean()
    expected = expected + 0.05 * torch.cat([real[None], fake]).square().mean()
    assert close(loss, expected + 0.35 * parts["r1"] + 0.1 * parts["r2"])
    assert close(parts["accuracy"], sum(float((real > draw).double().mean()) for draw in fake) / 2, 1e-6)
    assert not any(part.requires_grad for part in parts.values())


def test_the_penalties_lead_the_critic() -> None:
    critic, pair = Quadratic([0.3, -1.0, 0.5]), outcome(draws=2, batch=40)
    game = Adversarial(critic, **{**PLAIN, "gamma_real": 0.7, "gamma_fake": 0.2}, fraction=0.6)
    loss, _ = game.critic_loss(pair, seeded("step"))
    # Besides the samples, the critic saw 24 real ones and the first fakes of these, each a step away.
    u = ((critic.shown[1][0] - torch.cat([pair.real[:24], pair.fake[0, :24]])) / game.eps).view(2, 24, 3)
    assert abs(float(u.std()) - 1) < 4 / math.sqrt(2 * u.numel())
    assert close(u.mean(), 0.0, 4 / math.sqrt(u.numel()))
    weights = torch.tensor([0.35, 0.1], dtype=torch.float64)
    expected = functional.softplus((pair.fake - pair.real) @ critic.w).mean() + weights @ (u @ critic.w).square().mean(
        1
    )
    gradients = [torch.autograd.grad(value, critic.w)[0] for value in (loss, expected)]
    assert close(gradients[0], gradients[1], 1e-9)


def test_the_penalties_know_the_condition_and_the_noise_level() -> None:
    critic, label = Quadratic([0.3, -1.0, 0.5]), torch.arange(5.0, dtype=torch.float64)
    Adversarial(critic, fraction=0.5, diffused=Diffused()).critic_loss(outcome(cond={"label": label}), seeded("step"))
    (_, _, levels), (_, cond, part) = critic.shown
    assert torch.equal(cond["label"], label[:3].repeat(2))
    assert torch.equal(part, levels[:3].repeat(2))
    assert len(set(levels.tolist())) > 1


def test_r1_is_measured_at_real_samples_and_r2_at_fake_ones() -> None:
    # D = x^2 / 2 in one dimension has the gradient x: R1 = x^2 + 3/4 eps^2.
    game = Adversarial(Quadratic([0.0], [[1.0]]), fraction=1.0)
    n = 100_000
    real, fake = torch.full((n, 1), 3.0, dtype=torch.float64), torch.full((1, n, 1), -0.5, dtype=torch.float64)
    _, parts = game.critic_loss(Outcome(fake, real, real), seeded("step"))
    # Var (x u)^2 = 2 x^4.
    for part, x in (("r1", 3.0), ("r2", 0.5)):
        assert abs(float(parts[part]) - x**2 - 0.75 * game.eps**2) < 4 * math.sqrt(2) * x**2 / math.sqrt(n) * 1.01


def test_without_weights_no_penalty_is_computed() -> None:
    critic = Quadratic([0.3, -1.0, 0.5])
    _, parts = Adversarial(critic, **PLAIN).critic_loss(outcome(), seeded("step"))
    assert set(parts) == {"accuracy"}
    assert len(critic.shown) == 1


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_each_player_gets_its_gradient_and_no_other(name: str) -> None:
    torch.manual_seed(0)
    critic = VectorCritic(3, 8, n_classes=2).double()
    game = Adversarial(critic, ADVERSARIAL[name]())
    pair = outcome(cond={"label": torch.tensor([0, 1, 2, 1, 0])})
    pair = pair._replace(fake=pair.fake.requires_grad_())
    loss = game.generator_loss(pair, seeded("step"))
    loss.backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in critic.parameters())
    assert bool((pair.fake.grad != 0).all()), "a draw without a gradient"
    # The same through the critic's own weights.
    real = critic(pair.real, pair.cond)
    logits = torch.stack([critic(draw, pair.cond) for draw in pair.fake])
    plain = game.loss.generator(real.detach(), logits).mean()
    assert close(loss, plain)
    assert close(torch.autograd.grad(plain, pair.fake)[0], pair.fake.grad)
    pair.fake.grad = None
    game.critic_loss(pair, seeded("step"))[0].backward()
    assert pair.fake.grad is None
    assert all(parameter.grad is not None for parameter in critic.parameters())


def test_it_is_a_term() -> None:
    game, pair = Adversarial(Quadratic([0.3, -1.0, 0.5])), outcome()
    assert (game.draws, game.role) == (1, "distribution")
    assert torch.equal(game(pair, seeded("step")), game.generator_loss(pair, seeded("step")))


def test_pairs_share_their_condition() -> None:
    critic, label = Quadratic([0.3, -1.0, 0.5]), torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    pair = outcome(draws=3, cond={"label": label})
    loss, _ = Adversarial(critic, **PLAIN).critic_loss(pair, seeded("step"))
    gap = label * ((pair.fake - pair.real) @ critic.w)
    assert close(loss, functional.softplus(gap).mean())


def test_the_critic_sees_both_through_the_view() -> None:
    critic, pair = Quadratic([0.3, -1.0, 0.5]), outcome()
    Adversarial(critic, view=eight_bit, **PLAIN).critic_loss(pair, seeded("step"))
    levels = (critic.shown[0][0] + 1) * 127.5
    assert close(levels, levels.round(), 1e-4)
    assert close(critic.shown[0][0], torch.cat([pair.real[None], pair.fake]).flatten(0, 1).clamp(-1, 1), 0.51 / 127.5)


def test_diffused_levels_follow_their_law() -> None:
    n, law = 100_000, Diffused((0.1, 0.5, 2.0), clean=0.4)
    level = law.draw(n, seeded("levels"))
    assert close(level.alpha**2 + level.sigma**2, 1.0, 1e-6)
    for kappa, share in ((0.0, 0.4), (0.1, 0.2), (0.5, 0.2), (2.0, 0.2)):
        found = float(((level.kappa - kappa).abs() < 1e-5).double().mean())
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / n), kappa


def test_a_pair_shares_its_level_and_not_its_noise() -> None:
    critic, n = Quadratic([0.3]), 50_000
    real, fake = torch.full((n, 1), 0.5, dtype=torch.float64), torch.full((2, n, 1), -1.0, dtype=torch.float64)
    game = Adversarial(critic, diffused=Diffused((0.5,), clean=0.3), **PLAIN)
    game.critic_loss(Outcome(fake, real, real), seeded("step"))
    x, _, label = critic.shown[0]
    x, label = x.view(3, n), label.view(3, n)
    assert torch.equal(label[0], label[1])
    assert torch.equal(label[0], label[2])
    noisy = label[0] > 0
    assert torch.equal(x[:, ~noisy], torch.tensor([[0.5], [-1.0], [-1.0]], dtype=torch.float64).expand(3, n)[:, ~noisy])
    # kappa = 1/2 is alpha^2 = 4/5, sigma^2 = 1/5; three unrelated noises.
    m = int(noisy.sum())
    means, covariance = x[:, noisy].mean(1), x[:, noisy].cov()
    alpha = math.sqrt(0.8)
    assert close(means, torch.tensor([0.5, -1.0, -1.0], dtype=torch.float64) * alpha, 4 * math.sqrt(0.2 / m))
    assert close(covariance, 0.2 * torch.eye(3, dtype=torch.float64), 4 * 0.2 * math.sqrt(2 / m))
    assert close(label[0, noisy], math.sqrt(0.2), 1e-6)


def test_the_generator_hears_through_the_noise() -> None:
    # D = x in one dimension: the fake moves its logit by alpha, so softplus' times alpha, over the number of pairs.
    critic, fake = Quadratic([1.0]), torch.zeros(1, 4, 1, dtype=torch.float64, requires_grad=True)
    real = torch.zeros(4, 1, dtype=torch.float64)
    game = Adversarial(critic, Hinge(), diffused=Diffused((0.75,), clean=0.0))
    game.generator_loss(Outcome(fake, real, real), seeded("step")).backward()
    assert close(fake.grad, torch.full_like(fake, -0.8 / 4), 1e-7)


def dirac(steps: int = 300, lr: float = 0.1, **penalties: float) -> list[float]:
    """Distance from the equilibrium, start and end: all real samples at 0, all fakes at theta, D(x) = psi x."""
    critic, theta = Quadratic([0.03]), torch.tensor(0.04, dtype=torch.float64, requires_grad=True)
    game, real = Adversarial(critic, fraction=1.0, **{**PLAIN, **penalties}), torch.zeros(32, 1, dtype=torch.float64)
    distances = []
    for step in range(steps + 1):
        distances.append(math.hypot(theta.item(), critic.w.item()))
        pair = Outcome(theta.expand(1, 32, 1), real, real)
        (pull,) = torch.autograd.grad(game.generator_loss(pair, seeded("step", step)), theta)
        (push,) = torch.autograd.grad(game.critic_loss(pair, seeded("step", step))[0], critic.w)
        with torch.no_grad():
            theta -= lr * pull
            critic.w -= lr * push
    return [distances[0], distances[-1]]


def test_the_dirac_gan_circles_without_penalties_and_converges_with_them() -> None:
    """Near the equilibrium theta' = psi / 2, psi' = -theta / 2 - (gamma_real + gamma_fake) psi.

    Without penalties the eigenvalues are +-i/2, and every step goes outwards, by sqrt(1 + lr^2 / 4). With both at 1/2
    there is one double eigenvalue -1/2: after a time of 30 (1 + 15) exp(-15) = 5e-6 is left; with one alone the real
    part is -1/4, and exp(-7.5) = 6e-4 is.
    """
    start, end = dirac()
    assert end / start == pytest.approx(1.0025 ** (300 / 2), rel=0.01)
    start, end = dirac(gamma_real=0.5, gamma_fake=0.5)
    assert end / start < 1e-4
    for one in ("gamma_real", "gamma_fake"):
        start, end = dirac(**{one: 0.5})
        assert 1e-5 < end / start < 1e-2, one


@pytest.mark.parametrize("told", [True, False])
def test_a_critic_that_is_told_the_class_tells_what_no_other_can(told: bool) -> None:
    # Real and fake samples are distributed alike, but with the classes exchanged.
    torch.manual_seed(0)
    label = torch.arange(256) % 2
    real = 0.3 * torch.randn(256, 2) + 2.0 * label[:, None] - 1
    fake = (0.3 * torch.randn(256, 2) - 2.0 * label[:, None] + 1)[None]
    critic = VectorCritic(2, 32, n_classes=2 if told else 0)
    game, adam = Adversarial(critic, gamma_real=0.1, gamma_fake=0.1), torch.optim.Adam(critic.parameters(), 3e-3)
    pair = Outcome(fake, real, real, {"label": label} if told else None)
    for step in range(60):
        loss, parts = game.critic_loss(pair, seeded("step", step))
        adam.zero_grad()
        loss.backward()
        adam.step()
    if told:
        assert float(parts["accuracy"]) > 0.99
    else:
        assert float(loss.detach()) > math.log(2) - 0.05


def test_the_penalty_survives_bfloat16() -> None:
    torch.manual_seed(0)
    critic, x = PixelCritic(1), 0.1 * torch.rand(16, 1, 28, 28)
    with torch.no_grad():
        critic.logit.plain.bias.fill_(3.0)
        critic.logit.plain.weight.mul_(30.0)
    pair, game = Outcome(x[None].flip(1), x, x), Adversarial(critic, fraction=1.0)
    with torch.no_grad():
        exact = game.critic_loss(pair, seeded("step"))[1]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = game.critic_loss(pair, seeded("step"))[1]
    for part in ("r1", "r2"):
        assert abs(float(rounded[part] / exact[part]) - 1) < 0.2, (part, exact[part], rounded[part])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gamma_real": -1.0}, "gamma_real=-1.*0 or above.*Use 0"),
        ({"gamma_fake": math.nan}, "gamma_fake=nan"),
        ({"center": math.inf}, "center=inf"),
        ({"eps": 0.0}, "eps=0.*above 0.*0.02"),
        ({"fraction": 0.0}, "fraction=0.*at most 1.*0.25"),
        ({"fraction": 1.5}, "fraction=1.5"),
    ],
)
def test_refused_options(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Adversarial(Quadratic([1.0]), **wrong)


def test_refused_levels_and_shapes() -> None:
    for kappas in ((), (0.1, 0.0), (math.inf,), (math.nan,)):
        with pytest.raises(ConfigError, match=r"kappas=.*above 0 and finite.*Use"):
            Diffused(kappas)
    with pytest.raises(ConfigError, match=r"clean=1.1.*between 0 and 1.*0.5"):
        Diffused(clean=1.1)
    pair = outcome()
    for wrong in (pair._replace(real=pair.real[:4]), pair._replace(fake=pair.fake[0])):
        for play in (Adversarial(Quadratic([1.0] * 3)).generator_loss, Adversarial(Quadratic([1.0] * 3)).critic_loss):
            with pytest.raises(ShapeError, match="adversarial"):
                play(wrong, seeded("step"))
