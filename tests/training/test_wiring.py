"""Every option of a run arrives where it acts: each test fails when its option is ignored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from fewstep import _files
from fewstep.data import Batch, ImageData, digits
from fewstep.errors import CheckpointError, ConfigError, DataError, UnknownName
from fewstep.losses import MinSNR
from fewstep.models import Part, load_model
from fewstep.noise import LogitNormalDraw
from fewstep.objectives import Denoising, Turn
from fewstep.training import (
    DiffusionConfig,
    RunConfig,
    TrainConfig,
    Trainer,
    build,
    latest,
    model_config,
    override,
    read_checkpoint,
    run,
    train_model,
    train_steps,
)
from fewstep.training.optim import learning_rate

RUN = RunConfig(
    network=Part("unet", {"width": 8, "multipliers": [1, 2], "blocks": 1, "heads": 2, "embedding": 16}),
    diffusion=DiffusionConfig(
        prediction=Part("edm", {"sigma_data": 0.7}),
        schedule=Part("edm", {"sigma_max": 20.0}),
        label="edm",
        draw=Part("logit_normal", {"mean": -0.4, "std": 1.3}),
        weight=Part("min_snr", {"gamma": 3.0}),
        class_dropout=0.27,
    ),
    train=TrainConfig(steps=6, batch=16, warmup=2, ema=0.9, checkpoint_every=3),
)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return digits()


class Scalar(nn.Module):
    """One number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))


@dataclass(frozen=True)
class Falls:
    """A loss of slope 1 in each number, which keeps what it saw of autocast."""

    players: Mapping[str, Scalar]
    seen: list[tuple[bool, torch.dtype]] = field(default_factory=list)

    def turns(self, batch: Batch, step: int, generator: Generator) -> Iterator[Turn]:
        for name, player in self.players.items():
            yield Turn(name, self._loss(player))

    def _loss(self, player: Scalar) -> Callable[[], tuple[Tensor, Mapping[str, Tensor]]]:
        def loss() -> tuple[Tensor, Mapping[str, Tensor]]:
            self.seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
            return player.value * 1.0, {}

        return loss


def trainer(objective: Falls, data: ImageData, folder: Path, config: TrainConfig) -> Trainer:
    return Trainer(config, objective, objective.players, data, folder, {})


def test_the_objective_is_the_configured_one(tmp_path: Path, data: ImageData) -> None:
    objective = build(RUN, data, tmp_path).objective
    assert isinstance(objective, Denoising)
    assert objective.draw == LogitNormalDraw(mean=-0.4, std=1.3)
    assert objective.weight == MinSNR(gamma=3.0)
    assert (objective.null, objective.class_dropout) == ({"label": torch.tensor([10])}, 0.27)
    assert (objective.denoiser.label, vars(objective.denoiser.prediction)) == ("edm", {"sigma_data": 0.7})
    assert vars(objective.denoiser.schedule)["sigma_max"] == 20.0


def test_an_unconditional_run_is_told_no_class(tmp_path: Path, data: ImageData) -> None:
    blind = dataclasses.replace(RUN, diffusion=dataclasses.replace(RUN.diffusion, conditional=False))
    objective = build(blind, data, tmp_path).objective
    assert isinstance(objective, Denoising)
    assert objective.null == {}
    assert model_config(blind, data).classes == ()
    assert model_config(blind, data).body().n_classes == 0


def test_rate_and_decay_reach_the_weights(tmp_path: Path, data: ImageData) -> None:
    """Adam steps by the rate itself when the gradient is always 1; AdamW first shrinks the weight."""
    config = TrainConfig(steps=12, lr=0.1, warmup=4, decay=0.5, weight_decay=0.3, clip=0.0)
    player, expected = Scalar(2.0), 2.0
    for report in trainer(Falls({"generator": player}), data, tmp_path, config).steps():
        rate = learning_rate(config, report.step - 1)
        expected = expected * (1 - 0.3 * rate) - rate
        assert player.value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("ema", [0.0, 0.3, 0.95])
