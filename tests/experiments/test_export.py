"""Models as folders of diffusers: what is loaded from them is the model, sampled as the core samples it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

import fewstep
from fewstep._chain import Chain
from fewstep.calibration import Entry, Origin, Table
from fewstep.errors import CheckpointError, ConfigError, FewstepError, OutputError, UnknownName
from fewstep.experiments.export import export_pipeline, pipeline_of
from fewstep.experiments.ways import way_of
from fewstep.models import ModelConfig, Part, save_model
from fewstep.networks import Vocabulary
from fewstep.pipelines import FewstepPipeline
from fewstep.schedulers import CalibratedScheduler, EVODiffScheduler
from fewstep.solvers import EVODiff, TabulatedSolver

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of diffusers, under numpy 2
    pytest.mark.filterwarnings("ignore:.*torch_dtype:FutureWarning"),
]
LABELS = [3, 1, 4]


def latents(shape, n=3, dtype=torch.float32):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def drawn(pipeline, **options):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(output_type="latent", **options).images


def small(tmp_path, schedule="edm", classes=("a", "b", "c", "d", "e"), **changes):
    """A model of random weights; its convolutions are not zero, as those of a fresh one are."""
    network = Part("unet", {"channels": 1, "width": 8, "n_classes": len(classes)})
    config = ModelConfig(
        "small", network, Part("edm" if schedule == "edm" else "x0"), Part(schedule), (1, 8, 8), "edm", classes
    )
    config = dataclasses.replace(config, **changes)
    torch.manual_seed(0)
    body = config.body()
    for parameter in body.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return fewstep.load_model(save_model(tmp_path / "small", body, config))


@pytest.fixture(scope="module")
def mnist():
    """In float64, in which a velocity and back costs no digits that matter."""
    model = fewstep.load_model("mnist")
    model.denoiser.network.double()
    return model


def exported(model, folder, scheduler="auto"):
    export_pipeline(model, folder, scheduler)
    return FewstepPipeline.from_pretrained(folder).to(next(model.denoiser.network.parameters()).dtype)


def core(model, scheduler, solver, x, guidance=1.0):
    cond = {"label": torch.tensor(LABELS)}
    return fewstep.sample(model.guided(guidance), solver, scheduler.grid, x * scheduler.init_noise_sigma, cond=cond).x


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_bundled_model_is_sampled_as_by_the_core(mnist, tmp_path, guidance):
    pipeline = exported(mnist, tmp_path, "evodiff")
    x = latents(mnist.shape, dtype=torch.float64)
    options = {"latents": x, "class_labels": LABELS, "guidance_scale": guidance}
    images = drawn(pipeline, num_inference_steps=6, **options)
    assert type(pipeline.scheduler) is EVODiffScheduler
    # Timesteps are float32, which is all that is lost; guidance makes more of it.
    far = (images - core(mnist, pipeline.scheduler, EVODiff(), x, guidance)).abs().max() / images.abs().max()
    assert far < 1e-5 * guidance**3


def test_its_own_table_goes_with_it(mnist, tmp_path):
    pipeline = exported(mnist, tmp_path)
    assert type(pipeline.scheduler) is CalibratedScheduler
    x = latents(mnist.shape, dtype=torch.float64)
    images = drawn(pipeline, latents=x, class_labels=LABELS)
    entry = Table.from_json(mnist.calibration).entries[8]  # 8 calls and a given estimate: 9 steps, nearest to 10
    solver = TabulatedSolver(entry.weights, entry.kappa)
    assert pipeline.config.steps == 9
    assert (images - core(mnist, pipeline.scheduler, solver, x)).abs().max() < 1e-5 * images.abs().max()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_few_step_model_keeps_its_chain(tmp_path, steps):
    model = fewstep.load_model("mnist-fewstep")
    pipeline = exported(model, tmp_path)
    way = way_of(model, steps=steps)
    x = latents(model.shape)
    images = drawn(pipeline, latents=x, class_labels=LABELS, num_inference_steps=steps)
    expected = fewstep.sample(model.denoiser, way.rule, way.grid, x, cond={"label": torch.tensor(LABELS)}).x
    assert (images - expected).abs().max() < 1e-5
    assert pipeline.config.steps == 4
    with pytest.raises(UnknownName, match=r"number of steps of this chain '3'.*1, 2, 4"):
        drawn(pipeline, num_inference_steps=3)


def test_a_chain_is_sampled_by_no_other_rule():
    """EVODiff extrapolates from one step to the next, which were never trained to follow one another so."""
    pipeline = pipeline_of(fewstep.load_model("mnist-fewstep"))
    pipeline.scheduler = EVODiffScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ConfigError, match=r"trained through a chain.*FlowMatchEulerDiscreteScheduler\(\)"):
        drawn(pipeline, num_inference_steps=2)


@pytest.mark.parametrize(
    "change", [{"shift": 3.0}, {"use_karras_sigmas": True}, {"stochastic_sampling": True}], ids=str
)
def test_a_chain_makes_no_other_steps(change):
    pipeline = pipeline_of(fewstep.load_model("mnist-fewstep"))
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**change)
    with pytest.raises(ConfigError, match="makes other steps of this chain"):
        drawn(pipeline, num_inference_steps=4)


@pytest.mark.parametrize("scheduler", ["evodiff", "calibrated"])
def test_a_chain_is_exported_with_no_other_rule(tmp_path, scheduler):
    with pytest.raises(ConfigError, match="trained through a chain"):
        export_pipeline(fewstep.load_model("mnist-fewstep"), tmp_path / "out", scheduler)


def test_an_export_is_written_over_no_other_folder(mnist, tmp_path):
    export_pipeline(mnist, tmp_path / "ours", "evodiff")
    export_pipeline(mnist, tmp_path / "ours", "stock")
    for name in ("ours", "theirs"):
        if name == "theirs":
            (tmp_path / name).mkdir()
            (tmp_path / name / "README.md").write_text("my own card")
        with pytest.raises(OutputError, match="no earlier export"):
            export_pipeline(fewstep.load_model("mnist-fewstep"), tmp_path / name)
    assert (tmp_path / "theirs" / "README.md").read_text() == "my own card"


def test_a_stock_flow_scheduler_makes_even_steps(mnist):
    pipeline = pipeline_of(mnist, "stock")
    drawn(pipeline, num_inference_steps=4)
    assert pipeline.scheduler.sigmas.tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_a_table_of_other_weights_is_not_exported(tmp_path):
    entry = Entry((60.0, 5.0, 0.01), ((0.3,),), False, "ddim", "by hand", 0.1, 0.1, 0.1)
    model = small(tmp_path)
    Table(Origin("small", "0" * 12, repr(model.denoiser.schedule)), {2: entry}).save(
        tmp_path / "small/calibration.json"
    )
    with pytest.raises(ConfigError, match="fitted to the weights 000000000000"):
        pipeline_of(fewstep.load_model(tmp_path / "small"))


def test_a_model_of_bounded_noise_becomes_a_table_of_its_range(tmp_path):
    model = small(tmp_path)
    pipeline = exported(model, tmp_path / "out")
    kappa = ((1 - pipeline.scheduler.alphas_cumprod.double()) / pipeline.scheduler.alphas_cumprod.double()).sqrt()
    assert kappa[-1].item() == pytest.approx(80, rel=1e-5)
    assert kappa[0].item() == pytest.approx(0.002, rel=0.02)  # of float32 betas
    x = latents(model.shape)
    images = drawn(pipeline, latents=x, class_labels=LABELS, num_inference_steps=5)
    assert (images - core(model, pipeline.scheduler, EVODiff(), x)).abs().max() < 1e-4 * images.abs().max()


def test_stock_schedulers_sample_it_too(tmp_path):
    """More steps of another rule end at the same picture: the levels and the prediction are what they should be."""
    model = small(tmp_path)
    pipeline = exported(model, tmp_path / "out", "stock")
    assert type(pipeline.scheduler) is DPMSolverMultistepScheduler
    x = latents(model.shape)
    fine = drawn(pipeline, latents=x, class_labels=LABELS, num_inference_steps=200)
    for kind in (UniPCMultistepScheduler, EVODiffScheduler):
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
        assert (drawn(pipeline, latents=x, class_labels=LABELS, num_inference_steps=200) - fine).abs().max() < 0.02


def test_a_table_fitted_on_the_models_clock_serves_the_exports(tmp_path):
    model = small(tmp_path)
    entry = Entry((60.0, 5.0, 0.01), ((0.3,),), False, "ddim", "by hand", 0.1, 0.1, 0.1)
    origin = Origin("small", model.fingerprint, repr(model.denoiser.schedule))
    Table(origin, {2: entry}).save(tmp_path / "small" / "calibration.json")
    model = fewstep.load_model(tmp_path / "small")
    pipeline = exported(model, tmp_path / "out", "calibrated")
    images = drawn(pipeline, latents=latents(model.shape), class_labels=LABELS, num_inference_steps=2)
    solver = TabulatedSolver(entry.weights, entry.kappa)
    assert (images - core(model, pipeline.scheduler, solver, latents(model.shape))).abs().max() < 1e-4


def test_the_folder_holds_no_pickle_and_loads_in_every_way(tmp_path, mnist):
    export_pipeline(mnist, tmp_path, "evodiff")
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "model_index.json",
        "pipeline.py",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    card = (tmp_path / "README.md").read_text()
    assert all(word in card for word in (mnist.fingerprint, "EVODiffScheduler", "10", "FewstepPipeline"))
    by_shim = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline="pipeline", trust_remote_code=True)
    assert type(by_shim) is FewstepPipeline
    half = FewstepPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    images = drawn(half, batch_size=2, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert images.dtype == torch.bfloat16
    assert bool(images.isfinite().all())


def test_pictures_come_in_the_usual_kinds(mnist):
    pipeline = pipeline_of(mnist, "evodiff")
    pipeline.set_progress_bar_config(disable=True)
    made = {
        kind: pipeline(2, num_inference_steps=1, output_type=kind, generator=torch.Generator().manual_seed(0)).images
        for kind in ("pt", "np", "pil")
    }
    assert made["pt"].shape == (2, 1, 28, 28)
    assert made["np"].shape == (2, 28, 28, 1)
    assert made["pil"][0].size == (28, 28)
    assert made["pt"].min() >= 0
    assert made["pt"].max() <= 1


def captioned(tmp_path):
    words = Vocabulary(("a", "b"), 4)
    network = Part("unet", {"channels": 1, "width": 8, "n_tokens": words.n_tokens, "caption_length": words.length})
    return small(tmp_path, classes=(), network=network, captions=words)


REFUSED = {
    "captions": (captioned, "auto", ConfigError, "reads captions"),
    "scheduler": (small, "euler", UnknownName, "evodiff"),
    "no table": (small, "calibrated", ConfigError, "this one has none"),
    "chain": (lambda path: small(path, chain=Chain(Part("heun"))), "auto", ConfigError, "chain of heun"),
}


@pytest.mark.parametrize(("make", "scheduler", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exported_is_refused(tmp_path, make, scheduler, error, said):
    with pytest.raises(error, match=said):
        export_pipeline(make(tmp_path), tmp_path / "out", scheduler)
    assert not (tmp_path / "out").exists()


def test_a_damaged_table_is_refused(tmp_path):
    small(tmp_path)
    (tmp_path / "small" / "calibration.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"calibration\.json"):
        pipeline_of(fewstep.load_model(tmp_path / "small"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"class_labels": [10]}, "0 to 9"),
        ({"latents": torch.zeros(1, 1, 8, 8)}, "Noise of shape"),
        ({"num_inference_steps": 0}, "One step or more"),
    ],
)
def test_calls_that_make_no_sense_are_refused(mnist, options, said):
    with pytest.raises(FewstepError, match=said):
        drawn(pipeline_of(mnist, "evodiff"), **options)


def test_a_model_without_classes_has_nothing_to_guide_to(tmp_path):
    pipeline = pipeline_of(small(tmp_path, classes=()))
    with pytest.raises(ConfigError, match="without classes"):
        drawn(pipeline, guidance_scale=2.0)
    assert drawn(pipeline, batch_size=2, num_inference_steps=2).shape == (2, 1, 8, 8)
