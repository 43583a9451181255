"""Precision, recall, density, coverage: by hand, against a slow transcription and scikit-learn, and never swapped."""

from __future__ import annotations

import pytest
import torch
from tests.metrics.sets import draws, feature_set

from fewstep.errors import ConfigError, DataError, NonFiniteError, ShapeError
from fewstep.metrics import neighbours
from fewstep.metrics.grouping import group_of, random_rank
from fewstep.metrics.neighbours import nearest, squared_distances
from fewstep.metrics.prdc import prdc, prdc_values
from fewstep.metrics.summary import FeatureSet


def line(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def slow(real, fake, k):
    """The definitions, word for word, in loops over plain numbers."""

    def distance(a, b):
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5

    def radius(points, i):
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    real, fake = real.tolist(), fake.tolist()
    inside = [[distance(x, y) <= radius(real, i) for y in fake] for i, x in enumerate(real)]
    back = [[distance(x, y) <= radius(fake, j) for x in real] for j, y in enumerate(fake)]
    return {
        "precision": sum(any(row[j] for row in inside) for j in range(len(fake))) / len(fake),
        "recall": sum(any(row[i] for row in back) for i in range(len(real))) / len(real),
        "density": sum(map(sum, inside)) / (k * len(fake)),
        "coverage": sum(map(any, inside)) / len(real),
    }


def test_by_hand():
    # Real 0, 1, 3 with k = 1: radii 1, 1, 2, so the balls are [-1, 1], [0, 2], [1, 5].
    # Generated 0.5, 2, 9 with k = 1: radii 1.5, 1.5, 7, so the balls are [-1, 2], [0.5, 3.5], [2, 16].
    values = prdc_values(real=line(0, 1, 3), fake=line(0.5, 2, 9), k=1)
    # 0.5 lies in two real balls, 2 in two (on the sphere of the second), 9 in none; each real ball holds something.
    assert values == pytest.approx({"precision": 2 / 3, "recall": 1.0, "density": 4 / 3, "coverage": 1.0}, abs=1e-15)


def test_by_hand_second_neighbour():
    # k = 2: real radii 3, 2, 3 give [-3, 3], [-1, 3], [0, 6]; generated 5, 7, 8 have radii 3, 2, 3.
    values = prdc_values(real=line(0, 1, 3), fake=line(5, 7, 8), k=2)
    # 5 lies in one real ball; [2, 8] holds 3, [5, 9] nothing, [5, 11] nothing.
    assert values == pytest.approx(
        {"precision": 1 / 3, "recall": 1 / 3, "density": 1 / 6, "coverage": 1 / 3}, abs=1e-15
    )


def test_a_collapsed_and_an_inventing_model_are_not_swapped():
    # Real: two far clusters. Collapsed: one of them only. Inventing: both, and as much again where nothing is.
    clusters = torch.cat([draws(200, 4), draws(200, 4, 1) + 50])
    collapsed = draws(400, 4, 2)
    inventing = torch.cat([draws(100, 4, 3), draws(100, 4, 4) + 50, draws(200, 4, 5) - 50])
    low, high = prdc_values(real=clusters, fake=collapsed), prdc_values(real=clusters, fake=inventing)
    print(f"collapsed {low}\ninventing {high}")
    assert low["precision"] > 0.9
    assert low["recall"] <= 0.5
    assert low["coverage"] <= 0.5
    assert high["precision"] <= 0.5
    assert high["recall"] > 0.9
    assert high["density"] < 0.7
    sets = feature_set(collapsed), feature_set(clusters)
    assert prdc(*sets)["precision"].value > 0.9 > 0.5 >= prdc(*sets)["recall"].value


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("n", [37, 40])
def test_a_slow_transcription(k, n):
    real, fake = draws(40, 3), draws(n, 3, 1) * 0.8 + 0.3
    assert prdc_values(real=real, fake=fake, k=k) == pytest.approx(slow(real, fake, k), abs=1e-15)


def test_scikit_learn(monkeypatch):
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr(neighbours, "_BLOCK", 64)
    real, fake, k = draws(300, 6), draws(300, 6, 1) * 1.2, 4
    distances = torch.cdist(real, fake, compute_mode="donot_use_mm_for_euclid_dist")
    # scikit-learn counts a point as its own first neighbour.
    radii = [
        torch.from_numpy(NearestNeighbors(n_neighbors=k + 1).fit(x.numpy()).kneighbors(x.numpy())[0][:, k])
        for x in (real, fake)
    ]
    inside, back = distances <= radii[0][:, None], distances <= radii[1]
    expected = {
        "precision": float(inside.any(0).double().mean()),
        "recall": float(back.any(1).double().mean()),
        "density": int(inside.sum()) / (k * len(fake)),
        "coverage": float(inside.any(1).double().mean()),
    }
    assert prdc_values(real=real, fake=fake, k=k) == pytest.approx(expected, abs=1e-15)


def test_one_law_has_density_one_and_the_known_coverage():
    # Naeem et al.: E density = 1 and E coverage = 1 - (N-1)...(N-k) / ((2N-1)...(2N-k)) for N against N.
    n, k, rounds = 100, 3, 60
    expected = 1 - torch.tensor([(n - i) / (2 * n - i) for i in range(1, k + 1)]).prod().item()
    runs = [prdc_values(real=draws(n, 5, 2 * s), fake=draws(n, 5, 2 * s + 1), k=k) for s in range(rounds)]
    for name, mean in (("density", 1.0), ("coverage", expected)):
        values = torch.tensor([run[name] for run in runs])
        error = float(values.std()) / rounds**0.5
        print(f"{name} {float(values.mean()):.4f}, expected {mean:.4f}, standard error {error:.4f}")
        assert abs(float(values.mean()) - mean) < 4 * error


def test_copies_lie_on_every_sphere_however_they_are_summed():
    # Each copy is at the exact distance of some k-th neighbour: inside, whatever float32 rows and an offset do to it.
    real = (draws(120, 512) + 30).float()
    values = prdc_values(real=real, fake=real[torch.randperm(120, generator=torch.Generator().manual_seed(0))], k=5)
    assert values == {"precision": 1.0, "recall": 1.0, "density": 6 / 5, "coverage": 1.0}


def test_ties_on_spheres_are_those_of_exact_arithmetic():
    # Small whole numbers: many samples lie on spheres exactly, and the slow transcription knows their squares exactly.
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(0, 3, (n, 12), generator=generator).double() for n in (60, 50))
    assert prdc_values(real=real, fake=fake, k=3) == pytest.approx(slow(real, fake, 3), abs=1e-15)


