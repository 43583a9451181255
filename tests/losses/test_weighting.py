"""Weights on the output's error equal the papers' closed forms for every prediction."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fewstep.denoisers import PREDICTIONS
from fewstep.errors import ConfigError
from fewstep.losses import WEIGHTS, Debiased, FlowError, MinSNR, Plain
from fewstep.noise import EDM, LinearFlow, NoiseLevel, Schedule, VPCosine

SCHEDULES = [VPCosine(), LinearFlow(), EDM()]
Form = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# (d x0 / d out)^2, by hand, from the table in denoisers/predictions.py with sigma_data = 1/2.
SLOPES: dict[str, Form] = {
    "eps": lambda a, s: (s / a) ** 2,
    "x0": lambda a, s: torch.ones_like(a),
    "v": lambda a, s: (s / (a**2 + s**2)) ** 2,
    "flow": lambda a, s: (s / (a + s)) ** 2,
    "edm": lambda a, s: (s / 2) ** 2 / (a**2 / 4 + s**2),
}
RULES: dict[str, Form] = {
    "min_snr": lambda a, s: torch.minimum((a / s) ** 2, torch.tensor(5.0)),
    "debiased": lambda a, s: a / s,
    "flow_error": lambda a, s: torch.minimum(((a + s) / s) ** 2, torch.tensor(400.0)),
}


def levels(schedule: Schedule) -> NoiseLevel:
    clean, noisy = schedule.t_range()
    return schedule.level(torch.linspace(clean, clean + 0.999 * (noisy - clean), 50, dtype=torch.float64))


def test_every_weight_is_in_the_list() -> None:
    assert set(WEIGHTS) == {*RULES, "plain"}
    assert set(PREDICTIONS) == set(SLOPES)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("prediction", SLOPES)
@pytest.mark.parametrize("rule", RULES)
def test_closed_forms(rule: str, prediction: str, schedule: Schedule) -> None:
    level = levels(schedule)
    weight = WEIGHTS[rule]()(PREDICTIONS[prediction](), level)
    expected = RULES[rule](*level) * SLOPES[prediction](*level)
    assert float((weight / expected - 1).abs().max()) < 1e-9


def test_known_special_cases() -> None:
    """For eps min(1, gamma/SNR) and 1/sqrt(SNR), as in the papers; for v on a circle min(SNR, gamma)/(SNR+1)."""
    level = levels(VPCosine())
    snr = level.logsnr.exp()
    eps, v = PREDICTIONS["eps"](), PREDICTIONS["v"]()
    pairs = [
        (MinSNR(5.0)(eps, level), (5.0 / snr).clamp(max=1.0)),
        (MinSNR(2.0)(v, level), snr.clamp(max=2.0) / (snr + 1)),
        (Debiased()(eps, level), snr.rsqrt()),
        (Plain()(eps, level), torch.ones_like(snr)),
        (FlowError(1e9)(PREDICTIONS["flow"](), level), torch.ones_like(snr)),
    ]
    for weight, expected in pairs:
        assert float((weight / expected - 1).abs().max()) < 1e-9


def test_scalar_levels() -> None:
    level = LinearFlow().level(torch.tensor(0.25, dtype=torch.float64))
    assert float(Debiased()(PREDICTIONS["x0"](), level)) == pytest.approx(3.0, abs=1e-12)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_impossible_ceilings(wrong: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        MinSNR(wrong)
    with pytest.raises(ConfigError, match="above 0"):
        FlowError(wrong)
