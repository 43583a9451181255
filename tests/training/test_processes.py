"""Two processes train as one: gradients and memories are averaged, so two halves of a batch equal the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewstep import _files

_SCRIPT = '''
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn

from fewstep._files import write_tensors
from fewstep.data import ImageData, seeded
from fewstep.losses.frechet import EmaMoments
from fewstep.objectives import Turn
from fewstep.training import TrainConfig, Trainer

torch.set_num_threads(1)
folder, batch = Path(sys.argv[1]), int(sys.argv[2])


@dataclass(frozen=True)
class Fit:
    """Least squares to the images, without noise: its gradient is a mean over the batch."""

    network: nn.Module
    memory: nn.Module

    def turns(self, batch, step, generator) -> Iterator[Turn]:
        self.memory(batch.x0.flatten(1))
        yield Turn("generator", lambda: (((self.network(batch.x0) - batch.x0) ** 2).mean(), {}))


images = torch.randint(0, 256, (40, 1, 2, 2), dtype=torch.uint8, generator=seeded("images"))
torch.manual_seed(0)
network, memory = nn.Conv2d(1, 1, 1), EmaMoments(4, 0.6)
players = {"generator": network, "memory": memory}
config = TrainConfig(steps=5, batch=batch, lr=0.05, warmup=0, ema=0.5, checkpoint_every=5)
trainer = Trainer(config, Fit(network, memory), players, ImageData(images, None, (), "x"), folder / "run", {})
reports = list(trainer.steps())
rank = PartialState().process_index
counts = torch.tensor([PartialState().num_processes, reports[-1].images])
write_tensors(folder / f"rank{rank}.safetensors", {**network.state_dict(), **memory.state_dict(), "counts": counts})
if PartialState().num_processes > 1:
    torch.distributed.destroy_process_group()
'''


_CHAINS = """
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from fewstep._files import write_tensors
from fewstep.data import digits
from fewstep.training import RunConfig, build, override
from fewstep.training.checkpoint import join

torch.set_num_threads(1)
folder, batch = Path(sys.argv[1]), int(sys.argv[2])
# A random exit leaves out the same steps of the chain in every process.
few = ["network.width=8", "network.embedding=16", f"train.batch={batch}", "train.steps=6", "e2e.gradient=exit"]
terms = ["e2e.terms.energy.features=classifier", "e2e.terms.adversarial.width=4", "e2e.trainable=all,solver"]
trainer = build(override(RunConfig(objective="e2e"), few + terms), digits(), folder / "run")
lengths = [report.losses["generator/steps"] for report in trainer.steps()]
players = {name: module.state_dict() for name, module in trainer.players.items()}
held = join({**players, "ema": trainer.ema.module.state_dict(), "x": {"lengths": torch.tensor(lengths)}})
write_tensors(folder / f"rank{PartialState().process_index}.safetensors", held)
torch.distributed.destroy_process_group()
"""


_UNLIKE = """
import sys
from pathlib import Path

import torch
from torch import nn

from fewstep._files import write_tensors
from fewstep.training.processes import accelerator, averaged

joined, player = accelerator(), nn.ParameterDict({name: nn.Parameter(torch.zeros(2)) for name in "abc"})
rank = joined.process_index
player["a"].grad = torch.full((2,), 1.0 + rank)
if rank:
    player["b"].grad = torch.tensor([4.0, 6.0])
moved = {name for name, parameter in player.items() if any(parameter is one for one in averaged(joined, player))}
write_tensors(Path(sys.argv[1]) / f"rank{rank}.safetensors", {name: player[name].grad for name in moved})
torch.distributed.destroy_process_group()
"""


def _launch(tmp_path: Path, processes: int, batch: int, script_text: str = _SCRIPT) -> list[dict[str, torch.Tensor]]:
    folder = _files.output_dir(tmp_path / str(processes))
    script = tmp_path / "script.py"
    script.write_text(script_text)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(folder), str(batch)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [_files.read_tensors(folder / f"rank{rank}.safetensors") for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    (alone,) = _launch(tmp_path, 1, 8)
    first, second = _launch(tmp_path, 2, 4)
    assert [ran["counts"].tolist() for ran in (alone, first, second)] == [[1, 40], [2, 40], [2, 40]]
    for name in ("weight", "bias", "mean", "second", "seen"):
        assert torch.equal(first[name], second[name])
        assert float((first[name] - alone[name]).abs().max()) < 1e-6


@pytest.mark.slow
def test_two_processes_train_the_same_chains_and_critics(tmp_path: Path) -> None:
    """The classifier on the spot is trained by one of them, and found by the other."""
    first, second = _launch(tmp_path, 2, 4, _CHAINS)
    assert {name.split("/")[0] for name in first} == {"generator", "critic", "ema", "x"}
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert len(set(first["x/lengths"].tolist())) > 1


@pytest.mark.slow
def test_a_gradient_that_one_process_lacks_counts_as_zero_there(tmp_path: Path) -> None:
    first, second = _launch(tmp_path, 2, 0, _UNLIKE)
    for found in (first, second):
        assert {name: value.tolist() for name, value in found.items()} == {"a": [1.5, 1.5], "b": [2.0, 3.0]}
