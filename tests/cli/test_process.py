"""The installed program as a process: what it costs, how it exits, and what a signal leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import fewstep
from cli.conftest import tiny
from cli.running import TINY, Cli
from fewstep.errors import UnknownName
from fewstep.training import checkpoints, read_checkpoint, train_steps

PROGRAM = [str(Path(sys.executable).with_name("fewstep"))]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def ran(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)


def test_version() -> None:
    done = ran("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fewstep {fewstep.__version__}\n", "")


@pytest.mark.parametrize("words", [["--help"], ["compare", "--help"], ["train", "--no-such-option"], ["sampel"]])
def test_parsing_loads_neither_torch_nor_numpy(words: list[str]) -> None:
    """Half a second of processor time in all, also for a typing error and for the help of a heavy command."""
    command = [sys.executable, "-X", "importtime", "-m", "fewstep.cli", *words]
    before = os.times()
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    after = os.times()
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "typer" in loaded
    assert not loaded & {"torch", "numpy", "matplotlib"}
    assert done.returncode == (0 if "--help" in words else 2)
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 0.5, f"fewstep {' '.join(words)} took {spent:.2f} s of processor time"


def test_an_error_exits_with_2_and_without_a_traceback(tmp_path: Path) -> None:
    words = ["sample", "--model", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    done = ran(*words)
    assert (done.returncode, done.stdout) == (2, "")
    kind, *parts = done.stderr.splitlines()
    assert kind == "UnknownName"
    assert [part.split()[0] for part in parts] == ["given", "allowed", "to"]
    assert str(tmp_path / "nowhere") in parts[0], "a long path is not broken over lines"
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_is_there_for_those_who_ask(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_DEBUG", "1")
    with pytest.raises(UnknownName, match="nowhere") as caught:
        cli("sample", "--model", tmp_path / "nowhere")
    assert "load_model" in [entry.name for entry in caught.traceback]


@contextmanager
def started(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start a training run and wait for its first checkpoint; whatever happens, it does not outlive the test."""
    command = [*PROGRAM, "train", *TINY, *words, "--out", str(folder)]
    pipe = subprocess.PIPE
    # A child inherits an ignored signal, and a job in the background of a shell has Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        deadline = time.monotonic() + 60
        while not checkpoints(folder / "checkpoints"):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "no checkpoint after a minute"
            time.sleep(0.005)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, cli: Cli) -> None:
    """SIGKILL, at whatever moment it comes after the first checkpoint; then the same command again."""
    words = ("train.lr=4e-3", "train.ema=0.9", "train.steps=60", "train.checkpoint_every=10")
    with started(tmp_path / "killed", *words) as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    stood = read_checkpoint(checkpoints(tmp_path / "killed" / "checkpoints")[-1]).step
    assert 10 <= stood < 60, f"killed at step {stood}: the run was over before the signal came"

    resumed = cli("train", *TINY, *words, "--out", tmp_path / "killed")
    assert resumed.code == 0, resumed.err
    assert "Step 60," in resumed.out
    for _ in train_steps(tiny(*words), tmp_path / "whole"):
        pass
    one, other = (read_checkpoint(checkpoints(tmp_path / run / "checkpoints")[-1]) for run in ("killed", "whole"))
    assert one.step == other.step == 60
    for kind in ("model", "ema", "optimizer"):
        first, second = getattr(one, kind), getattr(other, kind)
        assert first.keys() == second.keys()
        worst = max(float((first[name] - second[name]).abs().max()) for name in first)
        assert all(torch.equal(first[name], second[name]) for name in first), f"{kind}: max|a-b| = {worst}"
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("killed", "whole")]
    assert weights[0] == weights[1]


def test_ctrl_c_says_what_is_left(tmp_path: Path) -> None:
    with started(tmp_path, "train.steps=100000", "train.checkpoint_every=5") as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from the last checkpoint" in " ".join(err.split())
    assert "Traceback" not in err
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    assert read_checkpoint(newest).step == int(newest.name[-8:])
