"""`fewstep convert`: a few-step model out of any, without data and with; stopped and gone on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cli.running import Cli, files, refuses
from fewstep._files import read_json, read_tensors
from fewstep.data import Scenes, digits
from fewstep.errors import ConfigError
from fewstep.experiments.convert import Conversion
from fewstep.experiments.convert_plan import ConvertPlan
from fewstep.experiments.presets import configured
from fewstep.models import Chain, load_model
from fewstep.noise import UniformFlow
from fewstep.objectives.couplings import read_pairs, write_pairs
from fewstep.sampling import START, SeededNoise, sample
from fewstep.solvers import DDIM
from fewstep.training import build, checkpoints, train_model

QUICK = ("--minutes", 0.001, "--n", 20, "--nfe", 4)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The same by hand, in two halves: stopped among the pairs, and stopped in the training."""
    folder = tmp_path_factory.mktemp("converted")
    plan = ConvertPlan(str(model), (1, 2), 0.001, nfe=4)
    next(Conversion(plan, folder).make_pairs())
    work = Conversion(plan, folder)
    assert [*work.make_pairs()] == [256, 512]
    list(work.train())
    return folder


def test_a_model_becomes_a_few_step_one_without_data(cli: Cli, model: Path, converted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(converted / "plan.json", out)  # a plan that is run again gives the same weights
    ran = cli("convert", "--model", model, "--steps", "1,2", *QUICK, "--out", out)
    assert ran.code == 0, ran.err
    assert (out / "model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()
    assert {"convert.json", "convert.png", "pairs.safetensors", "plan.json"} <= set(files(out))
    new = load_model(out)
    assert new.config.chain == Chain(steps=(1, 2))
    assert new.config.name == "tiny-1-2step"
    assert new.config.facts["init"]["name"] == "tiny"
    told = json.loads((out / "convert.json").read_text())
    rows = [(row["name"], row["steps"], row["nfe"]) for row in told["rows"]]
    assert rows == [("before", 1, 1), ("before", 2, 2), ("after", 1, 1), ("after", 2, 2), ("teacher", 4, 4)]
    assert all(row["distance"] > 0 for row in told["rows"])
    assert "others of the teacher at 4 calls" in told["measure"]
    assert "the last row, other samples of the teacher" in told["floor"]
    assert "That is the least there is to do" in ran.out


def test_pairs_are_the_teacher_s(model: Path, converted: Path) -> None:
    """Each sample is what the teacher makes of the noise of its seed, under its class."""
    work, pairs = (
        Conversion(ConvertPlan(str(model), (1, 2), 0.001, nfe=4), converted),
        read_pairs(converted / "pairs.safetensors"),
    )
    rows = [0, 255, 256, 511]
    seeds = pairs.seeds[rows].tolist()
    assert seeds == rows
    assert pairs.cond is not None
    label = pairs.cond["label"][rows]
    assert label.tolist() == [row % 10 for row in rows]
    teacher = work._teacher
    z = SeededNoise(tuple(seeds))(START, torch.empty(4, 1, 8, 8))
    x = sample(teacher.denoiser, teacher.solver, teacher.grid, teacher.grid.at(0).sigma * z, cond={"label": label}).x
    assert (x - pairs.x[rows]).abs().max() < 1e-5


def test_a_finished_conversion_is_left(cli: Cli, model: Path, converted: Path) -> None:
    before = read_tensors(converted / "model.safetensors")
    ran = cli("convert", "--model", model, "--steps", "1,2", *QUICK, "--out", converted)
    assert ran.code == 0, ran.err
    after = read_tensors(converted / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(checkpoints(converted / "checkpoints")) == 1


def test_pairs_of_another_model_are_refused(model: Path, unconditional: Path, converted: Path, tmp_path: Path) -> None:
    place = converted / "pairs.safetensors"
    pairs = read_pairs(place)
    assert pairs.made_by == load_model(model).fingerprint
    other, small = tmp_path / "other.safetensors", tmp_path / "small.safetensors"
    write_pairs(other, replace(pairs, made_by="0123456789ab"))
    write_pairs(small, replace(pairs, x=pairs.x[..., 1:]))
    for start, table, said in (
        (unconditional, place, r"told label, 10 classes.*told nothing.*Make pairs"),
        (model, other, r"fingerprint 0123456789ab.*teacher, 'tiny', has.*e2e\.teacher=FOLDER"),
        (model, small, r"shape \(1, 8, 7\).*shape \(1, 8, 8\)"),
        (model, tmp_path / "no", r"without .*/no\..*e2e\.coupling\.path=FILE"),
    ):
        config = configured(
            objective="e2e", init=str(start), overrides=("e2e.coupling=pairs", f"e2e.coupling.path={table}")
        )
        with pytest.raises(ConfigError, match=said):
            build(config, digits(), tmp_path / "run")


def test_a_few_step_model_teaches_through_its_own_chain(converted: Path, tmp_path: Path) -> None:
    work = Conversion(ConvertPlan(str(converted), (1,), 0.001), tmp_path)
    model = load_model(converted)
    assert (work.nfe, work._teacher.solver) == (2, DDIM())
    assert torch.equal(work._teacher.grid.t, UniformFlow()(model.denoiser.schedule, 2).t)


@pytest.mark.parametrize(
    ("option", "given", "hint"),
    [
        (("--n", 1), "1 images to measure with", "--n 1000"),
        (("--guidance", "nan"), "Guidance nan", "--guidance 1"),
        (("--steps", "9"), "steps=(9,)", "from 1 to 8"),
        (("--batch", 0), "Batches of 0 images", "--batch 64"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    cli: Cli, model: Path, tmp_path: Path, option: tuple[object, ...], given: str, hint: str
) -> None:
    ran = cli("convert", "--model", model, "--minutes", 0.001, *option, "--out", tmp_path / "out")
    refuses(ran, "ConfigError", given, hint)
    assert not (tmp_path / "out" / "plan.json").exists()


def test_a_few_step_teacher_is_not_guided_through_its_chain(converted: Path, tmp_path: Path) -> None:
    plan = ConvertPlan(str(converted), minutes=0.001, guidance=2.0)
    with pytest.raises(
        ConfigError, match=r"Guidance 2 of the teacher .* its own chain.*denoiser that it was made from"
    ):
        Conversion(plan, tmp_path / "out")


def test_a_leaky_model_is_not_converted(converted: Path, tmp_path: Path) -> None:
    leaky = shutil.copytree(converted, tmp_path / "leaky")
    config = json.loads((leaky / "config.json").read_text())
    config["chain"]["leaky"] = True
    (leaky / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"starts at data with noise.*from pure noise.*Convert the denoiser"):
        Conversion(ConvertPlan(str(leaky), (1,), 0.001), tmp_path / "new")


def test_folders_and_images_that_do_not_fit(cli: Cli, model: Path, unconditional: Path, tmp_path: Path) -> None:
    before = files(unconditional)
    ran = cli("convert", "--model", model, *QUICK, "--out", unconditional)
    refuses(ran, "ConfigError", "holds a model that no conversion made", "another --out")
    assert files(unconditional) == before
    Image.new("RGB", (9, 7)).save(tmp_path / "picture.png")
    ran = cli("convert", "--model", model, "--data", f"folder:{tmp_path}", *QUICK, "--out", tmp_path / "out")
    refuses(ran, "ConfigError", "images of shape (3, 8, 8)", "data it was trained on")
    assert not (tmp_path / "out").exists()


def test_another_plan_is_refused(cli: Cli, model: Path, converted: Path) -> None:
    ran = cli("convert", "--model", model, "--steps", "2", *QUICK, "--out", converted)
    refuses(ran, "ConfigError", str(converted), "choose another folder")


def test_images_are_what_the_critic_sees_when_there_are_any(model: Path, tmp_path: Path) -> None:
    work = Conversion(ConvertPlan(str(model), (2,), 0.001, data="digits", nfe=4), tmp_path)
    assert work.config.e2e.coupling.arguments == {"data_free": False}
    assert work.config.data == "digits"
    list(work.make_pairs())
    assert len(list(work.train())) == read_json(tmp_path / "plan.json")["size"]["train_steps"]
    assert load_model(tmp_path).config.facts["data"] == "digits"


def test_a_model_that_reads_captions_is_its_own_data(tmp_path: Path) -> None:
    few = ("network.width=16", "network.blocks=1", "network.embedding=16", "network.detail=4", "train.precision=no")
    old = configured("scenes", overrides=(*few, "train.steps=1", "train.batch=4"))
    train_model(old, tmp_path / "scenes")
    work = Conversion(ConvertPlan(str(tmp_path / "scenes"), (1,), 0.001, nfe=1, batch=8), tmp_path / "new")
    list(work.make_pairs())
    assert len(list(work.train())) == work.size.train_steps
    pairs, captions = read_pairs(tmp_path / "new" / "pairs.safetensors"), Scenes()
    assert pairs.cond is not None
    said = captions.vocabulary.encode([captions.caption(k) for k in (0, 511)])
    assert torch.equal(pairs.cond["tokens"][[0, 511]], said)
    assert load_model(tmp_path / "new").config.captions == captions.vocabulary


@pytest.mark.parametrize(
    ("words", "kind", "given", "hint"),
    [
        (("--steps", "9"), "ConfigError", "steps=(9,)", "from 1 to 8"),
        (("--steps", "two"), "ConfigError", "--steps two", "separated by commas"),
        (("--minutes", "0"), "ConfigError", "A conversion in 0 minutes", "--minutes 5"),
        (("--solver", "ddmi"), "UnknownName", "No solver 'ddmi'", "ddim"),
        (("--nfe", "0"), "ConfigError", "0 calls", "--nfe 10"),
        (("--model", "nothing"), "UnknownName", "nothing", "path of a model folder"),
    ],
)
def test_mistakes(
    cli: Cli, model: Path, tmp_path: Path, words: tuple[str, ...], kind: str, given: str, hint: str
) -> None:
    ran = cli("convert", *([] if "--model" in words else ["--model", model]), *words, "--out", tmp_path / "out")
    refuses(ran, kind, given, hint)
    assert "plan.json" not in files(tmp_path / "out")


def test_time_is_needed() -> None:
    with pytest.raises(ConfigError, match="A conversion in inf minutes"):
        ConvertPlan(minutes=float("inf"))
