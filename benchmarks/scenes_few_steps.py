"""Captioned scenes: does a few-step model show what its caption says, and does it vary as the true distribution does?

    fewstep train --preset scenes --out runs/scenes train.steps=4500

    python -m benchmarks.scenes_few_steps --init runs/scenes --out benchmarks/results

Every variant goes on from the same denoiser for the same number of steps, and differs in its terms alone. Measured on
the same captions and seeds: alignment, per-caption diversity against the known conditional distribution, the distance
to it, and how far what the caption leaves open is from its law. Finished variants and rows are kept, so a run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fewstep._files import output_dir, read_json, write_json
from fewstep.data import Scenes, to_uint8, to_unit
from fewstep.experiments.demo import machine
from fewstep.experiments.pictures import contact_sheet
from fewstep.experiments.presets import configured
from fewstep.experiments.runs import draw
from fewstep.experiments.scenes_eval import alignment, conditional_distance, nuisances, per_caption_diversity
from fewstep.experiments.ways import Way, way_of
from fewstep.features import RandomConv
from fewstep.models import Model, load_model
from fewstep.training import train_steps

# What the abstract of E2ED2 names, with the unpaired data as targets; then terms that do not tax diversity.
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "reconstruction + perceptual": ("energy=0", "adversarial=0", "l2=1", "perceptual=1"),
    "faithful: reconstruction + perceptual + adversarial": ("energy=0", "adversarial=1", "l2=1", "perceptual=1"),
    "faithful, light: 0.1 reconstruction + 0.1 perceptual + adversarial": (
        "energy=0",
        "adversarial=1",
        "l2=0.1",
        "perceptual=0.1",
    ),
    "diversity-safe: energy + adversarial": ("energy=1", "adversarial=1"),
}
STEPS = (1, 2, 4)
Measured: TypeAlias = tuple[str, str | Path, dict[str, Any]]  # name, model, and how it is sampled
SHOWN = {
    "ordinary, evodiff, 20 calls": "ordinary, 20 calls",
    "reconstruction + perceptual, 4 steps": "reconstruction",
    "faithful: reconstruction + perceptual + adversarial, 4 steps": "faithful, 4 steps",
    "diversity-safe: energy + adversarial, 4 steps": "safe, 4 steps",
}


def trained(name: str, init: str, options: argparse.Namespace) -> Path:
    """The folder of one variant, trained as far as asked."""
    folder = options.work / name.split(":")[0].replace(" ", "-").replace(",", "")
    weights = [f"e2e.terms.{term.replace('=', '.weight=')}" for term in VARIANTS[name]]
    own = [f"train.steps={options.steps}", f"train.seed={options.seed}", *weights]
    for report in train_steps(configured("scenes-e2e", init=init, overrides=own), folder):
        if report.at_every(25):
            print(name, report.step, {key: round(value, 4) for key, value in report.losses.items()}, flush=True)
    return folder


def captioned(seed: int, captions: int, each: int) -> list[str]:
    """`captions` different captions of the law of scenes, each said `each` times in a row."""
    scenes = Scenes()
    said: dict[str, None] = {}
    for number in range(seed, seed + 100 * captions):
        said.setdefault(scenes.caption(number))
        if len(said) == captions:
            break
    return [caption for caption in said for _ in range(each)]


def images_of(model: Model, way: Way, said: list[str]) -> tuple[Tensor, int]:
    """One image per caption, 8-bit, from seeds 0, 1, ...; and the calls that were made for each."""
    drawn = draw(model, way.rule, way.grid, range(len(said)), cond=model.cond_of_captions(said))
    return to_uint8(drawn.images), drawn.nfe


def measured(images: Tensor, said: list[str]) -> dict[str, Any]:
    """Everything that the law of the scenes lets one know."""
    numbers = {
        **alignment(images, said),
        **per_caption_diversity(images, said, RandomConv(3)),
        "distance": conditional_distance(images, said),
    }
    laws = nuisances(images, said) if numbers["joint"].value > 0 else {}
    return {name: estimate.to_json() for name, estimate in numbers.items()} | {
        "nuisances": {
            name: {"wasserstein": law.wasserstein, "ks": law.ks, "limit": law.limit} for name, law in laws.items()
        }
    }


def ways(init: str, options: argparse.Namespace) -> Iterator[Measured]:
    """Everything that is measured: name, model and how it is sampled."""
    for solver, nfe in (("ddim", 4), ("ddim", 20), ("evodiff", 4), ("evodiff", 10), ("evodiff", 20)):
        yield f"ordinary, {solver}, {nfe} calls", init, {"solver": solver, "nfe": nfe}
    for name in VARIANTS:
        folder = trained(name, init, options)
        for steps in STEPS:
            yield f"{name}, {steps} step{'s' * (steps > 1)}", folder, {"steps": steps}


def draw_captions(said: list[str], done: Sequence[Measured], options: argparse.Namespace) -> None:
    """Draw ten images for each of three captions: true ones, and some ways of making them."""
    chosen = said[:: options.each][:3]
    asked = [caption for caption in chosen for _ in range(10)]
    true = to_unit(torch.cat([Scenes().of_caption(caption, 10, seed=1) for caption in chosen]))
    pictures = {"true images": list(true.split(10))}
    for name, source, way in done:
        if name in SHOWN:
            model = load_model(source)
            images = to_unit(images_of(model, way_of(model, **way), asked)[0])
            pictures[SHOWN[name]] = list(images.split(10))
    contact_sheet(output_dir(options.work) / "captions.png", pictures, chosen, wide=5, scale=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", required=True, help="a denoiser of scenes")
    parser.add_argument("--steps", type=int, default=400, help="training steps of each variant")
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--each", type=int, default=20, help="images of each caption")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/scenes_few_steps"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    path, said = output_dir(options.out) / "scenes_few_steps.json", captioned(10**6, options.captions, options.each)
    asked = {"init": load_model(options.init).fingerprint, "steps": options.steps, "seed": options.seed}
    content = {"machine": machine(), **asked, "captions": options.captions, "each": options.each}
    earlier = read_json(path) if path.exists() else {}
    same = all(earlier.get(key) == content[key] for key in (*asked, "captions", "each"))
    rows: dict[str, Any] = earlier["rows"] if same else {}
    if not rows:
        true = torch.cat([Scenes().of_caption(caption, options.each, seed=1) for caption in said[:: options.each]])
        rows["true images"] = measured(true, said)
    done: list[Measured] = []
    for name, source, way in ways(options.init, options):
        done.append((name, source, way))
        if name in rows:
            continue
        model = load_model(source)
        images, nfe = images_of(model, way_of(model, **way), said)
        rows[name] = measured(images, said) | {"nfe": nfe}
        print(name, {key: row["value"] for key, row in rows[name].items() if isinstance(row, dict) and "value" in row})
        write_json(path, content | {"rows": rows})
    draw_captions(said, done, options)


if __name__ == "__main__":
    main()
