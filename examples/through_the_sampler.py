"""Train through the sampler: the gradient of a loss on the last sample, back to the noise it began with.

Shows that the loop is differentiable, and that how to differentiate is an argument: ``Full()`` keeps every step,
``Checkpointed(every=3)`` keeps one in three and computes the rest again, for the same gradient. A Gaussian is fitted to
handwritten zeros. The noise of eight of its samples is moved, held back by its own prior, until their upper halves are
those of eight other zeros. Rows of the picture: those zeros, what the loss sees, the samples before and after.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import fewstep
from fewstep.data import digits, to_unit
from fewstep.denoisers import Gaussian
from fewstep.experiments.pictures import save_picture, tile
from fewstep.noise import EDM, Karras
from fewstep.sampling import Checkpointed, Full, NoGrad, SeededNoise, Unroll
from fewstep.solvers import EVODiff


def main() -> None:
    """Fit the Gaussian, compare two gradients, optimise, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("halves.png"))
    parser.add_argument("--smoke", action="store_true", help="fewer iterations")
    args = parser.parse_args()
    zeros = to_unit(digits().images[digits().labels == 0]).double()
    real, known = zeros[:8], zeros[8:].flatten(1)
    denoiser = Gaussian(known.mean(0).reshape(1, 8, 8), known.T.cov() + 1e-3 * torch.eye(64, dtype=torch.float64))
    grid = Karras()(EDM(sigma_min=0.02, sigma_max=20), 9)

    def samples(noise: Tensor, unroll: Unroll) -> Tensor:
        return fewstep.sample(denoiser, EVODiff(), grid, grid.at(0).sigma * noise, unroll=unroll).x

    def gradient(noise: Tensor, unroll: Unroll) -> Tensor:
        misfit = (samples(noise, unroll) - real)[:, :, :4].square().mean()
        return torch.autograd.grad(misfit + 0.1 * noise.square().mean(), noise)[0]

    noise = SeededNoise(tuple(range(8)))(0, real).requires_grad_()
    before, checkpointed = samples(noise, NoGrad()), Checkpointed(every=3)
    difference = (gradient(noise, Full()) - gradient(noise, checkpointed)).abs().max()
    print(f"gradients of Full and Checkpointed differ by at most {difference:.1e}")
    optimizer = torch.optim.Adam([noise], lr=0.1)
    for _ in range(40 if args.smoke else 200):
        noise.grad = gradient(noise, checkpointed)
        optimizer.step()
    after, seen = samples(noise, NoGrad()), torch.cat([real[:, :, :4], -torch.ones(8, 1, 4, 8)], dim=2)
    for name, rows in (("upper half, in the loss", slice(0, 4)), ("lower half, never seen", slice(4, 8))):
        errors = [(x - real)[:, :, rows].square().mean().sqrt() for x in (before, after)]
        print(f"{name}: error {errors[0]:.3f} before, {errors[1]:.3f} after")
    save_picture(args.out, tile(torch.cat([real, seen, before, after]).float(), 8), scale=8)


if __name__ == "__main__":
    main()
