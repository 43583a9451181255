"""A U-Net of diffusers as a network of ours: the class ``UNet2DModel``, unconditional or told a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fewstep._files import require
from fewstep.errors import ConfigError
from fewstep.networks.embeddings import check_conditions, check_labels, check_noise_label
from fewstep.networks.layers import check_images

__all__ = ["DiffusersUNet"]


class DiffusersUNet(nn.Module):
    """What diffusers builds of the configuration of a ``UNet2DModel``, called as the networks here are.

    Its noise label is the timestep (``label="timestep"`` of a model). Where it learned a variance beside its
    prediction, twice the channels, the variance is left out.

    Args:
        config: keyword arguments of ``diffusers.UNet2DModel``.
        n_classes: number of classes; 0 for none. A network with n_classes embeddings has no null class, one with
            n_classes + 1 has it as the last.

    Attributes:
        has_null: whether there is a null class, which is to say that it can be guided.

    Raises:
        MissingExtra: if diffusers is not installed.
        ConfigError: if the network reads something else than classes, of another number, or returns no images like x.
    """

    def __init__(self, config: Mapping[str, Any], n_classes: int = 0) -> None:
        super().__init__()
        self.unet: nn.Module = require("diffusers", "diffusers").UNet2DModel(**config)
        made: Any = self.unet.config
        embeddings, channels = made.num_class_embeds or 0, made.in_channels
        fits = n_classes in ({embeddings, embeddings - 1} if embeddings > 1 else {embeddings})
        _require(made.class_embed_type is None, made, "class_embed_type", "null: its classes have embeddings")
        _require(made.out_channels in (channels, 2 * channels), made, "out_channels", f"{channels} or {2 * channels}")
        _require(fits, made, "num_class_embeds", f"{n_classes}, or one more with a null class, for {n_classes} classes")
        self.channels, self.n_classes, self.has_null = channels, n_classes, embeddings > n_classes
        self.multiple = 2 ** (len(made.block_out_channels) - 1)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Predict from noisy images.

        Args:
            x: shape (b, channels, h, w).
            noise_label: timesteps, shape (b,).
            cond: None, or {"label": int64 of shape (b,)}.

        Returns:
            Shape of x.

        Raises:
            ShapeError: if x is no batch of such images, or there is not one label per sample.
            ConfigError: if `cond` has anything that the network was not built for, or there is no class and no null
                class either.
        """
        check_images(x, self.channels, self.multiple)
        check_noise_label(noise_label, x.shape[0])
        given = check_conditions(cond, {"label": "a class label"} if self.n_classes else {})
        told = {"class_labels": self._classes(given.get("label"), x)} if self.n_classes else {}
        out: Tensor = self.unet(x, noise_label, **told, return_dict=False)[0]
        return out[:, : self.channels]

    def _classes(self, label: Tensor | None, x: Tensor) -> Tensor:
        label = check_labels(label, x.shape[0], self.n_classes, x.device)
        # Reading values from a GPU would stall it, and there torch's own assertion catches a wrong index.
        if not self.has_null and label.device.type == "cpu" and bool((label == self.n_classes).any()):
            raise ConfigError(
                "No class, or the null class, for a network that was trained without a null class",
                f"Classes are 0..{self.n_classes - 1}, one for each sample; without a null class there is no guidance",
                "Pass a class for each sample, and leave the guidance at 1",
            )
        return label


def _require(holds: bool, config: Any, name: str, allowed: str) -> None:
    if not holds:
        raise ConfigError(
            f"A UNet2DModel with {name}={config[name]!r}",
            f"It has to be {allowed}",
            "Use such a network as it is: fewstep.wrap(unet, scheduler)",
        )
