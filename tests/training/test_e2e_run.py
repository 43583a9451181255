"""End-to-end runs: players, the model that is left, where it starts, and a killed run that goes on bit for bit."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep._files import read_tensors
from fewstep.data import ImageData, Scenes, digits
from fewstep.errors import CheckpointError, CollapseWarning, ConfigError, NonFiniteError, UnknownName
from fewstep.experiments.few_steps import _UNSEEN
from fewstep.experiments.presets import PRESETS, configured
from fewstep.features import RandomConv, load_features
from fewstep.losses import EnergyScore, Viewed
from fewstep.models import Chain, Part, load_model
from fewstep.objectives import E2E
from fewstep.sampling import resolve, sample
from fewstep.training import (
    RunConfig,
    build,
    model_config,
    override,
    read_checkpoint,
    train_model,
    train_steps,
    written_out,
)
from fewstep.training.checkpoint import latest
from fewstep.training.e2e_materials import Materials
from fewstep.training.log import Log

TINY = ("network.width=8", "network.embedding=16", "train.batch=8", "train.warmup=0", "train.lr=1e-3")
TERMS = 'e2e.terms={"energy": {"features": "pixels"}, "adversarial": {"width": 4}}'  # whatever the preset has
PLAIN = (TERMS, "e2e.steps=[1, 2]")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def data() -> ImageData:
    whole = digits()
    return replace(whole, images=whole.images[:200], labels=whole.labels[:200])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of single steps, hardly trained."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train_model(configured("digits", overrides=(*TINY, "train.steps=20", "name=start")), folder)
    return folder


def scratch(*overrides: str) -> RunConfig:
    return configured("digits-e2e", overrides=(*TINY, *PLAIN, "train.steps=4", "train.checkpoint_every=2", *overrides))


def onwards(start: Path, *overrides: str) -> RunConfig:
    few = ("train.batch=8", "train.warmup=0", "train.steps=2", "train.checkpoint_every=2")
    return configured(objective="e2e", init=str(start), overrides=(*few, *PLAIN, *overrides))


def weights(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "model.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_from_scratch_leaves_a_model_with_its_chain(tmp_path: Path, data: ImageData) -> None:
    model = train_model(scratch(), tmp_path, data=data)
    assert model.config.chain == Chain(steps=(1, 2))
    assert model.config.facts["e2e"]["terms"] == scratch().to_json()["e2e"]["terms"]
    solver, grid = resolve(model.config.chain, model.denoiser.schedule, 2)
    z, label = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    assert bool(sample(model.denoiser, solver, grid, z, cond={"label": label}).x.isfinite().all())


def test_energy_of_one_draw_each_in_units_of_the_data(tmp_path: Path, data: ImageData) -> None:
    config = scratch("e2e.terms.energy.draws=1", "e2e.view=none", "train.batch=11")
    objective = build(config, data, tmp_path).objective
    assert isinstance(objective, E2E)
    assert objective.draws == 1
    term = objective.terms["energy"].term
    assert isinstance(term, Viewed)
    assert isinstance(term.term, EnergyScore)
    pixels = data.batch(torch.arange(200)).x0.flatten(1)
    assert term.term.scales == ((pytest.approx(float(2 * pixels.var(0).sum()) ** 0.5, rel=1e-5),),)


def test_a_killed_run_of_two_players_goes_on_bit_for_bit(tmp_path: Path, data: ImageData) -> None:
    config = scratch("e2e.terms.frechet.features=pixels", "e2e.terms.frechet.weight=0.1")
    list(train_steps(config, tmp_path / "whole", data=data))
    killed = train_steps(config, tmp_path / "killed", data=data)
    for _ in range(3):  # one step after the checkpoint, which is lost
        next(killed)
    killed.close()
    list(train_steps(config, tmp_path / "killed", data=data))
    one, two = (read_checkpoint(latest(tmp_path / name / "checkpoints") or tmp_path) for name in ("whole", "killed"))
    assert {name.split("/")[0] for name in one.model} == {"generator", "critic", "memory"}
    assert equal(dict(one.model), dict(two.model))
    assert equal(dict(one.optimizer), dict(two.optimizer))
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_the_log_goes_on_where_the_run_does(tmp_path: Path, data: ImageData) -> None:
    config = scratch("train.steps=20", "train.checkpoint_every=10", "e2e.steps=[1]", "e2e.terms.adversarial.weight=0")
    killed = train_steps(config, tmp_path, data=data)
    for _ in range(12):
        next(killed)
    killed.close()
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 12}\n')  # as if a later checkpoint had been lost
    list(train_steps(config, tmp_path, data=data))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert {"generator/loss", "generator/rho", "generator/grad_step_1"} <= lines[1].keys()


def test_a_log_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 10}\nnothing\n')
    with pytest.raises(CheckpointError, match=r"log\.jsonl has the line 'nothing'.*JSON object.*Delete that line"):
        Log(tmp_path, 10)


def test_a_run_from_a_model_begins_with_its_weights(tmp_path: Path, data: ImageData, start: Path) -> None:
    config, old = onwards(start), load_model(start)
    trainer = build(config, data, tmp_path)
    assert equal(trainer.players["generator"].state_dict(), dict(weights(start)))
    described = model_config(config, data)
    assert (described.network, described.prediction) == (old.config.network, old.config.prediction)
    assert described.name == "start-e2e"
    assert described.facts["init"] == {"name": "start", "fingerprint": old.fingerprint}
    list(trainer.steps())
    assert not equal(trainer.players["generator"].state_dict(), dict(weights(start)))


def test_a_start_that_was_moved_resumes(tmp_path: Path, data: ImageData, start: Path) -> None:
    list(train_steps(onwards(start), tmp_path / "run", data=data))
    moved = shutil.copytree(start, tmp_path / "moved")
    assert build(onwards(moved), data, tmp_path / "run").step == 2


def test_another_teacher_does_not_resume(tmp_path: Path, data: ImageData, start: Path) -> None:
    tutored = onwards(start, "e2e.coupling=teacher", f"e2e.teacher={start}")
    list(train_steps(tutored, tmp_path / "run", data=data))
    other = tmp_path / "other"
    train_model(configured("digits", overrides=(*TINY, "train.steps=1", "name=start")), other)
    with pytest.raises(CheckpointError, match="teacher was"):
        build(replace(tutored, e2e=replace(tutored.e2e, teacher=str(other))), data, tmp_path / "run")


def test_what_led_to_numbers_that_are_not_finite_is_in_the_log(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = scratch("train.steps=30", "train.checkpoint_every=30", "e2e.steps=[1]", "e2e.terms.adversarial.weight=0")
    steps = train_steps(config, tmp_path, data=data)
    for _ in range(10):
        next(steps)
    monkeypatch.setattr(EnergyScore, "__call__", lambda *_: torch.tensor(math.nan, requires_grad=True))
    with pytest.raises(NonFiniteError, match="Step 11"):
        next(steps)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [10]


def test_another_start_does_not_resume(tmp_path: Path, data: ImageData, start: Path) -> None:
    list(train_steps(onwards(start), tmp_path / "run", data=data))
    moved = tmp_path / "start"
    moved.mkdir()
    train_model(configured("digits", overrides=(*TINY, "train.steps=1", "name=start")), moved)
    config = onwards(start)
    other = replace(config, e2e=replace(config.e2e, init=str(moved)))
    with pytest.raises(CheckpointError, match=r"start\.fingerprint was"):
        build(other, data, tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("network.width=12",), r"network=unet.*goes on with that model's own.*Leave network out"),
        (("diffusion.prediction=v",), r"diffusion\.prediction=v.*goes on with that model's own.*x0"),
        (("e2e.trainable=*nrom*",), r"'\*nrom\*', which no parameter's name fits.*conv_in"),
        (("e2e.draws=1",), r"draws=1 for the term 'energy'"),
        (("e2e.terms.energy.weight=0", "e2e.terms.adversarial.weight=0"), "without a term of positive weight"),
        (("e2e.terms.energy.features=pixels:here",), "pixels:here.*have a place"),
        (("e2e.terms.adversarial.features=self",), "features=self for the critic pixel.*critic=projected"),
        (("e2e.coupling=teacher", "e2e.teacher=mnist"), r"teacher 'mnist'.*\(1, 28, 28\).*in training.*\(1, 8, 8\)"),
        (("e2e.coupling=inversion", "e2e.teacher=mnist"), r"teacher 'mnist'.*\(1, 28, 28\).*e2e\.init"),
        (("e2e.trainable=solver,all", "e2e.solver=evodiff"), r"e2e\.solver=.*evodiff.*begins as ddim.*e2e\.trainable"),
        (("diffusion.class_dropout=0.5",), r"class_dropout=0\.5 with objective=e2e.*single steps.*Leave"),
        (("diffusion.weight=flow_error",), r"diffusion\.weight=flow_error.*objective=e2e"),
        (("diffusion.conditional=false",), r"diffusion\.conditional=False.*goes on with that model's own"),
        (("e2e.coupling=leaky",), r"coupling that starts.*e2e\.spacing=uniform_lam"),
        (("e2e.teacher=mnist",), r"e2e\.teacher=mnist with e2e\.coupling=independent.*e2e\.coupling=teacher"),
        (("e2e.spacing=karras",), r"e2e\.spacing=karras: .*kappa_max=80 e2e\.spacing\.end=zero"),
        (("e2e.terms.l2.weight=-1",), r"e2e\.terms\.l2: A weight from -1"),
        (("e2e.terms.energy.weight=-1",), r"e2e\.terms\.energy: A weight from -1"),
        (("e2e.terms.energy.draws=1",), r"draws=1 with batches of 8 images of 10 classes.*energy\.draws=2"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, data: ImageData, start: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(onwards(start, *overrides), data, tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        ("e2e.spacing=karras",),
        ("e2e.trainable=solver", "e2e.solver=evodiff"),
        ("e2e.coupling=teacher", "e2e.teacher=mnist"),
        ("e2e.coupling=pairs",),
    ],
    ids=lambda overrides: overrides[0],
)
def test_options_are_refused_before_a_classifier_is_trained(
    tmp_path: Path, data: ImageData, start: Path, overrides: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError):
        build(onwards(start, "e2e.terms.energy.features=classifier", *overrides), data, tmp_path)
    assert not (tmp_path / "classifier").exists()


def test_vectors_are_of_one_kind(tmp_path: Path, data: ImageData, start: Path) -> None:
    with pytest.raises(UnknownName, match=r"e2e\.terms\.mmd: .*'pixels,random'.*One of random and classifier.*pixels"):
        build(onwards(start, "e2e.terms.mmd.features=pixels,random"), data, tmp_path)


def test_other_data_than_the_model_s_are_refused(start: Path) -> None:
    grey = ImageData(torch.zeros(4, 1, 9, 9, dtype=torch.uint8), None, (), "grey")
    with pytest.raises(ConfigError, match=r"'grey', images of shape \(1, 9, 9\) with 0 classes.*shape \(1, 8, 8\)"):
        model_config(onwards(start), grey)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("e2e.terms.energy.features=self", r"e2e\.terms\.energy: .*'self'.* from scratch.*e2e\.init=MODEL"),
        ("e2e.coupling=teacher", r"without its teacher, in a run from scratch.*e2e\.teacher=MODEL or e2e\.init=MODEL"),
        (
            "e2e.coupling=inversion",
            r"without its teacher, in a run from scratch.*e2e\.teacher=MODEL or e2e\.init=MODEL",
        ),
    ],
)
def test_what_needs_another_model_is_refused_from_scratch(
    tmp_path: Path, data: ImageData, option: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(scratch(option), data, tmp_path)


def test_a_teacher_of_its_own_serves_a_run_from_scratch(tmp_path: Path, data: ImageData, start: Path) -> None:
    trainer = build(scratch("e2e.coupling=teacher", f"e2e.teacher={start}", "train.steps=1"), data, tmp_path)
    assert isinstance(trainer.objective, E2E)
    assert trainer.objective.coupling.pairing == "full"
    list(trainer.steps())


def test_only_chosen_layers_are_trained(tmp_path: Path, data: ImageData, start: Path) -> None:
    before, after = (
        weights(start),
        train_model(onwards(start, "e2e.trainable=*norm_in*, conv_out*"), tmp_path, data=data),
    )
    moved = {
        name for name, value in after.denoiser.network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == {name for name in before if "norm_in" in name or name.startswith("conv_out")}


def test_a_trained_solver_travels_with_the_untouched_network(tmp_path: Path, data: ImageData, start: Path) -> None:
    solver = ("e2e.trainable=solver", "e2e.steps=[2, 3]", "train.lr=0.05", "train.ema=0")
    config = onwards(start, *solver, "e2e.terms.adversarial.weight=0")
    model = train_model(config, tmp_path, data=data)
    assert equal(weights(tmp_path), weights(start))
    assert model.config.chain is not None
    assert set(model.config.chain.learned or {}) == {"2", "3"}
    began = resolve(Chain(steps=(2, 3)), model.denoiser.schedule, 3).grid
    ended = resolve(model.config.chain, model.denoiser.schedule, 3).grid
    assert (began.t - ended.t).abs().max() > 1e-4
    # What is trained is what is sampled: the objective's own chain, once it has the trained numbers.
    objective = build(config, data, tmp_path).objective
    assert isinstance(objective, E2E)
    assert torch.equal(objective.chain(3).grid.t, ended.t)


def test_the_classifier_on_the_spot_is_trained_once(tmp_path: Path, data: ImageData) -> None:
    config = scratch("e2e.terms.energy.features=classifier", "train.steps=1")
    build(config, data, tmp_path)
    made = (tmp_path / "classifier" / "model.safetensors").stat().st_mtime_ns
    build(config, data, tmp_path)
    assert (tmp_path / "classifier" / "model.safetensors").stat().st_mtime_ns == made


def test_the_classifier_is_told_of_and_made_anew_for_other_images(tmp_path: Path, data: ImageData) -> None:
    config, said = scratch("e2e.terms.energy.features=classifier", "train.steps=1"), list[str]()
    critic = build(config, data, tmp_path, said.append).players["critic"].state_dict()
    assert said[-1].startswith("training a classifier of 200 images: step 10 of 10, loss ")
    again = build(config, data, tmp_path, said.append).players["critic"].state_dict()
    assert len(said) == 10
    assert equal(critic, again)  # their first weights do not depend on who trained the classifier
    build(config, replace(data, images=data.images[:150], labels=data.labels[:150]), tmp_path, said.append)
    assert len(said) == 20


def test_training_sees_other_random_filters_than_judges(tmp_path: Path, data: ImageData) -> None:
    given = Materials(model_config(scratch(), data), data, tmp_path, torch.device("cpu"))
    judges = {load_features("random-conv", data.shape).name, RandomConv(1, seed=_UNSEEN).name}
    assert not judges & {given.vectors("random").name, given.maps("random")[0].name.removeprefix("maps of ")}


def test_the_model_of_the_start_is_not_overwritten(data: ImageData, start: Path) -> None:
    with pytest.raises(ConfigError, match=r"e2e\.init.*overwrite.*another output folder"):
        train_steps(onwards(start), start, data=data)


def test_what_a_model_says_of_its_run_makes_it_again(tmp_path: Path, data: ImageData, start: Path) -> None:
    config = onwards(start, "e2e.steps=[1]")
    facts = train_model(config, tmp_path / "one", data=data).config.facts
    told = {"objective": "e2e", "train": facts["train"], "e2e": facts["e2e"], "data": facts["data"]}
    train_model(RunConfig.from_json(told), tmp_path / "two", data=data)
    assert equal(weights(tmp_path / "one"), weights(tmp_path / "two"))
    whole = written_out(config)
    assert whole["network"] == json.loads(json.dumps(asdict(load_model(start).config.network)))
    assert whole["e2e"]["terms"]["adversarial"]["gamma_real"] == 0.01
    train_model(RunConfig.from_json(whole), tmp_path / "three", data=data)
    assert equal(weights(tmp_path / "one"), weights(tmp_path / "three"))


def test_a_classifier_needs_classes(tmp_path: Path, data: ImageData) -> None:
    blind = replace(data, labels=None, classes=())
    with pytest.raises(ConfigError, match=r"Features of a classifier for 'digits'.*images with classes.*pixels"):
        build(scratch("e2e.terms.energy.features=classifier"), blind, tmp_path)


def test_a_collapsing_run_warns(tmp_path: Path, data: ImageData) -> None:
    config = scratch("e2e.terms.energy.weight=0", "e2e.terms.adversarial.weight=0", "e2e.terms.l2.weight=1")
    with pytest.warns(CollapseWarning, match="l2 with noise that is independent"):
        build(config, data, tmp_path)


def test_a_captioned_run_knows_which_terms_see_no_captions(tmp_path: Path) -> None:
    scenes, off = Scenes(), ("e2e.terms.energy.weight=0", "e2e.terms.adversarial.weight=0")
    config = override(PRESETS["scenes-e2e"], [*off, "e2e.terms.mmd.weight=1", "train.steps=1", "train.batch=2"])
    with pytest.warns(CollapseWarning, match="mmd with noise that is independent.*mmd and frechet see no conditions"):
        build(config, scenes, tmp_path)


@pytest.mark.parametrize("gradient", ["full", "last_k", "random_k", "exit"])
def test_every_gradient_and_the_leaky_start_run(tmp_path: Path, data: ImageData, start: Path, gradient: str) -> None:
    leaky = ("e2e.coupling=leaky", "e2e.spacing=uniform_lam", "e2e.spacing.lam_min=-2.7", "e2e.spacing.end=zero")
    config = override(onwards(start, *leaky), [f"e2e.gradient={gradient}", "train.steps=1"])
    model = train_model(config, tmp_path, data=data)
    assert model.config.chain == Chain(
        Part("ddim"), Part("uniform_lam", {"lam_min": -2.7, "end": "zero"}), (1, 2), leaky=True
    )
