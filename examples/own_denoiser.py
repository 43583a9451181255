"""Sample a network of your own with three solvers.

Shows the two things fewstep has to know about a network: what its output means (a prediction) and which noise levels it
was trained on (a schedule). This one is a small perceptron on points of the plane, trained for a moment in a plain loop
to predict v; yours is whatever you have, called as ``network(x, noise_label, cond)``. The data are a ring of radius 1.
All solvers start from the same noise; the error of one is how far its points are from those of 64 steps of Heun.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import fewstep
from fewstep.denoisers import Cond, NetworkDenoiser, V
from fewstep.noise import UniformLam, VPCosine, perturb
from fewstep.solvers import DDIM, DPMpp2M, EVODiff, Heun


class MyNetwork(nn.Module):
    """Reads a noisy point and its noise label, an angle from 0 (clean) to 1 (noise)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, noise_label: Tensor, cond: Cond = None) -> Tensor:
        """Predict v for x (b, 2) and noise_label (b,)."""
        return self.body(torch.cat([x, noise_label[:, None]], dim=1))


def main() -> None:
    """Train for a moment, then sample the same noise with three solvers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="train for a second")
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(MyNetwork(), V(), VPCosine())
    optimizer = torch.optim.Adam(denoiser.network.parameters(), lr=3e-3)
    for _ in range(1500 if parser.parse_args().smoke else 8000):
        turn, eps = 2 * torch.pi * torch.rand(256), torch.randn(256, 2)
        x0, level = torch.stack([turn.cos(), turn.sin()], dim=1), denoiser.schedule.level(torch.rand(256))
        loss = (denoiser.predict(perturb(x0, eps, level), level) - V().target(x0, eps, level)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    runs = [(Heun(), 64), *((solver, steps) for solver in (DDIM(), DPMpp2M(), EVODiff()) for steps in (4, 8, 16))]
    fine = None
    for solver, steps in runs:
        grid = UniformLam(lam_min=-4, lam_max=4)(denoiser.schedule, steps)
        drawn = fewstep.sample(denoiser, solver, grid, fewstep.start_noise(grid, (2,), range(500)))
        fine = drawn.x if fine is None else fine
        error, ring = (drawn.x - fine).norm(dim=1).mean(), (drawn.x.norm(dim=1) - 1).abs().mean()
        print(f"{type(solver).__name__:<8} NFE {drawn.nfe:>3}: error {error:.4f}, distance from the ring {ring:.3f}")


if __name__ == "__main__":
    main()
