"""Runs worth repeating: one table, name -> configuration, with what was measured behind each.

``fewstep train --preset mnist --out DIR data=parquet:PATH`` takes a line and changes what is yours: any key may be
overridden. Presets give no name: the model is called after its data.
"""

from __future__ import annotations

from fewstep.models import Part
from fewstep.training import DiffusionConfig, RunConfig, TrainConfig

__all__ = ["PRESETS"]

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

# 32x32 captioned scenes on two cores: 64 positions of 16 pixels. No image comes twice: 6,000 steps of 64 are less than
# one nominal epoch.
_SCENES = RunConfig(
    data="scenes",
    network=Part("space_to_depth", {"patch": 4, "width": 128, "blocks": 4, "heads": 4, "detail": 8, "embedding": 192}),
    diffusion=DiffusionConfig(prediction=Part("x0"), weight=Part("flow_error")),
    train=TrainConfig(steps=6000, batch=64, lr=1e-3, ema=0.999, precision="bf16", checkpoint_every=500),
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
    "scenes": _SCENES,  # not measured
}
