"""Inception-v3 in its FID variant: the published names, the pools that make the difference, and who may say FID."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fewstep.errors import CheckpointError, MissingWeights, UnknownName
from fewstep.features import Classifying, inception, is_fid, load_inception
from fewstep.features.inception import FidInception

from .published import randomised, rgb

A = "branch1x1 branch5x5_1 branch5x5_2 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 branch_pool"
B = "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"
C = (
    "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 "
    "branch7x7dbl_5 branch_pool"
)
D = "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4"
E = (
    "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a branch3x3dbl_3b "
    "branch_pool"
)
BLOCKS = {"5b": A, "5c": A, "5d": A, "6a": B, "6b": C, "6c": C, "6d": C, "6e": C, "7a": D, "7b": E, "7c": E}
STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
PARTS = (
    "conv.weight",
    "bn.weight",
    "bn.bias",
    "bn.running_mean",
    "bn.running_var",
    "bn.num_batches_tracked",
)


@pytest.fixture(scope="module")
def network():
    return randomised(FidInception()).requires_grad_(False)


def test_the_published_names_and_shapes(network):
    """pt_inception-2015-12-05-6726825d.pth: 566 tensors in 95,628,359 bytes."""
    convolutions = [*STEM, *(f"Mixed_{block}.{name}" for block, names in BLOCKS.items() for name in names.split())]
    expected = {f"{name}.{part}" for name in convolutions for part in PARTS} | {"fc.weight", "fc.bias"}
    weights = network.state_dict()
    assert set(weights) == expected
    assert len(weights) == 566
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    assert 0 < 95_628_359 - size < 566 * 200  # the rest are names and offsets
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch1x1.bn.running_mean": (64,),
        "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6e.branch7x7dbl_4.conv.weight": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_3.conv.weight": (192, 192, 7, 1),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1008, 2048),
    }.items():
        assert tuple(weights[name].shape) == shape, name
    assert {module.eps for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {1e-3}


def windows(h: torch.Tensor, outside: float) -> torch.Tensor:
    """The 3 x 3 neighbourhoods, (b, c, 9, h, w), with a value for what lies outside."""
    padded = F.pad(h, (1, 1, 1, 1), value=outside)
    rows, columns = h.shape[2:]
    return torch.stack([padded[:, :, i : i + rows, j : j + columns] for i in range(3) for j in range(3)], 2)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in ("6a", "7a")])
def test_padding_does_not_count_and_the_last_block_takes_the_maximum(network, name):
    block = network.get_submodule(f"Mixed_{name}")
    h = torch.randn(1, block.branch1x1.conv.in_channels, 5, 6, generator=torch.Generator().manual_seed(0))
    if name == "7c":
        pooled = windows(h, float("-inf")).amax(2)
    else:
        inside = windows(torch.ones_like(h), 0.0).sum(2)
        pooled = windows(h, 0.0).sum(2) / inside
        assert float(inside.min()) == 4  # corners have four pixels, not nine
    expected = block.branch_pool(pooled)
    last = block(h)[:, -expected.shape[1] :]
    assert float((last - expected).abs().max() / expected.abs().max()) <= 1e-5


def by_hand(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The whole network in float64 from raw weights, each block written out."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def run(h, *names, stride=1, same=True):
        """Convolutions one after another; the last has the stride, and zeros around the image unless it has one."""
        for name in names:
            final = name == names[-1]
            kernel = w[f"{name}.conv.weight"]
            padded = same and not (final and stride == 2)
            padding = (kernel.shape[2] // 2, kernel.shape[3] // 2) if padded else (0, 0)
            h = F.conv2d(h, kernel, stride=stride if final else 1, padding=padding)
            mean, var, gain, bias = (
                w[f"{name}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
            )
            h = ((h - mean) / (var + 0.001).sqrt() * gain + bias).relu()
        return h

    def chain(h, block, stem, count, **options):
        return run(h, *(f"{block}.{stem}_{i + 1}" for i in range(count)), **options)

    def mean(h):
        return windows(h, 0.0).sum(2) / windows(torch.ones_like(h), 0.0).sum(2)

    def fork(h, block, stem):
        return [run(h, f"{block}.{stem}a"), run(h, f"{block}.{stem}b")]

    h = run(x.double(), STEM[0], stride=2)
    h = run(run(h, STEM[1], same=False), STEM[2])
    h = F.max_pool2d(h, 3, 2)
    h = run(run(h, STEM[3]), STEM[4], same=False)
    h = F.max_pool2d(h, 3, 2)
    for name, kind in BLOCKS.items():
        b = f"Mixed_{name}"
        if kind == A:
            parts = [run(h, f"{b}.branch1x1"), chain(h, b, "branch5x5", 2), chain(h, b, "branch3x3dbl", 3)]
        elif kind == B:
            parts = [run(h, f"{b}.branch3x3", stride=2), chain(h, b, "branch3x3dbl", 3, stride=2)]
        elif kind == C:
            parts = [run(h, f"{b}.branch1x1"), chain(h, b, "branch7x7", 3), chain(h, b, "branch7x7dbl", 5)]
        elif kind == D:
            parts = [chain(h, b, "branch3x3", 2, stride=2), chain(h, b, "branch7x7x3", 4, stride=2)]
        else:
            parts = [run(h, f"{b}.branch1x1")]
            parts += fork(run(h, f"{b}.branch3x3_1"), b, "branch3x3_2")
            parts += fork(chain(h, b, "branch3x3dbl", 2), b, "branch3x3dbl_3")
        if kind in (B, D):
            parts.append(F.max_pool2d(h, 3, 2))
        else:
            pooled = windows(h, float("-inf")).amax(2) if name == "7c" else mean(h)
            parts.append(run(pooled, f"{b}.branch_pool"))
        h = torch.cat(parts, 1)
    return h.mean((2, 3))


def test_parity_with_the_network_written_out(network):
    x = rgb(1, 75, 83)
    expected = by_hand(network.state_dict(), x)
    assert float((network.embed(x) - expected).abs().max() / expected.abs().max()) <= 1e-5


@pytest.mark.parametrize(("name", "channels"), [("6a", 288), ("7a", 768)])
def test_blocks_that_halve_end_in_a_maximum_of_whole_windows(network, name, channels):
    h = torch.randn(1, channels, 7, 9, generator=torch.Generator().manual_seed(0))
    out = network.get_submodule(f"Mixed_{name}")(h)
    whole = h.unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2))
    assert torch.equal(out[:, -channels:], whole)


def test_sizes_on_the_way(network):
    """149, 147, 73, 71, 35, 17 and 8 positions, as in the paper's table."""
    seen = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: tuple(out.shape[1:])})
        )
        for name in (*STEM, "Mixed_5d", "Mixed_6e", "Mixed_7a", "Mixed_7c")
    ]
    features = network.embed(rgb(1, 299, 299))
    for hook in hooks:
        hook.remove()
    assert list(seen.values()) == [
        (32, 149, 149),
        (32, 147, 147),
        (64, 147, 147),
        (80, 73, 73),
        (192, 71, 71),
        (288, 35, 35),
        (768, 17, 17),
        (1280, 8, 8),
        (2048, 8, 8),
    ]
    assert features.shape == (1, 2048)
    assert float((network.logits(features) - features @ network.fc.weight.T).abs().max()) <= 1e-3  # without the bias
    assert float(network.fc.bias.abs().max()) > 0.1


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "old format"])
def test_only_the_published_file_is_fid(network, tmp_path, monkeypatch, archive):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"  # a name proves nothing
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=archive)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *args, **options: pytest.fail("another pickle was opened"))
        with pytest.raises(CheckpointError, match=r"SHA-256 [0-9a-f]{8}\.\.\., and is not the published file"):
            load_inception(path)
    monkeypatch.setattr(inception, "PUBLISHED", hashlib.sha256(path.read_bytes()).hexdigest())
    features = load_inception(path, resize="legacy")
    assert is_fid(features.name)
    assert features.name == f"inception-fid@{features.fingerprint}"
    assert features.resize == "bilinear corner-aligned to 299 (TF1 legacy)"


def test_a_safetensors_file_is_inception_but_not_fid(network, tmp_path):
    path = tmp_path / "net.safetensors"
    weights = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    save_file(weights, path)
    features = load_inception(path)
    assert not is_fid(features.name)
    assert features.name == f"inception@{features.fingerprint}"
    assert isinstance(features, Classifying)
    assert features.resize == "bicubic antialiased to 299 (clean)"
    for shade, read in ((-1.0, -1.0), (1.0, 127 / 128)):  # black and white, of any size, as the graph reads them
        expected = network.embed(torch.full((1, 3, 299, 299), read))
        found = features(torch.full((1, 3, 24, 32), shade))
        assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-4
    del weights["fc.bias"]
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"fc\.bias is missing"):
        load_inception(path)
    with pytest.raises(UnknownName, match="legacy"):
        load_inception(path, resize="legacy_tensorflow")


def test_missing_weights_say_where_they_are(tmp_path):
    with pytest.raises(MissingWeights, match=r"pytorch-fid/releases/.*6726825d\.pth"):
        load_inception(tmp_path / "inception.pth")
    assert inception.PUBLISHED.startswith("6726825d")  # the file's own name says so
