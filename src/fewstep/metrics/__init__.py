"""Metrics: how far a set of samples is from real images, or from a finer solution of the same equation.

=================================  =====================================================  =============
name                               what it measures                                       file
=================================  =====================================================  =============
Estimate                           a number with its interval                             estimate.py
FeatureSet, ProbabilitySet, ...    streaming summaries that all metrics are made from     summary.py
Moments, frechet_distance          Gaussians in feature space; Dowson and Landau 1982     frechet.py
fd, fd_inf, frechet_bias           the same with an interval, without and of its bias     frechet_estimates.py
kid, mmd_rbf, kernel_mmd           unbiased kernel discrepancy; Gretton et al. 2012       kernels.py
sliced_wasserstein                 sorted projections; Bonneel et al. 2015                sliced.py
prdc, prdc_values                  precision, recall, density, coverage; Naeem 2020       prdc.py
rho                                variance inside each condition against the data's      diversity.py
memorisation, nearest              nearer to training images than unseen ones are         memorisation.py
inception_score, clip_score        class and text scores; not Inception's, not CLIP's     scores.py
c2st, c2st_steps, c2st_controls    can a classifier tell? with its controls               c2st.py
read_statistics, read_samples      npz files of EDM, clean-fid and ADM, and writing them  npz.py
image_moments, round_to_8bit       images -> 8 bits -> features -> moments                images.py
Judge, load_judge, judge_images    features with the moments of real images               judge.py
rmse, contrast_gain                samples against a reference from the same noise        reference.py
=================================  =====================================================  =============
"""

from fewstep.metrics.c2st import (
    C2stConfig,
    C2stControls,
    C2stProgress,
    C2stResult,
    C2stTrial,
    c2st,
    c2st_controls,
    c2st_steps,
)
from fewstep.metrics.diversity import rho
from fewstep.metrics.estimate import GROUPS, Estimate, bootstrap_mean, jackknife, over_seeds
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.metrics.frechet_estimates import fd, fd_inf, frechet_bias, small_sample_note
from fewstep.metrics.images import image_moments, round_to_8bit
from fewstep.metrics.judge import JUDGES, Judge, judge_images, load_judge, save_judge
from fewstep.metrics.kernels import RBF, Kernel, Polynomial, kernel_mmd, kid, mmd_rbf
from fewstep.metrics.memorisation import mann_whitney_z, memorisation, nearest
from fewstep.metrics.npz import NPZ_FORMATS, npz_format, read_samples, read_statistics, write_samples, write_statistics
from fewstep.metrics.prdc import prdc, prdc_values
from fewstep.metrics.reference import contrast_gain, rmse
from fewstep.metrics.scores import clip_score, clip_score_values, inception_score
from fewstep.metrics.sliced import sliced_distance, sliced_wasserstein
from fewstep.metrics.summary import FeatureSet, ProbabilitySet, ScoreSet

__all__ = [
    "GROUPS",
    "JUDGES",
    "NPZ_FORMATS",
    "RBF",
    "C2stConfig",
    "C2stControls",
    "C2stProgress",
    "C2stResult",
    "C2stTrial",
    "Estimate",
    "FeatureSet",
    "Judge",
    "Kernel",
    "Moments",
    "Polynomial",
    "ProbabilitySet",
    "ScoreSet",
    "bootstrap_mean",
    "c2st",
    "c2st_controls",
    "c2st_steps",
    "clip_score",
    "clip_score_values",
    "contrast_gain",
    "fd",
    "fd_inf",
    "frechet_bias",
    "frechet_distance",
    "image_moments",
    "inception_score",
    "jackknife",
    "judge_images",
    "kernel_mmd",
    "kid",
    "load_judge",
    "mann_whitney_z",
    "memorisation",
    "mmd_rbf",
    "nearest",
    "npz_format",
    "over_seeds",
    "prdc",
    "prdc_values",
    "read_samples",
    "read_statistics",
    "rho",
    "rmse",
    "round_to_8bit",
    "save_judge",
    "sliced_distance",
    "sliced_wasserstein",
    "small_sample_note",
    "write_samples",
    "write_statistics",
]
