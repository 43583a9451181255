"""Reference statistics and sample batches in the npz formats of EDM, clean-fid and ADM.

==========================  =====================================  ====================================================
format                      arrays                                 written by
==========================  =====================================  ====================================================
"edm"                       mu, sigma                              EDM ``fid.py ref``; clean-fid writes the same arrays
"clean-fid"                 mu, sigma                              clean-fid, custom statistics
"clean-fid-kid"             feats                                  clean-fid, custom statistics for KID: all features
"adm"                       mu, sigma, mu_s, sigma_s               ADM evaluation batches, often with arr_0
"samples"                   arr_0, sometimes arr_1                 ADM sampling scripts: images, labels
"images"                    images, sometimes labels               plain
==========================  =====================================  ====================================================

`mu_s` and `sigma_s` of ADM are moments of *spatial* Inception features (sFID). fewstep has no such features: they are
left out on reading and on writing. ADM's own evaluator needs them, so give it images: :func:`write_samples`.
fewstep writes the number of images as one more array, `n`, which the other tools do not look at; files from elsewhere
do not say it. Nothing here unpickles: an array of objects is refused, as are the ``.pkl`` statistics of EDM2.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep._files import require, write_atomic
from fewstep.errors import DataError, DtypeError, ShapeError, choose
from fewstep.metrics.summary import FeatureSet

__all__ = ["NPZ_FORMATS", "npz_format", "read_samples", "read_statistics", "write_samples", "write_statistics"]

NPZ_FORMATS: Mapping[str, tuple[str, ...]] = {
    "edm": ("mu", "sigma"),
    "clean-fid": ("mu", "sigma"),
    "clean-fid-kid": ("feats",),
    "adm": ("mu", "sigma"),
}
"""Format that can be written -> its arrays."""

_KINDS = {
    "adm": ("mu", "sigma", "mu_s", "sigma_s"),
    "edm": ("mu", "sigma"),
    "clean-fid-kid": ("feats",),
    "samples": ("arr_0",),
    "images": ("images",),
}

# A covariance that went through float32 is off by about 1e-7 of its largest value; a wrong one by far more than this.
_ROUNDING = 1e-4


def npz_format(path: str | Path) -> str:
    """Recognise what an npz file holds by the names of its arrays.

    Args:
        path: the file.

    Returns:
        "adm", "edm" (which is clean-fid's format too), "clean-fid-kid", "samples" or "images".

    Raises:
        DataError: if the file is missing, damaged, a pickle, or holds none of these.
        MissingExtra: if numpy is not installed.
    """
    return _kind(path, _load(path, ()))


def read_statistics(path: str | Path) -> FeatureSet:
    """Read reference statistics of EDM, clean-fid or ADM; :func:`npz_format` says which it is.

    Args:
        path: an npz file with mu and sigma, or with feats.

    Returns:
        A set that is known by its moments, with its n where the file says it; one with rows and groups from feats.

    Raises:
        DataError: if the file is missing, damaged, a pickle or has no statistics, sigma is no covariance or n no count.
        ShapeError: if mu and sigma do not fit.
        NonFiniteError: if a value is NaN or infinite.
        MissingExtra: if numpy is not installed.
    """
    arrays = _load(path, ("mu", "sigma", "n", "feats"))
    if _kind(path, arrays) == "clean-fid-kid":
        return _from_features(path, arrays["feats"])
    if "mu" not in arrays or "sigma" not in arrays:
        raise DataError(
            f"{path} holds images and no statistics",
            "Statistics are mu and sigma, or feats",
            "Read the images with read_samples and compute their features",
        )
    mean, cov = _tensor(path, "mu", arrays["mu"]), _tensor(path, "sigma", arrays["sigma"])
    summary = FeatureSet.from_moments(mean.reshape(-1), cov, _count(path, arrays.get("n")))
    _check_covariance(path, cov)
    return summary


def write_statistics(path: str | Path, summary: FeatureSet, format: str = "edm") -> None:
    """Write statistics so that other tools read them, with the number of images as one more array.

    Args:
        path: the file; its folder must exist.
        summary: the reference. For "clean-fid-kid" all of its images must be among the kept rows.
        format: "edm", "clean-fid", "adm" (without the spatial half, see above) or "clean-fid-kid".

    Raises:
        UnknownName: if there is no such format.
        DataError: if the set has too few images for a covariance, or not all rows for "clean-fid-kid".
        OutputError: if the file cannot be written.
        MissingExtra: if numpy is not installed.
    """
    names = choose(format, NPZ_FORMATS, "npz format")
    if names == ("feats",):
        arrays = {"feats": _all_rows(summary)}
    else:
        moments = summary.moments()
        arrays = {"mu": moments.mean, "sigma": moments.cov}
        if summary.n_known:
            arrays["n"] = torch.tensor(summary.n)
    _save(path, arrays)


def read_samples(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Read 8-bit images from an npz file, as ADM's sampling scripts write them.

    Args:
        path: an npz file with arr_0 (n, h, w, c) and perhaps arr_1 (labels), or with images, (n, h, w, c), (n, c, h, w)
            or (n, h, w), and perhaps labels.

    Returns:
        Images, shape (n, c, h, w), uint8; labels, shape (n,), int64, or None.

    Raises:
        DataError: if the file is missing, damaged, a pickle or without images, or there are not as many labels.
        DtypeError: if the images are not 8-bit.
        ShapeError: if their shape has no axis of 1 or 3 channels, or two axes that may be it.
        MissingExtra: if numpy is not installed.
    """
    arrays = _load(path, ("arr_0", "arr_1", "images", "labels"))
    adm = "arr_0" in arrays
    if not adm and "images" not in arrays:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'}, no images",
            "Images are the array arr_0 or images",
            "Read statistics with read_statistics",
        )
    found = arrays["arr_0" if adm else "images"]
    if found.dtype.name != "uint8":
        raise DtypeError(
            f"{path} holds images of dtype {found.dtype}",
            "Images in npz files are 8-bit, 0 ... 255",
            "Round them to uint8 before they are written",
        )
    images = _channels_first(path, torch.from_numpy(found), last=adm)
    labels = arrays.get("arr_1" if adm else "labels")
    return images, None if labels is None else _labels(path, labels, len(images))


