"""A bundled model has half precision and its own name; its card shows numbers of its own weights, with intervals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep._files import read_tensors, write_json
from fewstep.errors import CheckpointError, UnknownName
from fewstep.experiments.bundle import card, main
from fewstep.metrics import Estimate, load_judge
from fewstep.models import Chain, Model, ModelConfig, Part, load_model, save_model
from fewstep.sampling import resolve, sample

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


TERMS = {"energy": {"weight": 1.0, "features": "pixels,random"}, "l2": {"weight": 0.5, "weight_end": 0.0}, "l1": {}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a few-step model, as an end-to-end run from another model leaves it."""
    e2e = {
        "init": str(tmp_path / "elsewhere" / "start"),
        "teacher": str(tmp_path / "elsewhere" / "teacher"),
        "coupling": {"name": "pairs", "arguments": {"data_free": True}},
        "gradient": {"name": "full", "arguments": {}},
        "terms": {**TERMS, "adversarial": {"weight": 0.0}},
        "trainable": "all",
        "view": "eight_bit",
    }
    facts = {
        "data": "samples of mnist",
        "images": 1234,
        "steps": 60,
        "seconds": 7,
        "judge": "mnist-judge",
        "init": {"name": "mnist", "fingerprint": "0123456789ab"},
        "train": {"batch": 32, "precision": "no", "ema": 0.99, "seed": 3},
        "e2e": e2e,
    }
    config = ModelConfig(
        name="a run",
        network=Part("space_to_depth", {"patch": 2, "width": 8, "blocks": 1, "heads": 0, "n_classes": 10}),
        prediction=Part("x0"),
        schedule=Part("linear_flow"),
        shape=(1, 8, 8),
        classes=tuple("0123456789"),
        facts=facts,
        chain=Chain(steps=(1, 2, 4)),
    )
    torch.manual_seed(0)
    network = config.body()
    for weight in network.parameters():  # layers that begin at zero would hide what rounding does
        nn.init.normal_(weight, std=0.1)
    return save_model(tmp_path / "run", network, config)


def bundled(run: Path, *more: str) -> Model:
    out = run.parent / "bundled"
    main(["--run", str(run), "--name", "mnist-fewstep", "--machine", "a machine", "--out", str(out), *more])
    return load_model(out)


def test_a_few_step_model_keeps_its_chain_in_half_precision(run):
    before, after = load_model(run), bundled(run)
    stored = read_tensors(run.parent / "bundled" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}
    assert after.config.name == "mnist-fewstep"
    assert after.config.chain == before.config.chain == Chain(steps=(1, 2, 4))
    assert after.config.facts["judge"] == "mnist-judge", "the judge of the model that it began with"

    x, cond = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), {"label": torch.arange(3)}
    images = [
        sample(model.denoiser, *resolve(Chain(), model.denoiser.schedule, 2), x, cond=cond).x
        for model in (before, after)
    ]
    gap, size = float((images[0] - images[1]).abs().max()), float(images[0].abs().max())
    assert 0 < gap < 0.02 * size, f"float16 moves samples of size {size} by {gap}"


def test_its_card_says_how_it_was_trained_and_names_no_folder(run):
    bundled(run)
    text = (run.parent / "bundled" / "README.md").read_text(encoding="utf-8")
    for said in (
        "# mnist-fewstep\n",
        "from pure noise to an image in 1, 2 or 4 steps.",
        "| chain | ddim on uniform_flow, 1, 2 or 4 steps, no guidance |",
        "x0-prediction on linear_flow, end to end, from mnist 0123456789ab",
        "energy 1 (features pixels,random), l2 0.5 to 0, l1 1; seen as eight_bit",
        "coupling pairs, data_free True; gradient full; trained: all",
        "| data | samples of mnist, 1,234 images |",
        "60 steps of 32 conditions, float32, EMA 0.99, seed 3",
        "7 s of training steps on a machine",
        "fewstep sample --model mnist-fewstep --steps 4 --out samples",
        "Not measured.",
        "makes the teacher's errors too",
        "CC BY-SA 3.0",
    ):
        assert said in text, said
    folder = run.parent / "bundled"
    assert not [path.name for path in folder.glob("*.[mj]*") if str(run.parent) in path.read_text(encoding="utf-8")]
    assert load_model(folder).config.facts["e2e"]["init"] == "mnist"


def test_it_takes_numbers_of_its_chain(run, measured, tmp_path):
    fingerprint = bundled(run).fingerprint
    rows = [row("chain", 1, 2.0), row("chain", 4, 1.0), row("ddim", 4, 9.0)]
    write_json(tmp_path / "numbers.json", {**measured, "model_fingerprint": fingerprint, "rows": rows})
    main(["--card", str(tmp_path / "numbers.json"), "--out", str(run.parent / "bundled")])
    text = (run.parent / "bundled" / "README.md").read_text(encoding="utf-8")
    chain, ddim = text.split("**ddim**")
    assert "**chain**" in chain
    assert "| 1 | 2.0 [1.5, 2.5] |" in chain
    assert "| 4 | 9.0 [8.5, 9.5] |" in ddim
    assert "python -m benchmarks.model_card --model mnist-fewstep --solvers chain --nfe 1,2,4 --out" in text
    assert "Not measured" not in text


def test_one_step_and_learned_numbers_read_well(run):
    model = bundled(run)
    one = replace(model.config, chain=Chain(steps=(1,), learned={"1": {}}))
    text = card(replace(model, config=one))
    assert "to an image in 1 step.\n" in text
    assert "| chain | solver and levels learned, 1 step, no guidance |" in text
    leaky = replace(model.config, chain=Chain(leaky=True))
    assert "no guidance; leaky start: reads data |" in card(replace(model, config=leaky))


def test_an_unknown_judge_is_refused_before_anything_is_written(run):
    with pytest.raises(UnknownName, match="mnist-judge"):
        bundled(run, "--judge", "mnist-jugde")
    assert not (run.parent / "bundled").exists()


def test_a_model_of_single_steps_has_no_word_of_chains(measured):
    text = card(load_model("mnist"), load_judge("mnist-judge"), measured)
    assert "trained as ordinary denoising" in text
    assert "| chain |" not in text
    assert "x0-prediction on linear_flow, logit_normal times" in text
