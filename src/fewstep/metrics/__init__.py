"""Metrics: how far a set of samples is from real images, or from a finer solution of the same equation.

=================================  =====================================================  =============
name                               what it measures                                       file
=================================  =====================================================  =============
Moments, frechet_distance          Gaussians in feature space; Dowson and Landau 1982     frechet.py
image_moments, round_to_8bit       images -> 8 bits -> features -> moments                images.py
Judge, load_judge, judge_images    features with the moments of real images               judge.py
rmse, contrast_gain                samples against a reference from the same noise        reference.py
=================================  =====================================================  =============
"""

from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.metrics.images import image_moments, round_to_8bit
from fewstep.metrics.judge import JUDGES, Judge, judge_images, load_judge, save_judge
from fewstep.metrics.reference import contrast_gain, rmse

__all__ = [
    "JUDGES",
    "Judge",
    "Moments",
    "contrast_gain",
    "frechet_distance",
    "image_moments",
    "judge_images",
    "load_judge",
    "rmse",
    "round_to_8bit",
    "save_judge",
]
