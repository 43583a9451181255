"""The doctor on what `fewstep export` wrote: a chain, a model with its table, and what can be mistaken in them."""

from __future__ import annotations

import json
import shutil

import pytest

from adapters.doctor_cases import found
from fewstep._files import read_json, write_json
from fewstep.adapters.doctor import examine
from fewstep.experiments.export import export_pipeline
from fewstep.models import load_model
from fewstep.pipelines import FewstepPipeline
from fewstep.schedulers import CalibratedScheduler

# Of diffusers, under numpy 2: "__array__ implementation doesn't accept a copy keyword".
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for name in ("mnist", "mnist-fewstep"):
        export_pipeline(load_model(name), folder / name)
    return folder


def mended(folder, asked, code):
    """What is left to be found after the fix, in the pipeline itself."""
    pipe = FewstepPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    exec(found(examine(pipe, **asked))[code].fix, {"pipe": pipe})
    pipe(batch_size=1, num_inference_steps=asked["steps"])
    return found(examine(pipe, **asked))


def changed(folder, target, **options):
    """The same folder with other options of its scheduler."""
    shutil.copytree(folder, target)
    path = target / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**read_json(path), **options}))
    return target


def test_an_exported_model_is_well(exported):
    ordinary, chain = examine(exported / "mnist"), examine(exported / "mnist-fewstep")
    assert ordinary.healthy
    assert chain.healthy
    assert [run.steps for run in chain.runs] == [1, 2, 4]
    assert [run.steps for run in ordinary.runs] == CalibratedScheduler.from_pretrained(
        exported / "mnist/scheduler"
    ).steps


def test_an_exported_chain_is_asked_for_its_steps_only(exported):
    report = found(examine(exported / "mnist-fewstep", steps=3, guidance=2.0))
    assert report["D08"].severity == "error"
    assert "trained for 1, 2, 4; FewstepPipeline refuses them" in report["D08"].evidence
    assert "D06" in report
    assert report["D08"].fix == "pipe(num_inference_steps=2)"
    assert report["D06"].fix == "pipe(num_inference_steps=3, guidance_scale=1.0)"


def test_a_chain_under_a_multistep_rule(exported, tmp_path):
    """Its levels are right, and the second order of the rule is not what it was trained for."""
    folder = changed(exported / "mnist-fewstep", tmp_path / "curved", prediction_type="flow_prediction")
    index = read_json(folder / "model_index.json")
    write_json(folder / "model_index.json", {**index, "scheduler": ["fewstep.schedulers", "EVODiffScheduler"]})
    assert examine(folder, steps=1).healthy
    finding = found(examine(folder, steps=4))["D15"]
    assert finding.severity == "warning"
    assert "4 steps of EVODiffScheduler" in finding.evidence
    assert "a chain of 1, 2, 4 steps" in finding.evidence
    assert mended(folder, {"steps": 4}, "D15") == {}


def test_levels_that_do_not_travel_with_an_exported_chain(exported, tmp_path):
    """A shift moves the levels that are passed: 0.75 becomes 0.9."""
    folder = changed(exported / "mnist-fewstep", tmp_path / "shifted", shift=3.0)
    finding = found(examine(folder, steps=4))["D09"]
    assert "sigmas 1, 0.9, 0.75, 0.5 where the chain was trained at 1, 0.75, 0.5, 0.25" in finding.evidence
    assert "D09" not in mended(folder, {"steps": 4}, "D09")


def test_a_prediction_that_does_not_travel_with_exported_weights(exported, tmp_path):
    other = {"_class_name": "EVODiffScheduler", "prediction_type": "epsilon", "use_flow_sigmas": False}
    folder = changed(exported / "mnist", tmp_path / "eps", **other, calibration=None)
    index = read_json(folder / "model_index.json")
    write_json(folder / "model_index.json", {**index, "scheduler": ["fewstep.schedulers", "EVODiffScheduler"]})
    finding = found(examine(folder, steps=5))["D09"]
    assert "The network is on LinearFlow" in finding.evidence
    assert "for Eps()" in finding.evidence
    assert "D09" not in mended(folder, {"steps": 5}, "D09")


def test_a_stock_export_of_a_flow_is_examined_as_it_is_called(tmp_path):
    """FewstepPipeline passes even levels to FlowMatchEuler, which by itself would end with a wasted call."""
    from fewstep.adapters.doctor import examine
    from fewstep.experiments.export import export_pipeline
    from fewstep.models import load_model

    export_pipeline(load_model("mnist"), tmp_path, "stock")
    report = examine(str(tmp_path))
    assert report.healthy
    assert [round(t) for t in report.runs[0].timesteps] == [1000 - 100 * i for i in range(10)]


def test_a_model_with_a_table_is_examined_at_its_numbers_of_calls():
    from fewstep.adapters.doctor import examine

    report = examine("mnist")
    assert report.subject["steps"] == [4, 5, 6, 8, 10, 15, 20]
    assert report.healthy
