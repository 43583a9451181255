"""Jackknife groups: of one size, and in no step with anything regular."""

from __future__ import annotations

import pytest
import torch

from fewstep.metrics.grouping import group_of, random_rank
from fewstep.metrics.summary import FeatureSet


@pytest.mark.parametrize("groups", [1, 2, 7, 10])
def test_every_few_images_in_a_row_are_of_different_groups(groups):
    rows = group_of(torch.arange(1000 * groups), groups).reshape(1000, groups)
    assert (rows.sort(1).values == torch.arange(groups)).all()


def test_no_period_lines_up_with_them():
    # Of every p-th image each of ten groups has about its tenth: 50 of 500, standard deviation 6.7 if left to chance.
    # By i % 10 it would be all or nothing for p = 10.
    chi = []
    for period in range(1, 401):
        for start in (0, period // 2):
            index = torch.arange(start, start + 500 * period, period)
            counts = torch.bincount(group_of(index, 10), minlength=10)
            chi.append(float(((counts - 50) ** 2 / 50).sum()))
    print(
        f"chi squared with 9 degrees of freedom: mean {sum(chi) / len(chi):.2f}, largest of {len(chi)} {max(chi):.1f}"
    )
    # Exceeded with probability 1e-7, times 800 periods and starts.
    assert max(chi) < 50


def test_large_numbers_stay_in_range():
    index = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**40 + 3, 2**62])
    assert all(0 <= group < 10 for group in group_of(index, 10).tolist())


def test_ranks_are_those_of_the_published_hash():
    # fmix32 of MurmurHash3, evaluated with Python's own integers.
    def fmix32(h):
        h = (h ^ h >> 16) * 0x85EBCA6B & 0xFFFFFFFF
        h = (h ^ h >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
        return h ^ h >> 16

    index = [0, 1, 2, 9999, 2**31, 2**32 - 1]
    assert random_rank(torch.tensor(index)).tolist() == [fmix32(i) for i in index]
    assert fmix32(1) == 0x514E28B7
    assert len(random_rank(torch.arange(100_000)).unique()) == 100_000


def test_kept_rows_of_a_set_in_the_order_of_its_classes_are_of_all_classes():
    summary, labels = FeatureSet(1, keep=500), torch.arange(10_000) // 1000
    for index in torch.arange(10_000).split(777):
        summary.update(labels[index, None].double(), index, labels[index])
    counts = torch.bincount(summary.row_labels, minlength=10)
    half = torch.bincount(summary.row_labels[:250], minlength=10)
    # Without replacement: about 50 of each class, standard deviation 6.5; 25 and 4.7 in the first half.
    print("rows kept of each class:", counts.tolist(), "in the first half:", half.tolist())
    assert (counts - 50).abs().max() < 26
    assert (half - 25).abs().max() < 19
