"""Captions from the data to the model folder: what is trained is what is sampled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.data import Batch, Scenes, digits, seeded
from fewstep.denoisers import PREDICTIONS, ClassifierFree, NetworkDenoiser
from fewstep.errors import CheckpointError, ConfigError, UnknownName
from fewstep.models import Model, Part, load_model
from fewstep.networks import Vocabulary
from fewstep.noise import LinearFlow, NoiseLevel
from fewstep.objectives import Denoising
from fewstep.training import DiffusionConfig, RunConfig, TrainConfig, model_config, train_model, train_steps

RUN = RunConfig(
    data="scenes",
    network=Part("space_to_depth", {"patch": 8, "width": 16, "blocks": 1, "heads": 2, "detail": 4, "embedding": 16}),
    diffusion=DiffusionConfig(prediction=Part("x0")),
    train=TrainConfig(steps=4, batch=4, ema=0.5, checkpoint_every=2),
)
CAPTIONS = ["a small red circle at the top", "a large blue square above a small green cross"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train_model(RUN, path := tmp_path_factory.mktemp("models") / "scenes")
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(folder)


def test_a_model_folder_holds_its_words(model: Model) -> None:
    data = Scenes()
    assert model.config.captions == data.vocabulary
    assert (model.config.classes, model.shape) == ((), data.shape)
    assert model.config.network.arguments["n_tokens"] == len(data.vocabulary.words) + 1
    assert model.config.network.arguments["caption_length"] == 10
    assert torch.equal(model.cond_of_captions(CAPTIONS)["tokens"], data.vocabulary.encode(CAPTIONS))
    assert {name: row.tolist() for name, row in model.config.null.items()} == {"tokens": [[0] * 10]}


def test_resuming_is_exact(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for report in train_steps(RUN, tmp_path):
        if report.step == 2:
            break
    assert train_model(RUN, tmp_path).fingerprint == load_model(folder).fingerprint


class Listener:
    """Remembers the condition it was called with."""

    cond: Mapping[str, Tensor] | None = None

    def __call__(self, x: Tensor, noise_label: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        self.cond = cond
        return x


def test_dropout_replaces_whole_captions() -> None:
    network, vocabulary, n = Listener(), Scenes().vocabulary, 2000
    tokens = vocabulary.encode(CAPTIONS * (n // 2))
    batch = Batch(torch.zeros(n, 1, 1, 1), {"tokens": tokens})
    denoiser = NetworkDenoiser(network, PREDICTIONS["x0"](), LinearFlow(t_min=0.05))
    for dropout in (0.0, 0.25, 1.0):
        Denoising(denoiser, null={"tokens": vocabulary.null}, class_dropout=dropout).per_sample(batch, seeded("drop"))
        assert network.cond is not None
        null = (network.cond["tokens"] == 0).all(dim=1)
        assert torch.equal(network.cond["tokens"][~null], tokens[~null])
        assert abs(float(null.double().mean()) - dropout) <= 4 * (dropout * (1 - dropout) / n) ** 0.5


def test_guidance_compares_with_the_null_caption(model: Model) -> None:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    level, cond = NoiseLevel(torch.tensor(0.5), torch.tensor(0.5)), model.cond_of_captions(CAPTIONS)
    guided = model.guided(3.0)
    assert isinstance(guided, ClassifierFree)
    given, nothing = (model.denoiser(x, level, c) for c in (cond, None))
    torch.testing.assert_close(guided(x, level, cond), nothing + 3 * (given - nothing), rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="Guidance without the condition tokens"):
        guided(x, level, {"label": torch.tensor([0, 1])})


def test_a_blind_run_reads_no_captions(model: Model) -> None:
    blind = model_config(replace(RUN, diffusion=replace(RUN.diffusion, conditional=False)), Scenes())
    assert (blind.captions, blind.null, blind.conditions) == (None, {}, {"n_classes": 0})
    assert blind.body().n_tokens == 0


def test_captions_follow_from_the_data() -> None:
    wrong = replace(RUN, network=Part("unet", {"n_tokens": 7}))
    with pytest.raises(ConfigError, match=r"network\.n_tokens=7 for the data set 'scenes-32'"):
        model_config(wrong, Scenes())
    assert model_config(replace(RUN, network=Part("unet")), digits()).captions is None


def test_captions_for_other_models_and_the_reverse(model: Model) -> None:
    with pytest.raises(UnknownName, match=r"No word 'purpel'.*'purple'"):
        model.cond_of_captions(["a small purpel circle at the top"])
    with pytest.raises(ConfigError, match="1 to 10 words"):
        model.cond_of_captions([""])
    mnist = load_model("mnist")
    with pytest.raises(ConfigError, match=r"Captions for the model.*It is told a class"):
        mnist.cond_of_captions(CAPTIONS)
    x, level = torch.zeros(1, 3, 32, 32), NoiseLevel(torch.tensor(0.5), torch.tensor(0.5))
    with pytest.raises(ConfigError, match=r"'label'.*takes a caption"):
        model.denoiser(x, level, {"label": torch.tensor([1])})


def test_scenes_are_not_mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match="left and right"):
        list(train_steps(replace(RUN, train=replace(RUN.train, flip=True)), tmp_path))


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (None, "made with n_tokens=0"),
        ({"words": ["a", "b"], "length": 10}, "made with n_tokens=3"),
        ({"words": ["a", "a"], "length": 10}, "each once"),
        ({"words": ["a"]}, "length"),
        ("red", "does not describe a fewstep model"),
        (["red"], "does not describe a fewstep model"),
    ],
)
def test_damaged_words_are_refused(folder: Path, tmp_path: Path, captions: object, message: str) -> None:
    content = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**content, "captions": captions}))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_models_from_before_captions_load(tmp_path: Path) -> None:
    mnist = load_model("mnist")
    assert mnist.config.captions is None
    assert {name: row.tolist() for name, row in mnist.config.null.items()} == {"label": [10]}
    assert Vocabulary(("a",), 1) != mnist.config.captions
