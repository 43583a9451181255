"""The two-sample test: matching, the interval of a maximum, controls that void, and small runs that must tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.metrics.sets import draws

from fewstep.errors import ConfigError, DataError, DtypeError, NonFiniteError, ShapeError
from fewstep.metrics.c2st import (
    C2stConfig,
    C2stControls,
    C2stProgress,
    C2stResult,
    _noisy,
    c2st,
    c2st_controls,
    c2st_steps,
)
from fewstep.metrics.c2st_results import C2stTrial
from fewstep.metrics.c2st_training import _right, highest
from fewstep.metrics.estimate import Estimate
from fewstep.metrics.matching import Labelled, Pair, match
from fewstep.networks.two_sample import TwoSampleNet

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TINY = C2stConfig(n=200, epochs=4, batch_size=20, lr=1e-2, width=4, seeds=(0, 1))


def smooth_images(n, seed=0, size=10):
    """Random slopes in 8 bits: easy to tell from noise, impossible from each other."""
    a, b, c = draws(n, 3, seed).T[:, :, None, None]
    grid = torch.linspace(-1, 1, size, dtype=torch.float64)
    return (128 + 30 * (a + b * grid[:, None] + c * grid)).round().clamp(0, 255).to(torch.uint8)[:, None]


@pytest.fixture(scope="module")
def real():
    return smooth_images(400)


@pytest.fixture(scope="module")
def controls(real):
    return c2st_controls(real, TINY)


def test_the_controls_hold_on_smooth_images(controls):
    print(controls.noise.accuracies, controls.real.accuracies)
    assert controls.why == ""
    assert (controls.noise.n, controls.real.n) == (200, 200)
    assert controls.noise.accuracy.value >= 0.95
    assert controls.real.accuracy.low <= 0.5 <= controls.real.accuracy.high


def test_more_of_the_same_is_not_told_apart_and_a_shift_is(real, controls):
    same = c2st(smooth_images(300, seed=7), real, TINY, controls=controls)
    assert same.valid
    assert same.accuracy.low <= 0.5 <= same.accuracy.high
    grain = smooth_images(300, seed=7)
    grain[:, :, ::2, ::2] += 3
    told = c2st(grain, real, TINY, controls=controls)
    print(same.accuracy, told.accuracy)
    assert told.accuracy.low > 0.9


def test_the_same_seeds_give_the_same_numbers_and_leave_torch_alone(real, controls):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = C2stConfig(**{**vars(TINY), "epochs": 1})
    runs = [c2st_controls(real, one) for _ in range(2)]
    assert runs[0] == runs[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_every_epoch_reports_and_the_last_item_is_the_result(real):
    short = C2stConfig(**{**vars(TINY), "epochs": 1})
    *epochs, result = c2st_steps(smooth_images(300, 7), real, short)
    assert isinstance(result, C2stResult)
    assert all(isinstance(epoch, C2stProgress) for epoch in epochs)
    parts = ["noise", "real", "generated"] if result.valid else ["noise", "real"]
    assert [(epoch.part, epoch.seed) for epoch in epochs] == [(part, seed) for part in parts for seed in (0, 1)]


def test_a_blind_classifier_voids_the_number(real):
    blind = C2stConfig(**{**vars(TINY), "epochs": 1, "lr": 1e-9})
    result = c2st(smooth_images(300, 7), real, blind)
    assert not result.valid
    assert result.accuracy is None
    assert "noise of sd 4/255" in result.why
    assert "generated" not in result.to_json()


def trial(value, low, high):
    return C2stTrial(Estimate(value, low, high, "by hand"), (value,), 100)


@pytest.mark.parametrize(
    ("noise", "real", "words"),
    [
        ((0.95, 0.93, 0.97), (0.51, 0.49, 0.53), []),
        ((0.9499, 0.93, 0.97), (0.51, 0.49, 0.53), ["below 0.95"]),
        ((0.99, 0.98, 1.0), (0.53, 0.51, 0.55), ["real from real"]),
        ((0.99, 0.98, 1.0), (0.47, 0.45, 0.49), ["real from real"]),
        ((0.5, 0.4, 0.6), (0.53, 0.51, 0.55), ["below 0.95", "real from real"]),
    ],
)
def test_what_voids(noise, real, words):
    why = C2stControls(trial(*noise), trial(*real), TINY, "").why
    assert bool(why) == bool(words)
    assert all(word in why for word in words)


def test_controls_of_something_else_are_refused(real, controls):
    other = C2stConfig(**{**vars(TINY), "width": 5})
    with pytest.raises(ConfigError, match="Controls"):
        c2st(smooth_images(300, 7), real, other, controls=controls)
    with pytest.raises(ConfigError, match="Controls"):
        c2st(smooth_images(300, 7), smooth_images(400, 8), TINY, controls=controls)


def test_a_result_is_json(real, controls):
    import json

    content = C2stResult(controls, controls.real).to_json()
    assert json.loads(json.dumps(content)) == content
    assert content["config"]["seeds"] == [0, 1]


def test_the_interval_is_wilsons_at_bonferronis_level():
    from scipy.stats import binomtest

    for right, n in (([3], 10), ([50, 61, 58], 100), ([100, 100], 100), ([0, 0, 0], 50), ([2545, 2500, 2499], 5000)):
        found = highest(right, n)
        theirs = binomtest(max(right), n).proportion_ci(1 - 0.05 / len(right), method="wilson")
        assert found.value == max(right) / n
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_interval_of_the_highest_holds():
    # Three coins, independent or the very same throws: the fairness of the best lies inside in 95 % or more.
    generator = torch.Generator().manual_seed(0)
    for fairness, shared in (((0.5, 0.5, 0.5), False), ((0.5, 0.5, 0.5), True), ((0.9, 0.6, 0.5), False)):
        throws = torch.rand(2000, 1 if shared else 3, 200, generator=generator).expand(2000, 3, 200)
        counts = (throws < torch.tensor(fairness)[:, None]).sum(2).tolist()
        missed, plain = (
            sum(not one.low <= max(fairness) <= one.high for one in ends) / 2000
            for ends in ([highest(row, 200) for row in counts], [highest([max(row)], 200) for row in counts])
        )
        print(f"{fairness}, shared {shared}: {missed:.3f} missed, {plain:.3f} by the interval of a single share")
        assert missed < 0.05
        if fairness[0] == fairness[1] and not shared:  # put around the highest of three, it would not do
            assert plain > 0.06


def test_matching_evens_out_classes_on_both_sides_and_in_both_halves():
    first_labels = torch.tensor([0] * 40 + [1] * 25 + [2] * 9 + [5] * 30)
    second_labels = torch.tensor([0] * 20 + [1] * 60 + [2] * 30 + [3] * 50)
    # The label is the image, and the brightness says which set it is from.
    first = Labelled((first_labels + 100).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2), first_labels)
    second = Labelled(second_labels.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2), second_labels)
    pair = match(first, second, most=1000, least=2, seed=0)
    assert pair.n == 20 + 24 + 8
    for images, targets in ((pair.train, pair.train_targets), (pair.held_out, pair.held_out_targets)):
        values = images[:, 0, 0, 0].long()
        assert ((values >= 100) == (targets == 1)).all()
        sides = [torch.bincount(values[targets == side] % 100, minlength=6).tolist() for side in (0, 1)]
        assert sides[0] == sides[1] == [10, 12, 4, 0, 0, 0]
    assert match(first, second, most=26, least=2, seed=0).n <= 26


def test_matching_takes_no_image_twice():
    images = torch.arange(240).to(torch.uint8).reshape(-1, 1, 1, 1)
    a, b = Labelled(images, torch.arange(240) % 3).halves(seed=4)
    assert not set(a.images.flatten().tolist()) & set(b.images.flatten().tolist())
    assert torch.bincount(a.labels).tolist() == torch.bincount(b.labels).tolist() == [40, 40, 40]
    pair = match(a, b, most=1000, least=2, seed=0)
    every = torch.cat([pair.train, pair.held_out]).flatten().tolist()
    assert sorted(every) == list(range(240))


def test_halves_are_equal_and_shares_are_whole():
    labels = torch.tensor([0] * 7 + [1] * 4 + [2])
    halves = Labelled(smooth_images(12), labels).halves(0)
    assert [torch.bincount(half.labels, minlength=3).tolist() for half in halves] == [[3, 2, 0]] * 2
    # 30 of 44 are wanted, and 44 * (30 / 44) / 2 is a little below 15 in float64.
    both = (Labelled(smooth_images(44, seed)) for seed in (0, 1))
    assert match(*both, most=30, least=2, seed=0).n == 30


def test_the_choice_of_images_is_random_and_seeded():
    images = Labelled(torch.arange(240).to(torch.uint8).reshape(-1, 1, 1, 1))
    halves = [images.halves(seed)[0].images.flatten().tolist() for seed in (0, 0, 1)]
    assert halves[0] == halves[1] != halves[2]
    # About half of a random half comes from the first half of the file: 60 of 120, standard deviation 3.9.
    assert abs(sum(number < 120 for number in halves[0]) - 60) < 20


def test_the_residual_shows_one_8bit_step_and_nothing_of_a_slope():
    network = TwoSampleNet(1, width=4)
    slope = torch.linspace(-1, 1, 28).expand(1, 1, 28, 28)
    assert float(network.residual(slope)[..., 1:-1].abs().max()) < 1e-5
    flat = torch.zeros(1, 1, 28, 28)
    flat[0, 0, 10, 10] = 1 / 127.5
    # The middle of the binomial filter is 1/4, so three quarters of the step stay, sixteen times as large.
    assert float(network.residual(flat)[0, 0, 10, 10]) == pytest.approx(16 * 0.75 / 127.5, abs=1e-6)
    assert float(network.residual(127 * flat).max()) == 1


def test_bad_input(real):
    with pytest.raises(DtypeError, match="8 bits"):
        c2st(real.float() / 127.5 - 1, real, TINY)
    with pytest.raises(ShapeError):
        c2st(smooth_images(300, size=8), real, TINY)
    with pytest.raises(ShapeError):
        c2st(real, real, TINY, fake_labels=torch.zeros(3, dtype=torch.int64), real_labels=torch.zeros(400).long())
    with pytest.raises(DataError, match="without"):
        c2st(real, real, TINY, real_labels=torch.zeros(400, dtype=torch.int64))
    labels = torch.zeros(400, dtype=torch.int64)
    with pytest.raises(DataError, match="partner"):
        c2st(real, real, TINY, fake_labels=labels, real_labels=labels + 1)
    with pytest.raises(DataError, match="partner"):
        c2st(real[:10], real, TINY)
    for wrong in ({"epochs": 0}, {"n": 0}, {"seeds": ()}, {"seeds": (1, 1)}, {"lr": 0.0}):
        with pytest.raises(ConfigError):
            C2stConfig(**wrong)
    with pytest.raises(NonFiniteError):
        c2st_controls(real, C2stConfig(**{**vars(TINY), "lr": 1e30}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_controls_on_real_images(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} as parquet is not at {SHARED / name}")
    from fewstep.data import load_data

    data = load_data(f"parquet:{SHARED / name}", "test")
    # A smaller and shorter test than the default, with the same demand: every seed must find the noise.
    controls = c2st_controls(data.images, C2stConfig(n=3000, epochs=6), real_labels=data.labels)
    print(controls.noise.accuracies, controls.real.accuracies)
    assert controls.why == ""
    assert min(controls.noise.accuracies) >= 0.95


def test_the_control_has_noise_of_the_sd_it_names():
    grey = torch.full((50, 3, 16, 16), 128, dtype=torch.uint8)
    added = _noisy(grey, 0).to(torch.float64) - 128
    # Variance 16 and that of rounding; 38,400 draws have a standard error of 0.4 % of the deviation.
    assert float(added.std()) == pytest.approx((16 + 1 / 12) ** 0.5, rel=0.015)
    assert _noisy(grey * 0 + 255, 0).max() == 255
    assert _noisy(grey * 0 + 255, 0).min() > 225


def test_answers_do_not_depend_on_the_other_images():
    torch.manual_seed(0)
    network = TwoSampleNet(1, 4)
    network(torch.randn(64, 1, 10, 10))  # gives the batch normalisations something to remember
    images = smooth_images(60, 3)
    with torch.no_grad():
        one_by_one = torch.cat([network.eval()(image[None].float() / 127.5 - 1) for image in images])
        network.logit.bias -= one_by_one.median()  # half of the answers are yes
    targets = (one_by_one > one_by_one.median()).double()
    # The image in the middle sits on the threshold.
    assert _right(network.train(), Pair(images, targets, images, targets), "cpu") >= 59
