"""Pipelines of diffusers with random weights, as small as their code allows: one of each family, built in a second.

Their configurations of schedulers are the published ones, and so are the parts: two text encoders in SDXL, three in
SD3, packed latents in Flux, a learned variance in PixArt. What they draw is noise; they prove mechanics.
"""

from __future__ import annotations

import copy
import functools
import string
from functools import cache
from typing import Any, NamedTuple

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from .tiny_checkpoints import TEXT, tokenizer

WIDTH = TEXT["hidden_size"]
LETTERS = [*string.ascii_letters, *string.digits, *string.punctuation, "▁"]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "sd": ("PNDMScheduler", {**BETAS, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}),
    "sd2-v": (
        "DDIMScheduler",
        {
            **BETAS,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
    ),
    "sdxl": ("EulerDiscreteScheduler", {**BETAS, "timestep_spacing": "leading", "steps_offset": 1}),
    "sd3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flux": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
    "pixart": ("DPMSolverMultistepScheduler", {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}),
    "sana": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    ),
    "dit": ("DDIMScheduler", {"beta_schedule": "linear", "clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"beta_schedule": "linear", "variance_type": "fixed_large", "clip_sample": True}),
}
PIPELINES = tuple(SCHEDULERS)
PROMPTED = tuple(name for name in PIPELINES if name not in ("dit", "ddpm"))
EDITORS = {
    "sd-img2img": ("sd", "StableDiffusionImg2ImgPipeline"),
    "sd-inpaint": ("sd", "StableDiffusionInpaintPipeline"),
    "sdxl-img2img": ("sdxl", "StableDiffusionXLImg2ImgPipeline"),
    "sdxl-inpaint": ("sdxl", "StableDiffusionXLInpaintPipeline"),
    "sd3-img2img": ("sd3", "StableDiffusion3Img2ImgPipeline"),
    "flux-img2img": ("flux", "FluxImg2ImgPipeline"),
}


def scheduler(name):
    """The published scheduler of a pipeline, fresh."""
    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind)(**options)


def family(name):
    """The pipeline whose parts an image-to-image pipeline shares; any other name is its own."""
    return EDITORS[name][0] if name in EDITORS else name


def pipeline(name, dtype=None):
    """A pipeline with its published scheduler; networks in float32 are built once and shared."""
    kind = getattr(diffusers, EDITORS[name][1]) if name in EDITORS else _KINDS[name]
    parts = _PARTS[family(name)]()
    if dtype is not None:
        moved = {key: part for key, part in parts.items() if isinstance(part, torch.nn.Module)}
        parts = {**parts, **{key: copy.deepcopy(part).to(dtype) for key, part in moved.items()}}
    made = kind(scheduler=scheduler(family(name)), **parts, **_EXTRAS.get(kind.__name__, {}))
    made.set_progress_bar_config(disable=True)
    return made


class Run(NamedTuple):
    """What a pipeline did.

    Attributes:
        first: the samples of its first step.
        last: what its last step made.
        timesteps: of its steps.
        calls: of the network, in all.
        evals: samples that went through the network, per sample of the run.
        images: what it returned.
    """

    first: torch.Tensor
    last: torch.Tensor
    timesteps: list[float]
    calls: int
    evals: float
    images: Any


PROMPTS = ["a red fox", "two blue birds"]
NEGATIVE = "grey"
CLASSES = [7, 300]
EDGE = {**dict.fromkeys(PIPELINES, 16), "sana": 32}  # pixels; its pipeline refuses less


def arguments(name, guidance=1.0):
    """Arguments of a pipeline's call for two images without or with guidance."""
    parts = family(name)
    if parts == "ddpm":
        return {"batch_size": 2, "output_type": "pt"}
    if parts == "dit":
        return {"class_labels": CLASSES, "guidance_scale": guidance, "output_type": "np"}
    told = {"prompt": PROMPTS, "negative_prompt": [NEGATIVE] * 2, "output_type": "latent"}
    told["true_cfg_scale" if parts == "flux" else "guidance_scale"] = guidance
    if name not in ("sd-img2img", "sdxl-img2img"):  # they take the image's size
        told |= dict.fromkeys(("height", "width"), EDGE[parts])
    return {**told, "use_resolution_binning": False} if parts in ("pixart", "sana") else told


def run(pipe, steps, **options):
    """Call a pipeline and write down what its scheduler and its network are asked."""
    network = getattr(pipe, "unet", None) or pipe.transformer
    seen, sizes, step = [], [], pipe.scheduler.step

    @functools.wraps(step)
    def watched(output, timestep, sample, *args, **kwargs):
        made = step(output, timestep, sample, *args, **kwargs)
        seen.append((sample, float(timestep), made[0] if isinstance(made, tuple) else made.prev_sample))
        return made

    def count(module, args, kwargs):
        batch = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        sizes.append(len(batch))

    pipe.scheduler.step = watched
    try:
        with network.register_forward_pre_hook(count, with_kwargs=True):
            images = pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(0), **options).images
    finally:
        del pipe.scheduler.step
    timesteps = [timestep for _, timestep, _ in seen]
    return Run(seen[0][0], seen[-1][2], timesteps, len(sizes), sum(sizes) / len(seen[0][0]), images)


