"""Weights over the training: ends, shapes in closed form, refusals."""

from __future__ import annotations

import math

import pytest

from fewstep.errors import ConfigError, UnknownName
from fewstep.losses import SHAPES, Ramp

FORMS = {"linear": lambda f: f, "cosine": lambda f: math.sin(math.pi * f / 2) ** 2}


@pytest.mark.parametrize("shape", FORMS)
@pytest.mark.parametrize(("start", "end"), [(0.2, 0.005), (0.0, 3.0), (1.0, 0.0)])
def test_closed_forms(shape, start, end):
    ramp = Ramp(start, end, shape)
    for fraction in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
        assert ramp(fraction) == pytest.approx(start + (end - start) * FORMS[shape](fraction), abs=1e-15)
    assert (ramp(-0.5), ramp(1.5)) == (ramp(0), ramp(1))
    assert ramp(0) == start
    assert (ramp(1) == 0) == (end == 0)  # a term that ends at 0 is off then


def test_a_weight_without_end_stays():
    assert set(SHAPES) == {*FORMS, "constant"}
    for shape in SHAPES:
        assert {Ramp(0.3, None, shape)(i / 7) for i in range(8)} == {0.3}
    assert Ramp()(0.4) == 1


def test_off():
    assert Ramp(0).is_off
    assert Ramp(0, 0, "linear").is_off
    assert not Ramp(0, 1).is_off
    assert not Ramp(1, 0).is_off


def test_refusals():
    for start, end in ((-1.0, None), (math.inf, 0.0), (0.0, math.nan), (1.0, -0.1)):
        with pytest.raises(ConfigError, match="finite and not negative"):
            Ramp(start, end)
    with pytest.raises(ConfigError, match="from 1 to 0") as caught:
        Ramp(1.0, 0.0, "constant")
    assert "linear" in caught.value.todo
    with pytest.raises(UnknownName, match="Did you mean 'cosine'"):
        Ramp(1.0, 0.0, "cosin")
