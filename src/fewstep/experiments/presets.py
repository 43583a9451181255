"""Runs worth repeating: one table, name -> configuration, with what was measured behind each.

``fewstep train --preset mnist --out DIR data=parquet:PATH`` takes a line and changes what is yours: any key may be
overridden. Presets give no name: the model is called after its data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fewstep.errors import choose
from fewstep.models import Part
from fewstep.training import DiffusionConfig, E2EConfig, RunConfig, TrainConfig, override
from fewstep.training.describe import SINGLE_STEPS

__all__ = ["CHAINS", "PRESETS", "configured"]

# 8x8 grey digits from scikit-learn, trained from nothing while one waits: 0.27M parameters, and 900 steps of 128 are
# 64 epochs of 1,797 images in about 65 CPU seconds.
_DIGITS = RunConfig(
    data="digits",
    network=Part("unet", {"width": 20, "multipliers": [1, 2], "blocks": 1, "heads": 4, "embedding": 64}),
    diffusion=DiffusionConfig(prediction=Part("x0"), weight=Part("flow_error")),
    train=TrainConfig(steps=900, batch=128, lr=2e-3, warmup=50, decay=0.5, ema=0.995, checkpoint_every=300),
)

# 28x28 grey digits on two cores: 49 positions of 16 pixels. 9,000 steps of 128 are 19 epochs of 60,000 images.
_MNIST = RunConfig(
    data="hf:ylecun/mnist",
    network=Part("space_to_depth", {"patch": 4, "width": 128, "blocks": 4, "heads": 4, "detail": 8}),
    diffusion=DiffusionConfig(prediction=Part("x0"), weight=Part("flow_error")),
    train=TrainConfig(steps=9000, batch=128, lr=1e-3, ema=0.9993, precision="bf16", checkpoint_every=400),
)

# 32x32 colour on one large GPU in about 25 minutes: 19.5M parameters (39 MB in float16) at 8.5 GFLOP per image, three
# times that with the backward pass; 11,000 steps of 512 are 112 epochs of 50,000 images.
_CIFAR10 = RunConfig(
    data="hf:uoft-cs/cifar10",
    network=Part("unet", {"width": 96, "multipliers": [1, 2, 2], "blocks": 3, "attention_levels": 1, "embedding": 256}),
    diffusion=DiffusionConfig(prediction=Part("flow")),
    train=TrainConfig(
        steps=11000, batch=512, lr=6e-4, warmup=300, ema=0.9993, precision="bf16", flip=True, checkpoint_every=1000
    ),
)

# The same images on two cores, as far as an hour or two carry: 3.7M parameters on 64 positions of 16 pixels.
_CIFAR10_SMALL = RunConfig(
    data="hf:uoft-cs/cifar10",
    network=Part("space_to_depth", {"patch": 4, "width": 160, "blocks": 6, "heads": 4, "detail": 16, "embedding": 192}),
    diffusion=DiffusionConfig(prediction=Part("x0"), weight=Part("flow_error")),
    train=TrainConfig(steps=8000, batch=128, lr=1e-3, ema=0.9993, precision="bf16", flip=True, checkpoint_every=250),
)

# 32x32 captioned scenes on two cores: 64 positions of 16 pixels. No image comes twice: 6,000 steps of 64 are less than
# one nominal epoch.
_SCENES = RunConfig(
    data="scenes",
    network=Part("space_to_depth", {"patch": 4, "width": 128, "blocks": 4, "heads": 4, "detail": 8, "embedding": 192}),
    diffusion=DiffusionConfig(prediction=Part("x0"), weight=Part("flow_error")),
    train=TrainConfig(steps=6000, batch=64, lr=1e-3, ema=0.999, precision="bf16", checkpoint_every=500),
)


def _of_chains(run: RunConfig) -> RunConfig:
    """Train whole chains of the same network: how single steps are drawn and weighed means nothing to them."""
    own = replace(run.diffusion, **{name: getattr(DiffusionConfig(), name) for name in SINGLE_STEPS})
    return replace(run, objective="e2e", diffusion=own)


def _end_to_end(
    base: RunConfig, train: TrainConfig, terms: Mapping[str, Mapping[str, Any]], init: str = ""
) -> RunConfig:
    """Turn a run of single steps into one of whole chains, from scratch or from a trained model."""
    run = RunConfig(data=base.data) if init else base  # a trained model brings its own network
    return replace(_of_chains(run), e2e=E2EConfig(init=init, steps=(1, 2, 4), terms=terms), train=train)


# How whole chains are trained where nothing else is known.
CHAINS = TrainConfig(
    steps=600,
    batch=64,
    lr=2e-4,
    warmup=20,
    decay=0.4,
    betas=(0.0, 0.99),
    clip=2.0,
    ema=0.995,
    precision="bf16",
    checkpoint_every=100,
    players={"critic": {"lr": 1e-3, "clip": 0.0}},
)

_CRITIC = {"weight": 1.0, "width": 24, "gamma_real": 0.003, "gamma_fake": 0.003}

# With ten classes every one of 128 images has a dozen of its own class to be compared with, so one draw each does: in
# equal time better than two draws of 64 images. Covariances need more images than that, so a Fréchet term has a memory.
_OF_CLASSES: Mapping[str, Mapping[str, Any]] = {
    "energy": {"weight": 1.0, "features": "pixels,random,classifier", "draws": 1},
    "adversarial": _CRITIC,
    "frechet": {"weight": 1.0, "features": "classifier", "beta": 0.9},
}

# Captions hardly repeat within a batch, and a Fréchet distance would not see them.
_OF_CAPTIONS: Mapping[str, Mapping[str, Any]] = {
    "energy": {"weight": 1.0, "features": "pixels,random"},
    "adversarial": _CRITIC,
}

# From the digits' ordinary model, in under a minute. Two draws of 64 digits tell an energy score little of variations
# that are small; a Fréchet term over the random features of some 10 steps holds those too (without it 0.5 at 1 step).
# A small critic beside them made no clear difference. Half of all pixels are black, with a view of 8 bits exactly so.
_DIGITS_CHAINS = replace(
    _of_chains(_DIGITS),
    e2e=E2EConfig(
        steps=(1, 2, 4),
        terms={
            "energy": {"weight": 1.0, "features": "pixels,random"},
            "frechet": {"weight": 1.0, "features": "random", "beta": 0.9},
        },
    ),
    train=replace(
        CHAINS, steps=200, lr=1e-3, decay=0.6, betas=(0.5, 0.99), ema=0.985, precision="no", checkpoint_every=100
    ),
)

PRESETS: dict[str, RunConfig] = {
    # Fréchet distance of raw pixels, 1,797 samples against all digits (between random halves: 0.31), DDIM, seed 0, at
    # 1 / 2 / 4 / 10 NFE: 3.45 / 1.12 / 0.42 / 0.18 after 45 s on two Zen 4 cores, 2026-11-21 (`fewstep demo`).
    "digits": _DIGITS,
    # Fréchet distance in the features of mnist-judge, 5,000 samples against the test set (floor 0.17), mean of 3 seeds,
    # 2026-11-21, at 2 / 4 / 10 / 20 / 50 NFE: DDIM 49.3 / 13.6 / 1.11 / 0.82 / 0.86, EVODiff
    # 2.14 / 0.91 / 0.85 / 1.00 / 0.95.
    "mnist": _MNIST,
    "cifar10": _CIFAR10,  # not measured
    # After 2,400 of its steps (42 minutes of one thread), Fréchet distance of 5,000 images in a CIFAR-10 ResNet-44 that
    # training never saw, at 10 / 20 calls: DDIM 13.1 / 10.4, EVODiff 9.7 / 9.2. One seed, 2026-11-21. What ships had
    # train.steps=7303 train.batch=512 train.ema=0.9995 train.warmup=300, 258 s of one H100: EVODiff 4.0 [3.8, 4.3] over
    # 2,000 images at 20 calls. One seed, 2026-11-27.
    "cifar10-small": _CIFAR10_SMALL,
    # With train.steps=4500 (25 minutes of one thread), 20 calls of EVODiff: 0.52 of the images show everything that
    # their captions say; places 0.95, colours 0.68, shapes 0.60. One seed, 2026-11-22.
    "scenes": _SCENES,
    # Whole chains; `fewstep train --objective e2e --init FOLDER` starts from a trained model of the same data.
    # From the model of "digits", the same distance at 1 / 2 / 4 steps: 0.29 / 0.23 / 0.24, variety within classes
    # 0.95 / 1.01 / 1.02 of the real digits' (before: 0.15 / 0.46 / 0.66, and 0.82 at 10 steps). One seed, 2026-11-21
    # (the second act of `fewstep demo`).
    "digits-e2e": _DIGITS_CHAINS,
    # From nothing, in eight minutes of one busy thread, the same distance: 0.55 / 0.54 / 0.57, variety within classes
    # 1.00 / 1.02 / 1.02. One seed, 2026-11-22.
    "digits-e2e-scratch": replace(_DIGITS_CHAINS, train=replace(_DIGITS_CHAINS.train, steps=1500)),
    # From "mnist", under the protocol of "mnist", at 1 / 2 / 4 steps: 0.67 / 0.40 / 0.45 (`mnist-fewstep`, 2026-11-21).
    "mnist-e2e": _end_to_end(_MNIST, replace(CHAINS, steps=1200, batch=128), _OF_CLASSES, init="mnist"),
    # Not measured; some 12 minutes of one large GPU, after half of "cifar10" (`make cifar10-fewstep`).
    "cifar10-e2e": _end_to_end(_CIFAR10, replace(CHAINS, steps=3500, batch=256, ema=0.998, flip=True), _OF_CLASSES),
    # After 1,200 steps of "cifar10-small" and 320 of this, in the same time: 15.3 / 9.5 / 8.0 at 1 / 2 / 4 steps.
    "cifar10-small-e2e": _end_to_end(_CIFAR10_SMALL, replace(CHAINS, batch=128, flip=True), _OF_CLASSES),
    # From these 4,500 steps, 400 of it: 0.43 at 2 and 4 steps, with the variety within captions, rho 1.01 and 0.95.
    "scenes-e2e": _end_to_end(_SCENES, CHAINS, _OF_CAPTIONS),
}


def configured(
    preset: str = "",
    *,
    objective: str = "",
    init: str = "",
    data: str = "",
    overrides: Iterable[str] = (),
) -> RunConfig:
    """Put a run together as the command line does.

    Args:
        preset: a name in PRESETS; empty takes "digits", or for whole chains "digits-e2e" from a model and
            "digits-e2e-scratch" without one.
        objective: "denoising" or "e2e"; empty takes the preset's.
        init: a model to start from, which brings its own network.
        data: a source of images; empty takes the preset's.
        overrides: key=value, which have the last word.

    Returns:
        The run.

    Raises:
        UnknownName: if there is no such preset, objective or key.
        ConfigError: if an option is outside its range.
    """
    chains = "digits-e2e" if init else "digits-e2e-scratch"
    config = choose(preset or (chains if objective == "e2e" else "digits"), PRESETS, "preset")
    if objective:
        config = _of_chains(config) if objective == "e2e" else replace(config, objective=objective)
    if init:
        blank = RunConfig(e2e=replace(config.e2e, init=init))
        config = replace(config, network=blank.network, diffusion=blank.diffusion, e2e=blank.e2e)
    return override(replace(config, data=data) if data else config, overrides)
