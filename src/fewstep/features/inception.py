r"""Inception-v3 as FID knows it: 2048 pooled features and 1008 logits, from a path.

The network is TensorFlow's graph of 2015-12-05, not the one that image libraries call Inception-v3. It differs in

* average pools that divide by the number of pixels under the window, so that zero padding does not count,
* a max pool in the last block, where the paper has an average pool (the graph's mistake, kept by every FID),
* 1008 classes, and pixels read as (u - 128) / 128 for u in 0..255.

.. math:: f = \mathrm{mean}_{8 \times 8}(h_{7c}) \in R^{2048}, \qquad \mathrm{logits} = W f \in R^{1008}

The logits leave out the bias, as the Inception Score always has.

A Fréchet distance in these features may be called FID only with the published weights, which are recognised by the
SHA-256 of their file; then the features are named "inception-fid@...", otherwise "inception@...". The resize belongs to
the name of a FID: "clean" gives clean-fid's numbers, "legacy" those of the original code, torch-fidelity, ADM and EDM.
(pytorch-fid resizes in a third way and reads (u - 127.5) / 127.5; its numbers differ a little and are not reproduced.)
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.errors import CheckpointError, choose
from fewstep.features.frozen import ClassifierNetwork, ClassifierNetworkFeatures
from fewstep.features.resize import Clean, Legacy, Resize
from fewstep.features.weights import build, find_weights, read_weights

__all__ = ["FidInception", "is_fid", "load_inception"]

PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WHERE = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth "
    "(95,628,359 bytes)"
)
_RESIZES: dict[str, Resize] = {"clean": Clean(299), "legacy": Legacy(299)}
# (u - 128) / 128 for u = 127.5 (x + 1), written as (x - shift) / scale.
_SHIFT, _SCALE = (0.5 / 127.5,) * 3, (128 / 127.5,) * 3


class _Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(
        self, channels_in: int, channels: int, kernel: tuple[int, int], stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, h: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(h)))


class _Step(NamedTuple):
    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)


class _Branch(NamedTuple):
    """A pool ("mean", "max" or none), convolutions one after another, then perhaps some side by side."""

    chain: tuple[_Step, ...] = ()
    fork: tuple[_Step, ...] = ()
    pool: str = ""


def _pool(h: Tensor, kind: str, stride: int) -> Tensor:
    padding = 1 if stride == 1 else 0
    if kind == "mean":
        return functional.avg_pool2d(h, 3, stride, padding, count_include_pad=False)
    return functional.max_pool2d(h, 3, stride, padding) if kind == "max" else h


class _Mixed(nn.Module):
    """Branches side by side, their channels concatenated; with stride 2 the last step of each halves the image."""

    def __init__(self, channels_in: int, branches: tuple[_Branch, ...], stride: int = 1) -> None:
        super().__init__()
        self.branches, self.stride = branches, stride
        for branch in branches:
            channels = channels_in
            for step in branch.chain:
                halves = stride == 2 and step is branch.chain[-1]
                convolution = _Convolution(channels, step.channels, step.kernel, 2 if halves else 1, padded=not halves)
                self.add_module(step.name, convolution)
                channels = step.channels
            for step in branch.fork:
                self.add_module(step.name, _Convolution(channels, step.channels, step.kernel))

    def _run(self, branch: _Branch, h: Tensor) -> list[Tensor]:
        h = _pool(h, branch.pool, self.stride)
        for step in branch.chain:
            h = self.get_submodule(step.name)(h)
        return [self.get_submodule(step.name)(h) for step in branch.fork] or [h]

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([part for branch in self.branches for part in self._run(branch, h)], 1)


_DOUBLE = (_Step("branch3x3dbl_1", 64), _Step("branch3x3dbl_2", 96, (3, 3)), _Step("branch3x3dbl_3", 96, (3, 3)))


def _a(pooled: int) -> tuple[_Branch, ...]:
    """35 x 35 positions."""
    return (
        _Branch((_Step("branch1x1", 64),)),
        _Branch((_Step("branch5x5_1", 48), _Step("branch5x5_2", 64, (5, 5)))),
        _Branch(_DOUBLE),
        _Branch((_Step("branch_pool", pooled),), pool="mean"),
    )


def _b() -> tuple[_Branch, ...]:
    """From 35 x 35 to 17 x 17."""
    return (
        _Branch((_Step("branch3x3", 384, (3, 3)),)),
        _Branch(_DOUBLE),
        _Branch(pool="max"),
    )


def _c(width: int) -> tuple[_Branch, ...]:
    """17 x 17 positions, with 7 x 7 filters taken apart."""
    across, down = (1, 7), (7, 1)
    return (
        _Branch((_Step("branch1x1", 192),)),
        _Branch(
            (_Step("branch7x7_1", width), _Step("branch7x7_2", width, across), _Step("branch7x7_3", 192, down)),
        ),
        _Branch(
            (
                _Step("branch7x7dbl_1", width),
                _Step("branch7x7dbl_2", width, down),
                _Step("branch7x7dbl_3", width, across),
                _Step("branch7x7dbl_4", width, down),
                _Step("branch7x7dbl_5", 192, across),
            )
        ),
        _Branch((_Step("branch_pool", 192),), pool="mean"),
    )


def _d() -> tuple[_Branch, ...]:
    """From 17 x 17 to 8 x 8."""
    return (
        _Branch((_Step("branch3x3_1", 192), _Step("branch3x3_2", 320, (3, 3)))),
        _Branch(
            (
                _Step("branch7x7x3_1", 192),
                _Step("branch7x7x3_2", 192, (1, 7)),
                _Step("branch7x7x3_3", 192, (7, 1)),
                _Step("branch7x7x3_4", 192, (3, 3)),
            )
        ),
        _Branch(pool="max"),
    )


def _e(pool: Literal["mean", "max"]) -> tuple[_Branch, ...]:
    """8 x 8 positions, with 3 x 3 filters that fork into rows and columns."""
    across, down = (1, 3), (3, 1)
    return (
        _Branch((_Step("branch1x1", 320),)),
        _Branch(
            (_Step("branch3x3_1", 384),),
            fork=(_Step("branch3x3_2a", 384, across), _Step("branch3x3_2b", 384, down)),
        ),
        _Branch(
            (_Step("branch3x3dbl_1", 448), _Step("branch3x3dbl_2", 384, (3, 3))),
            fork=(_Step("branch3x3dbl_3a", 384, across), _Step("branch3x3dbl_3b", 384, down)),
        ),
        _Branch((_Step("branch_pool", 192),), pool=pool),
    )


class FidInception(ClassifierNetwork):
    """Inception-v3 of TensorFlow's 2015-12-05 graph, under the names of its published PyTorch conversion.

    Source:
        Szegedy et al. 2015, arXiv:1512.00567, Table 1, and the graph that Heusel et al. 2017, arXiv:1706.08500, use.
        Departs from it in: no auxiliary classifier, which the published weights do not have either.
    """

    dim, least = 2048, 75

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, (3, 3), stride=2, padded=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, (3, 3), padded=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = _Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Convolution(80, 192, (3, 3), padded=False)
        self.Mixed_5b = _Mixed(192, _a(32))
        self.Mixed_5c = _Mixed(256, _a(64))
        self.Mixed_5d = _Mixed(288, _a(64))
        self.Mixed_6a = _Mixed(288, _b(), stride=2)
        self.Mixed_6b = _Mixed(768, _c(128))
        self.Mixed_6c = _Mixed(768, _c(160))
        self.Mixed_6d = _Mixed(768, _c(160))
        self.Mixed_6e = _Mixed(768, _c(192))
        self.Mixed_7a = _Mixed(768, _d(), stride=2)
        self.Mixed_7b = _Mixed(1280, _e("mean"))
        self.Mixed_7c = _Mixed(2048, _e("max"))
        self.fc = nn.Linear(2048, 1008)

    def embed(self, x: Tensor) -> Tensor:
        """Map images (b, 3, 299, 299), read as (u - 128) / 128, to the mean of the last feature maps, (b, 2048)."""
        h = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        h = _pool(h, "max", stride=2)
        h = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(h))
        h = _pool(h, "max", stride=2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            h = self.get_submodule(f"Mixed_{name}")(h)
        pooled: Tensor = h.mean((2, 3))
        return pooled

    def logits(self, features: Tensor) -> Tensor:
        """Map features (b, 2048) to 1008 logits without the bias, as the Inception Score reads them."""
        return functional.linear(features, self.fc.weight)


def _read(path: str | Path) -> tuple[dict[str, Tensor], bool]:
    """Read the weights, and say whether the file is the published one; no other pickle is opened."""
    file = find_weights(path, "Inception-v3 in its FID variant", WHERE)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest == PUBLISHED:
        weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return weights, True
    if file.suffix in (".pth", ".pt", ".pkl"):
        raise CheckpointError(
            f"{file} has the SHA-256 {digest[:8]}..., and is not the published file ({PUBLISHED[:8]}...)",
            "Opening a pickle can run the code inside it, so only that one is opened",
            f"Download it again: {WHERE}; or convert yours to safetensors, under its published names",
        )
    return read_weights(file, "Inception-v3", WHERE), False


def load_inception(path: str | Path, resize: Literal["clean", "legacy"] = "clean") -> ClassifierNetworkFeatures:
    """Read Inception-v3 in its FID variant.

    Args:
        path: the published file, or a safetensors file with the same names.
        resize: "clean" for clean-fid's antialiased bicubic, "legacy" for the original's TensorFlow 1 bilinear.

    Returns:
        Features of RGB images of any size, 2048 numbers each: "inception-fid@..." if the file is the published one,
        else "inception@...". `logits_of` gives the 1008 logits of the Inception Score.

    Raises:
        UnknownName: if there is no such resize.
        MissingWeights: if there is no such file.
        CheckpointError: if it is another pickle, or does not hold exactly the weights of this network.
    """
    way = choose(resize, _RESIZES, "resize")
    weights, published = _read(path)
    network = build(FidInception, weights, path)
    return ClassifierNetworkFeatures(network, "inception-fid" if published else "inception", _SHIFT, _SCALE, resize=way)


def is_fid(name: str) -> bool:
    """Tell by their name whether a Fréchet distance in some features may be called FID."""
    return name.startswith("inception-fid@")
