"""The doctor: every complaint is found with its numbers, the fix mends it, and nothing is said of what is well."""

from __future__ import annotations

import functools
import inspect
from types import SimpleNamespace

import diffusers
import pytest
from reference import tiny_pipelines
from reference.published_pipelines import (
    EULER,
    FLUX,
    OF_FLUX,
    OF_SD3,
    PNDM,
    SD3,
    SD15,
    SDXL,
    TURBO,
    trailing,
    write_pipeline,
)

from adapters.doctor_cases import COMPLAINTS, OLD, THREE, XL, found
from adapters.doctor_well import WELL
from fewstep.adapters.doctor import examine
from fewstep.adapters.doctor.build import built
from fewstep.adapters.doctor.pipelines import habits_of
from fewstep.adapters.doctor.runs import run_of
from fewstep.adapters.doctor.use import kept_steps

# Of diffusers, under numpy 2: "__array__ implementation doesn't accept a copy keyword".
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Pipe:
    """A pipeline in memory, as far as the doctor looks at one; calls are noted down."""

    def __init__(self, pipeline, scheduler, network, name):
        self.scheduler, _ = built(scheduler)
        self.config = {"_class_name": pipeline, "_name_or_path": name}
        self.unet = SimpleNamespace(config=network)
        self.asked = {}

    def __call__(self, prompt, **arguments):
        names = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
        self.asked = {names.get(key, key): value for key, value in arguments.items()}


def complaint(name):
    if COMPLAINTS[name].pipeline == "HunyuanDiTPipeline" and not habits_of("HunyuanDiTPipeline").known:
        pytest.skip("this diffusers cannot import its HunyuanDiTPipeline beside this transformers")
    return COMPLAINTS[name]


@pytest.mark.parametrize("name", COMPLAINTS)
def test_a_complaint_is_found_in_the_folder_with_its_numbers(name, tmp_path):
    pipeline, scheduler, network, called, asked, code, severity, numbers = complaint(name)
    finding = found(examine(write_pipeline(tmp_path / called, pipeline, scheduler, network), **asked)).get(code)
    assert finding is not None, f"{code} is not found"
    assert finding.severity == severity, finding
    missing = [number for number in numbers if number not in finding.evidence]
    assert not missing, f"{missing} not in {finding.evidence!r}"


@pytest.mark.parametrize("name", COMPLAINTS)
def test_its_fix_runs_and_takes_it_away(name):
    pipeline, scheduler, network, called, asked, code, _, _ = complaint(name)
    pipe = Pipe(pipeline, scheduler, network, called)
    before = found(examine(pipe, **asked))
    exec(before[code].fix, {"pipe": pipe, "prompt": "a red fox"})
    asked = {**asked, **pipe.asked}
    if "sigmas" in asked:
        asked.pop("steps" if "sigmas" in pipe.asked or "steps" not in pipe.asked else "sigmas", None)
    after = found(examine(pipe, **asked))
    assert code not in after, f"{before[code].fix} leaves {after[code].evidence}"
    worse = [finding for finding in after.values() if finding.severity != "note" and finding.code not in before]
    assert not worse, worse


@pytest.mark.parametrize("name", WELL)
def test_nothing_but_notes_of_what_is_well(name, tmp_path):
    pipeline, scheduler, network, called, asked = WELL[name]
    report = examine(write_pipeline(tmp_path / called, pipeline, scheduler, network), **asked)
    assert report.healthy, [(finding.code, finding.evidence) for finding in report.findings]
    assert not report.runs[0].failure


def test_what_an_image_costs_is_counted(tmp_path):
    """Heun makes 2 n - 1 calls, and guidance doubles them; PNDM makes one more."""
    heun = {**trailing(EULER), "_class_name": "HeunDiscreteScheduler"}
    cost = found(examine(write_pipeline(tmp_path / "heun", XL, heun, SDXL), steps=8))["D10"]
    assert "8 steps are 15 calls per image" in cost.evidence
    assert "to 30 evaluations" in cost.evidence
    cost = found(examine(write_pipeline(tmp_path / "pndm", OLD, PNDM, SD15), steps=50, guidance=1.0))["D10"]
    assert "50 steps are 51 calls per image." in cost.evidence
    levels = [14.615, 3.771, 1.342, 0.555, 0.0]
    passed = examine(write_pipeline(tmp_path / "passed", XL, EULER, SDXL), sigmas=levels, guidance=1.0)
    assert "D10" not in found(passed), "its last level is the end, and no call"
    flux = examine(write_pipeline(tmp_path / "flux", "FluxPipeline", OF_FLUX, FLUX), steps=8)
    assert "D10" not in found(flux), "its guidance is told to the network"
    klein = examine(write_pipeline(tmp_path / "flux2", "Flux2Pipeline", OF_FLUX, FLUX), steps=8)
    assert "D10" not in found(klein), "guidance_embeds says so, too"


def test_steps_that_draw_noise_are_named(tmp_path):
    report = examine(write_pipeline(tmp_path / "turbo", XL, TURBO, SDXL), steps=4, guidance=0.0)
    assert "generator" in found(report)["D12"].fix
    assert "D12" not in found(examine(write_pipeline(tmp_path / "euler", XL, trailing(EULER), SDXL), steps=4))


