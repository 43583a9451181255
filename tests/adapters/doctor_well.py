"""Pipelines that are well, as published configurations and calls of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from reference.published_pipelines import (
    DDIM,
    DPM,
    EULER,
    FLUX,
    IF,
    LCM,
    OF_FLUX,
    OF_IF,
    OF_LCM,
    OF_PIXART,
    OF_PLAYGROUND,
    OF_SANA,
    OF_SCHNELL,
    OF_SD3,
    OF_SPRINT,
    PIXART,
    PNDM,
    SANA,
    SCHNELL,
    SD2V,
    SD3,
    SD15,
    SDXL,
    SPRINT,
    TURBO,
    ours,
    trailing,
)

from adapters.doctor_cases import CALM, CONSISTENT, EVEN, FOUR, LINE, OF_LATENTS, OLD, PIXELS, THREE, XL, ZERO, V


class Well(NamedTuple):
    """A pipeline and a call of it that nobody need worry about."""

    pipeline: str
    scheduler: dict[str, Any]
    network: dict[str, Any]
    name: str
    asked: dict[str, Any]


WELL = {
    "SD 1.5, DPM++ trailing": Well(OLD, trailing(DPM), SD15, "sd", {}),
    "SDXL, DPM++ trailing": Well(XL, trailing(DPM), SDXL, "sdxl", {}),
    "SDXL, DPM++ Karras": Well(XL, {**DPM, "use_karras_sigmas": True}, SDXL, "sdxl", {"steps": 25}),
    "SDXL, Euler trailing": Well(XL, trailing(EULER), SDXL, "sdxl", {}),
    "SDXL as published": Well(XL, EULER, SDXL, "sdxl", {"steps": 30}),
    "SDXL as published, slowly": Well(XL, EULER, SDXL, "sdxl", {"steps": 50}),
    "SD 1.5 as published": Well(OLD, PNDM, SD15, "sd", {"steps": 50}),
    "SD 2 of 768 pixels": Well(OLD, {**DDIM, **V}, SD2V, "sd2", {"steps": 50}),
    "v at zero signal": Well(OLD, {**trailing(DDIM), **V, **ZERO}, SD2V, "sd2", {}),
    "SD 1.5, EVODiff": Well(OLD, ours(PNDM), SD15, "sd", {}),
    "SDXL, EVODiff": Well(XL, ours(EULER), SDXL, "sdxl", {}),
    "SD3, EVODiff": Well(THREE, ours(OF_SD3), SD3, "sd3", {}),
    "Flux, EVODiff": Well(OF_LATENTS, ours(OF_FLUX), FLUX, "flux", {}),
    "Sana, half a flow of ours": Well("SanaPipeline", ours({**OF_SANA, "use_flow_sigmas": False}), SANA, "sana", FOUR),
    "Sana-Sprint": Well("SanaSprintPipeline", OF_SPRINT, SPRINT, "Sana_Sprint_1.6B", {"steps": 2}),
    "DeepFloyd": Well("IFPipeline", OF_IF, IF, "IF-I-XL-v1.0", {"steps": 100}),
    "DeepFloyd, DPM++": Well(
        "IFPipeline", {**OF_IF, "_class_name": "DPMSolverMultistepScheduler"}, IF, "IF-I-XL-v1.0", {"steps": 50}
    ),
    "AnimateDiff": Well("AnimateDiffPipeline", {**DDIM, "beta_schedule": "linear"}, SD15, "animate", {"steps": 50}),
    "a U-Net of pixels": Well("DDPMPipeline", {"_class_name": "DDPMScheduler", **LINE}, PIXELS, "cat", {"steps": 100}),
    "one step of DPM++": Well(XL, trailing(DPM), SDXL, "sdxl-turbo", {"steps": 1, **CALM}),
    "Turbo under DPM++ of first order": Well(
        XL, {**trailing(DPM), "solver_order": 1}, SDXL, "sdxl-turbo", {"steps": 2, **CALM}
    ),
    "Turbo, its steps not said": Well(XL, TURBO, SDXL, "sdxl-turbo", CALM),
    "SDXL, levels passed": Well(XL, EULER, SDXL, "sdxl", {"sigmas": [14.615, 3.771, 1.342, 0.555, 0.0]}),
    "Flux, levels passed": Well(OF_LATENTS, OF_FLUX, FLUX, "flux", {"sigmas": EVEN}),
    "SD3 as published": Well(THREE, OF_SD3, SD3, "sd3", {"steps": 28}),
    "SD3, levels passed": Well(THREE, OF_SD3, SD3, "sd3", {"sigmas": EVEN}),
    "Flux as published": Well(OF_LATENTS, OF_FLUX, FLUX, "FLUX.1-dev", {"steps": 28}),
    "Flux in few steps": Well(OF_LATENTS, OF_FLUX, FLUX, "FLUX.1-dev", {}),
    "Flux schnell": Well(OF_LATENTS, OF_SCHNELL, SCHNELL, "FLUX.1-schnell", FOUR),
    "LCM": Well(CONSISTENT, OF_LCM, LCM, "LCM_Dreamshaper_v7", FOUR),
    "LCM LoRA, guided a little": Well(OLD, OF_LCM, SD15, "dream", {**FOUR, "guidance": 2.0}),
    "LCM LoRA": Well(OLD, OF_LCM, SD15, "dream", {**FOUR, "guidance": 1.0}),
    "SDXL-Turbo, one step": Well(XL, TURBO, SDXL, "sdxl-turbo", {"steps": 1, **CALM}),
    "SDXL-Turbo": Well(XL, TURBO, SDXL, "sdxl-turbo", {**FOUR, **CALM}),
    "SDXL-Turbo, half an image": Well(XL, TURBO, SDXL, "sdxl-turbo", {"steps": 2, "strength": 0.5, **CALM}),
    "SDXL-Lightning": Well(XL, trailing(EULER), SDXL, "SDXL-Lightning", {**FOUR, **CALM}),
    "Hyper-SD made to be guided": Well(XL, trailing(DDIM), SDXL, "Hyper-SDXL-8steps-CFG", {"steps": 8, "guidance": 5}),
    "Sana": Well("SanaPipeline", OF_SANA, SANA, "sana", {"steps": 20}),
    "PixArt": Well("PixArtAlphaPipeline", OF_PIXART, PIXART, "pixart", {"steps": 20}),
    "Playground 2.5, an EDM": Well(XL, OF_PLAYGROUND, SDXL, "playground-v2.5", {}),
    "of other betas, on purpose": Well(XL, {**trailing(EULER), "beta_end": 0.014}, SDXL, "kolors", {}),
}
