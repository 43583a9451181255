"""The transformer on patches against formulas written out by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.refusals import refuses
from torch import Tensor, nn

from fewstep._files import read_json
from fewstep.data import digits
from fewstep.errors import ConfigError, ShapeError
from fewstep.models import Part, load_model
from fewstep.networks import DiT, Vocabulary, dit
from fewstep.networks.dit import patchify, positions, unpatchify
from fewstep.training import DiffusionConfig, RunConfig, TrainConfig, override, train_model, train_steps

WIDTH, HEADS, PATCH = 12, 3, 2
LIKE = torch.empty(0, dtype=torch.float64)


def build(**arguments: object) -> DiT:
    """A small network with random weights everywhere, also where it starts at zero."""
    torch.manual_seed(0)
    network = DiT(2, patch=PATCH, width=WIDTH, blocks=2, heads=HEADS, mlp_ratio=2, embedding=8, **arguments)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return network.double()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def linear(layer: nn.Linear, h: Tensor) -> Tensor:
    return torch.einsum("oi,...i->...o", layer.weight, h) + layer.bias


def standard(h: Tensor) -> Tensor:
    """Zero mean and unit variance along the last axis."""
    centred = h - h.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)


def unit(h: Tensor) -> Tensor:
    """Unit mean square along the last axis."""
    return h / torch.sqrt(h.square().mean(-1, keepdim=True) + 1e-6)


def modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return standard(h) * (1 + scale).unsqueeze(1) + shift.unsqueeze(1)


def attention(layer: nn.Module, h: Tensor) -> Tensor:
    """Head by head: softmax of the products of normalised queries and keys, the keys scaled."""
    size, mixed = WIDTH // HEADS, []
    qkv = linear(layer.qkv, h)
    for head in range(HEADS):
        query, key, value = (qkv[..., i * WIDTH + head * size :][..., :size] for i in range(3))
        logits = torch.einsum("bqc,bkc->bqk", unit(query), unit(key) * layer.key_scale) / math.sqrt(size)
        mixed.append(torch.softmax(logits, dim=-1) @ value)
    return linear(layer.project, torch.cat(mixed, dim=-1))


def block(layer: nn.Module, h: Tensor, vector: Tensor) -> Tensor:
    """adaLN-Zero as the paper draws it."""
    s_1, t_1, g_1, s_2, t_2, g_2 = linear(layer.told, vector).split(WIDTH, dim=1)
    h = h + g_1.unsqueeze(1) * attention(layer.attention, modulated(h, s_1, t_1))
    first, _, second = layer.mlp
    hidden = linear(first, modulated(h, s_2, t_2))
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return h + g_2.unsqueeze(1) * linear(second, hidden)


def test_a_block_is_adaptive_normalisation_attention_and_a_perceptron() -> None:
    layer, h, vector = build().blocks[0], normal(3, 6, WIDTH), normal(3, 8, seed=2)
    error = off(layer(h, vector), block(layer, h, vector))
    assert error < 1e-12, error


def test_the_whole_network_by_hand() -> None:
    network, x, label = build(n_classes=3), normal(3, 2, 4, 6), torch.tensor([0.1, 0.5, 0.9]).double()
    cond = {"label": torch.tensor([0, 3, 1])}
    vector = network.conditioning(label, cond, 3)
    # Token (r, c) reads channels, then rows, then columns of its square.
    squares = x.reshape(3, 2, 2, PATCH, 3, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(3, 6, 8)
    h = linear(network.read, squares) + positions(2, 3, WIDTH, LIKE)
    for layer in network.blocks:
        h = block(layer, h, vector)
    scale, shift = linear(network.told, vector).split(WIDTH, dim=1)
    squares = linear(network.write, modulated(h, scale, shift))
    expected = squares.reshape(3, 2, 3, 2, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
    error = off(network(x, label, cond), expected)
    assert error < 1e-12, error


def test_without_gates_a_block_is_its_skip_connection() -> None:
    layer, h, vector = build().blocks[0], normal(2, 6, WIDTH), normal(2, 8, seed=2)
    with torch.no_grad():
        for i in (2, 5):  # the gates among the six vectors
            for parameter in layer.told.parameters():
                parameter[i * WIDTH : (i + 1) * WIDTH] = 0
    assert torch.equal(layer(h, vector), h)


def test_a_fresh_network_is_skip_connections_and_answers_zero() -> None:
    torch.manual_seed(0)
    network, h, vector = DiT(2, patch=PATCH, width=WIDTH, heads=HEADS).double(), normal(2, 6, WIDTH), normal(2, 128)
    for layer in network.blocks:
        assert torch.equal(layer(h, vector), h)
    assert not network(normal(2, 2, 4, 6), torch.zeros(2)).any()


@pytest.mark.parametrize(("rows", "columns"), [(7, 7), (3, 5), (5, 3), (1, 1)])
def test_positions_are_the_formula(rows: int, columns: int) -> None:
    width, m = 24, 6
    expected = np.empty((rows * columns, width))
    for r in range(rows):
        for c in range(columns):
            for k in range(m):
                f = 10000.0 ** (-k / m)
                expected[r * columns + c, [k, m + k, 2 * m + k, 3 * m + k]] = (
                    *(np.sin(f * r), np.cos(f * r)),
                    *(np.sin(f * c), np.cos(f * c)),
                )
    error = off(positions(rows, columns, width, LIKE), torch.from_numpy(expected))
    assert error < 1e-12, error


def test_products_of_positions_depend_on_their_distance_alone() -> None:
    """<e(r, c), e(r', c')> = sum_k cos f_k (r - r') + cos f_k (c - c'): all have the same length, and all differ."""
    table = positions(6, 9, 32, LIKE).unflatten(0, (6, 9))
    products = torch.einsum("rcw,abw->rcab", table, table)
    f = 10000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    r, c = (torch.arange(n, dtype=torch.float64) for n in (6, 9))
    along_r, along_c = ((f * (i[:, None] - i)[..., None]).cos().sum(-1) for i in (r, c))
    error = off(products, along_r[:, None, :, None] + along_c[None, :, None, :])
    assert error < 1e-12, error
    flat = products.reshape(54, 54) - 1e9 * torch.eye(54)
    assert float(flat.max()) < 16 - 0.3, "two places look alike"


def test_positions_are_exact_in_bfloat16() -> None:
    rounded = positions(1, 300, 8, LIKE.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert off(rounded.double(), positions(1, 300, 8, LIKE)) < 2**-8


def test_patches_are_squares_and_come_together_again() -> None:
    x = normal(2, 3, 6, 8)
    tokens = patchify(x, 2)
    assert torch.equal(tokens[:, 1 * 4 + 3], x[:, :, 2:4, 6:8].flatten(1))  # row 1 and column 3 of 3 x 4 squares
    assert torch.equal(unpatchify(tokens, 2, 3), x)
    assert torch.equal(patchify(unpatchify(tokens, 2, 3), 2), tokens)


def test_batches_permute() -> None:
    network, x, label = build(), normal(4, 2, 4, 6), torch.linspace(0, 1, 4).double()
    order = torch.tensor([2, 0, 3, 1])
    error = off(network(x, label)[order], network(x[order], label[order]))
    assert error < 1e-12, error


def test_only_positions_tell_patches_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them, an image shifted by whole patches, around the border, gives the shifted answer."""
    network, x, label = build(), normal(2, 2, 4, 6), torch.tensor([0.2, 0.7]).double()

    def moved(image: Tensor) -> Tensor:
        return image.roll((PATCH, 2 * PATCH), (2, 3))

    assert off(network(moved(x), label), moved(network(x, label))) > 1e-2
    monkeypatch.setattr(dit, "positions", lambda rows, columns, width, like: like.new_zeros(rows * columns, width))
    error = off(network(moved(x), label), moved(network(x, label)))
    assert error < 1e-12, error


