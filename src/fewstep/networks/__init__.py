"""Networks: bodies that know nothing of diffusion (floor 1).

Each maps ``(x, noise_label, cond)`` to a tensor like x and is built from plain numbers that JSON can hold. Built with
``n_classes``, it takes class labels as ``cond={"label": ...}``, and the index ``n_classes`` is the null class; built
with ``n_tokens``, it takes captions as ``cond={"tokens": ...}``, and the row of zeros is the null caption. Critics take
the same in the order ``(x, cond, noise_label)`` and give one logit per sample.
"""

from torch import nn

from fewstep.networks.base import Network
from fewstep.networks.caption import CaptionEncoder, Vocabulary
from fewstep.networks.classifier import SmallClassifier
from fewstep.networks.critic import PixelCritic, ProjectedCritic, VectorCritic
from fewstep.networks.diffusers_unet import DiffusersUNet
from fewstep.networks.dit import DiT
from fewstep.networks.edm import EDMUNet
from fewstep.networks.space_to_depth import SpaceToDepthNet
from fewstep.networks.unet import UNet

__all__ = [
    "NETWORKS",
    "CaptionEncoder",
    "DiT",
    "DiffusersUNet",
    "EDMUNet",
    "Network",
    "PixelCritic",
    "ProjectedCritic",
    "SmallClassifier",
    "SpaceToDepthNet",
    "UNet",
    "VectorCritic",
    "Vocabulary",
]

NETWORKS: dict[str, type[nn.Module]] = {
    "diffusers_unet": DiffusersUNet,
    "dit": DiT,
    "edm_unet": EDMUNet,
    "space_to_depth": SpaceToDepthNet,
    "unet": UNet,
}
