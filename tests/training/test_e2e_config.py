"""Options of end-to-end runs: JSON and back, overrides, presets, and typing errors that die."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fewstep.errors import ConfigError, UnknownName
from fewstep.experiments.presets import PRESETS, configured
from fewstep.models import Part
from fewstep.training import E2EConfig, RunConfig, override
from fewstep.training.e2e_terms import TERMS, known_arguments

RUN = RunConfig(objective="e2e")


def test_overrides_reach_every_option_and_survive_json() -> None:
    config = override(
        RUN,
        [
            "e2e.init=mnist",
            "e2e.steps=[1, 3]",
            "e2e.solver=unipc",
            "e2e.spacing=karras",
            "e2e.spacing.rho=3",
            "e2e.coupling=teacher",
            "e2e.coupling.nfe=8",
            "e2e.gradient=last_k",
            "e2e.gradient.k=2",
            "e2e.microbatch=16",
            "e2e.draws=3",
            "e2e.trainable=*norm*",
            "e2e.view=clamp",
            "e2e.terms.energy.weight=0",
            "e2e.terms.huber.delta=1",
            "e2e.terms.adversarial.critic=projected",
            "e2e.terms.adversarial.weight_end=0.5",
        ],
    )
    e2e = config.e2e
    assert (e2e.init, e2e.steps, e2e.counts) == ("mnist", (1, 3), (1, 3))
    assert (e2e.solver, e2e.spacing) == (Part("unipc"), Part("karras", {"rho": 3.0}))
    assert (e2e.coupling, e2e.gradient) == (Part("teacher", {"nfe": 8}), Part("last_k", {"k": 2}))
    assert (e2e.microbatch, e2e.draws, e2e.trainable, e2e.view) == (16, 3, "*norm*", "clamp")
    assert e2e.terms == {
        "energy": {"weight": 0.0},
        "adversarial": {"weight": 1.0, "critic": "projected", "weight_end": 0.5},
        "huber": {"delta": 1.0},
    }
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_default_terms_are_safe_for_diversity() -> None:
    assert set(E2EConfig().terms) == {"energy", "adversarial"}


def test_single_steps_are_written_as_they_were_before_there_were_chains() -> None:
    assert not {"objective", "e2e"} & RunConfig().to_json().keys()
    assert {"objective", "e2e"} <= RUN.to_json().keys()


@pytest.mark.parametrize("name", TERMS)
def test_every_argument_of_a_term_can_be_written(name: str) -> None:
    known = known_arguments(name)
    assert {"weight", "weight_end", "shape"} <= known.keys()
    given = {key: 1.0 if value is None else value for key, value in known.items()}
    config = replace(RUN, e2e=E2EConfig(terms={name: given}))
    assert RunConfig.from_json(config.to_json()).e2e.terms == {name: given}


@pytest.mark.parametrize(
    ("assignment", "error", "message"),
    [
        ("objective=e3e", UnknownName, "No objective 'e3e'.*Did you mean 'e2e'"),
        ("e2e.stesp=[1]", UnknownName, "No key of E2EConfig 'stesp'.*Did you mean 'steps'"),
        ("e2e.terms.enrgy.weight=1", UnknownName, "No term 'enrgy'.*Did you mean 'energy'"),
        ("e2e.terms.energy.wieght=1", UnknownName, "'wieght'.*Did you mean 'weight'"),
        ("e2e.terms.energy.weight=much", ConfigError, r"e2e\.terms\.energy\.weight='much'.*takes a number"),
        ("e2e.terms.energy.features=3", ConfigError, "takes a word"),
        ('e2e.terms={"l2": 3}', ConfigError, r"e2e\.terms\.l2=3.*is a group of weight"),
        ("e2e.coupling=teahcer", UnknownName, "No coupling 'teahcer'.*Did you mean 'teacher'"),
        ("e2e.coupling.nfe=8", UnknownName, "No argument of coupling 'independent' 'nfe'"),
        ("e2e.gradient=ful", UnknownName, "No gradient 'ful'.*Did you mean 'full'"),
        ("e2e.view=eightbit", UnknownName, "No view 'eightbit'.*Did you mean 'eight_bit'"),
        ("e2e.solver=dim", UnknownName, "No solver 'dim'.*Did you mean 'ddim'"),
        ("e2e.steps=2", ConfigError, r"takes a list of numbers, such as \[1, 2, 4\]"),
        ("e2e.steps=[]", ConfigError, "steps is a list of whole numbers from 1 to 8"),
        ("e2e.steps=[0]", ConfigError, "steps is a list of whole numbers from 1 to 8"),
        ("e2e.steps=[1, 9]", ConfigError, r"e2e\.steps=\[1, 9\]. e2e\.steps is a list of whole numbers from 1 to 8"),
        ("e2e.gradient.every=-1", ConfigError, r"gradient full every=-1: "),
        ("e2e.steps=[1.5]", ConfigError, "steps is a list of whole numbers from 1 to 8"),
        ("train.players.critic.lr=-1", ConfigError, r"train\.players\.critic: train\.lr=-1"),
        ("e2e.microbatch=-1", ConfigError, "microbatch is a whole number, at least 0"),
        ("e2e.draws=-1", ConfigError, "draws is a whole number, at least 0"),
    ],
)
def test_mistakes_die(assignment: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        override(RUN, [assignment])


def test_options_of_chains_are_refused_for_single_steps() -> None:
    with pytest.raises(ConfigError, match=r"e2e.*denoising.*objective=e2e"):
        override(RunConfig(), ["e2e.steps=[2]"])
    assert override(RunConfig(), ["e2e.steps=[2]", "objective=e2e"]).e2e.steps == (2,)


def test_a_model_to_start_from_brings_its_own_network() -> None:
    assert PRESETS["digits-e2e"].network == PRESETS["digits"].network
    config = configured(objective="e2e", init="somewhere", data="folder:x", overrides=["train.lr=0.5"])
    assert (config.network, config.diffusion) == (RunConfig().network, RunConfig().diffusion)
    assert (config.e2e.init, config.data, config.train.lr) == ("somewhere", "folder:x", 0.5)
    assert config.e2e.terms == PRESETS["digits-e2e"].e2e.terms
    assert configured().objective == "denoising"
