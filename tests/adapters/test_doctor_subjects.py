"""What the doctor can examine: pipelines in memory, on disk and on the hub, models of ours; and what it refuses."""

from __future__ import annotations

import json
import shutil

import diffusers
import pytest
import torch
from reference import tiny_pipelines
from reference.published_pipelines import (
    BETAS,
    DDIM,
    SD15,
    SDXL,
    TURBO,
    ours,
    write_pipeline,
)

from adapters.doctor_cases import OLD, SD, XL, found
from fewstep._files import read_json, write_json
from fewstep.adapters import diffusers_config
from fewstep.adapters.doctor import examine
from fewstep.calibration import Entry, Origin, Table, said_schedule
from fewstep.errors import CheckpointError, ConfigError, MissingExtra, MissingWeights, UnknownName
from fewstep.models import load_model
from fewstep.noise import LinearFlow

# Of diffusers, under numpy 2: "__array__ implementation doesn't accept a copy keyword".
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# What can be examined


def test_a_pipeline_in_memory_is_left_as_it_was():
    pipe = tiny_pipelines.pipeline("sdxl")
    before = pipe.scheduler.timesteps.clone()
    report = examine(pipe, steps=4)
    assert torch.equal(pipe.scheduler.timesteps, before)
    assert pipe.scheduler.num_inference_steps is None
    assert report.subject["pipeline"] == XL
    assert "timestep 751" in found(report)["D01"].evidence


def test_a_real_pipeline_is_mended_by_its_fix():
    pipe = tiny_pipelines.pipeline("sd")
    exec(found(examine(pipe, steps=4))["D01"].fix, {"pipe": pipe})
    assert "D01" not in found(examine(pipe, steps=4))
    tiny_pipelines.run(pipe, 4, **tiny_pipelines.arguments("sd"))
    assert int(pipe.scheduler.timesteps[0]) == 999


def test_a_scheduler_alone(tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(DDIM))
    in_memory, on_disk = (examine(given, steps=4) for given in (diffusers.DDIMScheduler.from_config(DDIM), tmp_path))
    assert found(in_memory)["D01"] == found(on_disk)["D01"]
    assert on_disk.subject["kind"] == "scheduler"


def test_schedulers_of_a_kind_of_their_own_get_no_alarm():
    """SCM has no levels to tell, DDIMInverse goes from images to noise, CogVideoX's step wants an older sample."""
    for kind in (diffusers.SCMScheduler, diffusers.DDIMInverseScheduler):
        (finding,) = examine(kind(), steps=4).findings
        assert (finding.code, finding.severity) == ("D11", "note")
    report = examine(diffusers.CogVideoXDPMScheduler(timestep_spacing="trailing"), steps=8)
    assert report.findings == ()
    assert report.runs[0].timesteps[0] == 999


def table(schedule: str) -> Table:
    entry = Entry((10.0, 1.0, 0.1), ((0.5,),), False, "euler", "karras", 0.1, 0.1, 0.1)
    return Table(Origin(schedule=schedule), {2: entry})


def test_a_calibrated_scheduler_and_the_schedule_of_its_table(tmp_path):
    home = {**BETAS, "_class_name": "CalibratedScheduler"}
    right = {**home, "calibration": table(said_schedule(SD)).to_json()}
    report = examine(write_pipeline(tmp_path / "right", OLD, right, SD15))
    assert [run.steps for run in report.runs] == [2], "the numbers of calls that it was fitted for"
    assert "D09" not in found(report)
    assert "D01" not in found(report), "it begins at kappa 10 of 14.6, which was fitted"
    assert not report.runs[0].failure
    report = examine(write_pipeline(tmp_path / "more", OLD, right, SD15), steps=7)
    assert "ConfigError: 7 steps" in found(report)["D11"].evidence
    assert found(report)["D11"].fix == "pipe(prompt, num_inference_steps=2)"
    wrong = {**home, "calibration": table(said_schedule(LinearFlow())).to_json()}
    finding = found(examine(write_pipeline(tmp_path / "wrong", OLD, wrong, SD15)))["D09"]
    assert finding.severity == "error"
    assert "fitted on LinearFlow" in finding.evidence
    assert "EVODiffScheduler.from_config" in finding.fix


def test_bundled_models_are_well():
    assert examine("mnist").findings == ()
    assert examine("mnist-fewstep").findings == ()
    assert examine(load_model("mnist")).subject["fingerprint"] == load_model("mnist").fingerprint


def test_a_chain_that_is_asked_for_other_steps_or_guided():
    report = found(examine("mnist-fewstep", steps=3, guidance=2.0))
    assert "trained for 1, 2, 4" in report["D08"].evidence
    assert "guidance 2" in report["D06"].evidence
    assert report["D08"].fix == "fewstep sample --model mnist-fewstep --steps 2"