def test_the_average_has_the_configured_decay(tmp_path: Path, data: ImageData, ema: float) -> None:
    player, average = Scalar(2.0), 2.0
    config = TrainConfig(steps=40, lr=0.1, ema=ema)
    falling = trainer(Falls({"generator": player}), data, tmp_path, config)
    for report in falling.steps():
        decay = min(ema, report.step / (9 + report.step))
        average = decay * average + (1 - decay) * player.value.item()
    assert dict(falling.ema.module.named_parameters())["value"].item() == pytest.approx(average, abs=1e-9)


@pytest.mark.parametrize(("precision", "expected"), [("no", False), ("bf16", True)])
def test_losses_see_the_precision(tmp_path: Path, data: ImageData, precision: str, expected: bool) -> None:
    falls = Falls({"generator": Scalar(1.0)})
    list(trainer(falls, data, tmp_path, TrainConfig(steps=2, precision=precision)).steps())
    assert falls.seen == [(expected, torch.bfloat16)] * 2


def test_no_clipping(tmp_path: Path, data: ImageData) -> None:
    for clip, moment in ((0.0, 0.1), (0.5, 0.05)):
        config = TrainConfig(steps=1, clip=clip)
        list(trainer(Falls({"generator": Scalar(1.0)}), data, tmp_path / str(clip), config).steps())
        saved = read_checkpoint(latest(tmp_path / str(clip)) or tmp_path).optimizer["generator/value:exp_avg"]
        assert saved.item() == pytest.approx(moment, rel=1e-5)


def test_seeds_fix_the_first_weights(tmp_path: Path, data: ImageData) -> None:
    def first(seed: int, place: str) -> dict[str, Tensor]:
        config = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, seed=seed))
        return build(config, data, tmp_path / place).players["generator"].state_dict()

    zero, again, one = first(0, "a"), first(0, "b"), first(1, "c")
    assert all(torch.equal(zero[name], again[name]) for name in zero)
    assert not torch.equal(zero["conv_in.weight"], one["conv_in.weight"])


def test_the_model_is_the_average(tmp_path: Path, data: ImageData) -> None:
    list(train_steps(RUN, tmp_path, data=data))
    checkpoint = read_checkpoint(latest(tmp_path / "checkpoints") or tmp_path)
    saved = _files.read_tensors(tmp_path / "model.safetensors")
    assert saved.keys() == checkpoint.ema.keys()
    assert all(torch.equal(saved[name], checkpoint.ema[name]) for name in saved)
    assert not torch.equal(saved["conv_out.weight"], checkpoint.model["generator/conv_out.weight"])


# --- names, sizes, players --------------------------------------------------------------------------------------------


def test_a_model_without_a_name_is_called_after_its_data(data: ImageData) -> None:
    faces = dataclasses.replace(data, name="faces")
    assert model_config(RUN, faces).name == "faces"
    assert model_config(dataclasses.replace(RUN, name="mine"), faces).name == "mine"


@pytest.mark.parametrize("argument", [{"channels": 3}, {"n_classes": 5}])
def test_channels_and_classes_follow_from_the_data(data: ImageData, argument: Mapping[str, int]) -> None:
    (name,) = argument
    wrong = dataclasses.replace(RUN, network=Part("unet", argument))
    with pytest.raises(ConfigError, match=rf"network\.{name}=.*Leave network\.{name} out"):
        model_config(wrong, data)
    right = dataclasses.replace(RUN, network=Part("unet", {"channels": 1, "n_classes": 10}))
    assert model_config(right, data).network.arguments == {"channels": 1, "n_classes": 10}


