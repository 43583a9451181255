"""Denoisers: from networks, guidance and exact distributions to estimates of the data (floor 2)."""

from fewstep.denoisers.base import Cond, Denoiser, Meter, evaluate, metered, record_evaluation
from fewstep.denoisers.guidance import ClassifierFree
from fewstep.denoisers.oracle import KDE, EmpiricalData, Gaussian, GaussianMixture
from fewstep.denoisers.predictions import PREDICTIONS, X0, EDMPrecond, Eps, Flow, Prediction, V
from fewstep.denoisers.wrapped import LABELS, Network, NetworkDenoiser

__all__ = [
    "KDE",
    "LABELS",
    "PREDICTIONS",
    "X0",
    "ClassifierFree",
    "Cond",
    "Denoiser",
    "EDMPrecond",
    "EmpiricalData",
    "Eps",
    "Flow",
    "Gaussian",
    "GaussianMixture",
    "Meter",
    "Network",
    "NetworkDenoiser",
    "Prediction",
    "V",
    "evaluate",
    "metered",
    "record_evaluation",
]
