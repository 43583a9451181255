"""What users complained about, and pipelines that are well, as published configurations and calls of them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from reference.published_pipelines import (
    DDIM,
    DPM,
    EULER,
    FLUX,
    LCM,
    OF_FLUX,
    OF_LCM,
    OF_PIXART,
    OF_PLAYGROUND,
    OF_SANA,
    OF_SCHNELL,
    OF_SD3,
    PIXART,
    PNDM,
    SANA,
    SCHNELL,
    SD2V,
    SD3,
    SD15,
    SDXL,
    TURBO,
    ours,
    trailing,
)

from fewstep.adapters.doctor import Finding, Report
from fewstep.noise import Tabulated

OLD, XL, THREE = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"
OF_LATENTS, CONSISTENT = "FluxPipeline", "LatentConsistencyModelPipeline"
KARRAS = {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
PIXELS = {"_class_name": "UNet2DConditionModel", "in_channels": 3, "sample_size": 64}
SD = Tabulated.scaled_linear()
EVEN = [1.0, 0.75, 0.5, 0.25]
CALM = {"guidance": 0.0}
V = {"prediction_type": "v_prediction"}
ZERO = {"rescale_betas_zero_snr": True}


def at(timestep: int, table: Tabulated = SD) -> str:
    """Kappa of a timestep, as the doctor writes it."""
    return f"kappa {float(table.level(torch.tensor(timestep + 1)).kappa):.4g}"


def shifted(sigma: float) -> float:
    """Once, by 3."""
    return 3 * sigma / (1 + 2 * sigma)


def degrees(kappa: float) -> str:
    return f"{math.degrees(math.atan(kappa)):.2g} degrees"


TWICE = shifted(shifted(0.001))
LAST = float(SD.level(torch.tensor(1)).kappa)


def found(report: Report) -> dict[str, Finding]:
    """Findings of a report by their codes."""
    return {finding.code: finding for finding in report.findings}


class Complaint(NamedTuple):
    """A pipeline, how it is called, and what is to be found."""

    pipeline: str
    scheduler: dict[str, Any]
    network: dict[str, Any]
    name: str
    asked: dict[str, Any]
    code: str
    severity: str
    numbers: tuple[str, ...]


def error(*of: Any) -> Complaint:
    return Complaint(*of[:6], "error", tuple(of[6:]))


def warning(*of: Any) -> Complaint:
    return Complaint(*of[:6], "warning", tuple(of[6:]))


def note(*of: Any) -> Complaint:
    return Complaint(*of[:6], "note", tuple(of[6:]))


FOUR = {"steps": 4}
EIGHT = {"steps": 8}
COMPLAINTS = {
    "leading DDIM": error(OLD, DDIM, SD15, "sd", FOUR, "D01", "timestep 751", at(751), at(999), "alpha = 0.236"),
    "leading DPM++": error(OLD, DPM, SD15, "sd", FOUR, "D01", "timestep 801", at(801)),
    "leading UniPC": error(
        OLD, {**DPM, "_class_name": "UniPCMultistepScheduler"}, SD15, "sd", FOUR, "D01", "timestep 801", at(801)
    ),
    "leading DEIS": error(
        OLD, {**DPM, "_class_name": "DEISMultistepScheduler"}, SD15, "sd", FOUR, "D01", "timestep 801", at(801)
    ),
    "leading SDXL": warning(XL, EULER, SDXL, "sdxl", {"steps": 10}, "D01", "timestep 901", at(901)),
    "PNDM as it is": error(OLD, PNDM, SD15, "sd", {}, "D01", "4 steps start at timestep 751"),
    "double shift": warning(
        THREE, OF_SD3, SD3, "sd3", FOUR, "D02", "1, 0.8577, 0.6022, 0.008929, 0", f"{shifted(0.001):.4g}, 0"
    ),
    "shifted by hand": warning(
        THREE, OF_SD3, SD3, "sd3", {"sigmas": [1.0, 0.9, 0.75, 0.5]}, "D02", f"{shifted(0.9):.4g}, {shifted(0.75):.4g}"
    ),
    "cosine and Karras": error(
        OLD, KARRAS, PIXELS, "if", {"steps": 10}, "D03", "998, 998, 998, 998, 997", "3 of them", "IndexError"
    ),
    "more steps than timesteps": error(
        XL, trailing(DPM), SDXL, "sdxl", {"steps": 1500, **CALM}, "D03", "1500 steps", "500 of them"
    ),
    "more steps than LCM has": error(
        CONSISTENT, OF_LCM, LCM, "lcm", {"steps": 60}, "D03", "60 steps of 50 timesteps", "ValueError"
    ),
    "last call of SD3": warning(
        THREE, OF_SD3, SD3, "sd3", FOUR, "D04", f"timestep {1000 * TWICE:.4g}", degrees(TWICE / (1 - TWICE))
    ),
    "last call of linspace": warning(
        XL, {**EULER, "timestep_spacing": "linspace"}, SDXL, "sdxl", FOUR, "D04", "timestep 0 to", degrees(LAST)
    ),
    "last call of leading": warning(
        OLD, {**DDIM, "steps_offset": 0}, SD15, "sd", FOUR, "D04", "timestep 0 to the end", "0 degrees"
    ),
    "last call of Karras": warning(
        XL, {**DPM, "use_karras_sigmas": True}, SDXL, "sdxl", FOUR, "D04", "timestep 0 to", degrees(LAST)
    ),
    "no step left": error(XL, TURBO, SDXL, "sdxl-turbo", {**FOUR, "strength": 0.2, **CALM}, "D05", "int(0.8) = 0"),
    "a step rounded away": warning(
        XL, EULER, SDXL, "sdxl", {"steps": 50, "strength": 0.58}, "D05", "int(28.999999999999996) = 28"
    ),
    "nothing to change": error(XL, EULER, SDXL, "sdxl", {"steps": 50, "strength": 0.0}, "D05", "int(0.0) = 0"),
    "guided turbo": error(XL, TURBO, SDXL, "sdxl-turbo", FOUR, "D06", f"guidance_scale=5 is what {XL}", "'turbo'"),
    "guided LCM LoRA": warning(
        OLD, OF_LCM, SD15, "dream", {**FOUR, "guidance": 1.5}, "D06", "scale=1.5 is asked for", "LCMScheduler"
    ),
    "eps at zero signal": error(
        OLD, {**trailing(DPM), **ZERO}, SD15, "sd", EIGHT, "D07", f"{2**-24:.2g}", f"alpha = {2**-12:.2g}"
    ),
    "Lightning on the schedule of SDXL": error(
        XL, EULER, SDXL, "SDXL-Lightning", {**FOUR, **CALM}, "D08", "751, 501, 251, 1", "999, 749, 499, 249"
    ),
    "betas left out": error(
        OLD, trailing({"_class_name": "DDIMScheduler"}), SD15, "sd", EIGHT, "D09", at(999, Tabulated.linear()), "14.61"
    ),
    "flow weights, other scheduler": error(THREE, trailing(DPM), SD3, "sd3", EIGHT, "D09", "SD3Trans", "epsilon"),
    "flow weights of Flux, other scheduler": error(
        OF_LATENTS, trailing(DPM), FLUX, "flux", EIGHT, "D09", "FluxTransformer2DModel", "epsilon"
    ),
    "flow scheduler, other weights": warning(XL, OF_SD3, SDXL, "sdxl", FOUR, "D09", "cross_attention_dim=2048"),
    "flow scheduler out of the configuration of SDXL": warning(
        XL, {**EULER, **OF_SD3}, SDXL, "sdxl", FOUR, "D09", "FlowMatchEulerDiscreteScheduler", "straight path"
    ),
    "v taken for noise": error(OLD, trailing(DPM), SD2V, "sd2", EIGHT, "D09", "sample_size=96", "'epsilon'"),
    "Heun does not take what Flux passes": error(
        OF_LATENTS,
        {**OF_SD3, "_class_name": "FlowMatchHeunDiscreteScheduler", "use_dynamic_shifting": True},
        *(FLUX, "flux", EIGHT, "D11", "set_timesteps(sigmas, mu) raises TypeError"),
    ),
    "noise that is left": note(
        *(XL, {**trailing(DPM), "final_sigmas_type": "sigma_min"}, SDXL, "sdxl", EIGHT, "D13"),
        *(f"kappa {LAST:.3g}", "Three options overlap", "euler_at_final=False"),
    ),
    "noise that DDIM leaves": note(
        OLD, trailing(DDIM), SD15, "sd", EIGHT, "D13", f"kappa {LAST:.3g}", "set_alpha_to_one=False"
    ),
}


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
    "schnell, EVODiff": Well(OF_LATENTS, ours(OF_SCHNELL), SCHNELL, "FLUX.1-schnell", FOUR),
    "SD3 as published": Well(THREE, OF_SD3, SD3, "sd3", {"steps": 28}),
    "SD3, levels passed": Well(THREE, OF_SD3, SD3, "sd3", {"sigmas": EVEN}),
    "Flux as published": Well(OF_LATENTS, OF_FLUX, FLUX, "FLUX.1-dev", {"steps": 28}),
    "Flux in few steps": Well(OF_LATENTS, OF_FLUX, FLUX, "FLUX.1-dev", {}),
    "Flux schnell": Well(OF_LATENTS, OF_SCHNELL, SCHNELL, "FLUX.1-schnell", FOUR),
    "LCM": Well(CONSISTENT, OF_LCM, LCM, "LCM_Dreamshaper_v7", FOUR),
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