def write_samples(path: str | Path, images: Tensor, labels: Tensor | None = None) -> None:
    """Write 8-bit images as a sample batch of ADM, arr_0 (n, h, w, c) and arr_1, which its evaluator reads.

    Args:
        path: the file; its folder must exist.
        images: shape (n, c, h, w), uint8.
        labels: shape (n,), integers, or None.

    Raises:
        ShapeError: if the images are not (n, c, h, w), or there are not as many labels.
        DtypeError: if the images are not uint8.
        OutputError: if the file cannot be written.
        MissingExtra: if numpy is not installed.
    """
    if images.ndim != 4 or (labels is not None and labels.shape != images.shape[:1]):
        given = "none" if labels is None else tuple(labels.shape)
        raise ShapeError(
            f"Images of shape {tuple(images.shape)} and labels of shape {given}",
            "They have shapes (n, c, h, w) and (n,)",
            "Pass one label per image, or none",
        )
    if images.dtype != torch.uint8:
        raise DtypeError(f"Images of dtype {images.dtype}", "They are uint8", "Round them to 0 ... 255 first")
    arrays = {"arr_0": images.permute(0, 2, 3, 1).contiguous()}
    _save(path, arrays if labels is None else {**arrays, "arr_1": labels.to(torch.int64)})


def _load(path: str | Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Arrays of an npz file by name; those that are not among `names` are listed without being read."""
    numpy = require("numpy", "metrics")
    path = Path(path)
    if path.suffix == ".pkl":
        raise DataError(
            f"{path} is a pickle, as EDM2 writes its statistics",
            "Only npz files are read, because opening a pickle runs the code inside it",
            "Where you trust it, convert it: np.savez('ref.npz', **pickle.load(open('ref.pkl', 'rb'))['fid'])",
        )
    try:
        with open(path, "rb") as handle:
            file = numpy.load(handle, allow_pickle=False)
            if isinstance(file, numpy.ndarray):
                raise ValueError("it is one array without a name")
            return {name: file[name] if name in names else None for name in file.files}
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds, by what is wrong with the file
        raise DataError(
            f"{path} cannot be read as an npz file ({error})",
            "It must be a whole npz file of plain arrays; arrays of pickled objects are never opened",
            "Check the path, download it again, or write it again",
        ) from error


def _kind(path: str | Path, arrays: Mapping[str, Any]) -> str:
    for kind, needed in _KINDS.items():
        if set(needed) <= set(arrays):
            return kind
    raise DataError(
        f"{path} holds the arrays {', '.join(sorted(arrays)) or 'none'}",
        "Known are " + "; ".join(f"{', '.join(needed)} ({kind})" for kind, needed in _KINDS.items()),
        "Check that it is the right file",
    )


def _save(path: str | Path, arrays: Mapping[str, Tensor]) -> None:
    buffer = io.BytesIO()
    require("numpy", "metrics").savez(buffer, **{name: tensor.cpu().numpy() for name, tensor in arrays.items()})
    write_atomic(path, buffer.getvalue())


def _tensor(path: str | Path, name: str, array: Any) -> Tensor:
    if array.dtype.kind != "f" or array.size == 0:
        raise DataError(
            f"{name} in {path} has shape {array.shape} and dtype {array.dtype}",
            "Statistics and features are floats, and not empty",
            "Write the file again",
        )
    return torch.from_numpy(array.astype("float64"))


def _count(path: str | Path, n: Any) -> int | None:
    if n is None or (n.size == 1 and n.dtype.kind in "iuf" and float(n.item()).is_integer()):
        return None if n is None else int(n.item())
    raise DataError(f"n in {path} is {n!r}", "It is a whole number of images, or not there", "Write the file again")


def _from_features(path: str | Path, features: Any) -> FeatureSet:
    rows = _tensor(path, "feats", features)
    if rows.ndim != 2:
        raise ShapeError(
            f"feats of shape {tuple(rows.shape)} in {path}", "They have shape (n, dim)", "Write the file again"
        )
    summary = FeatureSet(rows.shape[1], keep=len(rows))
    summary.update(rows, torch.arange(len(rows)))
    return summary


def _all_rows(summary: FeatureSet) -> Tensor:
    rows = summary.rows
    if not summary.n_known or len(rows) < summary.n or len(rows) == 0:
        raise DataError(
            f"A set with {len(rows)} kept rows" + (f" of {summary.n} images" if summary.n_known else ""),
            "clean-fid's KID file holds the features of all images",
            "Build the set with a larger keep",
        )
    return rows


def _check_covariance(path: str | Path, cov: Tensor) -> None:
    size, skew = float(cov.abs().max()), float((cov - cov.mT).abs().max())
    lowest = float(torch.linalg.eigvalsh((cov + cov.mT) / 2)[0])
    if skew > _ROUNDING * size or lowest < -_ROUNDING * size:
        raise DataError(
            f"sigma in {path} is no covariance: asymmetric by {skew:.3g}, lowest eigenvalue {lowest:.3g}",
            "A covariance is symmetric and has no negative eigenvalue",
            "Check that the file was not cut or mixed up, and write it again",
        )


def _channels_first(path: str | Path, images: Tensor, last: bool) -> Tensor:
    if images.ndim == 3 and not last:
        return images[:, None]
    axes = [axis for axis in ((3,) if last else (1, 3)) if images.ndim == 4 and images.shape[axis] in (1, 3)]
    if len(axes) != 1:
        raise ShapeError(
            f"Images of shape {tuple(images.shape)} in {path}",
            "arr_0 is (n, h, w, c); images is (n, h, w, c), (n, c, h, w) or (n, h, w); c is 1 or 3",
            "Write them as arr_0 in the order (n, h, w, c)",
        )
    return images.movedim(axes[0], 1).contiguous()


def _labels(path: str | Path, labels: Any, n: int) -> Tensor:
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds labels of shape {labels.shape} and dtype {labels.dtype} for {n} images",
            f"Labels are integers of shape ({n},)",
            "Write the file again",
        )
    return torch.from_numpy(labels.astype("int64"))
