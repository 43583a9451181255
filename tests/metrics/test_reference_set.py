"""References: summaries in one pass, kept under what they are, and refused when they are something else."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from fewstep.errors import CheckpointError, ProtocolError
from fewstep.features import Pixels, RandomConv
from fewstep.metrics.frechet import Moments
from fewstep.metrics.judge import JUDGES, load_judge
from fewstep.metrics.reference_set import (
    Reference,
    cache_folder,
    content_hash,
    gather_reference,
    statistics_reference,
)
from fewstep.metrics.summary import FeatureSet

N, SHAPE = 620, (1, 6, 6)
IMAGES = torch.randint(0, 256, (N, *SHAPE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
LABELS = torch.arange(N) % 3


class Counting:
    """Pixels that count how many images they have seen."""

    def __init__(self) -> None:
        self.pixels, self.seen = Pixels(SHAPE), 0
        self.name, self.dim, self.resize = self.pixels.name, self.pixels.dim, self.pixels.resize

    def __call__(self, images):
        self.seen += len(images)
        return self.pixels(images)


def gathered(features, cache=None, images=IMAGES, labels=LABELS, keep=10_000) -> Reference:
    return gather_reference("toy", "test", images, labels, features, cache=cache, keep=keep)


def test_one_pass_gives_moments_rows_and_spreads_of_all_images():
    features = Counting()
    reference = gathered([features, RandomConv(1)])
    assert features.seen == N
    x = (IMAGES.double() / 127.5 - 1).flatten(1)
    summary = reference.summary(features.name)
    torch.testing.assert_close(summary.moments().mean, x.mean(0), atol=1e-7, rtol=0)
    torch.testing.assert_close(summary.moments().cov, x.T.cov(), atol=1e-7, rtol=0)
    assert torch.equal(summary.rows, (IMAGES.float() / 127.5 - 1).flatten(1)[summary.row_index])
    assert sorted(summary.row_index.tolist()) == list(range(N))
    for label, (count, trace) in summary.spread.items():
        own = x[label == LABELS]
        assert (count, trace) == (len(own), pytest.approx(float(own.var(0).sum()), rel=1e-6))
    assert (reference.id.n, reference.id.hash) == (N, content_hash(IMAGES, LABELS))


def test_the_hash_is_that_of_pixels_labels_and_order():
    assert content_hash(IMAGES) == content_hash(IMAGES.clone())
    changed = IMAGES.clone()
    changed[7, 0, 3, 3] ^= 1
    others = [content_hash(changed), content_hash(IMAGES.flip(0)), content_hash(IMAGES, LABELS)]
    assert len({content_hash(IMAGES), *others}) == 4


def test_a_cached_summary_is_bitwise_the_same_and_not_computed_again(tmp_path):
    first, second = Counting(), Counting()
    made, read = gathered([first], tmp_path), gathered([second], tmp_path)
    assert (first.seen, second.seen) == (N, 0)
    for name, value in made.sets[first.name].state().items():
        assert torch.equal(value, read.sets[first.name].state()[name]), name


@pytest.mark.parametrize("changes", [{"images": IMAGES.flip(0)}, {"labels": None}, {"keep": 5}])
def test_what_is_something_else_is_computed_anew(tmp_path, changes):
    gathered([Counting()], tmp_path)
    again = Counting()
    gathered([again], tmp_path, **changes)
    assert again.seen == N


def cached(tmp_path):
    gathered([Counting()], tmp_path)
    (file,) = tmp_path.glob("*.json")
    return file


def test_a_cache_of_another_protocol_is_refused(tmp_path):
    file = cached(tmp_path)
    content = json.loads(file.read_text())
    content["protocol"]["resize"] = "bilinear"
    file.write_text(json.dumps(content))
    with pytest.raises(ProtocolError, match=r"another protocol: resize: 'bilinear' and 'none'") as refusal:
        gathered([Counting()], tmp_path)
    assert str(file) in refusal.value.given
    assert "Remove" in refusal.value.todo


@pytest.mark.parametrize("damage", ["cut", "other tensors", "no tensors", "no json"])
def test_a_damaged_cache_is_named(tmp_path, damage):
    file = cached(tmp_path)
    tensors = file.with_suffix(".safetensors")
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif damage == "other tensors":
        gathered([Counting()], tmp_path / "other", images=IMAGES.flip(0))
        shutil.copy(next((tmp_path / "other").glob("*.safetensors")), tensors)
    elif damage == "no tensors":
        tensors.unlink()
    else:
        file.write_text("{")
    with pytest.raises(CheckpointError) as refusal:
        gathered([Counting()], tmp_path)
    assert file.stem in refusal.value.given


def test_half_a_cache_counts_as_none(tmp_path):
    """A process killed between the two files leaves tensors without a description."""
    cached(tmp_path).unlink()
    again = Counting()
    gathered([again], tmp_path)
    assert again.seen == N


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FEWSTEP_CACHE", raising=False)
    assert cache_folder() == tmp_path / "fewstep" / "reference"
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_features_that_a_reference_does_not_have_are_refused():
    with pytest.raises(ProtocolError, match="It is known in pixels 1x6x6"):
        gathered([Counting()]).summary("other@000000000000")


def test_statistics_of_others_have_moments_and_may_not_know_n():
    moments = Moments((IMAGES.double() / 255).flatten(1))
    summary = FeatureSet.from_moments(moments.mean, moments.cov, None)
    reference = statistics_reference("ref.npz", b"content", summary, Pixels(SHAPE))
    assert (reference.id.n, reference.images) == (None, None)
    assert "n = unknown" in str(reference.id)
    with pytest.raises(ProtocolError, match="of 36 dimensions"):
        statistics_reference("ref.npz", b"content", summary, Pixels((1, 5, 5)))


def test_the_shipped_judge_brings_rows_classes_and_the_hash_of_its_images():
    judge = load_judge("mnist-judge")
    reference = judge.reference_set()
    summary = reference.summary(judge.features.name)
    assert (reference.id.name, reference.id.split, reference.id.n) == ("MNIST", "test", 10_000)
    assert reference.id.hash == judge.facts["images"]
    assert torch.equal(summary.moments().cov, judge.reference.cov)
    assert summary.rows.shape == (5000, 64)
    assert summary.row_labels is not None
    assert sorted(summary.spread) == list(range(10))
    assert sum(count for count, _ in summary.spread.values()) == 10_000
    # Half of the images are a sample of all of them: means agree within their standard errors.
    apart = (summary.rows.double().mean(0) - judge.reference.mean) / (judge.reference.cov.diag() / 5000).sqrt()
    assert float(apart.abs().max()) < 5


def test_rows_of_another_judge_are_refused(tmp_path):
    shutil.copytree(JUDGES["mnist-judge"], tmp_path / "judge")
    rows = tmp_path / "judge" / "rows.safetensors"
    rows.write_bytes(rows.read_bytes()[:-2] + b"\x01\x02")
    with pytest.raises(CheckpointError, match=r"rows\.safetensors are not those"):
        load_judge(tmp_path / "judge")
