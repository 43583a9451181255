"""Sampling: the one loop, how to differentiate it, noise that belongs to a sample, and editing (floor 4)."""

from fewstep.sampling.anytime import Picture, anytime
from fewstep.sampling.budget import grid_for
from fewstep.sampling.chain import Chained, resolve
from fewstep.sampling.edit import Start, inpaint, start_from
from fewstep.sampling.invert import Inversion, invert
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
    "Inversion",
    "LastSteps",
    "LearnedChain",
    "NoGrad",
    "Picture",
    "Sample",
    "SeededNoise",
    "Start",
    "Unroll",
    "anytime",
    "from_table",
    "grid_for",
    "inpaint",
    "invert",
    "resolve",
    "sample",
    "start_from",
    "start_noise",
]
