"""Losses: what is minimised, one number per sample (floor 4)."""

from fewstep.losses.weighting import WEIGHTS, Debiased, FlowError, MinSNR, Plain, Weight

__all__ = ["WEIGHTS", "Debiased", "FlowError", "MinSNR", "Plain", "Weight"]
