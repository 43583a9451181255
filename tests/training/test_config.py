"""Configurations: JSON and back, overrides, and typing errors that die."""

from __future__ import annotations

import json

import pytest

from fewstep.errors import ConfigError, UnknownName
from fewstep.experiments import PRESETS
from fewstep.models import Part
from fewstep.training import RunConfig, TrainConfig, override


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    config = PRESETS[name]
    assert config.name == "", "the model is called after its data"
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))).to_json() == config.to_json()


def test_json_restores_types() -> None:
    config = RunConfig(train=TrainConfig(betas=(0.5, 0.6), lr=2.0))
    assert RunConfig.from_json(config.to_json()) == config
    assert RunConfig.from_json({"train": {"lr": 2}}).train.lr == 2.0


def test_overrides() -> None:
    config = override(
        RunConfig(network=Part("unet", {"width": 8})),
        [
            "name=2026",
            "data=folder:/some/where=odd",
            "train.lr=1e-3",
            "train.steps=50",
            "train.flip=true",
            "train.betas=[0.8, 0.9]",
            "network.blocks=3",
            "network.multipliers=[1,2,4]",
            "diffusion.schedule=edm",
            "diffusion.schedule.sigma_max=50",
            "diffusion.label=edm",
        ],
    )
    assert (config.name, config.data) == ("2026", "folder:/some/where=odd")
    assert (config.train.lr, config.train.steps, config.train.flip) == (1e-3, 50, True)
    assert config.train.betas == (0.8, 0.9)
    assert config.network == Part("unet", {"width": 8, "blocks": 3, "multipliers": (1, 2, 4)})
    assert config.diffusion.schedule == Part("edm", {"sigma_max": 50.0})
    assert config.diffusion.label == "edm"


def test_a_new_part_forgets_the_old_arguments() -> None:
    config = override(RunConfig(network=Part("unet", {"width": 8})), ["network=space_to_depth", "network.patch=2"])
    assert config.network == Part("space_to_depth", {"patch": 2})


@pytest.mark.parametrize(
    ("assignment", "error", "message"),
    [
        ("train.lrr=1", UnknownName, "No key of TrainConfig 'lrr'.*Did you mean 'lr'"),
        ("trane.lr=1", UnknownName, "No key of RunConfig 'trane'.*Did you mean 'train'"),
        ("network.widht=8", UnknownName, "No argument of network 'unet' 'widht'.*Did you mean 'width'"),
        ("network=unett", UnknownName, "No network 'unett'.*Did you mean 'unet'"),
        ("diffusion.prediction=w", UnknownName, "No prediction 'w'"),
        ("diffusion.label=angel", UnknownName, "No noise label 'angel'.*Did you mean 'angle'"),
        ("train.steps=many", ConfigError, r"train\.steps='many' \(str\).*takes a whole number, such as 1000"),
        ("train.steps=1.5", ConfigError, r"train\.steps=1\.5"),
        ("train.steps=true", ConfigError, "takes a whole number"),
        ("train.lr=true", ConfigError, "takes a number"),
        ("train.flip=1", ConfigError, "takes true or false"),
        ('train.betas=[0.9, "x"]', ConfigError, "takes a list of numbers"),
        ("train=5", ConfigError, r"train is a group of keys.*train\.<key>=value"),
        ("name.first=x", ConfigError, "name is a single value"),
        ("network.width.more=8", ConfigError, "is a single value"),
        ("train.lr", ConfigError, "Overrides are written key=value"),
        ("train.steps=0", ConfigError, "steps is above 0"),
        ("train.ema=1.0", ConfigError, "ema is at least 0 and below 1"),
        ("train.decay=2.0", ConfigError, "decay is between 0 and 1"),
        ("train.warmup=-1", ConfigError, "warmup is at least 0"),
        ("train.betas=[0.9]", ConfigError, "betas is two numbers"),
        ("train.betas=[0.9, 1.0]", ConfigError, "betas is two numbers"),
        ("train.lr=NaN", ConfigError, "lr is above 0"),
        ("train.lr=Infinity", ConfigError, "lr is above 0 and finite"),
        ("train.weight_decay=Infinity", ConfigError, "weight_decay is at least 0 and finite"),
        ("train.weight_decay=NaN", ConfigError, "weight_decay is at least 0 and finite"),
        ("train.clip=Infinity", ConfigError, "clip is at least 0 and finite"),
        ("train.clip=-1.0", ConfigError, "clip is at least 0 and finite"),
        ("train.betas=[0.9, NaN]", ConfigError, "betas is two numbers"),
        ("train.seed=-1", ConfigError, "seed is at least 0"),
        (f"train.seed={2**63}", ConfigError, "seed is at least 0"),
        ("size=-1", ConfigError, "size is a whole number, at least 0"),
        ("diffusion.draw.mean=NaN", ConfigError, "."),
        ("train.precision=fp8", ConfigError, "'no' or 'bf16'"),
        ("diffusion.schedule.t_min=-1", ConfigError, "clean limit must be above 0"),
        ("diffusion.class_dropout=2", ConfigError, "class_dropout is between 0 and 1"),
    ],
)
def test_mistakes_die(assignment: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        override(RunConfig(), [assignment])


def test_json_with_mistakes() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'train'"):
        RunConfig.from_json({"trian": {}})
    with pytest.raises(ConfigError, match=r"train\.steps='5'"):
        RunConfig.from_json({"train": {"steps": "5"}})
    with pytest.raises(ConfigError, match=r"network=.*takes a name and arguments"):
        RunConfig.from_json({"network": {"nam": "unet"}})
    with pytest.raises(ConfigError, match="train=5"):
        RunConfig.from_json({"train": 5})
    for part in (
        {"name": 5, "arguments": {}},
        {"name": "unet", "arguments": None},
        {"name": ["unet"], "arguments": {}},
    ):
        with pytest.raises(ConfigError, match="A part with the name"):
            RunConfig.from_json({"network": part})
    for value in (float("nan"), float("inf"), object()):
        with pytest.raises(ConfigError, match="A configuration that JSON cannot hold"):
            RunConfig(network=Part("unet", {"width": value}))


def test_seeds_reach_to_the_largest() -> None:
    assert TrainConfig(seed=2**63 - 1).seed == 2**63 - 1
