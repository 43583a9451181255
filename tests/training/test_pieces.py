"""Moving average, learning rate, optimiser state and checkpoints, each against its definition."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep import _files
from fewstep.errors import CheckpointError, ConfigError, OutputError
from fewstep.training import Checkpoint, Ema, TrainConfig, checkpoints, latest, read_checkpoint, write_checkpoint
from fewstep.training.checkpoint import join, split
from fewstep.training.optim import adamw, flat_state, learning_rate, load_flat_state


def test_ema_is_its_recursion() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    ema = Ema(network, 0.9)
    weight = network[0].weight
    expected = weight.detach().clone()
    for n in range(200):
        with torch.no_grad():
            weight.copy_(torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(n)))
            network[1].running_mean.fill_(n)
        ema.update(network, n)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight.detach()
    assert float((ema.module[0].weight - expected).abs().max()) < 1e-12
    assert ema.module[1].running_mean.tolist() == [199, 199]
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert not ema.module.training


def test_ema_of_constant_weights_is_the_weights() -> None:
    network = nn.Linear(3, 1)
    ema = Ema(network, 0.999)
    for n in range(5):
        ema.update(network, n)
    assert float((ema.module.weight - network.weight).detach().abs().max()) < 1e-7
    with pytest.raises(ConfigError, match="below 1"):
        Ema(network, 1.0)


def test_learning_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(steps=1000, lr=2.0, warmup=100, decay=0.4)
    rates = [learning_rate(config, step) for step in range(1000)]
    assert rates[:100] == pytest.approx([2.0 * (i + 1) / 100 for i in range(100)])
    assert set(rates[100:600]) == {2.0}
    expected = [1 + math.cos(math.pi * (i - 600) / 400) for i in range(600, 1000)]
    assert rates[600:] == pytest.approx(expected, abs=1e-12)
    constant = TrainConfig(steps=10, warmup=0, decay=0.0, lr=0.5)
    assert {learning_rate(constant, step) for step in range(10)} == {0.5}


def trained(steps: int) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    module[0].bias.requires_grad_(False)
    optimizer = adamw(module, TrainConfig(lr=0.1, weight_decay=0.1))
    for _ in range(steps):
        step(module, optimizer)
    return module, optimizer


def step(module: nn.Module, optimizer: torch.optim.AdamW) -> None:
    optimizer.zero_grad()
    module(torch.linspace(-1, 1, 6).reshape(2, 3)).square().sum().backward()
    optimizer.step()


def test_optimiser_state_goes_through_a_file(tmp_path: Path) -> None:
    module, optimizer = trained(3)
    _files.write_tensors(tmp_path / "o.safetensors", flat_state(module, optimizer))
    other, fresh = trained(0)
    other.load_state_dict(module.state_dict())
    load_flat_state(other, fresh, _files.read_tensors(tmp_path / "o.safetensors"))
    for _ in range(2):
        step(module, optimizer)
        step(other, fresh)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "damage",
    [
        lambda flat: flat.pop("0.weight:exp_avg"),
        lambda flat: flat.pop("2.bias:step"),
        lambda flat: flat.update({"unknown:exp_avg": torch.ones(1)}),
        lambda flat: flat.update({"0.weight:momentum": torch.ones(4, 3)}),
        lambda flat: flat.update({"0.weight:exp_avg": torch.ones(3, 4)}),
        lambda flat: flat.update({"0.weight:exp_avg_sq": torch.ones(1)}),
    ],
)
def test_foreign_optimiser_states(damage: Callable[[dict[str, torch.Tensor]], object]) -> None:
    module, optimizer = trained(1)
    flat = flat_state(module, optimizer)
    load_flat_state(module, optimizer, flat)
    damage(flat)
    with pytest.raises((KeyError, ValueError)):
        load_flat_state(module, optimizer, flat)


def state(number: int) -> Checkpoint:
    value = torch.full((3,), float(number))
    return Checkpoint(
        number, 1.5, {"train": {"seed": 1}}, {"generator/a": value}, {"a": value}, {"generator/a:s": value}
    )


def test_players_are_joined_and_split() -> None:
    a, b = torch.ones(1), torch.zeros(1)
    flat = join({"generator": {"x.y": a}, "critic": {"x.y": b}})
    assert flat == {"generator/x.y": a, "critic/x.y": b}
    assert split(flat, "critic") == {"x.y": b}


def test_checkpoints_come_back_and_old_ones_go(tmp_path: Path) -> None:
    assert latest(tmp_path / "nothing") is None
    (tmp_path / "checkpoint-notes").mkdir()
    for number in (5, 100, 20):
        path = write_checkpoint(tmp_path, state(number), keep=2)
        assert path.name == f"checkpoint-{number:08d}"
    assert [path.name[-3:] for path in checkpoints(tmp_path)] == ["020", "100"]
    newest = latest(tmp_path)
    assert newest is not None
    read = read_checkpoint(newest)
    assert (read.step, read.seconds, read.config) == (100, 1.5, {"train": {"seed": 1}})
    assert torch.equal(read.model["generator/a"], torch.full((3,), 100.0))
    assert read.optimizer.keys() == {"generator/a:s"}


@pytest.mark.parametrize(("call", "nth"), [("fsync", 0), ("fsync", 3), ("replace", 0), ("replace", 3), ("mkdir", 0)])
def test_an_interrupted_checkpoint_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    write_checkpoint(tmp_path, state(1), keep=1)
    real, calls = getattr(os, call), []

    def fails_at_nth(*arguments: object, **keywords: object) -> object:
        calls.append(arguments)
        if len(calls) > nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **keywords)

    monkeypatch.setattr(os, call, fails_at_nth)
    with pytest.raises(OutputError, match="No space left"):
        write_checkpoint(tmp_path, state(2), keep=1)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001"]
    assert read_checkpoint(tmp_path / "checkpoint-00000001").step == 1


def test_keyboard_interrupt_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, state(1), keep=1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    monkeypatch.setattr(_files, "_fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, state(2), keep=1)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["checkpoint-00000001"]
    assert latest(tmp_path) == tmp_path / "checkpoint-00000001"


def test_foreign_checkpoints(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, state(1), keep=1)
    good = _files.read_json(path / "state.json")
    wrong = [
        {"layout": 1, "epoch": 3},
        *({**good, "layout": layout} for layout in (1, 99, None)),
        *({**good, "step": step} for step in ("many", -1, 1.0, True, None)),
        *({**good, "seconds": seconds} for seconds in ("many", -1, None)),
        *({**good, key: value} for key in ("config", "fingerprints") for value in (None, 3, [])),
    ]
    for content in wrong:
        _files.write_json(path / "state.json", content)
        with pytest.raises(CheckpointError, match="A checkpoint of this version has layout 2"):
            read_checkpoint(path)
    _files.write_json(path / "state.json", {**good, "step": 2})
    with pytest.raises(CheckpointError, match=r"is named after step 1, its state\.json says 2"):
        read_checkpoint(path)
    _files.write_json(path / "state.json", good)
    (path / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"ema\.safetensors cannot be read"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["model", "ema", "optimizer"])
def test_files_of_another_checkpoint(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path, state(1), keep=1)
    for content in ({}, {"generator/a": torch.zeros(3)}):
        _files.write_tensors(path / f"{name}.safetensors", content)
        with pytest.raises(CheckpointError, match=rf"has a {name}\.safetensors that is not the one"):
            read_checkpoint(path)


def test_leftovers_of_killed_runs_are_swept(tmp_path: Path) -> None:
    for name in (".checkpoint-00000007.123.tmp", ".checkpoint-00000003.4.old", ".mine.123.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("half of a file")
    write_checkpoint(tmp_path, state(9), keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.123.tmp", "checkpoint-00000009"]
