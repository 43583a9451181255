"""Train a chain of two steps from pure noise to digits, by what comes out of its end: E2ED2 from scratch.

The energy score holds two draws of each class against a real digit; it needs no teacher, no pairs and no critic. What
is trained is the sampler itself: the same noise gives the same picture, bit for bit, with gradient and without. Rho is
the spread of the draws within a class over that of the data, 1 at best. Rows of the picture are classes.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch

import fewstep
from fewstep.data import digits
from fewstep.denoisers import X0, NetworkDenoiser
from fewstep.experiments.pictures import save_picture, tile
from fewstep.losses import EnergyScore
from fewstep.models import Chain
from fewstep.networks import SpaceToDepthNet
from fewstep.noise import LinearFlow
from fewstep.objectives import E2E, Guard, Weighted, spread_of
from fewstep.sampling import Full, resolve
from fewstep.training import TrainConfig, Trainer


def main() -> None:
    """Train, compare the chain with the sampler, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("end_to_end.png"))
    parser.add_argument("--smoke", action="store_true", help="fewer training steps")
    args = parser.parse_args()
    steps, data = 150 if args.smoke else 1000, digits()
    torch.manual_seed(0)
    network = SpaceToDepthNet(1, patch=2, width=64, blocks=1, heads=0, n_classes=10)
    denoiser = NetworkDenoiser(network, X0(), LinearFlow())
    chain = partial(resolve, Chain(steps=(2,)), denoiser.schedule)
    spread = spread_of(data.batch(torch.arange(len(data))))
    objective = E2E(denoiser, chain, {"energy": Weighted(EnergyScore())}, steps, steps=(2,), guard=Guard(spread))
    config = TrainConfig(steps=steps, batch=16, lr=6e-3, warmup=5, decay=0.5, ema=0.9)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, objective, {"generator": network}, data, folder, {})
        for report in trainer.steps():
            if report.at_every(steps // 10):
                energy, rho = (report.losses[f"generator/{name}"] for name in ("loss_energy", "rho"))
                print(f"step {report.step}: energy score {energy:.3f}, rho {rho:.2f}")

    x, cond = torch.randn(80, 1, 8, 8), {"label": torch.arange(10).repeat_interleave(8)}
    trained = objective.run(chain(2), x, cond, unroll=Full()).detach()
    sampled = fewstep.sample(denoiser, *chain(2), x, cond=cond)
    print(f"NFE {sampled.nfe}; chain and sampler differ by at most {float((trained - sampled.x).abs().max())}")
    average = NetworkDenoiser(trainer.ema.module, X0(), LinearFlow())
    save_picture(args.out, tile(fewstep.sample(average, *chain(2), x, cond=cond).x, 8), scale=4)


if __name__ == "__main__":
    main()
