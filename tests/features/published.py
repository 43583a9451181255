"""What the tests of published networks share: random weights of their shapes, and where real weights may be."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
NETWORKS = SHARED / "networks"

needs_weights = pytest.mark.skipif(not NETWORKS.is_dir(), reason=f"no published weights at {NETWORKS}")
needs_cifar = pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason=f"no CIFAR-10 as parquet at {SHARED}")


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep activations at unit scale through any depth, and running statistics other than 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.1, generator=generator)
            else:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
    return network.eval()


def rgb(b: int = 3, h: int = 32, w: int = 32, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random images of 8-bit values in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (b, 3, h, w), generator=generator).to(dtype) / 127.5 - 1


def cifar_test(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first n test images in [-1, 1], and their labels."""
    file = pq.ParquetFile(SHARED / "cifar10" / "test-00000-of-00001.parquet")
    rows = next(file.iter_batches(batch_size=n, columns=["image", "label"])).to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1, torch.tensor([row["label"] for row in rows])
