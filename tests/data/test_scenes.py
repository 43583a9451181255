"""Scenes: each image on its own, the distribution that is promised, captions that mean what they say."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import pytest
import torch
from scipy import stats

from fewstep.data import Scene, Scenes, Thing, law, load_data, parse_caption, to_unit
from fewstep.data.scene_captions import COLOURS, PLACES, RELATIONS, SHAPES, SIZES, VOCABULARY, scenes
from fewstep.data.scene_render import AREAS, CENTROIDS, coverage
from fewstep.data.scenes import _GOLDEN, _mixed
from fewstep.errors import ConfigError, UnknownName

RARE = 1e-4  # probability with which a right answer is called wrong, for each statistical check


@pytest.mark.parametrize("size", [32, 64])
def test_an_image_is_a_function_of_seed_and_number(size: int) -> None:
    data, numbers = Scenes(size), torch.tensor([5, 0, 123_456_789_012, 7, 5])
    together = data.images(numbers)
    assert (together.shape, together.dtype) == ((5, 3, size, size), torch.uint8)
    for number, image in zip(numbers, together, strict=True):
        assert torch.equal(Scenes(size).images(number[None])[0], image)
    assert torch.equal(together[0], together[4])
    assert not torch.equal(Scenes(size, seed=1).images(numbers), together)
    many = torch.arange(300)
    assert torch.equal(data.images(many)[torch.tensor([0, 127, 128, 299])], data.images(many[[0, 127, 128, 299]]))


def test_the_hash_is_splitmix64() -> None:
    """First three outputs of the published generator with seed 0."""
    published = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    assert [x % 2**64 for x in _mixed(torch.arange(1, 4) * _GOLDEN).tolist()] == list(published)


def test_batches_carry_captions() -> None:
    data, numbers = Scenes(), torch.arange(40)
    batch = data.batch(numbers)
    assert torch.equal(batch.x0, to_unit(data.images(numbers)))
    assert batch.cond is not None
    said = VOCABULARY.decode(batch.cond["tokens"])
    assert said == [data.caption(k) for k in range(40)] == [str(data.scene(k)) for k in range(40)]
    assert torch.equal(VOCABULARY.encode(said), batch.cond["tokens"])
    assert (len(data), data.shape, data.classes, data.name) == (1_000_000, (3, 32, 32), (), "scenes-32")


def test_every_caption_is_read_back() -> None:
    every = scenes()
    assert len(every) == len(set(map(str, every))) == 9 * 80 + 4 * 80 * 80
    assert all(parse_caption(str(scene)) == scene for scene in every)
    assert len({scene.canonical() for scene in every}) == 9 * 80 + 2 * 80 * 80
    assert max(len(str(scene).split()) for scene in every) == VOCABULARY.length
    assert parse_caption("  A small RED circle   above a large blue square ") == Scene(
        Thing("small", "red", "circle"), "above", Thing("large", "blue", "square")
    )


def test_paraphrases_are_one_scene() -> None:
    one, other = Thing("small", "red", "circle"), Thing("large", "blue", "square")
    assert Scene(one, "right of", other).canonical() == Scene(other, "left of", one)
    assert Scene(one, "below", other).canonical() == Scene(other, "above", one)
    assert Scene(one, "above", other).canonical() == Scene(one, "above", other)
    swapped = [bound.flip(1) for bound in law([Scene(one, "right of", other)])[:2]]
    for bound, expected in zip(swapped, law([Scene(other, "left of", one)])[:2], strict=True):
        assert torch.equal(bound, expected)


def test_captions_come_as_often_as_declared() -> None:
    n = 6_000
    tokens = torch.cat([(Scenes(seed=3).batch(some).cond or {})["tokens"] for some in torch.arange(n).split(500)])
    drawn = [parse_caption(caption) for caption in VOCABULARY.decode(tokens)]
    declared = Scenes().captions()
    assert math.fsum(declared.values()) == pytest.approx(1, abs=1e-9)
    known = {str(scene): scene for scene in scenes()}
    marginals = {
        "place": lambda scene: scene.place,
        "first": lambda scene: scene.first,
        "second": lambda scene: scene.second and scene.second.shape + scene.second.colour,
        "pair": lambda scene: scene.second and (scene.first.shape, scene.second.shape, scene.second.size),
    }
    for name, of in marginals.items():
        expected: Counter[object] = Counter()
        for caption, probability in declared.items():
            expected[of(known[caption])] += n * probability
        found = Counter(map(of, drawn))
        keys = list(expected)
        p = stats.chisquare([found[key] for key in keys], [expected[key] for key in keys]).pvalue
        assert p > RARE, f"{name}: p = {p:.2g}"


def test_what_captions_leave_open_is_uniform_and_independent() -> None:
    n = 3000
    data, numbers = Scenes(seed=4), torch.arange(n)
    drawing, bounds = data.drawing(numbers), law(shown := data.shown(numbers))
    bright = torch.tensor([COLOURS[scene.first.colour] for scene in shown])
    own = torch.stack(
        [drawing.centre[:, 0, 0], drawing.centre[:, 0, 1], drawing.radius[:, 0], (drawing.colour[:, 0] / bright)[:, 0]]
    ).T
    uniform = (own - bounds.low[:, 0]) / (bounds.high - bounds.low)[:, 0]
    low, high = bounds.background
    columns = torch.cat([uniform, ((drawing.background - low) / (high - low))[:, None]], dim=1)
    for i, column in enumerate(columns.T):
        assert stats.kstest(column.numpy(), "uniform").pvalue > RARE, f"nuisance {i}"
    for i, j in combinations(range(5), 2):
        r = float(torch.corrcoef(columns.T)[i, j])
        assert abs(r) < stats.norm.isf(RARE / 2) / math.sqrt(n), f"nuisances {i} and {j}: r = {r:.3f}"


def test_things_stay_apart_and_inside() -> None:
    """At the ends of all intervals: a pixel of 32 to the frame, and more than one between things."""
    large = Thing("large", "red", "square")
    alone, pairs = [Scene(large, place) for place in PLACES], [Scene(large, relation, large) for relation in RELATIONS]
    for scene in (*alone, *pairs):
        low, high, _ = law([scene])
        n, radius = (1 if scene.second is None else 2), high[0, 0, 2]
        assert float((low[0, :n, :2] - radius).min()) > 1 / 32
        assert float((high[0, :n, :2] + radius).max()) < 1 - 1 / 32
        if scene.second is not None:
            gaps = torch.maximum(low[0, 0, :2] - high[0, 1, :2], low[0, 1, :2] - high[0, 0, :2]) - 2 * radius
            assert float(gaps.max()) > 1.5 / 32
    images, drawing = Scenes().images(torch.arange(500)), Scenes().drawing(torch.arange(500))
    border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], dim=2)
    assert torch.equal(border.float(), drawing.background.round()[:, None, None].expand_as(border))


def test_shapes_have_their_area_and_centre() -> None:
    """Integrals of the coverage against those of the shapes, far above the size of a pixel."""
    shape, n = torch.arange(len(SHAPES)), len(SHAPES)
    centre, radius = torch.tensor([[48.3, 51.7]], dtype=torch.float64).repeat(n, 1), torch.full((n,), 40.0).double()
    covered = coverage(shape, centre, radius, 100, 100)
    at = torch.arange(100) + 0.5
    area = covered.sum(dim=(1, 2))
    torch.testing.assert_close(area, AREAS * 40.0**2, rtol=2e-3, atol=0)
    middle = torch.stack([(covered.sum(dim=axis) * at).sum(dim=1) / area for axis in (1, 2)], dim=1)
    expected = centre + torch.stack([torch.zeros(n), CENTROIDS * 40.0], dim=1)
    torch.testing.assert_close(middle, expected, rtol=0, atol=0.1)
    inside = covered > 0.5
    assert inside.flatten(1).any(dim=1).all()
    for axis in (1, 2):
        lines = inside.any(dim=axis).nonzero()[:, 1]
        assert int(lines.max()) - int(lines.min()) < 80


def test_images_of_a_caption() -> None:
    data, caption = Scenes(), "a small red circle left of a large blue square"
    images = data.of_caption(caption, 200, seed=1)
    assert torch.equal(images, data.of_caption(parse_caption(caption), 200, seed=1))
    assert torch.equal(images[:7], data.of_caption(caption, 7, seed=1))
    assert not torch.equal(images, data.of_caption(caption, 200, seed=2))
    assert len(images.flatten(1).unique(dim=0)) == 200
    # Red things are brighter in red than in blue: all of the left halves are, none of the right ones.
    redder = (images[:, 0].float() - images[:, 2].float()).reshape(200, 32, 2, 16).sum(dim=(1, 3))
    assert bool((redder[:, 0] > 0).all())
    assert bool((redder[:, 1] < 0).all())


def test_splits_are_seeds() -> None:
    assert load_data("scenes") == Scenes(32, seed=0)
    assert load_data("scenes:64", "test") == Scenes(64, seed=1)
    assert load_data("scenes", size=64) == load_data("scenes:64", size=64) == Scenes(64)
    with pytest.raises(ConfigError, match="scenes, scenes:32 or scenes:64"):
        load_data("scenes:64", size=32)
    with pytest.raises(ConfigError, match="scenes, scenes:32 or scenes:64"):
        load_data("scenes:big")
    with pytest.raises(ConfigError, match="48 pixels"):
        load_data("scenes:48")


@pytest.mark.parametrize(
    ("caption", "error", "message"),
    [
        ("", ConfigError, "1 to 10 words"),
        ("   ", ConfigError, "1 to 10 words"),
        ("a small purpel circle at the top", UnknownName, "No word 'purpel'.*Did you mean 'purple'"),
        ("a small red circle left of a large blue square above", ConfigError, "1 to 10 words"),
        ("a small red circle", UnknownName, "No place ''"),
        ("a small red circle in the top", UnknownName, "No place 'in the top'.*Did you mean"),
        ("a small red circle on a large blue square", UnknownName, "No relation 'on'"),
        ("small red circle at the top", ConfigError, "'small red circle at' in the caption"),
        ("a red small circle at the top", UnknownName, "No size 'red'"),
        ("a small red circle left of a blue square", ConfigError, "'a blue square' in the caption"),
    ],
)
def test_captions_that_are_none(caption: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_caption(caption)
    with pytest.raises(error, match=message):
        Scenes().of_caption(caption, 1)


def test_scenes_that_cannot_be() -> None:
    for arguments, message in (({"size": 28}, "28 pixels"), ({"n": 0}, "n=0"), ({"seed": 0.5}, "seed=0.5")):
        with pytest.raises(ConfigError, match=message):
            Scenes(**arguments)
    with pytest.raises(ConfigError, match="Image -1"):
        Scenes().images(torch.tensor([3, -1]))
    with pytest.raises(ConfigError, match=r"left and right.*train\.flip=false"):
        Scenes().batch(torch.arange(2), mirrored=torch.tensor([True, False]))
    with pytest.raises(ConfigError, match="-2 images"):
        Scenes().of_caption("a small red circle at the top", -2)
    with pytest.raises(UnknownName, match="No relation 'beside'"):
        Scene(Thing("small", "red", "circle"), "beside", Thing("small", "red", "circle"))
    with pytest.raises(UnknownName, match="No colour 'pink'"):
        Thing(SIZES[0], "pink", "circle")
