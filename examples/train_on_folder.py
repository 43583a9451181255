"""Train a model on a folder of your pictures, then look at what it makes.

Shows training as a loop in your own hands: ``train_steps`` yields a report after every step and keeps a model folder
and a resumable checkpoint on the disk, so the script can be stopped and started again. Subfolders become the classes.

    python examples/train_on_folder.py --folder pictures --size 32 --steps 5000 --out run
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fewstep import load_model
from fewstep.data import digits, image_folder
from fewstep.experiments.pictures import save_images, save_picture, tile
from fewstep.experiments.runs import GridChoice, conditions, draw, make_grid, seeds_of
from fewstep.models import Part
from fewstep.solvers import EVODiff
from fewstep.training import DiffusionConfig, RunConfig, TrainConfig, train_steps


def some_digits(folder: Path) -> Path:
    """Write real zeros and ones as pictures into a subfolder each, for those who have no folder at hand."""
    data = digits()
    for label, name in enumerate(("zeros", "ones")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_images(folder / name, data.batch((data.labels == label).nonzero()[:40, 0]).x0, range(40))
    return folder


def main() -> None:
    """Train, then sample with ten calls of the network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="your pictures; some digits if omitted")
    parser.add_argument("--size", type=int, default=8, help="pictures are cropped and resized to size x size")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--smoke", action="store_true", help="a small network, a few steps")
    args = parser.parse_args()
    data = image_folder(args.folder or some_digits(args.out / "pictures"), size=args.size)
    width, steps = (8, 60) if args.smoke else (64, args.steps)
    config = RunConfig(
        network=Part("unet", {"width": width, "multipliers": [1, 2], "blocks": 1}),
        diffusion=DiffusionConfig(prediction=Part("x0"), weight=Part("flow_error")),
        train=TrainConfig(steps=steps, batch=32, lr=2e-3, warmup=20, ema=0.98, checkpoint_every=500),
    )
    for report in train_steps(config, args.out, data=data):
        if report.at_every(steps // 10):
            print(f"step {report.step}: loss {report.losses['generator/loss']:.3f}, {1e3 * report.seconds:.0f} ms")

    model, seeds = load_model(args.out), seeds_of(0, 64)
    grid = make_grid(model, EVODiff(), GridChoice(), nfe=10)
    drawn = draw(model, EVODiff(), grid, seeds, labels=conditions(model, seeds))
    save_picture(args.out / "grid.png", tile(drawn.images, 8), scale=2)
    print(f"{len(data)} pictures, classes {data.classes or 'none'}; NFE {drawn.nfe}: {args.out / 'grid.png'}")


if __name__ == "__main__":
    main()
