"""Denoisers: from networks, guidance and exact distributions to estimates of the data (floor 2)."""

from fewstep.denoisers.base import Cond, Denoiser, Meter, evaluate, metered, record_evaluation
from fewstep.denoisers.guidance import AutoGuidance, ClassifierFree, Guidance, Guided, Rescaled
from fewstep.denoisers.guidance_interval import Interval
from fewstep.denoisers.oracle import KDE, EmpiricalData, Gaussian, GaussianMixture
from fewstep.denoisers.predictions import PREDICTIONS, X0, EDMPrecond, Eps, Flow, Prediction, V
from fewstep.denoisers.thresholding import DynamicThresholding
from fewstep.denoisers.wrapped import LABELS, Network, NetworkDenoiser

__all__ = [
    "KDE",
    "LABELS",
    "PREDICTIONS",
    "X0",
    "AutoGuidance",
    "ClassifierFree",
    "Cond",
    "Denoiser",
    "DynamicThresholding",
    "EDMPrecond",
    "EmpiricalData",
    "Eps",
    "Flow",
    "Gaussian",
    "GaussianMixture",
    "Guidance",
    "Guided",
    "Interval",
    "Meter",
    "Network",
    "NetworkDenoiser",
    "Prediction",
    "Rescaled",
    "V",
    "evaluate",
    "metered",
    "record_evaluation",
]
