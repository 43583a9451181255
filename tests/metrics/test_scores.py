"""The IS-like and the CLIP-like score against closed forms and torchmetrics' formula."""

from __future__ import annotations

import pytest
import torch
from tests.metrics.sets import draws

from fewstep.errors import DataError, NonFiniteError, ShapeError
from fewstep.metrics.grouping import group_of
from fewstep.metrics.scores import clip_score, clip_score_values, inception_score
from fewstep.metrics.summary import ProbabilitySet, ScoreSet


def collected(probabilities):
    summed = ProbabilitySet(probabilities.shape[1])
    summed.update(probabilities, torch.arange(len(probabilities)))
    return summed


def scored(values):
    scores = ScoreSet()
    scores.update(values, torch.arange(len(values)))
    return scores


def test_images_that_all_look_alike_score_one():
    for row in (torch.full((7,), 1 / 7, dtype=torch.float64), draws(1, 7)[0].softmax(0)):
        found = inception_score(collected(row.repeat(40, 1)))
        assert found.value == pytest.approx(1, abs=1e-13)
        assert found.low == 1


@pytest.mark.parametrize("k", [2, 10])
def test_sure_and_balanced_scores_the_number_of_classes(k):
    # Every jackknife group has all classes equally often: image i is of class i // 10.
    found = inception_score(collected(torch.eye(k, dtype=torch.float64).repeat_interleave(10, 0)))
    assert (found.value, found.low, found.high) == pytest.approx((k, k, k), abs=1e-12)


def test_an_answer_that_is_right_half_the_time():
    # Two classes with p and 1 - p: exp(log 2 - H(p)).
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).repeat(20, 1)
    entropy = -(0.9 * torch.tensor(0.9).double().log() + 0.1 * torch.tensor(0.1).double().log())
    assert inception_score(collected(p)).value == pytest.approx(2 * float((-entropy).exp()), abs=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save all extracted features")
@pytest.mark.filterwarnings("ignore:std\\(\\)")
def test_the_formula_of_torchmetrics():
    from torchmetrics.image.inception import InceptionScore

    class Given(torch.nn.Module):
        """Stands in for Inception: gives the logits it is called with."""

        def forward(self, x):
            return x

    logits = 2 * draws(300, 8)
    theirs = InceptionScore(feature=Given(), splits=1).double()
    theirs.update(logits)
    expected = float(theirs.compute()[0])
    ours = inception_score(collected(logits.softmax(1)))
    print(f"torchmetrics {expected:.12f}, ours {ours}")
    assert ours.value == pytest.approx(expected, rel=1e-10)
    assert ours.low < ours.value < ours.high


def test_clip_score_by_hand():
    images = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    texts = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [7.0, 0.0]])
    assert clip_score_values(images, texts).tolist() == pytest.approx([100, 60, 0, 0], abs=1e-12)


def test_clip_score_is_cosine_similarity():
    u, v = draws(50, 16), draws(50, 16, 1)
    expected = 100 * torch.nn.functional.cosine_similarity(u, v).clamp(min=0)
    values = clip_score_values(u, v)
    assert float((values - expected).abs().max()) < 1e-11
    found = clip_score(scored(values))
    assert found.value == pytest.approx(float(expected.mean()), abs=1e-11)
    half = 1.96 * float(expected.std()) / 50**0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)


def test_bad_input():
    with pytest.raises(ShapeError):
        clip_score_values(draws(3, 4), draws(2, 4))
    for wrong in (0.0, float("nan"), float("inf")):
        images = draws(3, 4)
        images[1] = wrong
        with pytest.raises(NonFiniteError, match="image 1"):
            clip_score_values(images, draws(3, 4))
    with pytest.raises(DataError):
        inception_score(ProbabilitySet(10))
    with pytest.raises(DataError):
        clip_score(ScoreSet())


@pytest.mark.parametrize(("n", "interval"), [(1, False), (2, False), (9, False), (10, True)])
def test_an_interval_needs_every_group(n, interval):
    found = inception_score(collected(torch.softmax(draws(n, 3), 1)))
    assert (found.low is not None) == interval


@pytest.mark.parametrize("k", [5, 9, 10, 13, 18])
def test_rounding_above_the_largest_score_is_no_crossed_interval(k):
    # Each group has all classes equally often, so the score is k without each of them, too, or k + 2e-15.
    index = torch.arange(30 * k)
    group, classes = group_of(index, 10), torch.empty_like(index)
    for g in range(10):
        classes[group == g] = torch.arange(3 * k) % k
    found = inception_score(collected(torch.eye(k, dtype=torch.float64)[classes]))
    assert found.value == pytest.approx(k, abs=1e-12)
    assert found.low <= found.high <= k
