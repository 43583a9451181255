"""What holds for every term and every loss of pairs: the contract of losses/base.py."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fewstep._cond import repeated
from fewstep.errors import ShapeError
from fewstep.features import PixelMaps, RandomMaps
from fewstep.losses import (
    L1,
    L2,
    EnergyScore,
    Huber,
    MomentReconstruction,
    Outcome,
    Paired,
    Perceptual,
    Reward,
    Viewed,
    clamped,
)
from fewstep.losses.base import check_draws, difference

from .outcomes import GENERATOR, normal, outcome


def maps() -> RandomMaps:
    return RandomMaps(1, dim=8).double()


def brightness(images: torch.Tensor, cond) -> torch.Tensor:
    """A reward that depends on the condition, too."""
    return images.flatten(1).tanh().mean(1) * (1 + cond["label"])


LOSSES = {"l1": L1(), "l2": L2(), "huber": Huber(0.5), "perceptual": Perceptual(maps())}
TERMS = {
    **{name: Paired(loss) for name, loss in LOSSES.items()},
    "moment": MomentReconstruction(),
    "energy": EnergyScore(),
    "energy_maps": EnergyScore((PixelMaps(), maps()), beta=0.7),
    "reward": Reward(brightness),
    "viewed": Viewed(EnergyScore(), clamped),
}
every_term = pytest.mark.parametrize("name", TERMS)
every_loss = pytest.mark.parametrize("name", LOSSES)


@every_term
def test_gradients_are_finite_differences(name):
    given = outcome(k=3, b=3, d=(1, 4, 5))

    def value(fake):
        return TERMS[name](given._replace(fake=fake), GENERATOR)

    assert torch.autograd.gradcheck(value, given.fake.clone().requires_grad_(), eps=1e-6, atol=1e-6)


@every_term
def test_order_of_conditions_and_of_unpaired_draws_is_irrelevant(name):
    given, shuffle = outcome(k=3, b=4), torch.tensor([2, 0, 3, 1])
    draws = torch.tensor([0, 2, 1])  # the first draw is the paired one
    moved = Outcome(
        given.fake[draws][:, shuffle],
        given.target[shuffle],
        given.real[shuffle],
        {"label": given.cond["label"][shuffle]},
    )
    term = TERMS[name]
    assert float((term(given, GENERATOR) - term(moved, GENERATOR)).abs()) <= 1e-12


@every_term
def test_scalar_in_float32_or_better_and_no_randomness(name):
    given, state = outcome(), GENERATOR.get_state()
    half = Outcome(*(images.bfloat16() for images in given[:3]), given.cond)
    assert TERMS[name](half, GENERATOR).dtype in (torch.float32, torch.float64)
    assert TERMS[name](given, GENERATOR).shape == ()
    assert torch.equal(GENERATOR.get_state(), state)


@every_term
def test_enough_draws_are_asked_for(name):
    term, enough = TERMS[name], TERMS[name].draws
    assert term(outcome(k=enough), GENERATOR).isfinite()
    with pytest.raises(ShapeError, match=f"k >= {enough} draws per condition") as caught:
        term(outcome(k=enough - 1), GENERATOR)
    assert f"Samples of shape ({enough - 1}, 4, 1, 6, 5)" in caught.value.given
    assert f"Draw {enough} samples" in caught.value.todo


def test_roles():
    """What the guard reasons with."""
    roles = {name: TERMS[name].role for name in TERMS}
    distribution = {"energy", "energy_maps", "viewed"}
    assert {name for name in roles if roles[name] == "paired"} == set(LOSSES)
    assert {name for name in roles if roles[name] == "distribution"} == distribution
    assert (roles["moment"], roles["reward"]) == ("moment", "reward")


@every_loss
def test_losses_are_distances_image_by_image(name):
    loss, a, b = LOSSES[name], normal(4, 1, 6, 5), normal(4, 1, 6, 5, seed=1)
    assert float(loss(a, a).abs().max()) == 0
    assert float((loss(a, b) - loss(b, a)).abs().max()) <= 1e-12
    assert float(loss(a, b).min()) > 0
    alone = torch.cat([loss(x, y) for x, y in zip(a.split(1), b.split(1), strict=True)])
    assert float((alone - loss(a, b)).abs().max()) <= 1e-12


@every_loss
def test_losses_refuse_to_broadcast(name):
    with pytest.raises(ShapeError, match="One target of the same shape") as caught:
        LOSSES[name](normal(4, 1, 6, 5), normal(1, 1, 6, 5))
    assert "first draw alone" in caught.value.todo


def test_only_the_first_draw_is_paired():
    given = outcome(k=3)
    fake = given.fake.clone().requires_grad_()
    Paired(L2())(given._replace(fake=fake), GENERATOR).backward()
    assert torch.equal(fake.grad[1:], torch.zeros_like(fake.grad[1:]))
    expected = 2 * (given.fake[0] - given.target) / given.target.numel()
    assert float((fake.grad[0] - expected).abs().max()) <= 1e-15


def test_the_condition_reaches_the_loss():
    seen = []

    def loss(fake, target, cond=None):
        seen.append(cond)
        return (fake - target).flatten(1).sum(1)

    given = outcome()
    Paired(loss)(given, GENERATOR)
    assert seen == [given.cond]


def test_flat_keeps_samples_and_conditions_together():
    given = outcome(k=2, b=3)
    images, cond = given.flat()
    for draw in range(2):
        for row in range(3):
            assert torch.equal(images[draw * 3 + row], given.fake[draw, row])
            assert cond["label"][draw * 3 + row] == given.cond["label"][row]
    tokens = {"tokens": torch.arange(6).reshape(3, 2)}
    assert torch.equal(repeated(tokens, 2)["tokens"], torch.cat([tokens["tokens"]] * 2))
    assert repeated(None, 2) is None


@pytest.mark.parametrize("change", [partial(normal, 3, 4, 2), partial(normal, 4, 3)], ids=["draws", "numbers"])
def test_targets_and_real_images_must_fit(change):
    given = Outcome(normal(2, 4, 2), normal(4, 2), normal(4, 2))
    check_draws(given, 2, "a term")
    for name in ("target", "real"):
        with pytest.raises(ShapeError, match="for a term"):
            check_draws(given._replace(**{name: change()}), 2, "a term")


def test_differences_are_not_taken_in_half_precision():
    a, b = torch.full((1, 1), 1.0, dtype=torch.bfloat16), torch.full((1, 1), 1e-3, dtype=torch.bfloat16)
    assert difference(a, b).dtype == torch.float32
    assert float(difference(a, b)) == 1 - float(b)