def test_attention_does_not_hear_how_large_queries_and_keys_are() -> None:
    """Logits stay within sqrt(d) times the scale of the keys, however large the weights have grown."""
    layer, h = build().blocks[0].attention, normal(2, 6, WIDTH)
    before = layer(h)
    with torch.no_grad():
        for parameter in layer.qkv.parameters():
            parameter[:WIDTH] *= 1e6
            parameter[WIDTH : 2 * WIDTH] *= 1e6
    # What is left is the 1e-6 under the root, beside queries of unit size or less.
    error = off(layer(h), before)
    assert error < 1e-4, error
    with torch.no_grad():
        layer.key_scale.zero_()
    flat = layer(h)
    assert off(flat, flat.mean(1, keepdim=True).expand_as(flat)) < 1e-12, "with scale 0 every token sees the mean"


def test_captions() -> None:
    words = Vocabulary(("red", "green", "circle"), 2)
    network = build(n_tokens=words.n_tokens, caption_length=words.length)
    x, label, tokens = normal(3, 2, 4, 4), torch.linspace(0, 1, 3).double(), words.encode(["red", "green", "red green"])
    out = network(x, label, {"tokens": tokens})
    for i in range(3):
        error = off(out[i : i + 1], network(x[i : i + 1], label[i : i + 1], {"tokens": tokens[i : i + 1]}))
        assert error < 1e-12, error
    assert off(out, network(x, label, {"tokens": tokens.roll(1, 0)})) > 1e-4
    assert torch.equal(network(x, label), network(x, label, {"tokens": words.null.expand(3, -1)}))
    out.square().sum().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_autocast_sums_blocks_in_float32() -> None:
    network = build().float()
    x, label = normal(2, 2, 4, 6).float(), torch.tensor([0.2, 0.7])
    exact = network(x, label)
    heard: list[Tensor] = []
    for layer in network.blocks:
        layer.register_forward_hook(lambda *call: heard.append(call[2]))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x, label)
    assert [h.dtype for h in heard] == [torch.float32] * 2
    assert off(rounded, exact) < 0.03 * float(exact.detach().abs().max())


