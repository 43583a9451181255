"""The diversity guard: its numbers against closed forms, and what it knows before a run starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.data import Batch, seeded
from fewstep.errors import CollapseWarning
from fewstep.features import RandomMaps
from fewstep.losses import L2, EnergyScore, MomentReconstruction, Outcome, Paired, Perceptual, Ramp, Reward, Viewed
from fewstep.losses.adversarial import Adversarial
from fewstep.losses.distribution import MMD
from fewstep.losses.views import clamped
from fewstep.noise import LinearFlow, UniformFlow
from fewstep.objectives import Guard, Independent, Weighted, diagnose, spread_of
from fewstep.objectives.couplings import OT, Coupling, Inversion, Leaky, NearestNoise, Pairs, Teacher
from fewstep.objectives.guard import Pulls
from fewstep.solvers import DDIM

F64 = torch.float64


def brightness(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


TERMS: dict[str, Any] = {
    "l2": Paired(L2()),
    "perceptual": Viewed(Paired(Perceptual(RandomMaps(1)))),
    "moment": MomentReconstruction(),
    "reward": Reward(brightness),
    "energy": EnergyScore(),
    "adversarial": Adversarial(nn.Identity()),
    "mmd": MMD(torch.flatten),
}


def weighted(**weights: float | tuple[float, float]) -> dict[str, Weighted]:
    ramps = {name: Ramp(*weight) if isinstance(weight, tuple) else Ramp(weight) for name, weight in weights.items()}
    return {name: Weighted(TERMS[name], ramp) for name, ramp in ramps.items()}


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        ({"l2": 1.0}, "collapse"),
        ({"perceptual": 1.0}, "collapse"),
        ({"l2": 1.0, "moment": 1.0}, "collapse"),
        ({"l2": 1.0, "moment": 1.0, "reward": 1.0}, "collapse"),
        ({"moment": 1.0}, "collapse"),
        ({"reward": 1.0}, "collapse"),
        ({"l2": 1.0, "energy": (1.0, 0.0)}, "collapse"),
        ({"energy": (1.0, 0.0)}, "collapse"),
        ({"l2": 1.0, "adversarial": 1.0}, "tax"),
        ({"l2": 0.11, "mmd": 1.0}, "tax"),
        ({"l2": (0.0, 0.5), "energy": 1.0}, "tax"),
        ({"l2": 0.1, "adversarial": 1.0}, "tax"),
        ({"l2": 0.03, "perceptual": 0.03, "adversarial": 1.0}, "tax"),
        ({"l2": 0.05, "adversarial": 1.0}, "tax"),
        ({"l2": 0.01, "adversarial": 1.0}, "tax"),
        ({"l2": 0.01, "perceptual": (0.5, 0.0), "adversarial": 1.0, "energy": 0.5}, None),
        ({"mmd": 1.0}, None),
        ({"l2": (1.0, 0.0), "energy": 1.0}, None),
        ({"moment": 5.0, "energy": 1.0}, None),
        ({"energy": 1.0}, None),
    ],
)
def test_what_independent_noise_does(weights: dict[str, Any], kind: str | None) -> None:
    found = diagnose(weighted(**weights), Independent())
    assert [finding.kind for finding in found] == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        ({"mmd": 1.0}, "collapse"),
        ({"l2": 0.001, "mmd": 1.0}, "collapse"),
        ({"moment": 1.0, "mmd": 1.0}, "collapse"),
        ({"l2": 0.01, "mmd": 10.0, "energy": 1.0}, "tax"),
        ({"mmd": 1.0, "energy": 1.0}, None),
    ],
)
def test_what_sees_no_conditions_holds_no_variety_within_many(weights: dict[str, Any], kind: str | None) -> None:
    found = diagnose(weighted(**weights), Independent(), many=True)
    assert [finding.kind for finding in found] == ([kind] if kind else [])
    assert all("see no conditions" in finding.text for finding in found if finding.kind == "collapse")


def test_findings_name_the_terms_and_the_cures() -> None:
    (collapse,) = diagnose(weighted(l2=1.0, moment=1.0), Independent())
    assert "l2 with noise that is independent" in collapse.text
    for cure in ("energy", "adversarial", "mmd", "frechet", "teacher", "inversion", "ot"):
        assert cure in collapse.text
    (undirected,) = diagnose(weighted(moment=1.0, reward=1.0), Independent())
    assert "moment, reward with noise" in undirected.text
    (tax,) = diagnose(weighted(l2=0.5, energy=1.0), Independent())
    assert "l2 with noise" in tax.text
    assert "at a weight of 0.5 against 1" in tax.text
    (ended,) = diagnose(weighted(energy=(1.0, 0.0)), Independent())
    assert "Weights that all end at 0 with noise" in ended.text


def paired_couplings() -> list[Coupling]:
    def blank(x: Tensor, level: Any, cond: Any = None) -> Tensor:
        return torch.zeros_like(x)

    grid = UniformFlow()(LinearFlow(), 3)
    table = Pairs(torch.arange(2), torch.zeros(2, 1))
    return [Teacher(blank, DDIM(), grid), table, Inversion(blank, grid)]


@pytest.mark.parametrize("coupling", paired_couplings(), ids=lambda coupling: type(coupling).__name__)
def test_pairs_cure_what_compares_them_and_nothing_else(coupling: Coupling) -> None:
    for safe in ({"l2": 1.0}, {"perceptual": 1.0, "moment": 1.0}, {"energy": 1.0, "l2": 1.0}, {"adversarial": 1.0}):
        assert diagnose(weighted(**safe), coupling) == []
    for lost in ({"reward": 1.0}, {"moment": 1.0}, {"l2": (1.0, 0.0), "reward": 1.0}):
        (finding,) = diagnose(weighted(**lost), coupling)
        assert finding.kind == "collapse"
        assert "with pairs that no term compares" in finding.text


def test_noise_dealt_out_within_the_batch_is_half_a_cure() -> None:
    (finding,) = diagnose(weighted(l2=1.0), OT())
    assert finding.kind == "tax"
    assert "l2 with noise that is dealt out within the batch" in finding.text
    for safe in ({"energy": 1.0, "l2": 1.0}, {"adversarial": 1.0}):
        assert diagnose(weighted(**safe), OT()) == []
    assert [found.kind for found in diagnose(weighted(moment=1.0), OT())] == ["collapse"]


@pytest.mark.parametrize("coupling", [Leaky(LinearFlow(), -2.7), NearestNoise(4)])
def test_a_start_that_shows_little_is_no_pair(coupling: Coupling) -> None:
    (finding,) = diagnose(weighted(l2=1.0), coupling)
    assert finding.kind == "collapse"
    assert "shows little of the data" in finding.text
    assert [found.kind for found in diagnose(weighted(l2=1.0, energy=1.0), coupling)] == ["tax"]
    assert diagnose(weighted(energy=1.0), coupling) == []


def test_a_collapsing_objective_warns_the_caller() -> None:
    from objectives.test_e2e import linear

    with pytest.warns(CollapseWarning, match=r"one blurred mean.*Add a term that rewards variety") as caught:
        linear(terms=weighted(l2=1.0))
    assert caught[0].filename.endswith("test_e2e.py"), "the warning points at the line that built the objective"


# The collapse itself, in closed form.


@pytest.mark.parametrize(("name", "optimum"), [("l2", 0.0), ("energy", 1.0)])
def test_the_minimum_over_gaussian_samplers(name: str, optimum: float) -> None:
    """F = s z against x ~ N(0, 1): the loss is flat in s at s = 0 for L2, and at s = 1 for the energy score."""
    parts, rows = 100, 500
    n, cond = parts * rows, {"label": torch.arange(rows)}
    draws = torch.randn(parts, 2, rows, 1, dtype=F64, generator=seeded("z"))
    x = torch.randn(parts, rows, 1, dtype=F64, generator=seeded("x"))
    slopes = {}
    for s in (0.02, 1.0, 1.5):
        width = torch.full((parts, rows, 1), s, dtype=F64, requires_grad=True)
        losses = [TERMS[name](Outcome(w * z, r, r, cond), seeded(0)) for w, z, r in zip(width, draws, x, strict=True)]
        (slope,) = torch.autograd.grad(torch.stack(losses).mean(), width)
        slopes[s] = (float(slope.sum()), float(slope.std()) * math.sqrt(n))
    value, error = slopes[max(optimum, 0.02)]
    assert abs(value) < 4 * error + 2.5 * 0.02 * (optimum == 0)
    assert slopes[1.5][0] > 4 * slopes[1.5][1]
    if optimum:
        assert slopes[0.02][0] < -4 * slopes[0.02][1]


# Measurements.


def test_spread_is_the_mean_variance_within_conditions() -> None:
    x = torch.randn(60, 2, 3, dtype=F64, generator=seeded("x")) * 2 + 100
    label = torch.tensor([0] * 10 + [1] * 20 + [2] * 9 + [3] * 21)
    variances = {c: float(x[label == c].flatten(1).var(0).sum()) for c in (0, 1, 3)}
    expected = (10 * variances[0] + 20 * variances[1] + 21 * variances[3]) / 51
    found = spread_of(Batch(x, {"label": label}))
    assert found == pytest.approx(expected, rel=1e-12)
    tokens = torch.stack([label, label + 5], 1)
    assert spread_of(Batch(x, {"tokens": tokens})) == pytest.approx(expected, rel=1e-12)
    assert spread_of(Batch(x)) == pytest.approx(float(x.flatten(1).var(0).sum()), rel=1e-12)
    assert spread_of(Batch(x, {"label": torch.arange(60) // 9})) is None


def test_data_that_do_not_vary_have_no_spread_and_stop_nothing() -> None:
    label = torch.arange(40) % 2
    assert spread_of(Batch(torch.full((20, 3), 1e3))) is None
    assert spread_of(Batch(label[:, None] * 7.3 + torch.zeros(40, 3), {"label": label})) is None
    flat = torch.full((5, 3), 0.1)
    parts = Guard()(Outcome(torch.randn(2, 5, 3, generator=seeded("z")), flat, flat))
    assert all(bool(part.isfinite()) for part in parts.values())
    one = torch.ones(1, 1)
    assert bool(Guard()(Outcome(one[None], one, one))["contrast"].isfinite())


@dataclass(frozen=True)
class Made:
    """Samples x = c + s z beside real ones with s = 1."""

    s: float
    n: int = 20_000

    def outcome(self, draws: int) -> Outcome:
        centre = torch.randn(self.n, 4, generator=seeded("c"))
        z = torch.randn(draws, self.n, 4, generator=seeded("z"))
        real = centre + torch.randn(self.n, 4, generator=seeded("r"))
        return Outcome(centre + self.s * z, real, real, {"label": torch.arange(self.n)})


@pytest.mark.parametrize("draws", [2, 3])
@pytest.mark.parametrize("s", [0.1, 1.0])
def test_rho_compares_variances_within_conditions(s: float, draws: int) -> None:
    parts = Guard(spread=4.0)(Made(s).outcome(draws))
    error = s**2 * math.sqrt(2 / (4 * Made.n * (draws - 1)))
    assert abs(float(parts["rho"]) - s**2) < 4 * error
    assert abs(float(parts["contrast"]) - math.sqrt((1 + s**2) / 2)) < 0.02
    assert "diversity" not in parts


def test_without_the_datas_spread_the_numerator_stands_alone() -> None:
    outcome = Made(0.5).outcome(2)
    parts = Guard()(outcome)
    assert float(parts["diversity"]) == pytest.approx(4 * float(Guard(4.0)(outcome)["rho"]), rel=1e-6)


def test_what_lies_beyond_white_is_no_variety() -> None:
    outcome = Made(0.5).outcome(2)
    beyond = outcome._replace(fake=outcome.fake.sign() * (2 + outcome.fake.abs()))
    seen, raw = Guard(1.0, clamped)(beyond), Guard(1.0)(beyond)
    signs = beyond.fake.sign()
    assert float(seen["rho"]) == pytest.approx(float(signs.var(dim=0).sum(dim=1).mean()), rel=1e-6)
    assert float(raw["rho"]) > 4 * float(seen["rho"])


def test_draws_of_one_condition_count_together_in_whichever_rows_they_are() -> None:
    label = torch.tensor([0, 1, 0, 2, 1, 0])
    fake = torch.randn(2, 6, 3, generator=seeded("z"))
    variances = {c: fake[:, label == c].flatten(0, 1).var(0).sum() for c in range(3)}
    expected = (6 * variances[0] + 4 * variances[1] + 2 * variances[2]) / 12
    parts = Guard(2.0)(Outcome(fake, fake[0], fake[0], {"label": label}))
    assert float(parts["rho"]) == pytest.approx(float(expected) / 2, rel=1e-5)
    alone = Guard(2.0)(Outcome(fake[:1, :5], fake[0, :5], fake[0, :5], {"label": label[:5]}))  # the 2 is left out
    variances = {c: fake[0, :5][label[:5] == c].var(0).sum() for c in range(2)}
    assert float(alone["rho"]) == pytest.approx(float(variances[0] + variances[1]) / 4, rel=1e-5)


def test_one_draw_of_each_condition_has_no_diversity() -> None:
    assert set(Guard(1.0)(Made(1.0).outcome(1))) == {"contrast"}


def test_the_guard_takes_no_gradient() -> None:
    outcome = Made(1.0, 8).outcome(2)
    parts = Guard(1.0)(outcome._replace(fake=outcome.fake.requires_grad_(True)))
    assert not any(part.requires_grad for part in parts.values())


def test_pulls_add_up_what_has_one_name() -> None:
    pulls, x, y = Pulls(), torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    (pulls.at("a", 3 * x).sum() + 2 * pulls.at("a", 1 * y).sum() + pulls.at("b", 5 * y).sum()).backward()
    assert pulls.read() == {"a": torch.tensor(3 + 4 * 2.0).sqrt(), "b": torch.tensor(2.0).sqrt()}
    assert Pulls().at("c", torch.ones(1)).equal(torch.ones(1)), "without gradient there is nothing to note"
