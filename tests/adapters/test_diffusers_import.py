"""Models of diffusers that become ours: the same estimates as through wrap, whole or refused, and no code is run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from networks.test_diffusers_unet import TINY
from safetensors.torch import load_file, save_file

import fewstep
from fewstep._files import read_json, write_json
from fewstep.adapters.diffusers_config import described
from fewstep.adapters.diffusers_import import import_diffusers
from fewstep.errors import CheckpointError, ConfigError, FewstepError, MissingWeights
from fewstep.models import Part, load_model, save_model
from fewstep.noise import NoiseLevel, UniformLam
from fewstep.solvers import EVODiff

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
WEIGHTS = "diffusion_pytorch_model.safetensors"
RATES = torch.linspace(0.02, 0.2, 30).tolist()
SCHEDULERS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "ddpm": ("DDPMScheduler", {}, "eps", "tabulated_linear"),
    "v": ("DDIMScheduler", {"prediction_type": "v_prediction", "beta_end": 0.01}, "v", "tabulated_linear"),
    "sd": (
        "DDIMScheduler",
        {"beta_schedule": "scaled_linear", "prediction_type": "sample", "num_train_timesteps": 400},
        "x0",
        "tabulated_scaled_linear",
    ),
    "cosine": ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}, "eps", "tabulated"),
    "rates": ("DDPMScheduler", {"trained_betas": RATES, "num_train_timesteps": 30}, "eps", "tabulated"),
    "zero snr": (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        "v",
        "tabulated",
    ),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "flow", "linear_flow"),
}
EXACT = ("cosine", "rates", "zero snr", "flow")


def pipeline(name: str = "ddpm", **changes: object) -> Any:
    torch.manual_seed(0)
    kind, options, _, _ = SCHEDULERS[name]
    scheduler = getattr(diffusers, kind)(**options)
    return diffusers.DDPMPipeline(diffusers.UNet2DModel(**TINY, **changes).eval(), scheduler)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pipeline().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_model_is_what_wrap_makes_of_it(name: str, tmp_path: Path) -> None:
    """Written and read again: the same estimate at every level, and the same run."""
    pipe = pipeline(name)
    pipe.save_pretrained(tmp_path / "theirs")
    found = import_diffusers(tmp_path / "theirs")
    assert (found.config.prediction, found.config.schedule.name) == (Part(SCHEDULERS[name][2]), SCHEDULERS[name][3])
    model = load_model(save_model(tmp_path / "mine", found.network, found.config))
    assert (model.config, model.shape) == (found.config, (3, 8, 8))
    ours, theirs = model.denoiser, fewstep.wrap(pipe)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grid = UniformLam(lam_min=-1.4, lam_max=1.9)(theirs.schedule, 5)
    runs = [fewstep.sample(denoiser, EVODiff(), grid, x.float()).x for denoiser in (ours, theirs)]
    assert float((runs[0] - runs[1]).abs().max()) < 1e-5
    # A usual table by its numbers differs in the last bits. So does float64, where gemm depends on where weights lie.
    assert torch.equal(*runs) or name not in EXACT
    ours.network.double()
    pipe.unet.double()
    level = theirs.schedule.level(torch.linspace(*theirs.schedule.t_range(), 6, dtype=torch.float64)[1:5])
    with torch.no_grad():
        assert float((ours(x, level) - theirs(x, level)).abs().max()) < 1e-10


def test_usual_tables_are_written_by_their_numbers(tmp_path: Path) -> None:
    pipeline("sd").save_pretrained(tmp_path / "theirs")
    found = import_diffusers(tmp_path / "theirs").config.schedule
    assert found.arguments == {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 400}
    exact = described(read_json(tmp_path / "theirs" / "scheduler" / "scheduler_config.json")).schedule
    made = fewstep.noise.SCHEDULES[found.name](**found.arguments)
    assert max(abs(a / b - 1) for a, b in zip(made.alphas_cumprod, exact.alphas_cumprod, strict=True)) < 1e-12


def test_places(folder: Path, tmp_path: Path) -> None:
    """A pipeline, one in the oldest layout, whose parts lie beside the index, and a unet with its scheduler."""
    expected = import_diffusers(folder)
    assert "of the group 'unet' (weights), names as they are" in expected.said
    flat = shutil.copytree(folder / "unet", tmp_path / "flat")
    shutil.copy(folder / "model_index.json", flat)
    with pytest.raises(CheckpointError, match=r"no scheduler_config\.json.*Pass --scheduler"):
        import_diffusers(flat)
    given = import_diffusers(folder / "unet", folder / "scheduler")
    shutil.copy(folder / "scheduler" / "scheduler_config.json", flat)
    for found in (import_diffusers(flat), given):
        assert found.config.network == expected.config.network
        assert found.config.schedule == expected.config.schedule
        state = expected.network.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in found.network.state_dict().items())


def test_a_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words first, so that no weights of a refused model are downloaded; pickles never are."""
    hub = pytest.importorskip("huggingface_hub")
    asked: list[list[str]] = []

    def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert import_diffusers("ada/unet").config.name == "unet"
    words, weights = asked
    assert all(pattern.endswith(".json") for pattern in words)
    assert f"unet/{WEIGHTS}*" in weights
    assert all(".safetensors" in pattern for pattern in weights)


