"""Model folders: what is written comes back, and what does not fit is refused with its reason."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep import _files, models
from fewstep.calibration import FILE
from fewstep.errors import CheckpointError, ConfigError, OutputError, UnknownName
from fewstep.models import Chain, Model, ModelConfig, Part, bundled, load_model, save_model
from fewstep.noise import SCHEDULES, LinearFlow

CONFIG = ModelConfig(
    name="toy",
    network=Part("unet", {"width": 8, "multipliers": [1, 2], "blocks": 1, "n_classes": 2, "embedding": 16}),
    prediction=Part("edm", {"sigma_data": 0.6}),
    schedule=Part("linear_flow", {"t_min": 0.01}),
    shape=(1, 4, 4),
    classes=("no", "yes"),
    facts={"seconds": 3, "data": "toys"},
)


def network(config: ModelConfig = CONFIG) -> nn.Module:
    torch.manual_seed(0)
    body = config.body()
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.normal_(std=0.3)
    return body.eval()


def denoised(model: Model) -> torch.Tensor:
    x = torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4)
    level = LinearFlow().level(torch.tensor([0.3, 0.9]))
    return model.denoiser(x, level, {"label": torch.tensor([1, 2])})


def test_a_model_comes_back(tmp_path: Path) -> None:
    body = network()
    folder = save_model(tmp_path / "toy", body, CONFIG, card="# toy\n")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = load_model(folder)
    assert model.config == CONFIG
    assert model.fingerprint == _files.fingerprint(body.state_dict())
    assert (model.shape, model.config.n_classes) == ((1, 4, 4), 2)
    expected = denoised(Model(CONFIG.denoiser(body), CONFIG, ""))
    assert torch.equal(denoised(model), expected)
    assert not denoised(model).requires_grad


def test_a_chain_comes_back(tmp_path: Path) -> None:
    learned = {"1": {"tau": [], "weights": []}, "2": {"tau": [1 / 3], "weights": [[-0.1]]}}
    for chain in (
        Chain(),
        Chain(Part("ipndm", {"order": 2}), Part("karras", {"kappa_max": 20.0}), (1, 3, 8), leaky=True),
        Chain(steps=(1, 2), learned=learned),
    ):
        config = dataclasses.replace(CONFIG, chain=chain)
        assert load_model(save_model(tmp_path, network(), config)).config == config
    content = _files.read_json(save_model(tmp_path, network(), CONFIG) / "config.json")
    assert content.pop("chain") is None
    _files.write_json(tmp_path / "config.json", content)  # as models from before there were chains are
    assert load_model(tmp_path).config == CONFIG
    with pytest.raises(ConfigError, match="chain is null, or solver, spacing and steps"):
        dataclasses.replace(CONFIG, chain="ddim")


def test_a_table_beside_the_weights_comes_along(tmp_path: Path) -> None:
    """As it stands there, unread; a damaged one harms nobody but who wants to use it; saving a model leaves it."""
    save_model(tmp_path, network(), CONFIG)
    assert load_model(tmp_path).calibration is None
    _files.write_json(tmp_path / FILE, {"entries": {"4": []}})
    save_model(tmp_path, network(), CONFIG)
    assert load_model(tmp_path).calibration == {"entries": {"4": []}}
    (tmp_path / FILE).write_text("{")
    damaged = load_model(tmp_path).calibration
    assert isinstance(damaged, CheckpointError)
    assert f"{FILE} is not JSON" in damaged.given


def test_half_weights_are_computed_in_float32(tmp_path: Path) -> None:
    body = network()
    save_model(tmp_path, body, CONFIG, half=True)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.6 * sum(4 * p.numel() for p in body.parameters())
    model = load_model(tmp_path)
    assert isinstance(model.denoiser.network, nn.Module)
    loaded = model.denoiser.network.state_dict()
    assert all(torch.equal(loaded[name], tensor.half().float()) for name, tensor in body.state_dict().items())


def test_guidance(tmp_path: Path) -> None:
    model = load_model(save_model(tmp_path, network(), CONFIG))
    assert model.guided(1.0) is model.denoiser
    x, level = torch.randn(2, 1, 4, 4), LinearFlow().level(torch.tensor(0.5))
    label = {"label": torch.tensor([0, 1])}
    with_class, without = model.denoiser(x, level, label), model.denoiser(x, level, {"label": torch.tensor([2, 2])})
    guided = model.guided(3.0)(x, level, label)
    assert float((guided - (without + 3 * (with_class - without))).abs().max()) < 1e-5
    plain = dataclasses.replace(CONFIG, network=Part("unet", {"width": 8}), classes=())
    with pytest.raises(ConfigError, match="Only a class-conditional model can be guided"):
        load_model(save_model(tmp_path / "plain", network(plain), plain)).guided(2.0)


def test_bundled_models_are_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_BUNDLED", tmp_path)
    save_model(tmp_path / "toy-digits", network(), CONFIG)
    _files.output_dir(tmp_path / "judge")
    _files.write_json(tmp_path / "judge" / "config.json", {"network": {"name": "classifier"}})
    assert bundled() == ["toy-digits"]
    assert load_model("toy-digits").config.name == "toy"
    with pytest.raises(UnknownName, match=r"No model 'toy-digit', and no folder.*Did you mean 'toy-digits'\? Or give"):
        load_model("toy-digit")


def test_every_bundled_model_loads() -> None:
    for name in bundled():
        model = load_model(name)
        x = torch.zeros(1, *model.shape)
        assert bool(model.denoiser(x, LinearFlow().level(torch.tensor(0.5))).isfinite().all())


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def _other_weights(folder: Path) -> None:
    _files.write_tensors(folder / "model.safetensors", {"weight": torch.ones(2)})


def _pickled_weights(folder: Path) -> None:
    torch.save({"weight": torch.ones(2)}, folder / "model.safetensors")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _edited(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = _files.read_json(folder / "config.json") | changes
        _files.write_json(folder / "config.json", {key: value for key, value in content.items() if value is not None})

    return edit


def _null(key: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        _files.write_json(folder / "config.json", _files.read_json(folder / "config.json") | {key: None})

    return edit


def _nested(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"facts": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut_weights, "damaged"),
        (_other_weights, "have the fingerprint"),
        (_pickled_weights, "PyTorch archive"),
        (_no_config, r"config\.json cannot be read"),
        (_edited(schedule=None), "does not describe a fewstep model.*'schedule'"),
        (_edited(shape=[1, 4]), "does not describe a fewstep model"),
        (_edited(colour="red"), "does not describe a fewstep model.*'colour'"),
        (_edited(network={"name": "unet", "arguments": {**CONFIG.network.arguments, "width": 16}}), "do not fit"),
        (_edited(network={"name": "unet", "arguments": {"n_classes": 3}}), "made with n_classes=2"),
        (_edited(network={"name": "unet", "arguments": {"n_classes": 2, "channels": 3}}), "made with channels=1"),
        (_edited(shape=[3, 4, 4]), "made with channels=3"),
        (_edited(classes=["no"]), "made with n_classes=1"),
        (_edited(classes="ab"), "classes is a list of names"),
        (_edited(classes=[0, 1]), "classes is a list of names"),
        *(
            (_edited(shape=shape), "shape is three whole")
            for shape in ("abc", 3, [1, -4, 4], [1, 4.0, 4], [True, 4, 4])
        ),
        (_edited(name=5), "name is a word"),
        (_null("name"), "name is a word"),
        (_edited(label=3), "label is a word"),
        (_edited(label="angel"), "cannot be built.*Did you mean 'angle'"),
        (_null("facts"), "facts is a group of keys"),
        (_edited(facts=[1]), "facts is a group of keys"),
        *((_edited(network={"name": name, "arguments": {}}), "A part with the name") for name in (5, None, ["unet"])),
        *((_edited(network={"name": "unet", "arguments": value}), "A part with the name") for value in (3, None, [])),
        (_edited(network="unet"), "does not describe a fewstep model"),
        (_edited(network={"name": "unett", "arguments": {}}), "cannot be built.*Did you mean 'unet'"),
        (_edited(network={"name": "unet", "arguments": {"width": -8}}), "cannot be built.*width is a whole number"),
        (_edited(network={"name": "unet", "arguments": {"width": 10**30}}), "cannot be built"),
        (_edited(prediction={"name": "x0", "arguments": {"a": 1}}), "cannot be built"),
        (_edited(chain={"steps": [2, 1]}), r"steps=\(2, 1\)"),
        (_edited(chain={"step": [1, 2]}), "step"),
        (_edited(chain={"solver": "ddim"}), "does not describe a fewstep model"),
        (_edited(chain={"learned": {"1": {}}}), "Learned tables"),
        (_edited(chain="ddim"), "does not describe a fewstep model"),
        (_edited(chain=[1, 2, 4]), "does not describe a fewstep model"),
        (_edited(chain=0), "chain is null, or"),
        (_nested, "is not JSON"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    save_model(tmp_path, network(), CONFIG)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_a_full_disk_leaves_the_older_model_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path, network(), CONFIG)
    before = load_model(tmp_path).fingerprint

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        save_model(tmp_path, nn.Linear(2, 2), CONFIG)
    assert load_model(tmp_path).fingerprint == before


def test_parts_refuse_what_their_constructor_does_not_take() -> None:
    assert Part.spelled("unipc:order=3:variant=bh1") == Part("unipc", {"order": 3, "variant": "bh1"})
    assert Part.spelled("ddim") == Part("ddim")
    for text, shows in (("ddim:eta", "eta"), ("ddim:=0.5", "''"), ("ddim:", "''")):
        with pytest.raises(ConfigError) as hit:
            Part.spelled(text)
        assert shows in str(hit.value)
        assert "ddim:eta=0.5" in hit.value.todo
    assert Part("linear_flow", {"t_min": 0.1}).build(SCHEDULES, "schedule") == LinearFlow(t_min=0.1)
    with pytest.raises(UnknownName, match=r"No schedule 'lineer_flow'.*'linear_flow'"):
        Part("lineer_flow").build(SCHEDULES, "schedule")
    with pytest.raises(UnknownName, match=r"No argument of schedule 'linear_flow' 't_max'.*'t_min'"):
        Part("linear_flow", {"t_max": 1}).build(SCHEDULES, "schedule")
    with pytest.raises(ConfigError, match="cannot be built with"):
        Part("linear_flow", {"t_min": "small"}).build(SCHEDULES, "schedule")
    with pytest.raises(ConfigError, match="clean limit must be above 0"):
        Part("linear_flow", {"t_min": -1.0}).build(SCHEDULES, "schedule")
    for name, arguments in ((5, {}), ("unet", None), ("unet", {1: 2})):
        with pytest.raises(ConfigError, match="A part with the name"):
            Part(name, arguments)


def test_configurations_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        save_model(tmp_path, network(), dataclasses.replace(CONFIG, facts={"loss": float("nan")}))
