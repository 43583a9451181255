"""Sample the model that ships with fewstep: ten calls of the network per digit.

Shows the whole path in five lines: load a model, choose a solver and a grid, draw noise that belongs to each picture,
sample, save. Row k of the picture is asked for digit k; every picture can be made again alone, by its own seed.

    python examples/sample_bundled.py --out digits.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import fewstep
from fewstep.experiments.pictures import save_picture, tile
from fewstep.noise import Karras
from fewstep.sampling import grid_for
from fewstep.solvers import EVODiff


def main() -> None:
    """Write a grid of digits, one row per class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nfe", type=int, default=10, help="calls of the network per picture")
    parser.add_argument("--columns", type=int, default=16, help="pictures of each digit")
    parser.add_argument("--out", type=Path, default=Path("digits.png"))
    parser.add_argument("--smoke", action="store_true", help="two pictures of each digit")
    args = parser.parse_args()
    columns = 2 if args.smoke else args.columns

    model = fewstep.load_model("mnist")
    solver, schedule = EVODiff(), model.denoiser.schedule
    grid = grid_for(solver, Karras(kappa_max=80, kappa_min=0.002), schedule, args.nfe)
    x = fewstep.start_noise(grid, model.shape, range(10 * columns))
    label = torch.arange(10).repeat_interleave(columns)
    drawn = fewstep.sample(model.denoiser, solver, grid, x, cond={"label": label})

    save_picture(args.out, tile(drawn.x, columns), scale=2)
    print(f"{len(x)} digits in {args.out}: {grid.steps} steps, NFE {drawn.nfe}, weights {model.fingerprint}")


if __name__ == "__main__":
    main()
