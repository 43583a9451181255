"""Streaming metrics against torchmetrics: the same images, the same feature network, one run.

    python -m benchmarks.metric_throughput --out benchmarks/results

Each side sees the same batches through the same network (frozen random convolutions of a given dimension) and reports a
Fréchet distance and a KID; fewstep once with its intervals and once without. Sides take turns, and the table shows the
median ratio of the rounds. The memory table runs every size in a fresh process and shows its peak.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep._files import output_dir, write_json
from fewstep.experiments.demo import machine
from fewstep.features import RandomConv
from fewstep.metrics import GROUPS, FeatureSet, fd, kid

BATCH, ROUNDS = 250, 3
SIZES = (5_000, 10_000, 20_000, 40_000)


def images(part: int, side: int) -> Tensor:
    """One batch of 8-bit noise images; the second side is a little darker."""
    generator = torch.Generator().manual_seed(2 * part + side)
    return torch.randint(0, 256 - 16 * side, (BATCH, 3, 32, 32), generator=generator).to(torch.uint8)


class Network(nn.Module):
    """The features of both sides: torchmetrics hands 8-bit images to its network, fewstep floats in [-1, 1]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim
        self.body = RandomConv(3, dim)

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return self.body(pixels.float() / 127.5 - 1)


def ours(network: Network, n: int, keep: int, groups: int = GROUPS) -> dict[str, float]:
    sets = [FeatureSet(network.num_features, keep=keep, groups=groups) for _ in range(2)]
    for part in range(n // BATCH):
        index = torch.arange(part * BATCH, (part + 1) * BATCH)
        for side, gathered in enumerate(sets):
            gathered.update(network(images(part, side)), index)
    return {"fd": fd(*sets).value, "kid": kid(*sets).value}


def theirs(network: Network, n: int) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        distance = FrechetInceptionDistance(feature=network)
        kernel = KernelInceptionDistance(feature=network, subsets=100, subset_size=1000)
    distance.set_dtype(torch.float64)
    for part in range(n // BATCH):
        for side in range(2):
            batch = images(part, side)
            distance.update(batch, real=bool(side))
            kernel.update(batch, real=bool(side))
    return {"fd": float(distance.compute()), "kid": float(kernel.compute()[0])}


def timed(dim: int, n: int) -> dict[str, Any]:
    network = Network(dim)
    sides: dict[str, Callable[[], dict[str, float]]] = {
        "with intervals": lambda: ours(network, n, n),
        "without": lambda: ours(network, n, n, groups=1),
        "torchmetrics": lambda: theirs(network, n),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    values: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS):
        for name, run in sides.items():
            start = time.perf_counter()
            values[name] = run()
            seconds[name].append(time.perf_counter() - start)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["torchmetrics"], strict=True))
        for name in ("with intervals", "without")
    }
    return {"dim": dim, "n": n, "ratios": ratios, "seconds": seconds, "values": values}


def grown(side: str, n: int) -> float:
    """Peak memory of a fresh process that measures n images a side, in MiB."""
    line = f"from benchmarks.metric_throughput import peak; peak({side!r}, {n})"
    out = subprocess.run([sys.executable, "-c", line], check=True, capture_output=True, text=True).stdout
    return float(out.strip().splitlines()[-1])


def peak(side: str, n: int) -> None:
    torch.set_num_threads(1)
    network = Network(256)
    if side == "fewstep":
        ours(network, n, 5_000)
    else:
        theirs(network, n)
    # Not ru_maxrss, which starts at what the parent had when it forked.
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    path = output_dir(options.out) / "metric_throughput.json"
    content: dict[str, object] = {"machine": machine(), "speed": [], "memory": {}}
    speed, memory = [], {}
    for dim, n in ((64, 10_000), (512, 10_000), (2048, 4_000)):
        speed.append(timed(dim, n))
        print(f"dim {dim}, n {n}: fewstep / torchmetrics {speed[-1]['ratios']}, {speed[-1]['values']}", flush=True)
        write_json(path, content | {"speed": speed})
    for side in ("fewstep", "torchmetrics"):
        memory[side] = {n: round(grown(side, n)) for n in SIZES}
        print(f"{side}, peak MiB by n: {memory[side]}", flush=True)
        write_json(path, content | {"speed": speed, "memory": memory})


if __name__ == "__main__":
    main()
