"""The card of a bundled model shows the numbers that were measured on its own weights, with their intervals."""

from __future__ import annotations

import pytest

from fewstep.errors import CheckpointError
from fewstep.experiments.bundle import card
from fewstep.metrics import Estimate, load_judge
from fewstep.models import load_model

NAMES = ("fd", "fd_inf", "kid", "precision", "recall", "coverage", "rho")


def row(solver: str, nfe: int, value: float) -> dict[str, object]:
    numbers = {name: Estimate(value, value - 0.5, value + 0.5, "t over 3 seeds, 95 %").to_json() for name in NAMES}
    return {"solver": solver, "nfe": nfe, "numbers": numbers, "protocol": f"the protocol of {solver}"}


@pytest.fixture(scope="module")
def measured():
    model = load_model("mnist")
    return {
        "model_fingerprint": model.fingerprint,
        "measure": "Distance in some features",
        "machine": {"threads": 1, "torch": "2.13", "date": "2026-11-21"},
        "n": 5000,
        "sets": 3,
        "bias": 0.123,
        "rows": [row("ddim", 4, 3.0), row("evodiff", 4, 2.0)],
    }


def test_every_number_has_its_interval_and_its_row(measured):
    text = card(load_model("mnist"), load_judge("mnist-judge"), measured)
    ddim, evodiff = text.split("**evodiff**")
    assert "| 4 | 3.0 [2.5, 3.5] |" in ddim
    assert "| 4 | 2.0 [1.5, 2.5] |" in evodiff
    assert "an FD of about\n0.12, less with classes in turn" in text
    assert "the protocol of ddim" in text
    assert "C2ST" not in text


def test_the_two_sample_test_is_a_column_where_it_was_run(measured):
    told = {"evodiff-4": {"accuracy": Estimate(0.75, 0.7, 0.8, "Wilson").to_json()}}
    ddim, evodiff = card(load_model("mnist"), load_judge("mnist-judge"), measured, told).split("**evodiff**")
    assert ddim.count("| not run |") == 1
    assert "| 0.75 [0.70, 0.80] |" in evodiff


def test_numbers_of_other_weights_are_refused(measured):
    with pytest.raises(CheckpointError, match="Numbers of the weights 0123"):
        card(load_model("mnist"), load_judge("mnist-judge"), {**measured, "model_fingerprint": "0123"})
