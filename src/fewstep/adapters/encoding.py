"""Both ends of a pipeline of diffusers: prompts become conditions, and latents become images.

Between the two is a wrapped network, ``wrap(pipeline)``, and whatever fewstep does with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from fewstep.adapters.wrap import network_of
from fewstep.errors import ConfigError, ShapeError

__all__ = ["decode", "encode"]

_Conditions: TypeAlias = dict[str, Tensor]
_Size: TypeAlias = tuple[int, int]
_Asked: TypeAlias = dict[str, list[str] | None]
_OPTIONS = ("clean_caption", "complex_human_instruction", "max_sequence_length")


def encode(
    pipeline: Any, prompts: Sequence[str], negative: str | None = None, size: _Size | None = None
) -> tuple[_Conditions, _Conditions]:
    """Turn prompts into the conditions of a pipeline's network, as its own call does.

    Args:
        pipeline: of Stable Diffusion 1 or 2, SDXL, SD3, Flux, PixArt or Sana.
        prompts: n of them.
        negative: what guidance goes away from; None is what the pipeline takes for nothing.
        size: height and width of the images in pixels, which SDXL and Flux are told; None is the pipeline's own.

    Returns:
        Conditions with n rows, for ``sample(cond=)``; and one row of what stands for nothing, for ``ClassifierFree``.
        For a Flux that reads its guidance, ``cond["guidance"]`` is its pipeline's default; put another number there.

    Raises:
        ConfigError: if there are no prompts, or the pipeline is another.
    """
    if not prompts or isinstance(prompts, str):
        raise ConfigError(f"prompts={prompts!r}", "A list of one prompt or more", "Pass for instance ['a red fox']")
    if negative is not None and not isinstance(negative, str):
        raise ConfigError(f"negative={negative!r}", "One text for all of them, or None", "Pass negative='grey'")
    encoder = _encoder(pipeline)
    asked: _Asked = {
        "prompt": list(prompts),
        "negative_prompt": None if negative is None else [negative] * len(prompts),
    }
    with torch.no_grad():
        cond, nothing = encoder(pipeline, asked, _size(pipeline, size))
    return cond, {name: value[:1] for name, value in nothing.items()}


def decode(pipeline: Any, latents: Tensor, size: _Size | None = None) -> Tensor:
    """Turn latents into images, in the dtype of the pipeline's VAE; differentiable.

    Args:
        pipeline: one with a VAE, that :func:`encode` knows.
        latents: shape (n, c, h, w); or (n, tokens, 4 * c), Flux's packed ones.
        size: height and width of the images in pixels, of packed latents; None is the pipeline's own.

    Returns:
        Images, shape (n, 3, height, width), in [-1, 1].

    Raises:
        ConfigError: if the pipeline is another.
    """
    _encoder(pipeline)
    vae: Any = pipeline.vae
    if latents.ndim == 3:
        latents = _unpacked(latents, *_tokens(pipeline, _size(pipeline, size)))
    z = latents.to(vae.dtype) / vae.config.scaling_factor
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        z = z * z.new_tensor(std).reshape(1, -1, 1, 1) + z.new_tensor(mean).reshape(1, -1, 1, 1)
    images: Tensor = vae.decode(z + (getattr(vae.config, "shift_factor", None) or 0.0), return_dict=False)[0]
    return images.clamp(-1, 1)


def _stable_diffusion(pipeline: Any, asked: _Asked, size: _Size) -> tuple[_Conditions, _Conditions]:
    device = pipeline._execution_device
    given, nothing = pipeline.encode_prompt(
        device=device, num_images_per_prompt=1, do_classifier_free_guidance=True, **asked
    )
    return {"encoder_hidden_states": given}, {"encoder_hidden_states": nothing}


def _sdxl(pipeline: Any, asked: _Asked, size: _Size) -> tuple[_Conditions, _Conditions]:
    if getattr(pipeline.config, "requires_aesthetics_score", False):
        raise ConfigError(
            "Prompts for SDXL's refiner", "It is told a score of beauty, and not the size", "Use its own pipeline"
        )
    given, nothing, pooled, pooled_nothing = pipeline.encode_prompt(**asked)
    times = given.new_tensor([[*size, 0, 0, *size]]).expand(len(given), -1)  # original size, corner of the crop, size
    cond = {"encoder_hidden_states": given, "text_embeds": pooled, "time_ids": times}
    return cond, {"encoder_hidden_states": nothing, "text_embeds": pooled_nothing}


def _sd3(pipeline: Any, asked: _Asked, size: _Size) -> tuple[_Conditions, _Conditions]:
    parts = pipeline.encode_prompt(prompt_2=None, prompt_3=None, **asked)
    given, nothing, pooled, pooled_nothing = parts
    cond = {"encoder_hidden_states": given, "pooled_projections": pooled}
    return cond, {"encoder_hidden_states": nothing, "pooled_projections": pooled_nothing}


def _flux(pipeline: Any, asked: _Asked, size: _Size) -> tuple[_Conditions, _Conditions]:
    n = len(asked["prompt"] or ())
    given, pooled, text_ids = pipeline.encode_prompt(prompt=asked["prompt"])
    nothing, pooled_nothing, _ = pipeline.encode_prompt(prompt=asked["negative_prompt"] or [""])
    height, width = _tokens(pipeline, size)
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(float(height)), torch.arange(float(width)))
    cond = {
        "encoder_hidden_states": given,
        "pooled_projections": pooled,
        "txt_ids": text_ids.expand(n, -1, -1),
        "img_ids": places.to(given).expand(n, -1, -1),
    }
    if pipeline.transformer.config.guidance_embeds:
        cond["guidance"] = given.new_full((n,), _defaults(pipeline)["guidance_scale"])
    return cond, {"encoder_hidden_states": nothing, "pooled_projections": pooled_nothing}


def _masked(pipeline: Any, asked: _Asked, size: _Size) -> tuple[_Conditions, _Conditions]:
    """T5's and Gemma's tokens, with a mask of those that are there; options as the pipeline's own call has them."""
    known, defaults = inspect.signature(pipeline.encode_prompt).parameters, _defaults(pipeline)
    options = {name: defaults[name] for name in _OPTIONS if name in known and name in defaults}
    asked = {**asked, "negative_prompt": asked["negative_prompt"] or [""] * len(asked["prompt"] or ())}
    given, mask, nothing, mask_nothing = pipeline.encode_prompt(**asked, **options)
    cond = {"encoder_hidden_states": given, "encoder_attention_mask": mask}
    return cond, {"encoder_hidden_states": nothing, "encoder_attention_mask": mask_nothing}