def test_blocks_do_not_matter(monkeypatch):
    real, fake = draws(150, 4), draws(130, 4, 1) * 0.7
    whole = prdc_values(real=real, fake=fake)
    monkeypatch.setattr(neighbours, "_BLOCK", 17)
    assert prdc_values(real=real, fake=fake) == whole


def test_float32_distances_would_be_wrong_where_ours_are_right():
    x = draws(50, 200).float() + 1000
    y = x + 1e-3 * draws(50, 200, 1).float()
    exact = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    ours = torch.cat([block for _, block in squared_distances(x, y)]).sqrt()
    assert float((ours - exact).abs().max()) < 1e-6
    assert nearest(x, y)[1].tolist() == exact.argmin(1).tolist()
    assert float((nearest(x, y)[0] - exact.min(1).values).abs().max()) < 1e-12


def test_intervals_are_a_jackknife_with_new_balls():
    real, fake = draws(60, 3), draws(80, 3, 1) * 0.8
    found = prdc(feature_set(fake), feature_set(real), k=2)
    first = random_rank(torch.arange(80)).argsort()[:60]  # as many of both, by the order of their ranks
    rows = real.float()[random_rank(torch.arange(60)).argsort()], fake.float()[first]
    groups = [group_of(side, 10) for side in (random_rank(torch.arange(60)).argsort(), first)]
    whole = prdc_values(real=rows[0], fake=rows[1], k=2)
    parts = [prdc_values(real=rows[0][groups[0] != g], fake=rows[1][groups[1] != g], k=2) for g in range(10)]
    for name, estimate in found.items():
        left_out = torch.tensor([part[name] for part in parts], dtype=torch.float64)
        half = 2.2621571628 * float((9 / 10 * (left_out - left_out.mean()).square().sum()).sqrt())
        assert estimate.value == pytest.approx(whole[name], abs=1e-15)
        assert estimate.low == pytest.approx(max(0, whole[name] - half), abs=1e-9)
        top = whole[name] + half if name == "density" else min(1, whole[name] + half)
        assert estimate.high == pytest.approx(top, abs=1e-9)


def test_the_order_of_images_does_not_matter():
    real, fake = draws(50, 3), draws(50, 3, 1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    shuffled = FeatureSet(3)
    shuffled.update(fake[order], order)
    assert prdc(shuffled, feature_set(real)) == prdc(feature_set(fake), feature_set(real))


def test_few_images_have_a_number_without_interval():
    found = prdc(feature_set(draws(6, 2)), feature_set(draws(6, 2, 1)), k=5)
    assert all(estimate.low is None for estimate in found.values())
    # Nine images leave one of ten groups empty: leaving nothing out is no part of a jackknife.
    for n, interval in ((9, False), (10, True)):
        found = prdc(feature_set(draws(n, 2)), feature_set(draws(n, 2, 1)), k=3)
        assert all((estimate.low is not None) == interval for estimate in found.values())


def test_bad_input():
    for broken in (float("nan"), float("inf")):
        with pytest.raises(NonFiniteError, match="NaN or infinity"):
            prdc_values(real=draws(20, 2), fake=draws(20, 2).index_fill(0, torch.tensor([3]), broken))
    with pytest.raises(DataError, match="k = 5"):
        prdc_values(real=draws(20, 2), fake=draws(5, 2))
    with pytest.raises(DataError, match="5 generated"):
        prdc_values(real=draws(50, 2), fake=draws(5, 2))
    with pytest.raises(DataError, match="k = 5"):
        prdc(feature_set(draws(5, 2)), feature_set(draws(50, 2)))
    with pytest.raises(ConfigError, match="k = 0"):
        prdc_values(real=draws(20, 2), fake=draws(20, 2), k=0)
    with pytest.raises(ShapeError):
        prdc_values(real=draws(20, 2), fake=draws(20, 3))
    with pytest.raises(ShapeError):
        prdc(feature_set(draws(20, 2)), feature_set(draws(20, 3)))
    with pytest.raises(DataError, match="rows"):
        prdc(feature_set(draws(20, 2)), feature_set(draws(20, 2), keep=0))


def test_too_few_says_which_side():
    with pytest.raises(DataError, match="2 generated images for k = 5"):
        prdc(feature_set(draws(2, 3)), feature_set(draws(60, 3)))
    with pytest.raises(DataError, match="4 real images for k = 5"):
        prdc_values(real=draws(4, 3), fake=draws(60, 3))
