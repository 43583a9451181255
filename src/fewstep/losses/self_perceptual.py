r"""Maps without a download: the hidden layers of a frozen copy of the denoiser, at a small noise level.

A denoiser knows the images that it was trained on better than any network of another data set. It is asked about
:math:`x + \kappa \epsilon` with the same :math:`\epsilon` for every image, drawn once from a seed, so that maps of two
images differ by the images alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from fewstep._files import fingerprint
from fewstep.denoisers import Cond, NetworkDenoiser
from fewstep.errors import ConfigError, choose
from fewstep.networks.layers import ResBlock
from fewstep.noise import NoiseLevel, perturb

__all__ = ["DenoiserMaps"]


class DenoiserMaps(nn.Module):
    """The hidden maps of a denoiser, as a frozen copy in evaluation mode; later training of the original is not seen.

    Args:
        denoiser: a network with its prediction and schedule.
        kappas: noise per unit of data of the levels it is asked at, above 0; small ones see detail, large ones layout.
        layers: names of the network's modules whose outputs are the maps; None for every residual block.
        seed: of the noise.

    Raises:
        ConfigError: if the network is no module, there is no level, layer or residual block, or a kappa is not above 0.
        UnknownName: if the network has no module of a name.
        LevelError: when called, if the denoiser was not trained at a kappa.

    Source:
        Lin, Yang 2024, arXiv:2401.00110. Departs from it in: fixed small noise levels and fixed noise, and
        any layers, not the middle one alone.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        kappas: Sequence[float] = (0.3,),
        layers: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network = _frozen_copy(denoiser)
        self.denoiser = replace(denoiser, network=self.network)
        self.kappas, self.seed = tuple(kappas), seed
        modules = dict(self.network.named_modules())
        blocks = [name for name, module in modules.items() if isinstance(module, ResBlock)]
        self.layers = {name: choose(name, modules, "layer") for name in (blocks if layers is None else layers)}
        self._check()
        told = f"kappa {', '.join(f'{kappa:g}' for kappa in kappas)}, noise {seed}, {', '.join(self.layers)}"
        self.name = f"maps of denoiser@{fingerprint(self.network.state_dict())}: {told}"

    def _check(self) -> None:
        if not self.kappas or not self.layers or not all(0 < kappa < float("inf") for kappa in self.kappas):
            raise ConfigError(
                f"Hidden maps at kappas {self.kappas} of the layers {list(self.layers)}",
                "At least one kappa, each above 0 and finite, and one layer",
                "Use kappas=(0.3,), and name layers of a network without residual blocks",
            )

    def train(self, mode: bool = True) -> DenoiserMaps:
        """Stay in evaluation mode, whatever the mode of a module around this one."""
        return super().train(False)

    def forward(self, images: Tensor, cond: Cond = None) -> list[Tensor]:
        """Compute the maps.

        Args:
            images: what the network was trained on, shape (b, *d), in [-1, 1].
            cond: conditions, batch first; None tells the network none.

        Returns:
            Outputs of the layers in the order they ran, one noise level after the other.
        """
        eps = torch.randn(images.shape[1:], dtype=torch.float64, generator=Generator().manual_seed(self.seed))
        eps = eps.to(images).expand_as(images)
        with _recorded(self.layers) as found:
            for kappa in self.kappas:
                level = NoiseLevel(*torch.tensor([1.0, kappa], dtype=torch.float64))
                self.denoiser(perturb(images, eps, level), level, cond)
        return found


def _frozen_copy(denoiser: NetworkDenoiser) -> nn.Module:
    network = denoiser.network
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"Hidden maps of a {type(network).__name__}", "The network is a torch module", "Use other maps, e.g. random"
        )
    return copy.deepcopy(network).eval().requires_grad_(False)


@contextmanager
def _recorded(layers: Mapping[str, nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what layers return inside the block."""
    found: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: found.append(call[2])) for layer in layers.values()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
