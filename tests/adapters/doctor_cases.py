"""What users complained about, as published configurations and calls of them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from reference.published_pipelines import (
    DDIM,
    DPM,
    EULER,
    FLUX,
    HUNYUAN,
    LCM,
    OF_FLUX,
    OF_HUNYUAN,
    OF_LCM,
    OF_SANA,
    OF_SCHNELL,
    OF_SD3,
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
LINE = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
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
# The next to the last of four levels that are even from 1 to 0.001, and from that shifted once; then all are shifted.
MOVED = shifted((1 + 2 * shifted(0.001)) / 3) - shifted((1 + 2 * 0.001) / 3)
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
    "double shift": note(
        THREE,
        OF_SD3,
        SD3,
        "sd3",
        FOUR,
        "D02",
        f"at sigma {TWICE:.4g} instead of {shifted(0.001):.4g}",
        f"by {MOVED:.2g} ",
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
    "guided LCM LoRA": error(
        OLD, OF_LCM, SD15, "dream", {**FOUR, "guidance": 2.5}, "D06", "scale=2.5 is asked for", "LCMScheduler"
    ),
    "a little guidance": warning(
        XL, TURBO, SDXL, "sdxl-turbo", {**FOUR, "guidance": 1.5}, "D06", "scale=1.5 is asked for", "'turbo'"
    ),
    "distilled to whatever": note(
        *("HunyuanDiTPipeline", OF_HUNYUAN, HUNYUAN, "HunyuanDiT-Distilled", {"steps": 25}, "D06"),
        *("guidance_scale=5", "'Distilled' in the name", "a smaller one"),
    ),
    "eps at zero signal": error(
        OLD, {**trailing(DPM), **ZERO}, SD15, "sd", EIGHT, "D07", f"{2**-24:.2g}", f"alpha = {2**-12:.2g}"
    ),
    "Lightning on the schedule of SDXL": error(
        XL, EULER, SDXL, "SDXL-Lightning", {**FOUR, **CALM}, "D08", "751, 501, 251, 1", "999, 749, 499, 249"
    ),
    "Lightning in twenty steps": warning(
        XL, trailing(EULER), SDXL, "SDXL-Lightning", {"steps": 20, **CALM}, "D08", "20 steps", "up to 8", "'Lightning'"
    ),
    "LCM in twenty steps": note(CONSISTENT, OF_LCM, LCM, "lcm", {"steps": 20}, "D08", "20 steps", "up to 8"),
    "Turbo under DPM++": warning(
        XL, trailing(DPM), SDXL, "sdxl-turbo", {"steps": 2, **CALM}, "D15", "2 steps of DPMSolverMultistep", "'turbo'"
    ),
    "Lightning under UniPC": warning(
        *(XL, {**trailing(DPM), "_class_name": "UniPCMultistepScheduler"}, SDXL, "SDXL-Lightning"),
        *({**FOUR, **CALM}, "D15", "4 steps of UniPC"),
    ),
    "LCM under DEIS": warning(
        *(CONSISTENT, {**trailing(DPM), "_class_name": "DEISMultistepScheduler"}, LCM, "dream"),
        *(FOUR, "D15", "4 steps of DEIS", "time_cond_proj_dim"),
    ),
    "schnell under EVODiff": warning(
        OF_LATENTS, ours(OF_SCHNELL), SCHNELL, "FLUX.1-schnell", FOUR, "D15", "EVODiffScheduler", "'schnell'"
    ),
    "dev-turbo under EVODiff": warning(
        OF_LATENTS, ours(OF_FLUX), FLUX, "flux-dev-turbo", FOUR, "D15", "EVODiffScheduler", "'turbo'"
    ),
    "half a flow, levels of betas": error(
        *("SanaPipeline", {**OF_SANA, "use_flow_sigmas": False}, SANA, "sana", {"steps": 20}, "D09"),
        *("prediction_type='flow_prediction'", "use_flow_sigmas=False"),
    ),
    "half a flow, outputs of betas": error(
        *("SanaPipeline", {**OF_SANA, "prediction_type": "epsilon", "_class_name": "UniPCMultistepScheduler"}),
        *(SANA, "sana", {"steps": 20}, "D09", "prediction_type='epsilon'", "use_flow_sigmas=True"),
    ),
    "half a flow on Stable Diffusion": error(
        XL, {**trailing(DPM), "use_flow_sigmas": True}, SDXL, "sdxl", EIGHT, "D09", "use_flow_sigmas=True", "epsilon"
    ),
    "betas of the class": error(
        OLD, trailing({**DDIM, **LINE}), SD15, "sd", EIGHT, "D09", "'linear'", at(999, Tabulated.linear()), "14.61"
    ),
    "a line of betas": error(
        *(XL, trailing({**DPM, "beta_schedule": "linear"}), SDXL, "sdxl", EIGHT, "D09"),
        *("beta_start=0.00085", at(999, Tabulated.linear(0.00085, 0.012)), "14.61"),
    ),
    "sigmas of tables for a flow": error(
        THREE, OF_SD3, SD3, "sd3", {"sigmas": [14.6, 4, 1, 0.3]}, "D14", "14.6, 4, 1, 0.3", "begin at 1"
    ),
    "rising sigmas": error(THREE, OF_SD3, SD3, "sd3", {"sigmas": EVEN[::-1]}, "D14", "0.25, 0.5, 0.75, 1", "fall"),
    "negative sigmas": error(THREE, OF_SD3, SD3, "sd3", {"sigmas": [1, 0.5, -0.5]}, "D14", "-0.5", "0 or above"),
    "rising sigmas of tables": error(XL, trailing(EULER), SDXL, "sdxl", {"sigmas": [1, 5, 14.6]}, "D14", "1, 5, 14.6"),
    "sigmas of a flow for a table": error(
        XL, EULER, SDXL, "sdxl", {"sigmas": EVEN}, "D14", "1, 0.75, 0.5, 0.25", "of a flow", "begin at 14.61"
    ),
    "sigmas of a flow for a table that takes none": error(
        XL, trailing(DPM), SDXL, "sdxl", {"sigmas": EVEN}, "D14", "of a flow", "begin at 14.61"
    ),
    "sigmas of EDM for a table": error(
        XL, EULER, SDXL, "sdxl", {"sigmas": [80, 10, 1, 0.1, 0]}, "D14", "noisiest level is 14.61"
    ),
    "sigmas that begin late": error(
        XL, trailing(EULER), SDXL, "sdxl", {"sigmas": [4, 2, 1, 0.5, 0]}, "D01", "kappa 4;"
    ),
    "sigmas that end early": warning(
        XL, EULER, SDXL, "sdxl", {"sigmas": [14.6, 4, 1, 0.3]}, "D13", "kappa 0.3", "where the run ends"
    ),
    "sigmas that the scheduler does not take": error(
        XL,
        trailing(DPM),
        SDXL,
        "sdxl",
        {"sigmas": [14.6, 4, 1, 0.3, 0]},
        "D11",
        "set_timesteps(sigmas) raises TypeError",
    ),
    "a flow under a scheduler that knows none": error(
        *(THREE, {**trailing(EULER), "prediction_type": "flow_prediction"}, SD3, "sd3", EIGHT, "D11"),
        *("step raises ValueError", "flow_prediction"),
    ),
    "an unknown prediction": error(
        OLD, {**trailing(DDIM), "prediction_type": "score"}, SD15, "sd", EIGHT, "D11", "step raises ValueError", "score"
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