def _pixart(pipeline: Any, asked: _Asked, size: _Size) -> tuple[_Conditions, _Conditions]:
    cond, nothing = _masked(pipeline, asked, size)
    given = cond["encoder_hidden_states"]
    if pipeline.transformer.use_additional_conditions:
        cond["resolution"] = given.new_tensor([size]).expand(len(given), -1)
        cond["aspect_ratio"] = given.new_tensor([[size[0] / size[1]]]).expand(len(given), -1)
    return cond, nothing


_Encoder: TypeAlias = Callable[[Any, _Asked, _Size], tuple[_Conditions, _Conditions]]
# By class of network, and what else it embeds beside the timestep.
_ENCODERS: dict[tuple[str, str | None], _Encoder] = {
    ("UNet2DConditionModel", None): _stable_diffusion,
    ("UNet2DConditionModel", "text_time"): _sdxl,
    ("SD3Transformer2DModel", None): _sd3,
    ("FluxTransformer2DModel", None): _flux,
    ("PixArtTransformer2DModel", None): _pixart,
    ("SanaTransformer2DModel", None): _masked,
}


def _encoder(pipeline: Any) -> _Encoder:
    network: Any = network_of(pipeline)
    found = type(network).__name__, getattr(network.config, "addition_embed_type", None)
    if found not in _ENCODERS or not hasattr(pipeline, "encode_prompt"):
        raise ConfigError(
            f"A {type(pipeline).__name__} with a {found[0]}",
            "Known are pipelines of Stable Diffusion 1 and 2, SDXL, SD3, Flux, PixArt and Sana",
            "Make its conditions with the pipeline's own methods, and name them as the network does",
        )
    return _ENCODERS[found]


def _defaults(pipeline: Any) -> dict[str, Any]:
    """What the pipeline's own call takes for the arguments that it is not given."""
    return {name: given.default for name, given in inspect.signature(pipeline.__call__).parameters.items()}


def _size(pipeline: Any, size: _Size | None) -> _Size:
    """Height and width in pixels: those given, or what the pipeline takes when it is given none."""
    if size is not None:
        return size
    edge = getattr(pipeline, "default_sample_size", None) or cast("Any", network_of(pipeline)).config.sample_size
    height, width = (edge, edge) if isinstance(edge, int) else edge
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def _tokens(pipeline: Any, size: _Size) -> _Size:
    """Rows and columns of Flux's tokens: 2 x 2 latents each."""
    return size[0] // (2 * pipeline.vae_scale_factor), size[1] // (2 * pipeline.vae_scale_factor)


def _unpacked(latents: Tensor, height: int, width: int) -> Tensor:
    """Tokens (n, height * width, 4 * c) as latents (n, c, 2 * height, 2 * width)."""
    if latents.shape[1] != height * width:
        raise ShapeError(
            f"Packed latents of shape {tuple(latents.shape)} for {height} x {width} tokens",
            "One token for each 2 x 2 latents",
            "Pass size=(height, width) of the images, in pixels",
        )
    parts = latents.reshape(len(latents), height, width, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(len(latents), -1, 2 * height, 2 * width)
