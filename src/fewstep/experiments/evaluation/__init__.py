"""Evaluation: from what a user names to numbers with protocols, in steps that can be stopped.

=============  ===============================================================================
file           what it does
=============  ===============================================================================
request.py     what a user asks for, in words and numbers
places.py      images and references written as one word: folder:PATH, npz:PATH, a judge...
opened.py      from the words to subjects; prepare.py adds features, reference, training images
subjects.py    what is evaluated: a folder, images in memory; generated.py: what a generator makes
generators.py  fewstep's models behind one call; pipelines.py: those of diffusers
references.py  what it is held against: a judge, images, statistics out of a file
controls.py    controls of the two-sample test, made once per reference
evaluate.py    images in chunks, each chunk one part on the disk; parts.py, processes.py
measured.py    METRICS by name, and what each needs
finish.py      the parts through the summaries; outcome.py: results.json, the plot, differences
quality.py     the same numbers for a cell of `fewstep compare`
=============  ===============================================================================
"""

from fewstep.experiments.evaluation.evaluate import ChunkDone, Evaluation, Plan
from fewstep.experiments.evaluation.measured import METRICS
from fewstep.experiments.evaluation.outcome import Outcome, finish, read_results, write_outcome
from fewstep.experiments.evaluation.prepare import prepare
from fewstep.experiments.evaluation.request import Request

__all__ = [
    "METRICS",
    "ChunkDone",
    "Evaluation",
    "Outcome",
    "Plan",
    "Request",
    "finish",
    "prepare",
    "read_results",
    "write_outcome",
]
