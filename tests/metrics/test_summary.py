"""Summaries: streaming is the batch, order and processes do not matter, and what is wrong is named."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep._files import read_tensors, write_tensors
from fewstep.errors import ConfigError, DataError, DtypeError, FewstepError, NonFiniteError, ShapeError
from fewstep.metrics import FeatureSet, ProbabilitySet, ScoreSet, fd
from fewstep.metrics.grouping import group_of, random_rank

DOUBLE = torch.float64
N, DIM = 97, 4
X = torch.randn(N, DIM, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) * 3 + 100
LABELS = torch.arange(N) % 7 % 5
PROBABILITIES = (X - 100).softmax(1)


def of(rows, labels=True, **options):
    """The set of some of the images, added at once."""
    rows = torch.as_tensor(rows)
    summary = FeatureSet(DIM, **options)
    summary.update(X[rows], rows, LABELS[rows] if labels else None)
    return summary


def gap(a, b):
    return float((a - b).abs().max())


def same(a, b, atol=1e-11):
    """Both sets say the same: rows bitwise, sums to rounding."""
    assert a.n == b.n
    assert torch.equal(a.rows, b.rows)
    assert torch.equal(a.row_index, b.row_index)
    assert (a.row_labels is None) == (b.row_labels is None)
    assert a.row_labels is None or torch.equal(a.row_labels, b.row_labels)
    for without in (None, *range(a.groups)):
        mine, theirs = a.moments(without), b.moments(without)
        assert mine.n == theirs.n
        assert gap(mine.mean, theirs.mean) < atol
        assert gap(mine.cov, theirs.cov) < atol
    assert a.spread.keys() == b.spread.keys()
    for label, (count, trace) in a.spread.items():
        assert b.spread[label] == (count, pytest.approx(trace, abs=atol, nan_ok=True))


def test_it_says_what_torch_says():
    summary = of(range(N), keep=50)
    assert (summary.n, summary.dim, summary.groups, summary.keep) == (N, DIM, 10, 50)
    assert gap(summary.moments().mean, X.mean(0)) < 1e-12
    assert gap(summary.moments().cov, X.T.cov()) < 1e-12
    rest = X[group_of(torch.arange(N), 10) != 3]
    assert gap(summary.moments(without=3).cov, rest.T.cov()) < 1e-12
    kept = random_rank(torch.arange(N)).argsort()[:50]
    assert torch.equal(summary.rows, X[kept].float())
    assert torch.equal(summary.row_index, kept)
    assert torch.equal(summary.row_labels, LABELS[kept])
    for label, (count, trace) in summary.spread.items():
        rows = X[label == LABELS]
        assert count == len(rows)
        assert trace == pytest.approx(float(rows.var(0).sum()), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(N)), st.lists(st.integers(0, N), max_size=8), st.booleans())
def test_order_and_batches_do_not_matter(order, cuts, labels):
    streamed, ends = FeatureSet(DIM, keep=40), [0, *sorted(cuts), N]
    for start, end in pairwise(ends):
        rows = torch.tensor(order[start:end], dtype=torch.int64)
        streamed.update(X[rows], rows, LABELS[rows] if labels else None)
    same(streamed, of(range(N), labels, keep=40))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=N, max_size=N))
def test_processes_merge_into_one(owner):
    owner = torch.tensor(owner)
    merged = FeatureSet(DIM, keep=60)
    for process in range(4):
        merged = merged.merge(of((owner == process).nonzero()[:, 0], keep=60))
    same(merged, of(range(N), keep=60))


def test_merging_changes_neither_part():
    a, b = of(range(50)), of(range(50, N))
    before = {name: value.clone() for name, value in a.state().items()}
    joined = a.merge(b)
    joined.update(torch.ones(1, DIM), torch.tensor([N]), torch.tensor([0]))
    assert all(torch.equal(before[name], value) for name, value in a.state().items())
    joined.moments().update(torch.zeros(5, DIM))
    assert joined.n == joined.moments().n == N + 1


def test_small_dtypes_and_float64_agree():
    x = X.to(torch.float32)
    narrow, wide = FeatureSet(DIM), FeatureSet(DIM)
    narrow.update(x, torch.arange(N))
    wide.update(x.to(DOUBLE), torch.arange(N, dtype=torch.int32))
    same(narrow, wide, atol=0.0 + 1e-300)
    assert narrow.moments().cov.dtype == DOUBLE
    exact = of(range(N), labels=False)
    # Rounding X = 100 +- 3 to float32 is off by at most 2^-18 per element.
    assert gap(narrow.moments().mean, exact.moments().mean) < 2**-18
    assert gap(narrow.moments().cov, exact.moments().cov) < 2 * 3 * 2**-17


def test_memory_does_not_grow_with_n():
    def size(n):
        summary = FeatureSet(DIM, keep=20)
        for start in range(0, n, 100):
            index = torch.arange(start, start + 100)
            summary.update(X[index % N], index, index % 3)
            held = sum(len(part) for part, _ in summary._rows._parts)  # before anybody asks for the rows
            assert held <= 2 * 20 + 100
        return sum(value.numel() for value in summary.state().values())

    assert size(100) == size(2000)


def test_state_is_bitwise_and_fits_a_file(tmp_path):
    for summary in (of(range(N)), of(range(3), False, keep=2, groups=2), FeatureSet(DIM)):
        write_tensors(tmp_path / "set.safetensors", summary.state())
        again = FeatureSet.from_state(read_tensors(tmp_path / "set.safetensors"))
        assert again.state().keys() == summary.state().keys()
        assert all(torch.equal(again.state()[name], value) for name, value in summary.state().items())
        assert (again.keep, again.groups, again.n) == (summary.keep, summary.groups, summary.n)
        again.update(X[-1:], torch.tensor([N]), LABELS[-1:] if summary.row_labels is not None else None)
        assert again.n == summary.n + 1
    with pytest.raises(DataError, match="rows"):
        FeatureSet.from_state({"group_n": torch.zeros(3)})


def test_one_group_and_no_rows():
    summary = of(range(N), keep=0, groups=1)
    assert summary.rows.shape == (0, DIM)
    assert gap(summary.moments().cov, X.T.cov()) < 1e-12
    assert fd(summary, summary).low is None


def test_statistics_from_elsewhere():
    known = FeatureSet.from_moments(X.mean(0), X.T.cov(), N)
    assert (known.n_known, known.n, known.groups, len(known.rows), known.spread) == (True, N, 1, 0, {})
    unknown = FeatureSet.from_moments(X.mean(0), X.T.cov(), None)
    for summary in (known, unknown, FeatureSet.from_state(unknown.state())):
        assert gap(summary.moments().cov, X.T.cov()) < 1e-12
    assert not FeatureSet.from_state(unknown.state()).n_known
    for use in (lambda: unknown.n, lambda: unknown.merge(known), lambda: unknown.update(X, torch.arange(N))):
        with pytest.raises(DataError, match=r"images|number"):
            use()
    with pytest.raises(DataError):
        FeatureSet.from_moments(X.mean(0), X.T.cov(), 1)
    with pytest.raises(ShapeError):
        FeatureSet.from_moments(X[0], torch.eye(3), 5)


def test_a_label_with_one_image_has_no_variance():
    summary = FeatureSet(1)
    summary.update(torch.tensor([[1.0], [3.0], [7.0]]), torch.arange(3), torch.tensor([8, 8, 2]))
    assert summary.spread[8] == (2, 2.0)
    assert summary.spread[2][0] == 1
    assert math.isnan(summary.spread[2][1])
    assert FeatureSet(1).spread == {}


def test_a_class_far_from_zero_keeps_its_small_variance():
    summary = FeatureSet(1)
    x = torch.tensor([0.0, 1.0, 2.0], dtype=DOUBLE)[:, None] * 1e-3 + 1e6
    for i in range(3):
        summary.update(x[i : i + 1], torch.tensor([i]), torch.tensor([0]))
    assert summary.spread[0][1] == pytest.approx(1e-6, rel=1e-5)  # 1e6 + 1e-3 itself is off by 1e-10


# ---- bad input


def nan_at(row):
    x = X.clone()
    x[row, 1] = math.nan
    return x


@pytest.mark.parametrize(
    ("error", "words", "batch"),
    [
        (NonFiniteError, "features of image 13 ", lambda: (nan_at(13), torch.arange(N))),
        (NonFiniteError, "image 1013 ", lambda: (nan_at(13), torch.arange(N) + 1000)),
        (ShapeError, r"\(97, 3\)", lambda: (X[:, :3], torch.arange(N))),
        (ShapeError, r"\(96,\)", lambda: (X, torch.arange(N - 1))),
        (ShapeError, r"\(4,\)", lambda: (X[0], torch.arange(4))),
        (ShapeError, "Labels", lambda: (X, torch.arange(N), LABELS[1:])),
        (ShapeError, "Labels", lambda: (X, torch.arange(N), LABELS.float())),
        (DtypeError, "int64", lambda: (X.long(), torch.arange(N))),
        (DtypeError, "float32", lambda: (X, torch.arange(N).float())),
        (DataError, "Image number 4294967296", lambda: (X, torch.arange(N) + 2**32 - 3)),
        (DataError, "Image number -5", lambda: (X, torch.arange(N) - 5)),
        (DataError, "Image 6 was added twice", lambda: (X, (torch.arange(N) - 6).abs().clamp(min=0) + 5)),
    ],
)
def test_a_bad_batch_adds_nothing(error, words, batch):
    summary = FeatureSet(DIM)
    with pytest.raises(error, match=words):
        summary.update(*batch())
    assert summary.n == len(summary.rows) == 0
    summary.update(X, torch.arange(N))  # labels or not is still open
    assert summary.n == N


def test_images_that_come_twice():
    summary = of(range(30))
    with pytest.raises(DataError, match="Image 29 was added twice"):
        summary.update(X[:5], torch.arange(29, 34), LABELS[:5])
    with pytest.raises(DataError, match="added twice"):
        summary.merge(of(range(10, 40)))
    assert summary.n == 30


def test_the_last_of_the_kept_rows_is_known_as_well():
    summary = FeatureSet(DIM, keep=5)
    summary.update(X, torch.arange(N))
    for image in summary.row_index.tolist():
        with pytest.raises(DataError, match=f"Image {image} was added twice"):
            summary.update(X[:1], torch.tensor([image]))


def test_labels_for_all_or_none():
    for summary, labels in ((of(range(5)), None), (of(range(5), labels=False), LABELS[5:10])):
        with pytest.raises(DataError, match="labels"):
            summary.update(X[5:10], torch.arange(5, 10), labels)
    with pytest.raises(DataError, match="labels"):
        of(range(5)).merge(of(range(5, 10), labels=False))
    assert FeatureSet(DIM).merge(of(range(5))).row_labels is not None


def test_unlike_settings():
    for other in (FeatureSet(DIM + 1), FeatureSet(DIM, keep=3), FeatureSet(DIM, groups=3)):
        with pytest.raises(ConfigError, match="agree"):
            of(range(5)).merge(other)
    for options in ({"keep": -1}, {"groups": 0}):
        with pytest.raises(ConfigError):
            FeatureSet(DIM, **options)
    with pytest.raises(ConfigError):
        FeatureSet(0)
    for without in (-1, 10):
        with pytest.raises(ConfigError):
            of(range(20)).moments(without)


# ---- probabilities and scores


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(N)), st.integers(1, N - 1))
def test_probabilities_and_scores_stream_and_merge(order, cut):
    order = torch.tensor(order)
    parts = []
    for rows in (order[:cut], order[cut:]):
        probabilities, scores = ProbabilitySet(DIM), ScoreSet()
        for batch in torch.split(rows, 13):
            probabilities.update(PROBABILITIES[batch].float(), batch)
            scores.update(X[batch, 0], batch)
        parts.append((probabilities, scores))
    probabilities, scores = (first.merge(second) for first, second in zip(*parts, strict=True))
    probabilities, scores = ProbabilitySet.from_state(probabilities.state()), ScoreSet.from_state(scores.state())
    assert probabilities.n == scores.n == N
    for without in (None, 0, 9):
        kept = group_of(torch.arange(N), 10) != (-1 if without is None else without)
        n, total, entropy = probabilities.sums(without)
        p = PROBABILITIES[kept]
        assert n == len(p)
        assert gap(total, p.sum(0)) < 1e-5
        assert entropy == pytest.approx(float(-(p * p.log()).sum()), rel=1e-6)
    assert torch.equal(scores.values, X[:, 0])
    assert torch.equal(scores.index, torch.arange(N))


def test_rows_that_sum_to_one_nearly_are_made_to():
    rows = torch.softmax(X, 1)
    exact, rounded = ProbabilitySet(DIM), ProbabilitySet(DIM)
    exact.update(rows, torch.arange(N))
    rounded.update(1.005 * rows, torch.arange(N))
    for a, b in zip(exact.sums(), rounded.sums(), strict=True):
        assert gap(torch.as_tensor(a).double(), torch.as_tensor(b).double()) < 1e-10


def test_certain_probabilities_have_no_entropy():
    probabilities = ProbabilitySet(3)
    probabilities.update(torch.eye(3), torch.arange(3))
    n, total, entropy = probabilities.sums()
    assert (n, total.tolist(), entropy) == (3, [1.0, 1.0, 1.0], 0.0)


def test_bad_probabilities_and_scores():
    index = torch.arange(N)
    for bad in (X, PROBABILITIES * 1.1, PROBABILITIES - 0.25):
        with pytest.raises(DataError, match=r"Image 0 .*probabilities"):
            ProbabilitySet(DIM).update(bad, index)
    with pytest.raises(NonFiniteError, match="image 2 "):
        ProbabilitySet(DIM).update(nan_at(2).softmax(1), index)
    with pytest.raises(NonFiniteError, match="scores of image 4 "):
        ScoreSet().update(nan_at(4)[:, 1], index)
    with pytest.raises(ShapeError):
        ScoreSet().update(X, index)
    scores = ScoreSet()
    scores.update(X[:5, 0], index[:5])
    with pytest.raises(DataError, match="Image 4 was added twice"):
        scores.update(X[4:7, 0], index[4:7])
    for use in (lambda: ProbabilitySet(1), lambda: ProbabilitySet(2, groups=0), lambda: ProbabilitySet(2).sums(10)):
        with pytest.raises(ConfigError):
            use()
    with pytest.raises(ConfigError):
        ProbabilitySet(2).merge(ProbabilitySet(3))
    for kind in (ProbabilitySet, ScoreSet):
        with pytest.raises(FewstepError, match="state"):
            kind.from_state({})