def test_each_player_has_its_own_options(tmp_path: Path, data: ImageData) -> None:
    own = {"critic": {"lr": 0.3, "betas": (0.5, 0.6), "weight_decay": 0.2, "clip": 0.5}}
    config = TrainConfig(steps=5, lr=0.1, warmup=0, decay=0.0, players=own)
    g, c = Scalar(2.0), Scalar(2.0)
    list(trainer(Falls({"generator": g, "critic": c}), data, tmp_path, config).steps())
    expected = 2.0
    for _ in range(5):
        expected = expected * (1 - 0.3 * 0.2) - 0.3
    assert g.value.item() == pytest.approx(1.5, abs=1e-6)
    assert c.value.item() == pytest.approx(expected, abs=1e-6)
    moments = read_checkpoint(latest(tmp_path) or tmp_path).optimizer
    assert moments["critic/value:exp_avg"].item() == pytest.approx(0.5 * (1 - 0.5**5), rel=1e-4)
    assert moments["critic/value:exp_avg_sq"].item() == pytest.approx(0.25 * (1 - 0.6**5), rel=1e-4)


def test_players_are_written_down() -> None:
    config = override(RUN, ["train.players.critic.lr=1e-4", "train.players.critic.betas=[0.0, 0.9]"])
    assert config.train.players == {"critic": {"lr": 1e-4, "betas": (0.0, 0.9)}}
    assert RunConfig.from_json(config.to_json()).train == config.train
    assert config.train.of_player("critic") == dataclasses.replace(RUN.train, lr=1e-4, betas=(0.0, 0.9))
    assert config.train.of_player("generator") == RUN.train


@pytest.mark.parametrize(
    ("assignment", "error", "message"),
    [
        ("train.players.critic.lrr=1", UnknownName, "No key of a player 'lrr'.*Did you mean 'lr'"),
        ("train.players.critic.lr=fast", ConfigError, r"train\.players\.critic\.lr='fast'.*takes a number"),
        ("train.players.critic.lr=-1.0", ConfigError, "lr is above 0"),
        ('train.players={"critic": 5}', ConfigError, r"train\.players\.critic=5"),
        (
            "train.players.critic=5",
            ConfigError,
            r"is a group of keys.*Write train\.players\.critic\.<key>=value",
        ),
        ("train.players=5", ConfigError, "takes a group of keys"),
    ],
)
def test_mistakes_about_players(assignment: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        override(RUN, [assignment])


def test_players_of_the_configuration_must_play(tmp_path: Path, data: ImageData) -> None:
    config = TrainConfig(players={"critik": {"lr": 0.1}})
    with pytest.raises(UnknownName, match=r"No player 'critik'.*Did you mean 'critic'"):
        trainer(Falls({"generator": Scalar(1.0), "critic": Scalar(1.0)}), data, tmp_path, config)


# --- several processes, interruptions ---------------------------------------------------------------------------------


def test_another_number_of_processes_does_not_resume(tmp_path: Path, data: ImageData) -> None:
    config = TrainConfig(steps=1)
    list(trainer(Falls({"generator": Scalar(1.0)}), data, tmp_path, config).steps())
    state = (latest(tmp_path) or tmp_path) / "state.json"
    content = _files.read_json(state)
    _files.write_json(state, {**content, "config": {**content["config"], "processes": 2}})
    with pytest.raises(CheckpointError, match="processes was 2 and is 1"):
        trainer(Falls({"generator": Scalar(1.0)}), data, tmp_path, config)


def test_models_are_written_once_and_waited_for(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    save, wait = run.save_model, Trainer.wait
    monkeypatch.setattr(run, "save_model", lambda *arguments: (happened.append("model"), save(*arguments)))
    monkeypatch.setattr(Trainer, "wait", lambda trainer: (happened.append("wait"), wait(trainer)))
    list(train_steps(RUN, tmp_path, data=data))
    assert happened == ["wait", "model", "wait"] * 2
    (tmp_path / "config.json").unlink()
    assert train_model(RUN, tmp_path, data=data).config == load_model(tmp_path).config
    assert happened == ["wait", "model", "wait"] * 2 + ["model", "wait"]


def test_data_that_cannot_be_read_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        next(train_steps(RunConfig(data=f"folder:{tmp_path / 'nowhere'}"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()
