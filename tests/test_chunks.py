"""A batch in chunks: values and gradients of the whole batch, the memory of one chunk."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewstep._chunks import in_chunks
from fewstep.errors import ConfigError, ShapeError

DOUBLE = torch.float64


class Conditional(nn.Module):
    """Two layers and a condition, row by row; counts its calls."""

    def __init__(self, width: int = 8, dropout: float = 0.0, dtype: torch.dtype = DOUBLE) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(6, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3)
        ).to(dtype)
        self.table = nn.Embedding(4, 6, dtype=dtype)
        self.calls = 0

    def forward(self, x: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        self.calls += 1
        return self.layers(x if cond is None else x + self.table(cond["label"]))


def batch(n: int = 11) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, dtype=DOUBLE, generator=generator).requires_grad_()
    return x, {"label": torch.arange(n) % 4}


def whole_batch_loss(out: Tensor) -> Tensor:
    """No sum over samples: every pair of them counts."""
    return (out @ out.T).tanh().logsumexp((0, 1))


def gradients(out: Tensor, x: Tensor, network: nn.Module) -> Tensor:
    parts = torch.autograd.grad(whole_batch_loss(out), [x, *network.parameters()])
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("size", [1, 4, 5, 10, 11, 100])
def test_the_gradient_is_that_of_the_whole_batch(size: int) -> None:
    network, (x, cond) = Conditional(), batch()
    plain, chunked = network(x, cond), in_chunks(network, (x, cond), size)
    assert float((plain - chunked).detach().abs().max()) < 1e-14
    error = (gradients(plain, x, network) - gradients(chunked, x, network)).abs().max()
    assert float(error) < 1e-12


@pytest.mark.parametrize(("size", "forward", "backward"), [(4, 3, 6), (11, 1, 1)])
def test_each_chunk_is_run_once_more_in_the_backward_pass(size: int, forward: int, backward: int) -> None:
    network, (x, cond) = Conditional(), batch()
    out = in_chunks(network, (x, cond), size)
    assert network.calls == forward
    out.sum().backward()
    assert network.calls == backward


def test_no_condition_stays_none_and_no_gradient_stays_none() -> None:
    network, (x, _) = Conditional(), batch()
    with torch.no_grad():
        out = in_chunks(network, (x, None), 3)
    assert not out.requires_grad
    assert float((out - network(x)).detach().abs().max()) < 1e-14


def test_dropout_drops_the_same_in_both_passes() -> None:
    network, (x, cond) = Conditional(dropout=0.5), batch(8)
    torch.manual_seed(5)
    chunked = gradients(in_chunks(network, (x, cond), 4), x, network)
    torch.manual_seed(5)
    halves = [network(x[rows], {"label": cond["label"][rows]}) for rows in (slice(4), slice(4, 8))]
    assert torch.equal(chunked, gradients(torch.cat(halves), x, network))


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of tensors that were made inside and are alive, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.known:
            self.known[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._forget, key)
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self.known.pop(key)


def peak(size: int) -> int:
    network = Conditional(width=32)
    x = torch.zeros(1024, 6, dtype=DOUBLE)
    with LiveBytes() as live:
        in_chunks(network, (x,), size).sum(0).square().sum().backward()
    return live.peak


def test_memory_falls_to_that_of_a_chunk() -> None:
    whole, eighth = peak(1024), peak(128)
    print(f"peak bytes: {whole} whole, {eighth} in eight chunks")
    hidden = 8 * 4 * 32 * 1024  # what the four hidden layers must keep of the whole batch
    kept = 8 * 1024 * (6 + 2 * 3)  # inputs, outputs and the gradient of the outputs stay whole in both
    assert whole > hidden
    assert eighth - kept < (whole - kept) / 6


def test_refusals_name_what_to_do() -> None:
    network, (x, cond) = Conditional(), batch()
    with pytest.raises(ConfigError, match=r"Chunks of 0 samples.*one sample or more.*size=64"):
        in_chunks(network, (x, cond), 0)
    with pytest.raises(ShapeError, match=r"with 3, 11 rows.*one row per sample.*length of the batch"):
        in_chunks(network, (x, {"label": torch.zeros(3, dtype=torch.int64)}), 4)
    with pytest.raises(ShapeError, match="no rows"):
        in_chunks(network, (None,), 4)