def test_without_a_number_of_steps_the_card_says_it_or_two_are_tried(tmp_path):
    card = "---\nbase_model: stabilityai/sdxl-base\ntags:\n- lightning\n---\n# Mine\n\npipe(p, num_inference_steps=2)\n"
    report = examine(write_pipeline(tmp_path / "mine", XL, EULER, SDXL, card=card))
    assert [run.steps for run in report.runs] == [2]
    assert "'lightning' in the name 'lightning'" in found(report)["D08"].evidence
    report = examine(write_pipeline(tmp_path / "other", XL, EULER, SDXL))
    assert [run.steps for run in report.runs] == [4, 10]
    assert found(report)["D01"].evidence.startswith("4 steps start at timestep 751"), "the worse of the two"


def test_a_tag_of_a_library_is_no_distillation(tmp_path):
    card = "---\ntags:\n- pytorch-lightning\n---\n# Mine\n"
    assert "D06" not in found(examine(write_pipeline(tmp_path / "mine", XL, trailing(EULER), SDXL, card=card), steps=8))


def test_one_defect_of_sd3_is_one_warning(tmp_path):
    report = examine(write_pipeline(tmp_path / "sd3.5-large-turbo", THREE, OF_SD3, SD3), steps=4, guidance=0.0)
    assert [(f.code, f.severity) for f in report.findings] == [("D04", "warning"), ("D02", "note")]


def test_betas_that_a_class_filled_in_are_found_after_saving(tmp_path):
    folder = write_pipeline(tmp_path / "sd", OLD, trailing({"_class_name": "DDIMScheduler"}), SD15)
    diffusers.DDIMScheduler(timestep_spacing="trailing").save_pretrained(folder / "scheduler")
    assert "beta_start" in (folder / "scheduler" / "scheduler_config.json").read_text()
    assert found(examine(folder, steps=8))["D09"].severity == "error"


def test_a_fix_calls_a_pipeline_as_it_can_be_called(tmp_path):
    ancestral = {**TURBO, "timestep_spacing": "leading"}
    folder = write_pipeline(tmp_path / "cat", "DDPMPipeline", ancestral, SDXL)
    assert found(examine(folder, steps=4, strength=0.2))["D05"].fix == "pipe(num_inference_steps=20, strength=0.2)"
    assert "pipe(batch_size=4, generator=" in found(examine(folder, steps=4))["D12"].fix


def test_a_folder_above_the_pipeline_says_nothing_of_it(tmp_path):
    folder = write_pipeline(tmp_path / "turbo" / "sdxl", XL, trailing(EULER), SDXL)
    assert examine(folder, steps=4).healthy


# How pipelines call


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "sana"])
def test_the_scheduler_is_run_as_the_real_pipeline_runs_it(name, monkeypatch):
    """What set_timesteps is given by a real pipeline, and the timesteps that come of it."""
    pipe, seen = tiny_pipelines.pipeline(name), {}
    real = type(pipe.scheduler).set_timesteps
    signature = inspect.signature(real)

    @functools.wraps(real)
    def noted(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs).arguments
        seen.update({key: value for key, value in bound.items() if key not in ("self", "device") and value is not None})
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe.scheduler), "set_timesteps", noted)
    tiny_pipelines.run(pipe, 4, **tiny_pipelines.arguments(name))
    asked = dict(seen)
    visited = [float(t) for t in pipe.scheduler.timesteps]
    seen.clear()
    run = run_of(pipe.scheduler, 4, habits_of(type(pipe).__name__))
    assert set(seen) == set(asked)
    assert list(seen.get("sigmas", [])) == pytest.approx(list(asked.get("sigmas", [])), abs=1e-12)
    if not pipe.scheduler.config.get("use_dynamic_shifting"):  # mu is that of another size of image
        assert run.timesteps == pytest.approx(visited, abs=1e-9)


def test_habits_are_read_out_of_the_installed_pipelines():
    """Facts of diffusers' own code, by hand."""
    assert habits_of(XL).guidance == 5.0
    assert habits_of("FluxPipeline")[1:4] == (True, True, True)
    assert habits_of(THREE)[1:4] == (False, False, True)
    assert habits_of("HunyuanVideoPipeline")[1:3] == (True, False)
    assert habits_of("WanPipeline")[1:4] == (False, False, False)
    assert habits_of("FluxPipeline").two_scales
    assert [habits_of(name).rounds_up for name in (OLD, XL, THREE, "FluxPipeline")] == [False, False, True, True]
    assert not habits_of("NoSuchPipeline").known


@pytest.mark.parametrize(
    "kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline", "FluxImg2ImgPipeline"]
)
@pytest.mark.parametrize(("steps", "strength"), [(4, 0.2), (4, 0.25), (10, 0.35), (50, 0.58), (8, 1.0)])
def test_steps_of_a_strength_are_those_of_the_real_pipeline(kind, steps, strength):
    scheduler = SimpleNamespace(timesteps=list(range(steps)), order=1, set_begin_index=lambda _: None)
    pipe = SimpleNamespace(scheduler=scheduler)
    timesteps, _ = getattr(diffusers, kind).get_timesteps(pipe, steps, strength, device="cpu")
    up = habits_of(kind.replace("Img2Img", "")).rounds_up
    assert kept_steps(steps, strength, rounds_up=up) == len(timesteps)
