"""What `fewstep doctor` prints, and the code it ends with."""

from __future__ import annotations

import json
import math

import pytest
from reference.published_pipelines import EULER, OF_SD3, SD3, SDXL, trailing, write_pipeline

from fewstep.adapters.doctor import Report, Run
from fewstep.cli.doctor import levels, run_doctor
from fewstep.errors import ConfigError, MissingWeights

# Of diffusers, under numpy 2: "__array__ implementation doesn't accept a copy keyword".
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
XL = "StableDiffusionXLPipeline"


@pytest.fixture
def ill(tmp_path):
    return str(write_pipeline(tmp_path / "[ill]", XL, EULER, SDXL))


@pytest.fixture
def well(tmp_path):
    return str(write_pipeline(tmp_path / "well", XL, trailing(EULER), SDXL))


def test_a_page_for_people(ill, capsys):
    assert run_doctor(ill, steps=4) == 1
    out = capsys.readouterr().out
    assert "[ill]" in out, "brackets of a path are no markup"
    assert "4 steps: timesteps 751, 501, 251, 1; ends at kappa 0" in out
    assert "D01 error  The first timestep is not the noisiest one" in out
    fix = "pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing='trailing')"
    assert f"  fix   {fix}\n" in out, "in one line, to be copied"
    assert out.rstrip().endswith("1 error, 1 warning, 1 note")


def test_notes_leave_the_exit_code_at_zero(well, capsys):
    assert run_doctor(well, steps=4) == 0
    assert "1 note" in capsys.readouterr().out
    assert run_doctor(well, steps=4, guidance=1.0) == 0
    assert "Nothing to say." in capsys.readouterr().out


def test_a_document_for_programs(ill, capsys):
    assert run_doctor(ill, steps=4, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["fewstep_doctor"] == 1
    assert told["healthy"] is False
    assert told["subject"]["scheduler"] == "EulerDiscreteScheduler"
    assert [finding["code"] for finding in told["findings"]] == ["D01", "D04", "D10"]
    assert set(told["findings"][0]) == {"code", "severity", "what", "evidence", "fix"}
    (run,) = told["runs"]
    assert run["timesteps"] == [751, 501, 251, 1]
    assert run["kappa"][0] == pytest.approx(4.1167, abs=1e-4)
    assert run["kappa"][-1] == 0


def test_pure_noise_is_null_in_the_document(tmp_path, capsys):
    folder = write_pipeline(tmp_path / "sd3", "StableDiffusion3Pipeline", OF_SD3, SD3)
    run_doctor(str(folder), sigmas=levels("1,0.75, 0.5,0.25"), as_json=True)
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["kappa"] == [None, pytest.approx(9), pytest.approx(3), pytest.approx(1), 0]


@pytest.mark.parametrize("sigmas", ["14.6,4,1,0.3", "0.25,0.5,1", "1,0.5,-0.5", "1,1,1"])
def test_wrong_sigmas_are_an_error_in_the_document_too(sigmas, tmp_path, capsys):
    """A shift of 3 makes infinity of -0.5."""
    folder = str(write_pipeline(tmp_path / "sd3", "StableDiffusion3Pipeline", OF_SD3, SD3))
    assert run_doctor(folder, sigmas=levels(sigmas), as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in told["findings"]] == ["D14"]
    assert run_doctor(folder, sigmas=levels(sigmas)) == 1
    assert "steps: not run" in capsys.readouterr().out


def test_a_document_has_neither_infinity_nor_nan():
    run = Run(2, (math.inf, 1.0), (math.nan, math.pi / 2))
    (told,) = Report({}, (run,), ()).to_json()["runs"]
    assert (told["timesteps"], told["kappa"]) == ([None, 1.0], [None, None])


def test_a_model_of_ours(capsys):
    assert run_doctor("mnist-fewstep", steps=3) == 1
    out = capsys.readouterr().out
    assert "trained for 1, 2, 4" in out
    assert "fewstep sample --model mnist-fewstep --steps 2" in out


def test_bad_input_is_an_error_of_three_parts():
    assert levels("") is None
    with pytest.raises(ConfigError, match="--sigmas 1;0"):
        levels("1;0")
    with pytest.raises(ConfigError, match="nan"):
        run_doctor("nowhere", sigmas=levels("1,nan"))
    with pytest.raises(MissingWeights, match="nowhere is no folder"):
        run_doctor("nowhere")
