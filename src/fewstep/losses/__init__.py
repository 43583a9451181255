"""Losses: what is minimised (floor 4).

In denoising training a weight of each noise level; in end-to-end training terms on the final samples, told apart by
their *role*, which says what each does to diversity (see base.py).

=====================  ============  ==================================================  ===================
class                  role          paper                                               file
=====================  ============  ==================================================  ===================
Paired(L1, L2, Huber)  paired        —                                                   pixel.py
Paired(Perceptual)     paired        Zhang et al. 2018, LPIPS without learned weights    perceptual.py
Paired(LearnedLpips)   paired        Zhang et al. 2018, LPIPS                            perceptual.py
MomentReconstruction   moment        —                                                   moment.py
EnergyScore            distribution  Gneiting, Raftery 2007, Section 4.3                 energy.py
MMD                    marginal      Gretton et al. 2012                                 distribution.py
FrechetEma             marginal      Heusel et al. 2017, moments averaged over steps     distribution.py
Adversarial            distribution  Huang et al. 2024, R3GAN; Zhang et al. 2018, hinge  adversarial.py
Reward                 reward        Clark et al. 2024, DRaFT                            reward.py
Bounds                 reward        —                                                   bounds.py
=====================  ============  ==================================================  ===================

Perceptual and EnergyScore look at maps: pixels, random filters, a classifier's layers (``fewstep.features``), or with
DenoiserMaps (self_perceptual.py) the hidden layers of the very denoiser that is trained.
"""

from fewstep.losses.adversarial import ADVERSARIAL, Adversarial, Diffused, Hinge, Relativistic
from fewstep.losses.base import Outcome, Role, SampleLoss, Term, View
from fewstep.losses.bounds import Bounds
from fewstep.losses.distribution import KERNELS, MMD, RBF, FrechetEma, Polynomial
from fewstep.losses.energy import EnergyScore, energy_score
from fewstep.losses.moment import MomentReconstruction
from fewstep.losses.perceptual import LearnedLpips, Perceptual
from fewstep.losses.pixel import L1, L2, Huber, Paired
from fewstep.losses.reward import Reward
from fewstep.losses.schedule import SHAPES, Ramp
from fewstep.losses.self_perceptual import DenoiserMaps
from fewstep.losses.views import VIEWS, Viewed, clamped, eight_bit
from fewstep.losses.weighting import WEIGHTS, Debiased, FlowError, MinSNR, Plain, Weight

__all__ = [
    "ADVERSARIAL",
    "KERNELS",
    "L1",
    "L2",
    "MMD",
    "RBF",
    "SHAPES",
    "VIEWS",
    "WEIGHTS",
    "Adversarial",
    "Bounds",
    "Debiased",
    "DenoiserMaps",
    "Diffused",
    "EnergyScore",
    "FlowError",
    "FrechetEma",
    "Hinge",
    "Huber",
    "LearnedLpips",
    "MinSNR",
    "MomentReconstruction",
    "Outcome",
    "Paired",
    "Perceptual",
    "Plain",
    "Polynomial",
    "Ramp",
    "Relativistic",
    "Reward",
    "Role",
    "SampleLoss",
    "Term",
    "View",
    "Viewed",
    "Weight",
    "clamped",
    "eight_bit",
    "energy_score",
]
