"""Experiments: configurations of runs worth repeating (floor 7)."""

from fewstep.experiments.presets import PRESETS

__all__ = ["PRESETS"]
