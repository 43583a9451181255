"""8 bits and [-1, 1], batches, and the stateless order of training images."""

from __future__ import annotations

import pytest
import torch

from fewstep.data import Batch, ImageData, indices_of_step, seeded, to_uint8, to_unit
from fewstep.errors import DataError


def images(n: int = 5) -> ImageData:
    pixels = torch.randint(0, 256, (n, 2, 3, 4), dtype=torch.uint8, generator=seeded("pixels"))
    return ImageData(pixels, torch.arange(n) % 2, ("even", "odd"), "toy")


def test_eight_bits_survive_the_round_trip() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    unit = to_unit(every)
    assert torch.equal(to_uint8(unit), every)
    assert (float(unit[0]), float(unit[255])) == (-1.0, 1.0)
    assert to_uint8(torch.tensor([-3.0, 0.999, 7.0])).tolist() == [0, 255, 255]
    assert to_uint8(torch.tensor(0.0039)).item() == 128


def test_batches_take_and_mirror() -> None:
    data = images()
    batch = data.batch(torch.tensor([3, 0]), mirrored=torch.tensor([True, False]))
    assert torch.equal(batch.x0[0], to_unit(data.images[3]).flip(-1))
    assert torch.equal(batch.x0[1], to_unit(data.images[0]))
    assert batch.cond is not None
    assert batch.cond["label"].tolist() == [1, 0]
    assert (len(data), data.shape, data.n_classes, len(batch)) == (5, (2, 3, 4), 2, 2)
    plain = ImageData(data.images, None, (), "plain")
    assert plain.batch(torch.tensor([1])).cond is None
    assert plain.n_classes == 0


def test_batches_move_with_their_condition() -> None:
    moved = Batch(torch.zeros(1, 1, 1, 1), {"label": torch.tensor([0])}).to(torch.device("meta"))
    assert moved.x0.is_meta
    assert moved.cond is not None
    assert moved.cond["label"].is_meta


def test_data_that_does_not_fit_together() -> None:
    data = images()
    for wrong in (data.images.float(), data.images[0], data.images[:0]):
        with pytest.raises(DataError, match="uint8 of shape"):
            ImageData(wrong, None, (), "wrong")
    for labels in (torch.zeros(4, dtype=torch.int64), torch.zeros(5), torch.full((5,), 2), torch.full((5,), -1)):
        with pytest.raises(DataError, match="one int64 label per image"):
            ImageData(data.images, labels, ("even", "odd"), "wrong")


@pytest.mark.parametrize(("n", "batch", "ranks"), [(10, 3, 1), (7, 16, 1), (12, 2, 3)])
def test_every_epoch_visits_each_image_once(n: int, batch: int, ranks: int) -> None:
    epochs = 4
    steps = -(-n * epochs // (batch * ranks))
    taken = [indices_of_step(n, batch, 0, step, rank, ranks) for step in range(steps) for rank in range(ranks)]
    sequence = torch.cat(taken)[: n * epochs].reshape(epochs, n)
    assert torch.equal(sequence.sort(dim=1).values, torch.arange(n).expand(epochs, n))
    assert len({tuple(epoch.tolist()) for epoch in sequence}) == epochs


def test_order_is_a_function_of_seed_and_step() -> None:
    late = indices_of_step(1000, 8, seed=3, step=777)
    for step in range(5):
        indices_of_step(1000, 8, seed=3, step=step)
    assert torch.equal(indices_of_step(1000, 8, seed=3, step=777), late)
    assert not torch.equal(indices_of_step(1000, 8, seed=4, step=777), late)


def test_seeded_streams_differ_by_any_part_of_the_key() -> None:
    keys: list[tuple[int | str, ...]] = [("a", 1, 2), ("a", 2, 1), ("a", 12), ("b", 1, 2), ("a", 1, 2, 0)]
    draws = {float(torch.rand((), generator=seeded(*key), dtype=torch.float64)) for key in [*keys, ("a", 1, 2)]}
    assert len(draws) == len(keys)
