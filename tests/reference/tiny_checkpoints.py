"""Checkpoints of transformers and diffusers with random weights, as small as their code allows, written to a folder."""

from __future__ import annotations

import json

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, Dinov2Config, Dinov2Model

MEAN, STD = [0.48, 0.45, 0.40], [0.27, 0.26, 0.28]
TEXT = {
    "vocab_size": 514,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
}


def tokenizer():
    """CLIP's tokenizer without merges: one token a byte."""
    printable = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters = printable + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)


def preprocessor(folder, edge, crop, **changes):
    content = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": edge},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": crop, "width": crop},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        **changes,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def clip(folder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = {**TEXT, "image_size": 24, "patch_size": 8}
        CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    preprocessor(folder, 24, 24)
    return folder


def dinov2(folder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = Dinov2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=42, patch_size=14
        )
        Dinov2Model(config).save_pretrained(folder)
    preprocessor(folder, 32, 28)
    return folder


def stable_diffusion(folder):
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
        )
        vae = AutoencoderKL(
            block_out_channels=[8, 16],
            norm_num_groups=4,
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
        )
        text = CLIPTextModel(CLIPTextConfig(**TEXT))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(timestep_spacing="trailing", steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
