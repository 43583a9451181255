"""Features: images -> vectors, differentiable; losses and metrics both stand on them.

=====================  ===================================  ==============================================
class                  what it computes                     file
=====================  ===================================  ==============================================
Pixels                 the pixels themselves                pixels.py
RandomConv             an untrained network, from a seed    random_conv.py
ClassifierFeatures     a trained classifier's inner layer   classifier.py
=====================  ===================================  ==============================================
"""

from fewstep.features.base import Features
from fewstep.features.classifier import ClassifierFeatures, load_classifier, save_classifier
from fewstep.features.pixels import Pixels
from fewstep.features.random_conv import RandomConv

__all__ = ["ClassifierFeatures", "Features", "Pixels", "RandomConv", "load_classifier", "save_classifier"]
