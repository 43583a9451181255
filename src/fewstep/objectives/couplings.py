r"""Couplings: which noise is trained towards which image.

An end-to-end chain maps noise z to a sample F(z, c), and pointwise losses compare it with *one* target. Where z says
nothing of the target given the condition c, the best that such a loss can ask for is the mean of all targets,

.. math:: E|F - x|^2 = \mathrm{const} + E|F - E[x|c]|^2 ,

so the samples lose their diversity. A coupling that ties z to its target removes the conflict; losses that compare
distributions never had it. What a coupling may *not* do is change the law of z: sampling starts from N(0, I).

==================  ==============================  =============================================
coupling            z and target                    law of z given c
==================  ==============================  =============================================
``Independent``     unrelated                       N(0, I)
``Teacher``         target = teacher(z)             N(0, I)
``Pairs``           the same, computed beforehand   N(0, I), a finite set
``Inversion``       z = ODE^-1(target)              N(0, I) as far as the denoiser is right
``OT``              assigned within the batch       N(0, I): a permutation of the draws
``NearestNoise``    z chosen among k draws          biased towards the data
``Leaky``           start = target + noise          not pure noise: an ablation
==================  ==============================  =============================================

The protocol and the two that choose nothing are in coupled.py, those of a teacher in pairs.py, those that choose among
draws in transport.py.
"""

from __future__ import annotations

from fewstep.objectives.coupled import Coupled, Coupling, Independent, Leaky
from fewstep.objectives.pairs import Inversion, Pairs, Teacher, join_pairs, make_pairs, read_pairs, write_pairs
from fewstep.objectives.transport import OT, NearestNoise

__all__ = [
    "OT",
    "Coupled",
    "Coupling",
    "Independent",
    "Inversion",
    "Leaky",
    "NearestNoise",
    "Pairs",
    "Teacher",
    "join_pairs",
    "make_pairs",
    "read_pairs",
    "write_pairs",
]
