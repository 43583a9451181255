"""What scenes measure, with its controls: true images score as they must, and every kind of damage is seen."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from fewstep.data import Scenes
from fewstep.errors import ConfigError, DataError
from fewstep.experiments.scenes_eval import alignment, conditional_distance, nuisances, per_caption_diversity


class Coarse:
    """Means of 8x8 pixels: features that cost nothing."""

    name, dim, resize = "coarse", 48, "none"

    def __call__(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, 8).flatten(1)


CAPTIONS = [Scenes(seed=21).caption(k) for k in range(12)]
EACH = 12


def true_images(seed: int) -> tuple[Tensor, list[str]]:
    images = torch.cat([Scenes().of_caption(caption, EACH, seed) for caption in CAPTIONS])
    return images, [caption for caption in CAPTIONS for _ in range(EACH)]


@pytest.fixture(scope="module")
def true() -> tuple[Tensor, list[str]]:
    return true_images(seed=1)


@pytest.fixture(scope="module")
def collapsed(true: tuple[Tensor, list[str]]) -> Tensor:
    """One image for all of each caption."""
    return true[0][::EACH].repeat_interleave(EACH, dim=0)


def test_true_images_show_their_captions(true: tuple[Tensor, list[str]]) -> None:
    shares = alignment(*true)
    assert {name: share.value for name, share in shares.items() if name != "unreadable"} == dict.fromkeys(
        ("joint", "count", "place", "shape", "colour", "size"), 1.0
    )
    n = len(true[1])
    wilson = stats.binomtest(n, n).proportion_ci(method="wilson")
    assert (shares["joint"].low, shares["joint"].high) == (pytest.approx(wilson.low, abs=1e-6), 1.0)
    assert (shares["unreadable"].value, shares["unreadable"].low) == (0.0, 0.0)


def test_each_attribute_has_its_own_share() -> None:
    caption = "a small red circle left of a large blue square"
    wrong = {
        "joint": caption,
        "colour": "a small red circle left of a large green square",
        "size": "a large red circle left of a large blue square",
        "shape": "a small red circle left of a large blue cross",
        "place": "a small red circle above a large blue square",
        "count": "a small red circle at the top",
    }
    images = torch.cat([Scenes().of_caption(other, 1) for other in wrong.values()])
    shares = alignment(images, [caption] * 6)
    right = {name: round(6 * share.value) for name, share in shares.items()}
    assert right == {"joint": 1, "colour": 4, "size": 4, "shape": 4, "place": 4, "count": 5, "unreadable": 0}
    swapped = "a large blue square right of a small red circle"
    assert alignment(images[:1], [swapped])["joint"].value == 1, "the same scene in other words"
    nothing = alignment(torch.zeros_like(images), [caption] * 6)
    assert {name: share.value for name, share in nothing.items()} == {**dict.fromkeys(right, 0.0), "unreadable": 1.0}


def test_diversity(true: tuple[Tensor, list[str]], collapsed: Tensor) -> None:
    rho = per_caption_diversity(*true, Coarse())["rho"]
    assert rho.low is not None
    assert rho.high is not None
    assert rho.low < 1 < rho.high
    assert per_caption_diversity(collapsed, true[1], Coarse())["rho"].value == pytest.approx(0, abs=1e-6)


def test_nuisances_of_true_images_follow_their_law() -> None:
    captions = [CAPTIONS[0], CAPTIONS[1]]
    images = torch.cat([Scenes().of_caption(caption, 150, seed=2) for caption in captions])
    found = nuisances(images, [caption for caption in captions for _ in range(150)])
    assert set(found) == {"x", "y", "radius", "shade", "background"}
    for name, uniformity in found.items():
        assert uniformity.ks < 1.5 * uniformity.limit, name
        assert 0 < uniformity.wasserstein <= uniformity.ks


def test_nuisances_that_do_not_vary() -> None:
    """All values at u: ks is the longer end, and the area that of two triangles with legs u and 1 - u."""
    scenes, caption = Scenes(), "a large white circle in the centre"
    images = scenes.of_caption(caption, 1).expand(20, -1, -1, -1)
    found = nuisances(images, [caption] * 20)
    alone = nuisances(images[:1], [caption])
    for name, uniformity in found.items():
        u = uniformity.ks if abs(uniformity.ks - 0.5) > 1e-9 else 0.5
        assert uniformity.wasserstein == pytest.approx((u**2 + (1 - u) ** 2) / 2, abs=1e-9), name
        assert uniformity.ks == pytest.approx(alone[name].ks, abs=1e-9)
    assert found["x"].limit == pytest.approx(stats.kstwobign.ppf(0.95) / 20**0.5, abs=1e-4)


def test_the_conditional_distance_is_unbiased() -> None:
    values = [conditional_distance(*true_images(seed), seed=seed + 100).value for seed in range(12)]
    mean, deviation = torch.tensor(values).mean(), torch.tensor(values).std() / 12**0.5
    assert abs(float(mean)) < 4 * float(deviation)
    assert min(values) < 0 < max(values)


def test_the_conditional_distance_sees_what_alignment_does_not(
    true: tuple[Tensor, list[str]], collapsed: Tensor
) -> None:
    null = conditional_distance(*true)
    assert null.low is not None
    assert null.high is not None
    assert null.low < 0 < null.high
    low = conditional_distance(collapsed, true[1]).low
    assert alignment(collapsed, true[1])["joint"].value == 1
    assert low is not None
    assert low > 0.05
    wrong = conditional_distance(true[0], true[1][EACH:] + true[1][:EACH]).low
    assert wrong is not None
    assert wrong > 0.05


def test_what_cannot_be_measured(true: tuple[Tensor, list[str]]) -> None:
    images, captions = true
    for measure in (alignment, nuisances, conditional_distance):
        with pytest.raises(DataError, match=f"{len(images)} images and 3 captions"):
            measure(images, captions[:3])
        with pytest.raises(DataError, match="0 images and 0 captions"):
            measure(images[:0], [])
        with pytest.raises(ConfigError, match="1 to 10 words"):
            measure(images[:1], [""])
    with pytest.raises(DataError, match="One image of the caption"):
        conditional_distance(images[: EACH + 1], captions[: EACH + 1])
    with pytest.raises(DataError, match="none shows its caption"):
        nuisances(torch.zeros_like(images[:2]), captions[:2])