RUN = RunConfig(
    network=Part("dit", {"patch": 2, "width": 16, "blocks": 2, "heads": 2, "mlp_ratio": 2, "embedding": 16}),
    diffusion=DiffusionConfig(prediction=Part("flow")),
    train=TrainConfig(steps=4, batch=16, warmup=1, ema=0.5, checkpoint_every=2),
)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_goes_on_bit_for_bit_and_comes_back_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    run, data = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, precision=precision)), digits()
    for report in train_steps(run, tmp_path / "halved", data=data):
        if report.step == 2:
            break
    resumed = train_model(run, tmp_path / "halved", data=data)
    assert resumed.fingerprint == train_model(run, tmp_path / "whole", data=data).fingerprint
    model = load_model(tmp_path / "whole")
    assert isinstance(model.denoiser.network, DiT)
    assert read_json(tmp_path / "whole" / "config.json")["network"]["name"] == "dit"
    x, label = normal(2, 1, 8, 8).float(), torch.tensor([0.2, 0.9])
    assert model.denoiser.network(x, label, {"label": torch.tensor([1, 10])}).any()


def test_chosen_by_an_override() -> None:
    config = override(RunConfig(), ["network=dit", "network.patch=2", "network.width=64"])
    assert config.network == Part("dit", {"patch": 2, "width": 64})
    refuses(ConfigError, "mlp_ratio", lambda: override(config, ["network.mlp_ratio=2.5"]))


def test_the_command_of_the_page_builds_one() -> None:
    page = Path(__file__).parents[2] / "docs" / "training.md"
    command = next(line for line in page.read_text(encoding="utf-8").splitlines() if " network=dit " in line)
    config = override(RunConfig(), [word for word in command.split() if "=" in word])
    assert DiT(**config.network.arguments).width == 64
    assert config.train.steps == 1350


def test_refusals() -> None:
    network = build()
    refuses(ShapeError, "(2, 2, 4, 5)", lambda: network(normal(2, 2, 4, 5), torch.zeros(2)))
    refuses(ConfigError, "heads=0", lambda: DiT(heads=0))
    refuses(ConfigError, "width=126 with heads=3", lambda: DiT(width=126, heads=3))
    refuses(ConfigError, "width=128 with heads=3", lambda: DiT(width=128, heads=3))
