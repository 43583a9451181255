"""Generators: images of their seeds alone, counted calls, and a description that tells them apart."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.data import Scenes
from fewstep.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    MissingWeights,
    NonFiniteError,
    ShapeError,
    UnknownName,
)
from fewstep.experiments.evaluation.generators import ModelGenerator
from fewstep.experiments.runs import GridChoice
from fewstep.models import Model, ModelConfig, Part, load_model

diffusers = pytest.importorskip("diffusers", reason="pipelines need the extra 'diffusers'")

from tests.reference import tiny_checkpoints as tiny  # noqa: E402

from fewstep.experiments.evaluation.pipelines import PipelineGenerator  # noqa: E402

# numpy 2 and newer PIL in diffusers, not ours
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PROMPTS = ["a red cat", "b", "c c"]


@pytest.fixture(scope="module")
def mnist():
    return load_model("mnist")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.stable_diffusion(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def pipeline(folder):
    return PipelineGenerator(folder, steps=3, guidance=2.0, batch_size=2)


def test_a_model_makes_each_image_of_its_seed(mnist):
    generator = ModelGenerator(mnist, "dpmpp_2m", 5, batch_size=2)
    drawn = generator([3, 14, 15])
    assert drawn.images.shape == (3, *mnist.shape)
    assert (drawn.nfe, drawn.network_evals) == (5, 5)
    # The class is that of the seed unless one is asked for.
    alone = generator([14], torch.tensor([14 % mnist.config.n_classes]))
    torch.testing.assert_close(alone.images, drawn.images[1:2], atol=1e-4, rtol=0)
    assert float((generator([14], torch.tensor([9])).images - alone.images).abs().max()) > 0.1


def test_guidance_doubles_the_evaluations(mnist):
    drawn = ModelGenerator(mnist, "ddim", 4, guidance=2.0)([0])
    assert (drawn.nfe, drawn.network_evals) == (4, 8)


def test_a_model_says_what_it_does(mnist):
    facts = ModelGenerator(mnist, "heun", 9, GridChoice("uniform_lam", 40.0), guidance=1.5).describe()
    assert facts == {
        "kind": "fewstep model",
        "model": mnist.config.name,
        "model_hash": mnist.fingerprint,
        "solver": "heun",
        "grid": "uniform_lam, kappa 40 to 0.002, 4 steps",
        "nfe": 9,
        "guidance": 1.5,
    }
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("nothing", 5), UnknownName),
        (("heun", 0), BudgetError),
        (("ddim", 5, GridChoice("nothing")), UnknownName),
        (("ddim", 5, None, float("nan")), ConfigError),
        (("ddim", 5, None, 1.0, 0), ConfigError),
    ],
)
def test_models_refuse_before_they_sample(mnist, arguments, error):
    with pytest.raises(error):
        ModelGenerator(mnist, *arguments)


def test_models_refuse_what_they_cannot_read(mnist):
    generator = ModelGenerator(mnist, "ddim", 2)
    with pytest.raises(ConfigError, match="Captions for the model"):
        generator([0, 1], ["one", "two"])
    with pytest.raises(ConfigError, match="Class 10"):
        generator([0], torch.tensor([10]))
    with pytest.raises(ShapeError, match="2 seeds and 1"):
        generator([0, 1], torch.tensor([1]))
    with pytest.raises(ShapeError, match="0 seeds"):
        generator([])


def test_a_model_that_reads_captions():
    """A network that returns a grey made of its words: each image shows whether it got its own caption."""
    words = Scenes().vocabulary
    config = ModelConfig("reader", Part("stub"), Part("x0"), Part("edm"), (1, 4, 4), captions=words)

    def grey(tokens):
        return (tokens * torch.arange(1, words.length + 1)).sum(1)[:, None, None, None] / 1000.0

    denoiser = config.denoiser(lambda x, label, cond: grey(cond["tokens"]).expand_as(x))
    generate = ModelGenerator(Model(denoiser, config, "none"), "ddim", 3, guidance=2.0, batch_size=2)
    captions = [Scenes().caption(seed) for seed in (3, 5, 9)]
    drawn = generate([3, 5, 9], captions)
    assert (drawn.nfe, drawn.network_evals) == (3, 6)
    # Towards the caption, away from the null caption, which is all zeros; DDIM's last step leaves a little noise.
    expected = 2 * grey(words.encode(captions)).expand_as(drawn.images)
    torch.testing.assert_close(drawn.images, expected, atol=0.02, rtol=0)
    assert torch.equal(generate([3, 5, 9]).images, drawn.images)
    assert expected[:, 0, 0, 0].unique().diff().min() > 0.04
    with pytest.raises(UnknownName, match="word"):
        generate([4], ["zeppelin"])


def test_a_pipeline_makes_each_image_of_its_seed(pipeline):
    drawn = pipeline([5, 6, 7], PROMPTS)
    assert drawn.images.shape == (3, 3, 16, 16)
    assert drawn.images.dtype == torch.float32
    assert -1 <= float(drawn.images.min()) < -0.5 < 0.5 < float(drawn.images.max()) <= 1
    for k, seed in enumerate((5, 6, 7)):
        alone = pipeline([seed], PROMPTS[k : k + 1])
        torch.testing.assert_close(alone.images, drawn.images[k : k + 1], atol=1e-4, rtol=0)
    assert float((pipeline([8], PROMPTS[:1]).images - drawn.images[:1]).abs().max()) > 0.1


def test_a_pipeline_is_counted(folder, pipeline):
    drawn = pipeline([5, 6, 7], PROMPTS)
    assert (drawn.nfe, drawn.network_evals) == (3, 6)
    plain = PipelineGenerator(folder, steps=4)([5, 6], PROMPTS[:2])
    assert (plain.nfe, plain.network_evals) == (4, 4)
    assert not pipeline.denoiser._forward_pre_hooks


def test_a_scheduler_that_calls_more_often_is_counted(folder):
    generator = PipelineGenerator(folder, steps=4)
    generator.pipeline.scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    assert generator([1], ["a"]).nfe == 5  # its first step takes two calls


def test_a_stochastic_scheduler_draws_from_the_seed(folder):
    generator = PipelineGenerator(folder, steps=3, batch_size=2)
    generator.pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler(steps_offset=1)
    pair = generator([1, 2], PROMPTS[:2]).images
    torch.testing.assert_close(generator([2], PROMPTS[1:2]).images, pair[1:], atol=1e-4, rtol=0)


def test_a_pipeline_is_what_diffusers_does(folder, pipeline):
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    image = theirs(
        PROMPTS[0],
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    ours = pipeline([5], PROMPTS[:1]).images
    torch.testing.assert_close(ours, torch.from_numpy(image).permute(0, 3, 1, 2) * 2 - 1, atol=1e-4, rtol=0)


def test_a_pipeline_says_what_it_does(folder, pipeline, tmp_path):
    facts = pipeline.describe()
    assert facts["kind"] == "diffusers StableDiffusionPipeline"
    assert (facts["solver"], facts["nfe"], facts["guidance"], facts["dtype"]) == ("DDIMScheduler", 3, 2.0, "float32")
    assert facts["grid"].startswith("trailing, 3 steps, scheduler config ")
    assert json.loads(json.dumps(facts)) == facts

    other = shutil.copytree(folder, tmp_path / "other")
    file = other / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace('"trailing"', '"leading"'))
    weights = load_file(other / "unet" / "diffusion_pytorch_model.safetensors")
    weights["conv_out.bias"] += 1
    save_file(weights, other / "unet" / "diffusion_pytorch_model.safetensors")
    changed = PipelineGenerator(other, steps=3, guidance=2.0).describe()
    assert {name for name in facts if facts[name] != changed[name]} == {"model", "model_hash", "grid"}


def test_a_size_is_passed_on(folder):
    assert PipelineGenerator(folder, steps=1, size=24)([0], ["a"]).images.shape == (1, 3, 24, 24)


def test_no_progress_bar(pipeline, capfd):
    pipeline([5], PROMPTS[:1])
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_safety_checker_is_taken_out(folder, tmp_path):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessorPil

    vision = {**tiny.TEXT, "image_size": 24, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=tiny.TEXT, vision_config=vision, projection_dim=12))
    whole = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=checker, feature_extractor=CLIPImageProcessorPil()
    )
    whole.save_pretrained(tmp_path)
    assert PipelineGenerator(tmp_path, steps=1).pipeline.safety_checker is None


def test_pipelines_refuse_what_they_cannot_read(pipeline):
    with pytest.raises(ConfigError, match="No prompts"):
        pipeline([0])
    with pytest.raises(ConfigError, match="No prompts"):
        pipeline([0], torch.tensor([1]))
    with pytest.raises(ShapeError, match="2 seeds and 1"):
        pipeline([0, 1], ["a"])


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 1, "size": 0}, {"steps": 1, "batch_size": 0}])
def test_options_out_of_range(folder, options):
    with pytest.raises(ConfigError):
        PipelineGenerator(folder, **options)


def test_images_with_nan_are_refused(folder):
    generator = PipelineGenerator(folder, steps=1)
    generator.pipeline.vae.decoder.conv_out.bias.data[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"seeds \[3, 4\]"):
        generator([3, 4], ["a", "b"])


def test_pipelines_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(MissingWeights, match=r"holds no model_index\.json"):
        PipelineGenerator(tmp_path, 1)
    with pytest.raises(MissingWeights, match="is no folder"):
        PipelineGenerator(tmp_path / "nowhere", 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeights, match="some/model cannot be had"):
        PipelineGenerator("some/model", 1)


def test_damaged_pipelines(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    torch.save(weights, file.with_name("diffusion_pytorch_model.bin"))
    file.unlink()
    with pytest.raises(MissingWeights, match="cannot be had"):  # a pickle is not opened
        PipelineGenerator(broken, 1)
    save_file({name: value for name, value in weights.items() if name != "conv_out.weight"}, file)
    with pytest.raises(CheckpointError, match=r"lack 1 .* unet\.conv_out\.weight"):
        PipelineGenerator(broken, 1)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(MissingWeights, match="Unable to load weights"):
        PipelineGenerator(broken, 1)


def test_a_pipeline_of_another_kind(tmp_path):
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="DDPMPipeline, which cannot be asked"):
        PipelineGenerator(tmp_path, 1)
