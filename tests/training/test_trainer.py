"""The trainer: resuming is exact, players do not touch each other, and what is not finite stops."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from fewstep import _files
from fewstep.data import Batch, ImageData, digits
from fewstep.errors import CheckpointError, NonFiniteError, OutputError, UnknownName
from fewstep.models import Part, load_model
from fewstep.noise import LinearFlow
from fewstep.objectives import Objective, Turn
from fewstep.training import (
    DiffusionConfig,
    RunConfig,
    StepReport,
    TrainConfig,
    Trainer,
    build,
    latest,
    read_checkpoint,
    train_model,
    train_steps,
    write_checkpoint,
)

RUN = RunConfig(
    name="tiny",
    network=Part("unet", {"width": 8, "multipliers": [1, 2], "blocks": 1, "heads": 2, "embedding": 16}),
    diffusion=DiffusionConfig(prediction=Part("v"), weight=Part("min_snr")),
    train=TrainConfig(steps=6, batch=16, warmup=2, ema=0.9, flip=True, checkpoint_every=3),
)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits are compared, so a GPU must not be picked up."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return digits()


def changed(**train: object) -> RunConfig:
    return dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, **train))


def differences(a: Path, b: Path) -> list[str]:
    """Names of all tensors that differ in any bit between the newest checkpoints of two runs."""
    one, other = (read_checkpoint(latest(folder / "checkpoints") or folder) for folder in (a, b))
    assert one.step == other.step
    found = []
    for kind in ("model", "ema", "optimizer"):
        first, second = getattr(one, kind), getattr(other, kind)
        assert first.keys() == second.keys()
        found += [f"{kind}:{name}" for name in first if not torch.equal(first[name], second[name])]
    return found


def losses(reports: Iterator[StepReport]) -> list[Mapping[str, float]]:
    return [report.losses for report in reports]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resuming_is_exact(tmp_path: Path, data: ImageData, precision: str) -> None:
    config = changed(precision=precision, decay=0.0)
    straight = losses(train_steps(config, tmp_path / "a", data=data))
    half = changed(precision=precision, decay=0.0, steps=3)
    first = losses(train_steps(half, tmp_path / "b", data=data))
    second = losses(train_steps(config, tmp_path / "b", data=data))
    assert first + second == straight
    assert differences(tmp_path / "a", tmp_path / "b") == []


def test_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path: Path, data: ImageData) -> None:
    straight = losses(train_steps(RUN, tmp_path / "a", data=data))
    interrupted = []
    for report in train_steps(RUN, tmp_path / "b", data=data):
        interrupted.append(report.losses)
        if report.step == 5:
            break
    resumed = losses(train_steps(RUN, tmp_path / "b", data=data))
    assert interrupted == straight[:5]
    assert resumed == straight[3:], "steps 4 and 5 are repeated, for the last checkpoint was after step 3"
    assert differences(tmp_path / "a", tmp_path / "b") == []
    assert losses(train_steps(RUN, tmp_path / "b", data=data)) == []


def test_reports_count(tmp_path: Path, data: ImageData) -> None:
    reports = list(train_steps(RUN, tmp_path, data=data))
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.images for report in reports] == [16, 32, 48, 64, 80, 96]
    assert [report.step for report in reports if report.at_every(2)] == [2, 4, 6]
    assert all(report.seconds > 0 for report in reports)
    assert set(reports[0].losses) == {"generator/loss", "generator/grad_norm"}
    assert [path.name[-1] for path in sorted((tmp_path / "checkpoints").iterdir())] == ["3", "6"]


def test_a_kill_while_a_checkpoint_is_written(tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    losses(train_steps(RUN, tmp_path / "a", data=data))
    replace = os.replace

    def killed_at_the_last(source: Path, target: Path) -> None:
        if Path(target).name == "checkpoint-00000006":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        losses(train_steps(RUN, tmp_path / "b", data=data))
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    newest = latest(tmp_path / "b" / "checkpoints")
    assert newest is not None
    assert read_checkpoint(newest).step == 3
    assert load_model(tmp_path / "b").config.facts["steps"] == 3
    losses(train_steps(RUN, tmp_path / "b", data=data))
    assert differences(tmp_path / "a", tmp_path / "b") == []


def test_other_options_do_not_resume(tmp_path: Path, data: ImageData) -> None:
    losses(train_steps(RUN, tmp_path, data=data))
    with pytest.raises(CheckpointError, match=r"train\.lr was 0\.001 and is 0\.1.*may change only steps"):
        build(changed(lr=0.1), data, tmp_path)
    wider = dataclasses.replace(RUN, network=Part("unet", {**RUN.network.arguments, "width": 16}))
    with pytest.raises(CheckpointError, match=r"network\.arguments\.width was 8 and is 16"):
        build(wider, data, tmp_path)
    with pytest.raises(CheckpointError, match=r"data\.images was 1797 and is 9"):
        build(
            RUN,
            ImageData(data.images[:9], data.labels[:9] if data.labels is not None else None, data.classes, data.name),
            tmp_path,
        )
    elsewhere = dataclasses.replace(RUN, data="parquet:the/same/images")
    assert build(elsewhere, data, tmp_path).step == 6
    longer = build(changed(steps=8, checkpoint_every=100, keep=5), data, tmp_path)
    assert (longer.step, len(list(longer.steps()))) == (6, 2)


def _corrupt(path: Path) -> None:
    whole = (path / "optimizer.safetensors").read_bytes()
    (path / "optimizer.safetensors").write_bytes(whole[: len(whole) // 2])


def _foreign_json(path: Path) -> None:
    _files.write_json(path / "state.json", {"global_step": 3})


def _rewrite(path: Path, **changes: Mapping[str, Tensor]) -> None:
    """Write the checkpoint again, whole but with other tensors."""
    write_checkpoint(path.parent, dataclasses.replace(read_checkpoint(path), **changes), keep=1)


def _no_optimiser(path: Path) -> None:
    _files.write_tensors(path / "optimizer.safetensors", {})


def _foreign_optimiser(path: Path) -> None:
    _rewrite(path, optimizer={"generator/unknown:exp_avg": torch.ones(2)})


def _partial_optimiser(path: Path) -> None:
    whole = read_checkpoint(path).optimizer
    _rewrite(path, optimizer={name: tensor for name, tensor in whole.items() if not name.endswith(":exp_avg")})


def _foreign_weights(path: Path) -> None:
    _rewrite(path, model={"critic/weight": torch.ones(2)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_corrupt, "damaged"),
        (_foreign_json, "A checkpoint of this version"),
        (_no_optimiser, "has a optimizer.safetensors that is not the one"),
        (_partial_optimiser, "has only"),
        (_foreign_optimiser, "does not fit the players generator"),
        (_foreign_weights, "does not fit the players generator"),
    ],
)
def test_checkpoints_that_are_refused(
    tmp_path: Path, data: ImageData, damage: Callable[[Path], None], message: str
) -> None:
    list(build(changed(steps=1), data, tmp_path).steps())
    damage(latest(tmp_path / "checkpoints") or tmp_path)
    with pytest.raises(CheckpointError, match=message):
        build(changed(steps=1), data, tmp_path)


def test_training_makes_a_model_that_denoises(tmp_path: Path) -> None:
    """Two images, one per class: given the class, the denoised of pure noise is that class's image."""
    images = torch.stack([torch.full((1, 4, 4), 64), torch.full((1, 4, 4), 192)]).to(torch.uint8)
    toy = ImageData(images, torch.tensor([0, 1]), ("dark", "bright"), "toy")
    config = dataclasses.replace(
        RUN,
        diffusion=DiffusionConfig(prediction=Part("x0"), class_dropout=0.3),
        train=TrainConfig(steps=150, batch=32, lr=3e-3, warmup=5, ema=0.95, decay=0.5, checkpoint_every=1000),
    )
    model = train_model(config, tmp_path, data=toy)
    assert (model.config.name, model.shape, model.config.classes) == ("tiny", (1, 4, 4), ("dark", "bright"))
    assert (model.config.facts["data"], model.config.facts["steps"]) == ("toy", 150)
    x = torch.randn(200, 1, 4, 4, generator=Generator().manual_seed(0))
    noise, expected = LinearFlow().level(torch.tensor(1.0)), images / 127.5 - 1
    for label in (0, 1):
        denoised = model.denoiser(x, noise, {"label": torch.full((200,), label)})
        assert float((denoised - expected[label]).square().mean().sqrt()) < 0.15
    without = model.denoiser(x, noise)
    assert float((without.mean(dim=0) - expected.mean(dim=0)).abs().max()) < 0.2, "without a class: the mean of both"


