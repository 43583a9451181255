"""`fewstep calibrate --model pipeline:...`: one command, and the lines that it prints run."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
from reference.tiny_pipelines import PROMPTS, arguments, pipeline, run

from cli.running import Cli, files, refuses
from cli.tables import zeros
from fewstep.calibration import FILE, load_table
from fewstep.schedulers import CalibratedScheduler

# Stock schedulers make numpy arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

FEW = ("--trajectories", 16, "--teacher-steps", 12, "--grids", "karras:rho=7", "--base", "ipndm", "--batch-size", 16)
QUICK = (*FEW, "--nfe", "3,4")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, on_the_cpu: None) -> Path:
    """A Stable Diffusion with random weights, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    pipeline("sd").save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_whole_way(cli: Cli, saved: Path, here: Path) -> None:
    """Calibrate with prompts of a file and one beside it, then run the Python that is suggested."""
    (here / "prompts.txt").write_text("a red fox\n\ntwo blue birds\n")
    before, captions = files(saved), ("--captions", "prompts.txt", "--captions", "a cat")
    ran = cli("calibrate", "--model", f"pipeline:{saved}", *captions, "--guidance", 5, *QUICK)
    assert ran.code == 0, ran.err
    assert sorted(files(here)) == [FILE, "prompts.txt"]
    assert files(saved) == before, "nothing is written into the pipeline"
    table = load_table(here / FILE)
    assert (table.origin.model, table.origin.guidance, sorted(table.entries)) == ("tiny", (5.0, 5.0), [3, 4])
    told = ("conditions", "seed", "pipeline", "size", "dtype", "iterations", "first")
    want = [["a red fox", "two blue birds", "a cat"], 10**9, "StableDiffusionPipeline", None, "float32", 0, "network"]
    assert [table.facts[name] for name in told] == want
    words = " ".join(ran.out.split())
    assert f"Guidance 5; {table.facts['network_evals']:,} evaluations of the network" in words
    assert "for num_inference_steps 3 or 4" in words

    lines = [line.strip() for line in ran.out.splitlines() if "CalibratedScheduler" in line]
    scope = {"pipe": diffusers.DiffusionPipeline.from_pretrained(saved)}
    scope["pipe"].set_progress_bar_config(disable=True)
    exec("\n".join(lines), scope)
    pipe = scope["pipe"]
    assert isinstance(pipe.scheduler, CalibratedScheduler)
    assert len(run(pipe, 4, **arguments("sd", 5.0)).timesteps) == 4


def test_it_brings_its_own_scale_and_takes_another_size(cli: Cli, saved: Path, here: Path) -> None:
    words = (
        "--captions",
        PROMPTS[0],
        "--size",
        24,
        "--dtype",
        "bfloat16",
        "--first",
        "analytic",
        "--out",
        here / "new" / "t.json",
    )
    ran = cli("calibrate", "--model", f"pipeline:{saved}", *words, *FEW, "--nfe", 3)
    assert ran.code == 0, ran.err
    table = load_table(here / "new" / "t.json")
    assert (table.origin.guidance, table.facts["guidance"]) == ((7.5, 7.5), [7.5])
    assert (table.facts["size"], table.facts["dtype"]) == (24, "bfloat16")
    assert table.entries[3].first
    assert "for num_inference_steps 4. In Python" in " ".join(ran.out.split()), "the scheduler makes that call too"


def test_no_other_table_is_lost(cli: Cli, saved: Path, here: Path) -> None:
    zeros(2).save(here / FILE)
    before = (here / FILE).read_bytes()
    ran = cli("calibrate", "--model", f"pipeline:{saved}", "--captions", "a fox", *QUICK)
    refuses(ran, "ConfigError", "with other weights", "another name for --out")
    assert (here / FILE).read_bytes() == before


REFUSED = {
    "no prompts": ((), "ConfigError", "No prompts", "--captions FILE"),
    "scale": (("--captions", "a", "--guidance", "5,-1"), "ConfigError", "Guidance -1", "1 is none"),
    "size": (("--captions", "a", "--size", 17), "ConfigError", "size=17", "--size 16"),
    "dtype": (("--captions", "a", "--dtype", "float61"), "UnknownName", "float61", "float16"),
    "calls": (("--captions", "a", "--nfe", 16), "ConfigError", "A teacher of 32 steps", "Raise teacher_steps"),
}


@pytest.mark.parametrize(("words", "kind", "given", "hint"), REFUSED.values(), ids=REFUSED)
def test_refusals(
    cli: Cli, saved: Path, here: Path, words: tuple[object, ...], kind: str, given: str, hint: str
) -> None:
    ran = cli("calibrate", "--model", f"pipeline:{saved}", *words)
    refuses(ran, kind, given, hint)
    assert ran.out.strip() == ""
    assert files(here) == []


def test_pipelines_that_are_not_there_and_options_that_are_theirs(cli: Cli, model: Path, here: Path) -> None:
    refuses(cli("calibrate", "--model", f"pipeline:{here}/none"), "MissingWeights", "is no folder", "hf download")
    ran = cli("calibrate", "--model", model, "--size", 16)
    refuses(ran, "ConfigError", f"--size 16 for the model {model}", "Leave --size out")
    ran = cli("calibrate", "--model", model, "--dtype", "float16")
    refuses(ran, "ConfigError", "--dtype float16", "Leave --dtype out")
