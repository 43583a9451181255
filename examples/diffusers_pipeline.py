"""A pipeline of diffusers with our schedulers, and its network in our loop.

Shows the one line that changes a program, the same pictures by `fewstep.sample`, and a table fitted to the network. The
pipeline has random weights unless you name one; errors are of its pictures to those of 100 steps from the same noise.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

import fewstep
from fewstep.calibration import fit
from fewstep.experiments.calibrate_pipeline import PLAN, prepared
from fewstep.schedulers import CalibratedScheduler, EVODiffScheduler
from fewstep.solvers import EVODiff


def random_pipeline() -> DDPMPipeline:
    """Build a pipeline that has learned nothing."""
    torch.manual_seed(0)
    small = {"sample_size": 8, "block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}
    unet = UNet2DModel(down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), **small)
    return DDPMPipeline(unet.eval(), DDPMScheduler(prediction_type="v_prediction", clip_sample=False))


def main() -> None:
    """Sample with three schedulers, and once without a pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", help="folder or hub id, such as google/ddpm-cifar10-32")
    parser.add_argument("--smoke", action="store_true", help="fit to half of the trajectories")
    args = parser.parse_args()
    pipe = DDPMPipeline.from_pretrained(args.pipeline) if args.pipeline else random_pipeline()
    pipe.set_progress_bar_config(disable=True)

    def images(scheduler: object, steps: int) -> torch.Tensor:
        pipe.scheduler, noise = scheduler, torch.Generator().manual_seed(0)
        made = pipe(batch_size=4, num_inference_steps=steps, generator=noise, output_type="np").images
        return torch.as_tensor(made).permute(0, 3, 1, 2)

    config, edge = pipe.scheduler.config, pipe.unet.config.sample_size
    drawn = images(evodiff := EVODiffScheduler.from_config(config), 8)  # the one line
    x = torch.randn(4, pipe.unet.config.in_channels, edge, edge, generator=torch.Generator().manual_seed(0))
    core = fewstep.sample(fewstep.wrap(pipe), EVODiff(), evodiff.grid, x)
    gap = ((core.x / 2 + 0.5).clamp(0, 1) - drawn).abs().max()
    print(f"pipeline and core, NFE {core.nfe}: differ by at most {gap:.1e}")
    ready = prepared(pipe, replace(PLAN, trajectories=16 if args.smoke else 32))
    table = fit(ready.problem, PLAN.settings, ready.origin)  # table.save("calibration.json") keeps it
    calibrated = CalibratedScheduler.from_config(config, calibration=table.to_json())
    fine = images(evodiff, 100)
    for scheduler in (DDIMScheduler.from_config(config, timestep_spacing="trailing"), evodiff, calibrated):
        errors = [f"{(images(scheduler, n) - fine).square().mean().sqrt():.4f}" for n in calibrated.steps]
        print(f"{type(scheduler).__name__:<19} error after {calibrated.steps} steps: {', '.join(errors)}")


if __name__ == "__main__":
    main()
