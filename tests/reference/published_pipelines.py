"""Published pipelines as their configuration files: what is on the hub, without a weight.

Values are those of the repositories' scheduler_config.json and config.json; keys that no check reads are left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SD15 = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 768,
    "sample_size": 64,
}
SD2V = {**SD15, "cross_attention_dim": 1024, "sample_size": 96}
SDXL = {**SD15, "cross_attention_dim": 2048, "sample_size": 128}
LCM = {**SD15, "time_cond_proj_dim": 256}
SD3 = {"_class_name": "SD3Transformer2DModel", "sample_size": 128, "patch_size": 2}
FLUX = {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True}
SCHNELL = {**FLUX, "guidance_embeds": False}
SANA = {"_class_name": "SanaTransformer2DModel", "sample_size": 32}
PIXART = {"_class_name": "PixArtTransformer2DModel", "sample_size": 128}

SPRINT = {**SANA, "guidance_embeds": True}
HUNYUAN = {"_class_name": "HunyuanDiT2DModel", "in_channels": 4, "cross_attention_dim": 1024}
IF = {"_class_name": "UNet2DConditionModel", "in_channels": 3, "out_channels": 6, "cross_attention_dim": 4096}

PNDM = {"_class_name": "PNDMScheduler", **BETAS, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
DDIM = {"_class_name": "DDIMScheduler", **BETAS, "set_alpha_to_one": False, "clip_sample": False, "steps_offset": 1}
EULER = {
    "_class_name": "EulerDiscreteScheduler",
    **BETAS,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
TURBO = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    **BETAS,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}
DPM = {
    "_class_name": "DPMSolverMultistepScheduler",
    **BETAS,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
OF_LCM = {
    "_class_name": "LCMScheduler",
    **BETAS,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
}
OF_SD3 = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
OF_FLUX = {
    **OF_SD3,
    "use_dynamic_shifting": True,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 0.5,
    "max_shift": 1.15,
}
OF_SCHNELL = {**OF_FLUX, "use_dynamic_shifting": False, "shift": 1.0}
OF_SANA = {
    "_class_name": "DPMSolverMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "solver_order": 2,
}
OF_PIXART = {
    "_class_name": "DPMSolverMultistepScheduler",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "solver_order": 2,
}
OF_SPRINT = {"_class_name": "SCMScheduler", "prediction_type": "trigflow", "sigma_data": 0.5}
OF_HUNYUAN = {
    "_class_name": "DDPMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.03,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "steps_offset": 1,
}
OF_IF = {
    "_class_name": "DDPMScheduler",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "learned_range",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
    "sample_max_value": 1.5,
}
OF_PLAYGROUND = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "prediction_type": "epsilon",
    "solver_order": 2,
}
OURS = ("EVODiffScheduler", "CalibratedScheduler")


def trailing(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "timestep_spacing": "trailing"}


def ours(config: dict[str, Any]) -> dict[str, Any]:
    """What `EVODiffScheduler.from_config` is given, as a file."""
    return {**config, "_class_name": "EVODiffScheduler"}


def write_pipeline(
    folder: Path, pipeline: str, scheduler: dict[str, Any], network: dict[str, Any], card: str = ""
) -> Path:
    """A pipeline's folder as `save_pretrained` writes it, but for the weights."""
    part = "unet" if network["_class_name"].startswith("UNet") else "transformer"
    for name in ("scheduler", part):
        (folder / name).mkdir(parents=True)
    kind = scheduler["_class_name"]
    home = "fewstep.schedulers" if kind in OURS else "diffusers"
    index = {"_class_name": pipeline, "scheduler": [home, kind], part: ["diffusers", network["_class_name"]]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / part / "config.json").write_text(json.dumps(network))
    if card:
        (folder / "README.md").write_text(card)
    return folder
