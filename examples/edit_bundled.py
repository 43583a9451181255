"""Edit digits with the bundled model: change them, complete them, find their noise.

Ten digits are drawn, then edited. Rows of the picture: the digits; asked to become the next digit, at strength 0.3, 0.6
and 0.9; what is known of them, and two completions, by two seeds; and what comes back through their noise, by DDIM
inversion and by fixed-point inversion.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import fewstep
from fewstep.experiments.pictures import save_picture, tile
from fewstep.noise import Karras
from fewstep.sampling import SeededNoise, inpaint, invert, start_from
from fewstep.solvers import DDIM, EVODiff


def main() -> None:
    """Draw ten digits and write a picture of their edits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("edits.png"))
    parser.add_argument("--smoke", action="store_true", help="fewer iterations")
    args = parser.parse_args()

    model = fewstep.load_model("mnist")
    grid = Karras(kappa_max=80, kappa_min=0.02)(model.denoiser.schedule, 20)
    label = torch.arange(10)
    noise = fewstep.start_noise(grid, model.shape, label.tolist())
    digits = fewstep.sample(model.denoiser, EVODiff(), grid, noise, cond={"label": label}).x.clamp(-1, 1)
    rows = [digits]

    for strength in (0.3, 0.6, 0.9):
        x, rest = start_from(digits, strength, grid, SeededNoise(tuple(label.tolist())))
        changed = fewstep.sample(model.guided(2), EVODiff(), rest, x, cond={"label": (label + 1) % 10})
        print(f"strength {strength}: {rest.steps} of {grid.steps} steps, NFE {changed.nfe}")
        rows.append(changed.x)

    known = (torch.arange(28) < 14).expand(28, 28)
    rows.append(torch.where(known, digits, -0.5))
    painter = inpaint(model.denoiser, digits, known)
    for seed in (100, 200):
        x, whole = start_from(digits, 1.0, grid, SeededNoise(tuple(range(seed, seed + 10))))
        rows.append(fewstep.sample(painter, EVODiff(), whole, x, cond={"label": label}).x)

    for iterations in (0, 3 if args.smoke else 10):
        found = invert(model.denoiser, grid, digits, iterations=iterations, cond={"label": label})
        back = fewstep.sample(model.denoiser, DDIM(), grid, found.x, cond={"label": label}).x
        print(f"inversion, {iterations} iterations: NFE {found.nfe}, largest error {(back - digits).abs().max():.5f}")
        rows.append(back)
    save_picture(args.out, tile(torch.cat(rows), 10), scale=2)


if __name__ == "__main__":
    main()