def test_the_folder_cannot_be_written(tmp_path: Path, data: ImageData) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        train_steps(RUN, tmp_path / "file", data=data)


# --- any objective, any players ---------------------------------------------------------------------------------------


class Scalar(nn.Module):
    """One number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))


@dataclass(frozen=True)
class Duel:
    """The generator g lowers c * g + g^2, the critic c raises it; every loss reaches both numbers."""

    g: Scalar
    c: Scalar

    def turns(self, batch: Batch, step: int, generator: Generator) -> Iterator[Turn]:
        yield Turn("critic", lambda: self._loss(-1.0))
        if step % 2 == 0:
            yield Turn("generator", lambda: self._loss(1.0))

    def _loss(self, sign: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        value = self.c.value * self.g.value + self.g.value**2
        return sign * value, {"value": value.detach()}


def trainer(
    objective: Objective, players: Mapping[str, nn.Module], data: ImageData, folder: Path, **train: object
) -> Trainer:
    config = dataclasses.replace(RUN.train, **{"steps": 4, "decay": 0.0, "warmup": 0, **train})
    return Trainer(config, objective, players, data, folder, {})


def test_two_players_step_in_turns_and_leave_each_other_alone(tmp_path: Path, data: ImageData) -> None:
    g, c = Scalar(1.0), Scalar(2.0)
    duel = trainer(Duel(g, c), {"generator": g, "critic": c}, data, tmp_path, lr=0.1, clip=1e9)
    reports = list(duel.steps())

    x, y = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.0, 2.0))
    adam = {
        name: torch.optim.AdamW([p], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0) for name, p in (("x", x), ("y", y))
    }
    values = []
    for step in range(4):
        values.append((y * x + x**2).item())
        y.grad = -x.detach().clone()
        adam["y"].step()
        if step % 2 == 0:
            x.grad = (y + 2 * x).detach()
            adam["x"].step()
    assert g.value.item() == pytest.approx(x.item(), abs=1e-12)
    assert c.value.item() == pytest.approx(y.item(), abs=1e-12)
    assert [report.losses["critic/value"] for report in reports] == pytest.approx(values)
    assert ["generator/value" in report.losses for report in reports] == [True, False, True, False]
    assert g.value.grad is None
    assert c.value.grad is None


def test_two_players_resume_exactly(tmp_path: Path, data: ImageData) -> None:
    def run(folder: Path, steps: int) -> tuple[float, float, float]:
        g, c = Scalar(1.0), Scalar(2.0)
        duel = trainer(Duel(g, c), {"generator": g, "critic": c}, data, folder, steps=steps, lr=0.1)
        list(duel.steps())
        average = dict(duel.ema.module.named_parameters())["value"]
        return g.value.item(), c.value.item(), average.item()

    straight = run(tmp_path / "a", 7)
    run(tmp_path / "b", 3)
    assert run(tmp_path / "b", 7) == straight


def test_gradients_are_clipped_per_player(tmp_path: Path, data: ImageData) -> None:
    g, c = Scalar(10.0), Scalar(2.0)
    duel = trainer(Duel(g, c), {"generator": g, "critic": c}, data, tmp_path, steps=1, clip=0.5)
    (report,) = duel.steps()
    assert report.losses["critic/grad_norm"] == pytest.approx(10.0)
    assert report.losses["generator/grad_norm"] == pytest.approx(2 + duel.config.lr + 20.0, abs=1e-6)
    moment = read_checkpoint(latest(tmp_path) or tmp_path).optimizer["critic/value:exp_avg"]
    assert moment.item() == pytest.approx(-0.1 * 0.5, rel=1e-5)


@dataclass(frozen=True)
class Breaks:
    """Fine for two steps; then the loss is NaN, or only its gradient is."""

    g: Scalar
    how: str

    def turns(self, batch: Batch, step: int, generator: Generator) -> Iterator[Turn]:
        yield Turn("generator", lambda: self._loss(step))

    def _loss(self, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss = self.g.value**2
        if step == 2:
            loss = loss * float("nan") if self.how == "loss" else loss + (0 * self.g.value).sqrt()
        return loss, {"square": self.g.value.detach() ** 2}


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_step(tmp_path: Path, data: ImageData, how: str) -> None:
    g = Scalar(1.0)
    steps = trainer(Breaks(g, how), {"generator": g}, data, tmp_path, checkpoint_every=1).steps()
    next(steps)
    next(steps)
    before = g.value.item()
    with pytest.raises(NonFiniteError, match=r"Step 3, player 'generator'.*square 0\.99.*grad_norm nan"):
        next(steps)
    assert g.value.item() == before
    assert read_checkpoint(latest(tmp_path) or tmp_path).model["generator/value"].item() == before


def test_players_must_be_known(tmp_path: Path, data: ImageData) -> None:
    g, c = Scalar(1.0), Scalar(2.0)
    with pytest.raises(UnknownName, match=r"No player 'generator'. Known: critic"):
        trainer(Duel(g, c), {"critic": c}, data, tmp_path)
    with pytest.raises(UnknownName, match=r"No player 'critic'. Known: generator"):
        next(trainer(Duel(g, c), {"generator": g}, data, tmp_path).steps())


@dataclass(frozen=True)
class Looks:
    """Keeps the batches it is shown."""

    g: Scalar
    seen: list[Tensor]

    def turns(self, batch: Batch, step: int, generator: Generator) -> Iterator[Turn]:
        self.seen.append(batch.x0)
        yield Turn("generator", lambda: (self.g.value**2, {}))


@pytest.mark.parametrize("flip", [False, True])
def test_flip_mirrors_half_of_the_images(tmp_path: Path, flip: bool) -> None:
    half_lit = torch.zeros(40, 1, 2, 2, dtype=torch.uint8)
    half_lit[..., 0] = 255
    g, seen = Scalar(1.0), []
    data = ImageData(half_lit, None, (), "half lit")
    list(trainer(Looks(g, seen), {"generator": g}, data, tmp_path, steps=20, batch=40, flip=flip).steps())
    mirrored = torch.cat(seen)[:, 0, 0, 1] == 1
    expected, deviation = (0.5, 0.5 / 800**0.5) if flip else (0.0, 0.0)
    assert abs(float(mirrored.double().mean()) - expected) <= 4 * deviation
