"""Networks: bodies that know nothing of diffusion (floor 1).

Each maps ``(x, noise_label, cond)`` to a tensor like x and is built from plain numbers that JSON can hold. Built with
``n_classes``, it takes class labels as ``cond={"label": ...}``, and the index ``n_classes`` is the null class; built
with ``n_tokens``, it takes captions as ``cond={"tokens": ...}``, and the row of zeros is the null caption.
"""

from torch import nn

from fewstep.networks.base import Network
from fewstep.networks.caption import CaptionEncoder, Vocabulary
from fewstep.networks.classifier import SmallClassifier
from fewstep.networks.space_to_depth import SpaceToDepthNet
from fewstep.networks.unet import UNet

__all__ = ["NETWORKS", "CaptionEncoder", "Network", "SmallClassifier", "SpaceToDepthNet", "UNet", "Vocabulary"]

NETWORKS: dict[str, type[nn.Module]] = {"space_to_depth": SpaceToDepthNet, "unet": UNet}