@pytest.fixture
def own(tmp_path):
    home = load_model.__globals__["_BUNDLED"] / "mnist"
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("config.json", "calibration.json"):
        shutil.copy(home / name, folder)
    return folder


def test_a_table_of_other_weights_or_of_another_schedule(own):
    assert examine(own).findings == (), "no weights are needed"
    config = read_json(own / "config.json")
    write_json(own / "config.json", {**config, "fingerprint": "0123456789ab"})
    finding = found(examine(own, steps=10))["D09"]
    assert finding.what == "The calibrated table belongs to other weights"
    assert "0123456789ab" in finding.evidence
    write_json(own / "config.json", {**config, "schedule": {"name": "vp_linear", "arguments": {}}})
    assert found(examine(own, steps=10))["D09"].what == "The calibrated table was fitted on another schedule"
    (own / "calibration.json").write_text("{")
    assert found(examine(own, steps=10))["D09"].what == "The calibrated table cannot be read"
    (own / "calibration.json").unlink()
    assert found(examine(own, steps=4))["D08"].severity == "note"


def test_noise_predicted_at_zero_signal_by_a_model_of_ours(own):
    config = read_json(own / "config.json")
    write_json(own / "config.json", {**config, "prediction": {"name": "eps", "arguments": {}}})
    assert "LinearFlow" in found(examine(own, steps=10))["D07"].evidence


# The hub


def test_a_hub_id_is_read_file_by_file(tmp_path, monkeypatch):
    from huggingface_hub import errors

    folder = write_pipeline(tmp_path / "files", XL, TURBO, SDXL)

    def fetched(name, file):
        if not (folder / file).exists():
            raise errors.EntryNotFoundError(file)
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    report = examine("stabilityai/sdxl-turbo", steps=1)
    assert "'turbo' in the name 'stabilityai/sdxl-turbo'" in found(report)["D06"].evidence


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeights, match="nobody/nothing is no folder here, and cannot be had from the hub"):
        examine("nobody/nothing")


# Bad input


def test_what_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="A dict, which has no scheduler"):
        examine({})
    with pytest.raises(MissingWeights, match="no folder, no bundled model and no hub id"):
        examine("nowhere")
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        examine(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SD15))
    with pytest.raises(CheckpointError, match="a network alone"):
        examine(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no scheduler/scheduler_config\.json"):
        examine(tmp_path)
    (tmp_path / "model_index.json").write_text("[")
    with pytest.raises(CheckpointError, match="is not JSON"):
        examine(tmp_path)


@pytest.mark.parametrize("kind", ["NoScheduler", "UNet2DConditionModel", "__init__", 7])
def test_a_scheduler_of_an_unknown_class_is_refused(kind, tmp_path):
    with pytest.raises(UnknownName, match="A scheduler of the class"):
        examine(write_pipeline(tmp_path / "x", OLD, {**DDIM, "_class_name": kind}, SD15))


def test_a_scheduler_that_cannot_be_built_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be built from its configuration .*no_such"):
        examine(write_pipeline(tmp_path / "x", OLD, {**DDIM, "beta_schedule": "no_such"}, SD15))


def test_ours_without_the_package_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fewstep.schedulers", None)
    with pytest.raises(MissingExtra, match="EVODiffScheduler"):
        examine(write_pipeline(tmp_path / "x", OLD, ours(DDIM), SD15))


def test_diffusers_missing_or_too_old(tmp_path, monkeypatch):
    folder = write_pipeline(tmp_path / "x", OLD, DDIM, SD15)
    monkeypatch.setattr(diffusers, "__version__", "0.21.4")
    with pytest.raises(MissingExtra, match=r"diffusers 0\.21\.4 is installed"):
        examine(folder)

    def gone(module, extra):
        raise MissingExtra(f"This needs the library {module!r}", extra, "Install it")

    monkeypatch.setattr(diffusers_config, "require", gone)
    with pytest.raises(MissingExtra, match="This needs the library 'diffusers'"):
        examine(folder)
    assert examine("mnist").healthy, "a model of ours needs none"


@pytest.mark.parametrize(
    "asked",
    [
        {"steps": 0},
        {"steps": 2.5},
        {"guidance": -1.0},
        {"strength": 1.5},
        {"guidance": float("inf")},
        {"sigmas": []},
        {"sigmas": [1.0, float("nan")]},
        {"sigmas": [float("inf"), 1.0]},
        {"steps": 3, "sigmas": [1.0]},
    ],
)
def test_arguments_out_of_range_are_refused(asked):
    with pytest.raises(ConfigError, match=next(iter(asked))):
        examine("mnist", **asked)
