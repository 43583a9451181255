"""Every method that comes from a paper names it: equation, and where we depart from it."""

import re
from functools import partial

import pytest

from fewstep.denoisers import PREDICTIONS
from fewstep.noise import SCHEDULES
from fewstep.solvers import SOLVERS

METHODS = {**SOLVERS, **SCHEDULES, **PREDICTIONS}


@pytest.mark.parametrize("name", METHODS)
def test_source_names_an_arxiv_number_and_the_departures(name):
    method = METHODS[name]
    text = (method.func if isinstance(method, partial) else method).__doc__
    source = text.partition("Source:")[2]
    assert re.search(r"arXiv:\d{4}\.\d{5}", source), f"{name} names no paper under 'Source:'"
    assert re.search(r"[Dd]eparts\s+from\s+it\s+in:", source), f"{name} does not say where it departs from its source"
