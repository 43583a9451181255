"""npz files of other tools: read with fewstep, written for plain numpy, and refused where they are something else."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from fewstep.errors import DataError, DtypeError, NonFiniteError, OutputError, ShapeError, UnknownName
from fewstep.metrics import (
    NPZ_FORMATS,
    FeatureSet,
    fd,
    npz_format,
    read_samples,
    read_statistics,
    write_samples,
    write_statistics,
)

DOUBLE = torch.float64
X = torch.randn(40, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) @ torch.randn(
    5, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)
)
MEAN, COV = X.numpy().mean(0), np.cov(X.numpy(), rowvar=False)
LOWEST = np.linalg.eigvalsh(COV)[0]
IMAGES = torch.randint(256, (6, 3, 4, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def summary():
    summary = FeatureSet(5)
    summary.update(X, torch.arange(40))
    return summary


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.npz"


# ---- statistics


@pytest.mark.parametrize("format", ["edm", "clean-fid", "adm"])
def test_numpy_reads_what_fewstep_writes(format, summary, path):
    write_statistics(path, summary, format)
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {*NPZ_FORMATS[format], "n"}
        assert np.abs(file["mu"] - MEAN).max() < 1e-13
        assert np.abs(file["sigma"] - COV).max() < 1e-13
        assert (file["mu"].dtype, int(file["n"])) == (np.float64, 40)
    again = read_statistics(path)
    assert (again.n, again.dim, len(again.rows)) == (40, 5, 0)
    assert fd(again, summary).value < 1e-12
    assert list(path.parent.iterdir()) == [path]


def test_kid_features_of_clean_fid(summary, path):
    write_statistics(path, summary, "clean-fid-kid")
    with np.load(path) as file:
        assert file.files == ["feats"]
        assert np.array_equal(file["feats"], X.float()[summary.row_index].numpy())
    again = read_statistics(path)
    assert npz_format(path) == "clean-fid-kid"
    assert torch.equal(again.rows[again.row_index.argsort()], summary.rows)
    assert (again.n, again.groups) == (40, 10)
    assert fd(again, summary).value < 1e-11


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("edm", {}),
        ("adm", {"mu_s": np.zeros(7), "sigma_s": np.eye(7)}),
        ("adm", {"mu_s": np.zeros(7), "sigma_s": np.eye(7), "arr_0": np.zeros((2, 4, 4, 3), np.uint8)}),
    ],
)
def test_fewstep_reads_what_others_write(kind, more, dtype, summary, path):
    np.savez(path, mu=MEAN.astype(dtype), sigma=COV.astype(dtype), **more)
    assert npz_format(path) == kind
    again = read_statistics(path)
    assert not again.n_known
    assert np.abs(again.moments().cov.numpy() - COV).max() < (1e-15 if dtype == "float64" else 1e-6) * 50
    assert fd(summary, again).value < (1e-12 if dtype == "float64" else 1e-6)
    write_statistics(path, again)
    with np.load(path) as file:
        assert set(file.files) == {"mu", "sigma"}  # nobody knows n, so none is written


def test_singular_statistics_are_statistics(path):
    np.savez(path, mu=np.zeros(3), sigma=np.diag([1.0, 0.0, -1e-9]))  # numpy's own rounding leaves such values
    assert read_statistics(path).moments().cov.trace() == pytest.approx(1.0)


# ---- samples


def test_sample_batches_of_adm(path):
    labels = torch.tensor([3, 1, 4, 1, 5, 9])
    write_samples(path, IMAGES, labels)
    with np.load(path) as file:
        assert file["arr_0"].shape == (6, 4, 8, 3)
        assert np.array_equal(file["arr_0"][2, 1, 5], IMAGES[2, :, 1, 5].numpy())
    images, again = read_samples(path)
    assert npz_format(path) == "samples"
    assert torch.equal(images, IMAGES)
    assert torch.equal(again, labels)
    write_samples(path, IMAGES)
    assert read_samples(path)[1] is None


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_plain_images_in_either_order(axes, path):
    np.savez(path, images=IMAGES.permute(axes).numpy(), labels=np.arange(6, dtype=np.int32))
    images, labels = read_samples(path)
    assert npz_format(path) == "images"
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, torch.arange(6))


def test_grey_images_without_a_channel_axis(path):
    np.savez(path, images=IMAGES[:, 0].numpy())
    assert torch.equal(read_samples(path)[0], IMAGES[:, :1])


# ---- bad input


@pytest.mark.parametrize(
    ("error", "words", "arrays"),
    [
        (DataError, "no covariance: asymmetric", {"mu": MEAN, "sigma": np.triu(COV)}),
        (DataError, "no covariance", {"mu": MEAN, "sigma": COV - 2 * np.eye(5) * COV.max()}),
        (DataError, "lowest eigenvalue -", {"mu": MEAN, "sigma": COV - np.eye(5) * (LOWEST + 0.01 * COV.max())}),
        (ShapeError, r"\(5,\)", {"mu": MEAN, "sigma": np.eye(4)}),
        (ShapeError, r"\(5, 4\)", {"mu": MEAN, "sigma": np.ones((5, 4))}),
        (NonFiniteError, "mean", {"mu": MEAN * np.nan, "sigma": COV}),
        (NonFiniteError, "covariance", {"mu": MEAN, "sigma": COV * np.inf}),
        (DataError, "int64", {"mu": np.arange(5), "sigma": COV}),
        (DataError, "not empty", {"mu": np.zeros(0), "sigma": np.zeros((0, 0))}),
        (DataError, "Moments of 1 samples", {"mu": MEAN, "sigma": COV, "n": np.array(1)}),
        (DataError, "n in .* is array\\(nan\\)", {"mu": MEAN, "sigma": COV, "n": np.array(np.nan)}),
        (DataError, "whole number", {"mu": MEAN, "sigma": COV, "n": np.array(40.5)}),
        (DataError, "whole number", {"mu": MEAN, "sigma": COV, "n": np.array("many")}),
        (DataError, "whole number", {"mu": MEAN, "sigma": COV, "n": np.array([40, 41])}),
        (DataError, "arrays mean, std", {"mean": MEAN, "std": COV}),
        (DataError, "images and no statistics", {"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}),
        (ShapeError, r"feats of shape \(5,\)", {"feats": MEAN}),
        (NonFiniteError, "image 2 ", {"feats": np.where(np.arange(20).reshape(5, 4) == 9, np.nan, 1.0)}),
        (DataError, "pickled objects", {"mu": np.array([{}], dtype=object), "sigma": COV}),
    ],
)
def test_what_is_no_statistics(error, words, arrays, path):
    np.savez(path, **arrays)
    with pytest.raises(error, match=words):
        read_statistics(path)


def test_files_that_are_missing_damaged_or_pickles(summary, path, tmp_path):
    with pytest.raises(DataError, match=r"file\.npz cannot be read"):
        read_statistics(path)
    write_statistics(path, summary)
    whole = path.read_bytes()
    for damaged in (whole[:-50], whole[:200], b"", b"no npz"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read as an npz file"):
            read_statistics(path)
    np.save(tmp_path / "one.npy", MEAN)
    with pytest.raises(DataError, match="without a name"):
        npz_format(tmp_path / "one.npy")
    for name in ("ref.pkl", "ref.npz"):
        (tmp_path / name).write_bytes(pickle.dumps({"fid": {"mu": MEAN, "sigma": COV}}))
        with pytest.raises(DataError, match="pickle"):
            read_statistics(tmp_path / name)


@pytest.mark.parametrize(
    ("error", "words", "arrays"),
    [
        (DtypeError, "float32", {"images": np.zeros((2, 4, 4, 3), np.float32)}),
        (ShapeError, "c is 1 or 3", {"images": np.zeros((2, 3, 4, 3), np.uint8)}),
        (ShapeError, "c is 1 or 3", {"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}),
        (ShapeError, "c is 1 or 3", {"arr_0": np.zeros((2, 4, 4), np.uint8)}),
        (DataError, "for 2 images", {"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros(3, np.int64)}),
        (DataError, "dtype <U1", {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array(["a", "b"])}),
        (DataError, "no images", {"mu": MEAN, "sigma": COV}),
    ],
)
def test_what_is_no_samples(error, words, arrays, path):
    np.savez(path, **arrays)
    with pytest.raises(error, match=words):
        read_samples(path)


def test_what_cannot_be_written(summary, path, tmp_path):
    with pytest.raises(UnknownName, match="clean-fid"):
        write_statistics(path, summary, "cleanfid")
    with pytest.raises(OutputError):
        write_statistics(tmp_path / "nowhere" / "file.npz", summary)
    few = FeatureSet(5, keep=10)
    few.update(X, torch.arange(40))
    for lacking in (few, FeatureSet(5), FeatureSet.from_moments(X.mean(0), X.T.cov(), None)):
        with pytest.raises(DataError, match="kept rows"):
            write_statistics(path, lacking, "clean-fid-kid")
    with pytest.raises(DataError, match="Moments of 0 samples"):
        write_statistics(path, FeatureSet(5))
    with pytest.raises(DtypeError):
        write_samples(path, IMAGES.float())
    for images, labels in ((IMAGES[0], None), (IMAGES, torch.arange(5))):
        with pytest.raises(ShapeError):
            write_samples(path, images, labels)
    assert not path.exists()
