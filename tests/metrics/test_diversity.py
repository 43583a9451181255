"""The diversity ratio: 0 for class means, 1 for the data, 0.5 for half the variance, and intervals that hold."""

from __future__ import annotations

import pytest
import torch
from tests.metrics.sets import draws, feature_set

from fewstep.errors import DataError, ShapeError
from fewstep.metrics.diversity import rho

LABELS = torch.arange(600) % 6


def classes(seed=0, scale=1.0, labels=LABELS, dim=3):
    """Classes with far means and unlike variances."""
    centre = 10 * draws(1000, dim, 99)[labels]
    return centre + scale * (1 + labels[:, None]) * draws(len(labels), dim, seed)


def test_class_means_have_none():
    found = rho(feature_set(10 * draws(1000, 3, 99)[LABELS], LABELS), feature_set(classes(), LABELS))["rho"]
    assert (found.value, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_data_itself_has_all():
    found = rho(feature_set(classes(), LABELS), feature_set(classes(), LABELS))["rho"]
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1), abs=1e-12)


def test_half_the_variance_is_a_half():
    x, centre = classes(), 10 * draws(1000, 3, 99)[LABELS]
    found = rho(feature_set(centre + (x - centre) * 0.5**0.5, LABELS), feature_set(x, LABELS))["rho"]
    assert found.value == pytest.approx(0.5, abs=1e-12)


def test_by_hand_with_unlike_class_frequencies():
    # Class 0: 10 real of variance 1 (unbiased), class 1: 20 real of variance 4; generated variances 2 and 2.
    def spread(n, variance):
        signs = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(n // 2)
        return signs[:, None] * (variance * (n - 1) / n) ** 0.5

    real = torch.cat([spread(10, 1.0), spread(20, 4.0) + 7])
    made = torch.cat([spread(4, 2.0), spread(6, 2.0) - 3])
    labels = torch.tensor([0] * 10 + [1] * 20), torch.tensor([0] * 4 + [1] * 6)
    found = rho(feature_set(made, labels[1]), feature_set(real, labels[0]))["rho"]
    assert found.value == pytest.approx((10 * 2 + 20 * 2) / (10 * 1 + 20 * 4), abs=1e-12)


def test_variance_between_classes_cannot_stand_in():
    real, collapsed = classes(), classes(scale=0.01)
    assert float(collapsed.var(0).sum()) > 0.5 * float(real.var(0).sum())
    assert rho(feature_set(collapsed, LABELS), feature_set(real, LABELS))["rho"].value < 1e-3


@pytest.mark.parametrize("n_classes", [6, 120])
def test_the_interval_holds(n_classes):
    # Under one law on both sides rho is 1; a 95 % interval misses it in 5 % of runs: at most 8 of 60 (p < 0.01).
    labels = torch.arange(1200) % n_classes
    sizes = (labels % 6)[:, None] + 1.0
    runs = []
    for seed in range(60):
        made, real = sizes * draws(1200, 2, 2 * seed), sizes * draws(1200, 2, 2 * seed + 1)
        runs.append(rho(feature_set(made, labels), feature_set(real, labels))["rho"])
    missed = sum(not run.low <= 1 <= run.high for run in runs)
    width = sum(run.high - run.low for run in runs) / len(runs)
    spread = float(torch.tensor([run.value for run in runs]).std())
    print(f"{n_classes} classes: {missed} of 60 missed; {runs[0]}; mean width {width:.3f}, sd of rho {spread:.3f}")
    assert missed <= 8
    assert width < 2 * 2.26 * 1.4 * spread
    assert ("groups of images" if n_classes == 6 else "groups of conditions") in runs[0].how


def test_classes_that_take_turns_do_not_line_up_with_the_groups():
    # Ten classes in turn, ten groups: no group may be a class, or there would be no interval at all.
    labels = torch.arange(500) % 10
    found = rho(feature_set(draws(500, 2), labels), feature_set(draws(500, 2, 1), labels))["rho"]
    assert 0 < found.low < found.value < found.high


def test_rare_conditions_are_left_out_and_counted():
    real_labels = torch.cat([torch.zeros(30), torch.ones(9)]).long()
    made_labels = torch.cat([torch.zeros(20), torch.ones(20), torch.full((5,), 7)]).long()
    made, real = feature_set(draws(45, 2), made_labels), feature_set(draws(39, 2, 1), real_labels)
    found = rho(made, real)["rho"]
    expected = made.spread[0][1] / real.spread[0][1]
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert "20 of 45 generated images in 1 conditions" in found.how


def test_without_a_yardstick_the_numerator_stands_alone():
    made_labels, real_labels = torch.arange(40) // 4, torch.arange(40)
    made = feature_set(draws(40, 2), made_labels)
    found = rho(made, feature_set(draws(40, 2, 1), real_labels))
    assert list(found) == ["diversity"]
    expected = sum(trace for _, trace in made.spread.values()) / 10
    assert found["diversity"].value == pytest.approx(expected, abs=1e-12)


def test_kept_rows_serve_the_interval_only():
    made, real = feature_set(classes(1), LABELS, keep=200), feature_set(classes(2), LABELS, keep=200)
    full = rho(feature_set(classes(1), LABELS), feature_set(classes(2), LABELS))["rho"]
    found = rho(made, real)["rho"]
    assert found.value == full.value
    assert found.high - found.low > full.high - full.low
    none = rho(feature_set(classes(1), LABELS, keep=0), real)["rho"]
    assert (none.value, none.low) == (full.value, None)


def test_bad_input():
    with pytest.raises(DataError, match="labels"):
        rho(feature_set(draws(20, 2)), feature_set(draws(20, 2), LABELS[:20]))
    with pytest.raises(DataError, match="one generated image each"):
        rho(feature_set(draws(6, 2), LABELS[:6]), feature_set(draws(100, 2), LABELS[:100]))
    with pytest.raises(ShapeError):
        rho(feature_set(draws(20, 2), LABELS[:20]), feature_set(draws(20, 3), LABELS[:20]))
    with pytest.raises(DataError, match="without any variance"):
        rho(feature_set(draws(60, 2), LABELS[:60]), feature_set(torch.ones(60, 2), LABELS[:60]))


def test_conditions_in_a_regular_order_do_not_line_up_with_the_groups():
    # Every tenth of 100 conditions is answered by its mean. The share of such conditions has a standard deviation of
    # 0.03 in a draw of 100; with all of them in one group, the interval would reach 0.23 to both sides.
    labels = torch.arange(4000) % 100
    alive = (labels % 10 > 0)[:, None].double()
    found = rho(feature_set(alive * draws(4000, 5), labels), feature_set(draws(4000, 5, 1), labels))["rho"]
    print(found)
    assert found.value == pytest.approx(0.9, abs=0.05)
    assert 0.03 < (found.high - found.low) / 2 < 0.12
