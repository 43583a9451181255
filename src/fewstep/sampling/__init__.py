"""Sampling: the one loop, how to differentiate it, and noise that belongs to a sample (floor 4)."""

from fewstep.sampling.budget import grid_for
from fewstep.sampling.chain import Chained, resolve
from fewstep.sampling.learned import LearnedChain, from_table
from fewstep.sampling.loop import Sample, sample
from fewstep.sampling.noise import START, SeededNoise, start_noise
from fewstep.sampling.unroll import Body, Checkpointed, Full, LastSteps, NoGrad, Unroll

__all__ = [
    "START",
    "Body",
    "Chained",
    "Checkpointed",
    "Full",
    "LastSteps",
    "LearnedChain",
    "NoGrad",
    "Sample",
    "SeededNoise",
    "Unroll",
    "from_table",
    "grid_for",
    "resolve",
    "sample",
    "start_noise",
]