def seeded(seed):
    """Build parts with weights of their own seed, once, in evaluation mode."""

    def around(build):
        @cache
        def built():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                parts = build()
            for part in parts.values():
                if isinstance(part, torch.nn.Module):
                    part.eval().requires_grad_(False)
            return parts

        return built

    return around


def clip(kind=CLIPTextModel, width=WIDTH):
    return kind(CLIPTextConfig(**{**TEXT, "projection_dim": width}))


def t5():
    """Text encoder and tokenizer, one token a letter."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in LETTERS)]
    words = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=16)
    config = T5Config(vocab_size=len(vocabulary), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config), words


def gemma():
    """Text encoder and tokenizer, one token a letter."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary = {word: i for i, word in enumerate([*special, *LETTERS, "\n"])}
    config = Gemma2Config(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return Gemma2Model(config), GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=300)


def vae(channels=4, **options):
    return diffusers.AutoencoderKL(
        block_out_channels=[8, 16],
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=channels,
        **options,
    )


def unet(**options):
    return diffusers.UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 2,
            **options,
        }
    )


def _stable_diffusion():
    return {"unet": unet(), "vae": vae(), "text_encoder": clip(), "tokenizer": tokenizer()}


@seeded(1)
def sd():
    return _stable_diffusion()


@seeded(2)
def sd2_v():
    return _stable_diffusion()


@seeded(3)
def sdxl():
    embedded = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    return {
        "unet": unet(cross_attention_dim=2 * WIDTH, projection_class_embeddings_input_dim=6 * 4 + WIDTH, **embedded),
        "vae": vae(scaling_factor=0.13025, force_upcast=False),
        "text_encoder": clip(),
        "tokenizer": tokenizer(),
        "text_encoder_2": clip(CLIPTextModelWithProjection),
        "tokenizer_2": tokenizer(),
    }


@seeded(4)
def sd3():
    encoder, words = t5()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
    )
    wide = T5EncoderModel(T5Config(**{**encoder.config.to_diff_dict(), "d_model": 2 * WIDTH}))
    return {
        "transformer": transformer,
        "vae": vae(scaling_factor=1.5305, shift_factor=0.0609),
        "text_encoder": clip(CLIPTextModelWithProjection),
        "tokenizer": tokenizer(),
        "text_encoder_2": clip(CLIPTextModelWithProjection),
        "tokenizer_2": tokenizer(),
        "text_encoder_3": wide,
        "tokenizer_3": words,
    }


@seeded(5)
def flux():
    encoder, words = t5()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    return {
        "transformer": transformer,
        "vae": vae(scaling_factor=0.3611, shift_factor=0.1159),
        "text_encoder": clip(),
        "tokenizer": tokenizer(),
        "text_encoder_2": encoder,
        "tokenizer_2": words,
    }


@seeded(6)
def pixart():
    encoder, words = t5()
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=WIDTH,
        cross_attention_dim=16,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=False,
    )
    return {"transformer": transformer, "vae": vae(), "text_encoder": encoder, "tokenizer": words}


@seeded(7)
def sana():
    encoder, words = gemma()
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
    )
    autoencoder = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    return {"transformer": transformer, "vae": autoencoder, "text_encoder": encoder, "tokenizer": words}


@seeded(8)
def dit():
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
    return {"transformer": transformer, "vae": vae()}


@seeded(9)
def ddpm():
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return {"unet": network}


_PARTS = {
    "sd": sd,
    "sd2-v": sd2_v,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "pixart": pixart,
    "sana": sana,
    "dit": dit,
    "ddpm": ddpm,
}
_KINDS = {
    "sd": diffusers.StableDiffusionPipeline,
    "sd2-v": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
    "sd3": diffusers.StableDiffusion3Pipeline,
    "flux": diffusers.FluxPipeline,
    "pixart": diffusers.PixArtSigmaPipeline,
    "sana": diffusers.SanaPipeline,
    "dit": diffusers.DiTPipeline,
    "ddpm": diffusers.DDPMPipeline,
}
_UNSAFE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
_EXTRAS = {
    "StableDiffusionPipeline": _UNSAFE,
    "StableDiffusionImg2ImgPipeline": _UNSAFE,
    "StableDiffusionInpaintPipeline": _UNSAFE,
    "StableDiffusionXLPipeline": {"add_watermarker": False},
    "StableDiffusionXLImg2ImgPipeline": {"add_watermarker": False},
    "StableDiffusionXLInpaintPipeline": {"add_watermarker": False},
}