def test_the_hub_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeights, match="ada/unet is no folder here, and cannot be had from the hub"):
        import_diffusers("ada/unet")


def test_classes_and_the_null_class(tmp_path: Path) -> None:
    pipeline(num_class_embeds=4).save_pretrained(tmp_path)
    for null, classes in ((False, "0123"), (True, "012")):
        found = import_diffusers(tmp_path, null=null)
        model = load_model(save_model(tmp_path / f"mine{null}", found.network, found.config))
        assert model.config.classes == tuple(classes)
        x, level = torch.zeros(1, 3, 8, 8), NoiseLevel(torch.tensor(0.6), torch.tensor(0.8))
        cond = {"label": torch.tensor([1])}
        assert model.denoiser(x, level, cond).isfinite().all()
        if null:
            assert model.guided(3.0)(x, level, cond).isfinite().all()
        else:
            with pytest.raises(ConfigError, match=r"Guidance 3 for the model.*without a null class"):
                model.guided(3.0)


def test_no_last_class_to_say_nothing(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--null for a network with num_class_embeds=None"):
        import_diffusers(folder, null=True)


def test_older_names_of_attention(folder: Path) -> None:
    """As in the oldest published checkpoints; the network is the same."""
    expected = import_diffusers(folder).network.state_dict()
    new = load_file(folder / "unet" / WEIGHTS)
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in new.items():
        for word, older in words.items():
            name = name.replace(word, older)
        old[name] = tensor
    assert old.keys() != new.keys()
    save_file(old, folder / "unet" / WEIGHTS)
    found = import_diffusers(folder).network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_shards_half_precision_and_restricted_pickles(folder: Path) -> None:
    unet = pipeline().unet
    expected = unet.state_dict()
    (folder / "unet" / WEIGHTS).unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="20KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    whole = import_diffusers(folder).network.unet.state_dict()
    assert all(torch.equal(whole[name], tensor) for name, tensor in expected.items())
    for file in (folder / "unet").glob("diffusion*"):
        file.unlink()
    torch.save({name: tensor.half() for name, tensor in expected.items()}, folder / "unet" / f"{WEIGHTS[:-11]}bin")
    half = import_diffusers(folder).network.unet.state_dict()
    assert all(torch.equal(half[name], tensor.half().float()) for name, tensor in expected.items())


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_code_never_runs(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "unet" / WEIGHTS)
    (folder / "unet" / WEIGHTS).unlink()
    torch.save({**weights, "x": Trap(tmp_path / "ran")}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(FewstepError, match="cannot be"):
        import_diffusers(folder)
    assert not (tmp_path / "ran").exists()


def changed(file: Path, **changes: object) -> None:
    write_json(file, {**read_json(file), **changes})


@pytest.mark.parametrize("drop", [True, False])
def test_weights_that_are_not_whole(folder: Path, drop: bool) -> None:
    """diffusers would make up what is missing and drop what is unknown."""
    weights = load_file(folder / "unet" / WEIGHTS)
    if drop:
        del weights["conv_in.bias"]
    save_file(weights if drop else {**weights, "head": torch.ones(2)}, folder / "unet" / WEIGHTS)
    with pytest.raises(CheckpointError, match="do not fit.*missing_keys" if drop else "do not fit.*unexpected_keys"):
        import_diffusers(folder)


def test_weights_that_are_not_finite(folder: Path) -> None:
    weights = load_file(folder / "unet" / WEIGHTS)
    save_file({**weights, "conv_in.bias": torch.full((8,), float("nan"))}, folder / "unet" / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"NaN or infinity in 1 tensors \(conv_in\.bias\)"):
        import_diffusers(folder)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, r"with vae.*fewstep\.wrap.*pipeline:"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "class UNet2DConditionModel.*no text"),
        ("unet/config.json", {"_class_name": None}, "no network of diffusers"),
        ("unet/config.json", {"sample_size": None}, "does not say how large.*config.json"),
        ("scheduler/scheduler_config.json", {"prediction_type": "noise"}, "prediction type 'noise'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "odd"}, "beta schedule 'odd'"),
    ],
)
def test_what_is_refused(folder: Path, file: str, changes: dict[str, object], message: str) -> None:
    changed(folder / file, **changes)
    with pytest.raises(FewstepError, match=message):
        import_diffusers(folder)


def test_places_that_hold_none(folder: Path, tmp_path: Path) -> None:
    for place, message in (
        (folder / "scheduler", r"holds no unet/config\.json"),
        (tmp_path / "none", "no file, no folder and no hub id"),
    ):
        with pytest.raises(MissingWeights, match=message):
            import_diffusers(place)
    with pytest.raises(CheckpointError, match=r"file of weights, without --like.*Pass --like"):
        import_diffusers(folder / "unet" / WEIGHTS)
