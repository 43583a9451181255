"""Features: images -> vectors, or maps of every layer, differentiable; losses and metrics both stand on them.

=========================  ========================================  ========================================
class                      what it computes                          file
=========================  ========================================  ========================================
Pixels                     the pixels themselves                     pixels.py
RandomConv                 an untrained network, from a seed         random_conv.py
ClassifierFeatures         a classifier's inner layer                classifier.py
NetworkFeatures            a published network's pooled maps         frozen.py
ClassifierNetworkFeatures  the same, with logits                     frozen.py
Lpips                      a distance of two images, not features    lpips.py
Clip                       CLIP's embeddings of images and texts     transformers_vision.py
Dinov2                     DINOv2's class token                      transformers_vision.py
Clean, Legacy              ways to bring images to one size          resize.py
PixelMaps, VectorMaps      pixels, or any features, as maps          maps.py
RandomMaps                 RandomConv, all layers                    maps.py
ClassifierMaps             a small classifier, all stages            maps.py
NetworkMaps                SqueezeNet, the layers of LPIPS           maps.py
=========================  ========================================  ========================================

======================================  ==============================================  =====================
loader                                  weights from a path                             file
======================================  ==============================================  =====================
load_features                           any of these, by name                           table.py
load_classifier                         a classifier that fewstep trained               classifier.py
load_cifar_resnet                       CIFAR-10 ResNet, He et al. 2015                 resnet.py
load_squeezenet                         SqueezeNet 1.1, Iandola et al. 2016             squeezenet.py
load_lpips                              LPIPS v0.1 on it, Zhang et al. 2018             lpips.py
load_inception                          Inception-v3, FID variant, Heusel et al. 2017   inception.py
load_clip                               CLIP, Radford et al. 2021; also from the hub    transformers_vision.py
load_dinov2                             DINOv2, Oquab et al. 2023; also from the hub    transformers_vision.py
======================================  ==============================================  =====================
"""

from fewstep.features.base import Classifying, Features
from fewstep.features.classifier import ClassifierFeatures, load_classifier, save_classifier
from fewstep.features.frozen import ClassifierNetworkFeatures, NetworkFeatures
from fewstep.features.inception import is_fid, load_inception
from fewstep.features.lpips import Lpips, load_lpips
from fewstep.features.maps import ClassifierMaps, Maps, NetworkMaps, PixelMaps, RandomMaps, VectorMaps, as_rgb
from fewstep.features.pixels import Pixels
from fewstep.features.random_conv import RandomConv
from fewstep.features.resize import Clean, Legacy
from fewstep.features.resnet import load_cifar_resnet
from fewstep.features.squeezenet import load_squeezenet
from fewstep.features.table import FEATURES, load_features
from fewstep.features.transformers_vision import Clip, Dinov2, load_clip, load_dinov2

__all__ = [
    "FEATURES",
    "ClassifierFeatures",
    "ClassifierMaps",
    "ClassifierNetworkFeatures",
    "Classifying",
    "Clean",
    "Clip",
    "Dinov2",
    "Features",
    "Legacy",
    "Lpips",
    "Maps",
    "NetworkFeatures",
    "NetworkMaps",
    "PixelMaps",
    "Pixels",
    "RandomConv",
    "RandomMaps",
    "VectorMaps",
    "as_rgb",
    "is_fid",
    "load_cifar_resnet",
    "load_classifier",
    "load_clip",
    "load_dinov2",
    "load_features",
    "load_inception",
    "load_lpips",
    "load_squeezenet",
    "save_classifier",
]
