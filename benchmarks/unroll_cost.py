"""What training through the whole chain costs: memory and time of the unroll modes, and of a batch of thousands.

    python -m benchmarks.unroll_cost --out benchmarks/results

Memory is the peak of live tensor bytes (activations, their gradients and those of the weights), counted by a dispatch
mode on the CPU and by the allocator on a GPU. Times are medians of rounds in which all modes run in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.live_bytes import LiveBytes
from fewstep._chunks import in_chunks
from fewstep._files import output_dir, write_json
from fewstep.experiments.demo import machine
from fewstep.features import RandomConv
from fewstep.losses import MMD, Outcome, Polynomial
from fewstep.models import Model, load_model
from fewstep.noise import UniformFlow
from fewstep.sampling import Checkpointed, Full, LastSteps, Unroll, sample
from fewstep.solvers import DDIM

STEPS = (1, 2, 4, 8)
MODES: Mapping[str, Unroll] = {"full": Full(), "checkpointed": Checkpointed(), "last step": LastSteps(1)}


def chain(model: Model, z: Tensor, label: Tensor, steps: int, unroll: Unroll) -> Tensor:
    """The end of a chain from pure noise, with gradient."""
    grid = UniformFlow()(model.denoiser.schedule, steps)
    return sample(model.denoiser, DDIM(), grid, z, cond={"label": label}, unroll=unroll).x


def peak_of(work: Callable[[], None], device: torch.device) -> int:
    """Peak of live bytes, less what was there before."""
    if device.type != "cuda":
        with LiveBytes() as counter:
            work()
        return counter.peak
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def unroll_modes(model: Model, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Memory and time of every mode at every number of steps, beside T = 1 and beside the plain unroll."""
    shape, device = (batch, *model.shape), model.device
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    label = (torch.arange(batch) % 10).to(device)

    def work(steps: int, unroll: Unroll) -> Callable[[], None]:
        def run() -> None:
            chain(model, z, label, steps, unroll).square().mean().backward()
            model.denoiser.network.zero_grad(set_to_none=True)

        return run

    works = {(steps, name): work(steps, unroll) for steps in STEPS for name, unroll in MODES.items()}
    for run in works.values():
        run()
    peaks = {key: peak_of(run, device) for key, run in works.items()}
    times: dict[tuple[int, str], list[float]] = {key: [] for key in works}
    for _ in range(rounds):
        for key, run in works.items():
            times[key].append(seconds_of(run, device))
    medians = {key: statistics.median(values) for key, values in times.items()}
    return [
        {
            "steps": steps,
            "mode": name,
            "peak_mib": peaks[steps, name] / 2**20,
            "peak_of_one_step": peaks[steps, name] / peaks[1, "full"],
            "seconds": medians[steps, name],
            "seconds_of_full": medians[steps, name] / medians[steps, "full"],
        }
        for steps, name in works
    ]


def large_batch(model: Model, n: int, chunk: int) -> dict[str, Any]:
    """One backward pass of an MMD over n images through a two-step chain, chunk by chunk."""
    device = model.device
    z = torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(0)).to(device)
    label = (torch.arange(n) % 10).to(device)
    features = RandomConv(model.shape[0]).to(device)
    real, discrepancy = z.clamp(-1, 1), MMD(features, Polynomial(), chunk)

    def run() -> None:
        made = in_chunks(lambda z, label: chain(model, z, label, 2, Full()), (z, label), chunk)
        discrepancy(Outcome(made[None], real, real), torch.Generator()).backward()
        model.denoiser.network.zero_grad(set_to_none=True)

    return {
        "images": n,
        "chunk": chunk,
        "steps": 2,
        "peak_mib": peak_of(run, device) / 2**20,
        "seconds": seconds_of(run, device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    model = load_model("mnist", options.device)
    model.denoiser.network.requires_grad_(True)
    rows = unroll_modes(model, options.batch, options.rounds)
    for row in rows:
        print(row, flush=True)
    large = large_batch(model, options.images, options.chunk)
    print(large)
    content = {"machine": machine(options.device), "batch": options.batch, "modes": rows, "large_batch": large}
    write_json(output_dir(options.out) / "unroll_cost.json", content)


if __name__ == "__main__":
    main()
