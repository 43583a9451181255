"""The reader of scenes: right on true, noisy and blurred images, and silent where there is nothing to read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fewstep.data import Scenes, read_scenes
from fewstep.errors import DataError


def noisy(images: Tensor, sd: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + sd * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images: Tensor) -> Tensor:
    padded = functional.pad(images.float(), (1, 1, 1, 1), "replicate")
    return functional.avg_pool2d(padded, 3, stride=1).round().to(torch.uint8)


@pytest.mark.parametrize(("size", "n"), [(32, 400), (64, 120)])
@pytest.mark.parametrize("damage", ["none", "noise of 8 levels", "3x3 blur"])
def test_true_images_are_read(size: int, n: int, damage: str) -> None:
    """Measured: no mistake in 10,000 undamaged images of each size; 99.5 % are promised."""
    n = n if damage == "none" else n // 4
    data = Scenes(size, seed=11)
    images = data.images(torch.arange(n))
    images = {"none": images, "noise of 8 levels": noisy(images, 8.0), "3x3 blur": blurred(images)}[damage]
    read = read_scenes(images).scenes
    shown = data.shown(torch.arange(n))
    wrong = [(str(a), str(b)) for a, b in zip(read, shown, strict=True) if a != b.canonical()]
    assert len(wrong) <= 0.005 * n, wrong


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
def test_ten_thousand_true_images_are_read(size: int) -> None:
    n, data = 10_000, Scenes(size, seed=12)
    read = read_scenes(data.images(torch.arange(n))).scenes
    shown = data.shown(torch.arange(n))
    assert sum(a != b.canonical() for a, b in zip(read, shown, strict=True)) <= 0.005 * n


@pytest.mark.parametrize("size", [32, 64])
def test_what_captions_leave_open_is_read_too(size: int) -> None:
    data, n = Scenes(size, seed=13), 60
    drawing, read = data.drawing(torch.arange(n)), read_scenes(data.images(torch.arange(n)))
    for k in range(n):
        scene, things = data.scene(k), read.things[k]
        order = [0, 1] if scene == scene.canonical() else [1, 0]
        for slot, i in zip((0, 1), order, strict=True):
            if drawing.shape[k, i] < 0:
                assert bool(things[slot].isnan().all())
                continue
            place = torch.cat([drawing.centre[k, i], drawing.radius[k, i, None]])
            assert float((things[slot, :3] - place).abs().max()) * size < 0.05, "in pixels"
            bright = drawing.colour[k, i].max()  # of the darkest shade 80 %
            assert float(bright) * 0.99 < 255 * float(things[slot, 3]) * 1.01
    assert float((read.background - drawing.background).abs().max()) <= 0.5
    assert float(read.error.max()) < 1


def test_shades_are_read() -> None:
    data = Scenes(seed=14)
    images = data.of_caption("a large white circle in the centre", 50)
    shades = read_scenes(images).things[:, 0, 3]
    middle = images[:, 0, 15:17, 15:17].float().mean(dim=(1, 2)) / 240  # inside, wherever the circle is
    torch.testing.assert_close(shades, middle, rtol=0, atol=0.005)


def test_paraphrases_read_alike() -> None:
    images = Scenes().of_caption("a small red circle below a large cyan cross", 5)
    assert {str(scene) for scene in read_scenes(images).scenes} == {"a large cyan cross above a small red circle"}


def test_unreadable_images() -> None:
    generator = torch.Generator().manual_seed(0)
    blank = torch.full((1, 3, 32, 32), 40, dtype=torch.uint8)
    static = torch.randint(0, 256, (1, 3, 32, 32), generator=generator).to(torch.uint8)
    left = Scenes().of_caption("a small red circle in the top left", 1)
    right = Scenes().of_caption("a small blue circle in the top right", 1)
    low = Scenes().of_caption("a large green circle at the bottom", 1)
    three = torch.cat([torch.cat([left[..., :16], right[..., 16:]], dim=3)[:, :, :16], low[:, :, 16:]], dim=2)
    ramp = torch.linspace(0, 255, 32).expand(1, 3, 32, 32).to(torch.uint8)
    read = read_scenes(torch.cat([blank, static, three, ramp, left]))
    assert read.scenes[:4] == [None] * 4
    assert str(read.scenes[4]) == "a small red circle in the top left"
    assert float(read.error[0]) == float("inf")
    assert bool(read.things[0].isnan().all())
    pink = blank.clone()
    pink[0, :, 12:20, 12:20] = torch.tensor([255, 150, 255], dtype=torch.uint8)[:, None, None]
    assert read_scenes(pink).scenes == [None], "a colour that no thing has"


def test_each_image_is_read_alone() -> None:
    images = noisy(Scenes().images(torch.arange(90)), 12.0)
    together, alone = read_scenes(images), [read_scenes(images[k : k + 1]) for k in range(0, 90, 30)]
    assert [together.scenes[k] for k in range(0, 90, 30)] == [part.scenes[0] for part in alone]
    torch.testing.assert_close(
        together.things[::30], torch.cat([part.things for part in alone]), equal_nan=True, rtol=0, atol=1e-4
    )
    assert read_scenes(images[:0]).scenes == []


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 28, 28), (2, 3, 32, 64)])
def test_images_that_are_no_scenes(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="Scenes are uint8 of shape"):
        read_scenes(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(DataError, match="float32"):
        read_scenes(torch.zeros(1, 3, 32, 32))
