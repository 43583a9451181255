"""Rewards are raised, of all draws, under their own conditions."""

from __future__ import annotations

import pytest
import torch

from fewstep.errors import ShapeError
from fewstep.losses import Reward

from .outcomes import GENERATOR, outcome


def test_minus_the_mean_reward_of_all_draws():
    given = outcome(k=2, b=4)

    def reward(images, cond):
        return images.flatten(1).sum(1) * cond["label"]

    label = given.cond["label"]
    by_hand = sum(given.fake[i, row].sum() * label[row] for i in range(2) for row in range(4)) / 8
    assert float((Reward(reward)(given, GENERATOR) + by_hand).abs()) <= 1e-12
    fake = given.fake.clone().requires_grad_()
    Reward(reward)(given._replace(fake=fake), GENERATOR).backward()
    expected = -label.double().reshape(1, 4, 1, 1, 1).expand_as(fake) / 8
    assert torch.equal(fake.grad, expected)


def test_a_reward_of_the_whole_batch_is_refused():
    with pytest.raises(ShapeError, match=r"Rewards of shape \(\) for 12 images") as caught:
        Reward(lambda images, cond: images.mean())(outcome(), GENERATOR)
    assert "over the numbers of an image" in caught.value.todo
