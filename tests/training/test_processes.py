"""Two processes train as one: gradients are averaged, so two halves of a batch equal the whole."""

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
from fewstep.objectives import Turn
from fewstep.training import TrainConfig, Trainer

torch.set_num_threads(1)
folder, batch = Path(sys.argv[1]), int(sys.argv[2])


@dataclass(frozen=True)
class Fit:
    """Least squares to the images, without noise: its gradient is a mean over the batch."""

    network: nn.Module

    def turns(self, batch, step, generator) -> Iterator[Turn]:
        yield Turn("generator", lambda: (((self.network(batch.x0) - batch.x0) ** 2).mean(), {}))


images = torch.randint(0, 256, (40, 1, 2, 2), dtype=torch.uint8, generator=seeded("images"))
torch.manual_seed(0)
network = nn.Conv2d(1, 1, 1)
config = TrainConfig(steps=5, batch=batch, lr=0.05, warmup=0, ema=0.5, checkpoint_every=5)
trainer = Trainer(config, Fit(network), {"generator": network}, ImageData(images, None, (), "x"), folder / "run", {})
reports = list(trainer.steps())
rank = PartialState().process_index
counts = torch.tensor([PartialState().num_processes, reports[-1].images])
write_tensors(folder / f"rank{rank}.safetensors", {**network.state_dict(), "counts": counts})
if PartialState().num_processes > 1:
    torch.distributed.destroy_process_group()
'''


def _launch(tmp_path: Path, processes: int, batch: int) -> list[dict[str, torch.Tensor]]:
    folder = _files.output_dir(tmp_path / str(processes))
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
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
    for name in ("weight", "bias"):
        assert torch.equal(first[name], second[name])
        assert float((first[name] - alone[name]).abs().max()) < 1e-6
