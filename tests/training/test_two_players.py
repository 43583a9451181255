"""End-to-end runs in the trainer: they resume to the bit, and a step that is not finite leaves no trace but its own."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from fewstep._files import read_tensors
from fewstep.data import Batch, indices_of_step, seeded
from fewstep.denoisers import PREDICTIONS, NetworkDenoiser
from fewstep.errors import NonFiniteError
from fewstep.losses import EnergyScore, Outcome
from fewstep.losses.adversarial import Adversarial
from fewstep.losses.distribution import FrechetEma
from fewstep.models import Chain
from fewstep.networks.critic import VectorCritic
from fewstep.networks.mlp import MLP
from fewstep.noise import LinearFlow, UniformFlow
from fewstep.objectives import E2E, GENERATOR, MEMORY, Weighted
from fewstep.sampling import resolve, sample
from fewstep.solvers import DDIM
from fewstep.training import TrainConfig, Trainer, latest, read_checkpoint
from fewstep.training.checkpoint import split

TRAIN = TrainConfig(steps=6, batch=8, warmup=2, ema=0.9, checkpoint_every=3, decay=0.0, betas=(0.0, 0.99))
SCHEDULE = LinearFlow()


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits are compared, so a GPU must not be picked up."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@dataclasses.dataclass(frozen=True)
class Points:
    """Forty vectors of three numbers, in two classes."""

    def __len__(self) -> int:
        return 40

    def batch(self, indices: Tensor, mirrored: Tensor | None = None) -> Batch:
        return Batch(torch.randn(40, 3, generator=seeded("points"))[indices], {"label": indices % 2})


def flat(x: Tensor) -> Tensor:
    return x.flatten(1)


@dataclasses.dataclass(frozen=True)
class Shown:
    """The energy score, and a copy of what it was shown."""

    outcomes: list[Outcome]
    draws: int = 2
    role: str = "distribution"

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        self.outcomes.append(Outcome(outcome.fake.detach().clone(), *outcome[1:]))
        return EnergyScore()(outcome, generator)


def trainer(folder: Path, *, extra: Mapping[str, Any] | None = None, **train: Any) -> Trainer:
    torch.manual_seed(0)
    network, critic = MLP(3, width=8, n_classes=2), VectorCritic(3, width=8, n_classes=2)
    terms = {
        "energy": Weighted(EnergyScore()),
        "adversarial": Weighted(Adversarial(critic)),
        "frechet": Weighted(FrechetEma(flat, 3)),
        **(extra or {}),
    }
    denoiser = NetworkDenoiser(network, PREDICTIONS["flow"](), SCHEDULE)
    objective = E2E(denoiser, partial(resolve, Chain(), SCHEDULE), terms, 6)
    players = {GENERATOR: network, **objective.others()}
    return Trainer(dataclasses.replace(TRAIN, **train), objective, players, Points(), folder, {})


def state(folder: Path) -> dict[str, Tensor]:
    found = read_checkpoint(latest(folder) or folder)
    groups = {"model": found.model, "ema": found.ema, "optimizer": found.optimizer}
    return {f"{kind}/{name}": tensor for kind, group in groups.items() for name, tensor in group.items()}


def assert_equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_generator_critic_and_memory_resume_to_the_bit(tmp_path: Path, precision: str) -> None:
    straight = [report.losses for report in trainer(tmp_path / "a", precision=precision).steps()]
    killed = []
    for report in trainer(tmp_path / "b", precision=precision).steps():
        killed.append(report.losses)
        if report.step == 5:
            break
    resumed = [report.losses for report in trainer(tmp_path / "b", precision=precision).steps()]
    assert killed == straight[:5]
    assert resumed == straight[3:]
    assert_equal(state(tmp_path / "a"), state(tmp_path / "b"))
    assert any(f"/{MEMORY}/" in f"/{name}" for name in state(tmp_path / "a"))


def test_every_player_moves_and_the_report_names_every_part(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    before = {name: [p.detach().clone() for p in module.parameters()] for name, module in run.players.items()}
    reports = list(run.steps())
    for name in ("generator", "critic"):
        now = list(run.players[name].parameters())
        assert any(not torch.equal(p, q) for p, q in zip(before[name], now, strict=True))
    parts = {"loss", "loss_energy", "loss_adversarial", "loss_frechet", "steps", "contrast", "diversity", "grad_norm"}
    parts |= {"grad_energy", "grad_adversarial", "grad_frechet"}
    for report in reports:
        steps = int(report.losses["generator/steps"])
        named = parts | {f"grad_step_{i + 1}" for i in range(steps)}
        theirs = {"loss_adversarial", "adversarial_accuracy", "adversarial_r1", "adversarial_r2", "grad_norm"}
        assert report.losses.keys() == {f"generator/{name}" for name in named} | {f"critic/{name}" for name in theirs}
    assert {int(report.losses["generator/steps"]) for report in reports} == {1, 2, 4}


def test_in_a_run_too_training_makes_what_sample_makes(tmp_path: Path) -> None:
    shown: list[Outcome] = []
    run = trainer(tmp_path, extra={"spy": Weighted(Shown(shown))})
    weights = []
    for _ in run.steps():
        weights.append({name: value.clone() for name, value in run.players[GENERATOR].state_dict().items()})
    network = MLP(3, width=8, n_classes=2)
    for step in range(1, 6):  # the weights after step n made the samples of step n + 1
        network.load_state_dict(weights[step - 1])
        denoiser = NetworkDenoiser(network, PREDICTIONS["flow"](), SCHEDULE)
        generator = seeded("step", TRAIN.seed, step, 0)
        z = torch.cat([torch.randn(8, 3, generator=generator) for _ in range(2)])
        label = indices_of_step(40, 8, TRAIN.seed, step).repeat(2) % 2
        steps = int(run.objective.steps_at(step))
        expected = sample(denoiser, DDIM(), UniformFlow()(SCHEDULE, steps), z, cond={"label": label}).x
        assert torch.equal(shown[step].fake.flatten(0, 1), expected)


# What is not finite.


@dataclasses.dataclass(frozen=True)
class Breaks:
    """The energy score for two steps; then its value, or only its gradient, is NaN."""

    how: str
    at: int
    seen: list[int]
    draws: int = 2
    role: str = "distribution"

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        self.seen.append(1)
        value = EnergyScore()(outcome, generator)
        if len(self.seen) != self.at:
            return value
        return value * math.nan if self.how == "value" else value + (0 * outcome.fake.sum()).sqrt()


@pytest.mark.parametrize("how", ["value", "gradient"])
def test_a_term_that_is_not_finite_is_named_and_the_step_not_taken(tmp_path: Path, how: str) -> None:
    extra = {"mine": Weighted(Breaks(how, 5, []))}
    with pytest.raises(NonFiniteError) as caught:
        list(trainer(tmp_path, extra=extra).steps())
    message = str(caught.value)
    assert "Step 5, player 'generator':" in message
    assert ("loss_mine" if how == "value" else "grad_mine") in message.partition(" not finite")[0]
    assert "loss_energy" not in message.partition(" not finite")[0]
    assert str(tmp_path / "checkpoint-00000004") in message
    healthy = trainer(tmp_path / "healthy", extra={"mine": Weighted(Breaks("value", 0, []))}, steps=4)
    list(healthy.steps())
    assert_equal(state(tmp_path), state(tmp_path / "healthy"))


def test_a_critic_that_breaks_undoes_the_generators_step(tmp_path: Path) -> None:
    list(trainer(tmp_path / "healthy", steps=4).steps())
    run = trainer(tmp_path)
    assert isinstance(run.objective, E2E)
    term = run.objective.terms["adversarial"].term
    assert isinstance(term, Adversarial)
    judge, count = Adversarial.critic_loss, []

    def breaks(self: Adversarial, outcome: Outcome, generator: Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        count.append(1)
        loss, parts = judge(self, outcome, generator)
        return (loss * math.nan if len(count) == 5 else loss), parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adversarial, "critic_loss", breaks)
        with pytest.raises(NonFiniteError, match=r"Step 5, player 'critic': loss_adversarial"):
            list(run.steps())
    assert_equal(state(tmp_path), state(tmp_path / "healthy"))
    kept = read_checkpoint(latest(tmp_path) or tmp_path)
    assert kept.step == 4
    for name, module in run.players.items():
        assert_equal(module.state_dict(), split(kept.model, name))


def test_the_failed_step_can_be_looked_at_and_run_again(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        list(trainer(tmp_path, extra={"mine": Weighted(Breaks("value", 5, []))}).steps())
    place = tmp_path / "nan-step-00000005.json"
    assert str(place) in str(caught.value)
    facts = json.loads(place.read_text())
    assert (facts["step"], facts["player"], facts["seed"], facts["process"]) == (5, "generator", TRAIN.seed, 0)
    tensors = read_tensors(place.with_suffix(".safetensors"))
    batch = Points().batch(indices_of_step(40, 8, TRAIN.seed, 4))
    assert batch.cond is not None
    assert torch.equal(tensors["x0"], batch.x0)
    assert torch.equal(tensors["cond/label"], batch.cond["label"])
    again = trainer(tmp_path, extra={"mine": Weighted(Breaks("value", 1, []))})
    assert again.step == 4
    with pytest.raises(NonFiniteError) as repeated:
        next(again.steps())
    assert repeated.value.given == caught.value.given, "the same numbers, in the same step"


def test_the_very_first_step_may_fail_and_be_run_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=r"Step 1, player 'generator'.*checkpoint-00000000"):
            next(trainer(tmp_path, extra={"mine": Weighted(Breaks("value", 1, []))}).steps())
    weights = trainer(tmp_path / "fresh").players[GENERATOR].state_dict()
    found = {name: tensor for name, tensor in state(tmp_path).items() if name.startswith(f"model/{GENERATOR}/")}
    assert_equal(found, {f"model/{GENERATOR}/{name}": tensor for name, tensor in weights.items()})


def test_a_chain_that_blows_up_names_the_step_and_the_level(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    next(run.steps())
    with torch.no_grad():
        next(run.players[GENERATOR].parameters()).fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"Step 2, .*The generator.s chain: .* in step 0.*level 0"):
        list(run.steps())


def test_a_full_disk_does_not_hide_what_went_wrong(tmp_path: Path) -> None:
    run = trainer(tmp_path, extra={"mine": Weighted(Breaks("value", 2, []))})
    steps = run.steps()
    next(steps)
    run.folder = tmp_path / "file"
    run.folder.write_text("in the way")
    with pytest.raises(
        NonFiniteError, match=r"Step 2, player 'generator': loss, loss_mine, .*its batch: nothing \(.*cannot be"
    ):
        next(steps)
