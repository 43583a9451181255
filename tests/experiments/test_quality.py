"""What a judge says of a cell of a comparison: the same numbers as an evaluation of the same images."""

from __future__ import annotations

import pytest
import torch

from fewstep.data import digits, to_unit
from fewstep.experiments.evaluation.quality import floor_note, judge_results
from fewstep.features import ClassifierFeatures
from fewstep.metrics import Judge, image_moments
from fewstep.metrics.protocol import Making
from fewstep.metrics.summary import FeatureSet
from fewstep.networks.classifier import SmallClassifier

FACTS = {"data": "digits", "split": "whole", "floors": {"halves": 0.25}}


@pytest.fixture(scope="module")
def judge() -> Judge:
    torch.manual_seed(0)
    features = ClassifierFeatures(SmallClassifier(width=4, dim=6), "random", (8, 8))
    x = to_unit(digits().images)
    kept = FeatureSet(features.dim, groups=1)
    kept.update(features(x), torch.arange(len(x)), digits().labels)
    return Judge(features, image_moments(features, x), FACTS, kept)


def test_real_images_are_near_and_their_negatives_far(judge):
    real = {r.name: r for r in judge_results(judge, to_unit(digits().images[:300]), Making("real", "0"))}
    far = {r.name: r for r in judge_results(judge, -to_unit(digits().images[:300]), Making("negatives", "1"))}
    assert list(real) == ["fd", "kid", "precision", "recall"]
    for name in ("fd", "kid"):
        assert far[name].estimate.low > real[name].estimate.high
    assert far["recall"].estimate.high < real["recall"].estimate.low
    assert far["precision"].estimate.value < real["precision"].estimate.value
    assert all(r.estimate.low is not None for r in real.values())
    assert real["kid"].protocol.measuring.parameters == {"degree": 3, "rows": "300 against 1797"}


def test_few_images_give_what_can_be_had(judge):
    images = to_unit(digits().images[:4])
    assert [r.name for r in judge_results(judge, images, Making("x", "0"))] == ["fd", "kid"]
    alone = Judge(judge.features, judge.reference, FACTS)
    assert [r.name for r in judge_results(alone, images, Making("x", "0"))] == ["fd"]


def test_the_floor_falls_with_n_and_names_what_is_known(judge):
    def floor(n):
        return float(floor_note(judge, n, 1.0).partition("about ")[2].split()[0])

    assert floor(100) > 5 * floor(1000) > 0
    assert "halves: 0.25" in floor_note(judge, 100, 1.0)
    assert "only 100 images" in floor_note(judge, 100, 1.0)
