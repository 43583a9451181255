"""Networks: bodies that know nothing of diffusion (floor 1).

Each maps ``(x, noise_label, cond)`` to a tensor like x, is built from plain numbers that JSON can hold, and takes class
labels as ``cond={"label": ...}`` when it was built with ``n_classes``; the index ``n_classes`` is the null class.
"""

from torch import nn

from fewstep.networks.base import Network
from fewstep.networks.classifier import SmallClassifier
from fewstep.networks.space_to_depth import SpaceToDepthNet
from fewstep.networks.unet import UNet

__all__ = ["NETWORKS", "Network", "SmallClassifier", "SpaceToDepthNet", "UNet"]

NETWORKS: dict[str, type[nn.Module]] = {"space_to_depth": SpaceToDepthNet, "unet": UNet}
