"""Pipelines of diffusers x schedulers x calls: which ran, what they called, whether it is the core's run, and overhead.

    python -m benchmarks.pipelines --out benchmarks/results

The pipelines have random weights and a few thousand parameters each (tests/reference/tiny_pipelines.py). They prove
mechanics: that a pipeline runs, how often it calls its network, that its samples are finite and those of the core. They
say nothing about pictures.

    calls      of the network, counted; a guided pipeline makes each with a batch of two, but Flux's, which makes two
    evals      samples through the network per image
    gap        ours only: largest difference of the last samples to `fewstep.sample` on `fewstep.wrap(pipe)`, from the
               same start over the same levels, over the largest number
    overhead   processor time of `scheduler.step`, one thread, all schedulers in turn in every round; ratios are taken
               within a round
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from tests.reference.pipelines_in_core import by_hand, in_core
from tests.reference.tiny_pipelines import EDITORS, PIPELINES, arguments, family, pipeline, run
from torch import Tensor

from fewstep._files import output_dir, write_atomic, write_json
from fewstep.adapters.diffusers_config import is_flow
from fewstep.experiments.demo import machine
from fewstep.schedulers import CalibratedScheduler, EVODiffScheduler
from fewstep.solvers import EVODiff, TabulatedSolver

NFE = (1, 4, 8)
GUIDANCE = 4.0
FLOWS = ("sd3", "flux", "sana")
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CASES = {
    f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}": (shape, dtype)
    for shape in ((1, 4, 64, 64), (2, 4, 128, 128))
    for dtype in (torch.float32, torch.float16)
}
STEPS = 8


def evodiff(config: Any, nfe: int) -> Any:
    return EVODiffScheduler.from_config(config)


def calibrated(config: Any, nfe: int) -> Any:
    return CalibratedScheduler.from_config(config, calibration=by_hand(nfe).to_json())


def stock(kind: str) -> Callable[[Any, int], Any]:
    def make(config: Any, nfe: int) -> Any:
        flow = FLOW if is_flow(config) else {}
        shift = {"flow_shift": config["shift"]} if flow and "shift" in config else {}
        own = {} if kind.startswith("FlowMatch") else {**flow, **shift}
        return getattr(diffusers, kind).from_config(config, **own)

    return make


OURS = {"EVODiffScheduler": evodiff, "CalibratedScheduler": calibrated}
MULTISTEP = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")


def schedulers_for(name: str) -> dict[str, Callable[[Any, int], Any]]:
    one_more = "FlowMatchEulerDiscreteScheduler" if family(name) in FLOWS else "DDIMScheduler"
    return {**OURS, **{kind: stock(kind) for kind in (*MULTISTEP, one_more)}}


def pictures() -> tuple[list[Image.Image], Image.Image]:
    bytes_of = torch.randint(256, (2, 768), generator=torch.Generator().manual_seed(0)).byte()
    images = [Image.frombytes("RGB", (16, 16), row.numpy().tobytes()) for row in bytes_of]
    return images, Image.frombytes("L", (16, 16), bytes([0] * 8 + [255] * 8) * 16)


def editing(name: str) -> dict[str, Any]:
    """The whole grid from an image, so that every row makes the calls it is asked for."""
    if name not in EDITORS:
        return {}
    images, mask = pictures()
    return {"image": images, "strength": 1.0, **({"mask_image": mask} if "inpaint" in name else {})}


def row_of(name: str, who: str, make: Callable[[Any, int], Any], nfe: int) -> dict[str, Any]:
    """One run; what it raised if it did not end."""
    pipe, row = pipeline(name), {"pipeline": name, "scheduler": who, "nfe": nfe}
    try:
        pipe.scheduler = make(pipe.scheduler.config, nfe)
        start = time.perf_counter()
        made = run(pipe, nfe, **arguments(name, GUIDANCE), **editing(name))
        seconds = time.perf_counter() - start
    except Exception as error:  # a table of what ran has to go on
        return {**row, "ok": False, "error": f"{type(error).__name__}: {str(error)[:200]}"}
    finite = bool(made.last.isfinite().all())
    ran = {"ok": True, "calls": made.calls, "evals": made.evals * len(made.first) / 2, "finite": finite}
    gap = {"gap": gap_of(pipe, name, made, nfe)} if who in OURS and "inpaint" not in name else {}
    return {**row, **ran, **gap, "first_timestep": made.timesteps[0], "seconds": round(seconds, 4)}


def gap_of(pipe: Any, name: str, made: Any, nfe: int) -> float:
    """Largest difference to the core over the largest number; inpainting mixes in the image after every step."""
    solver: Any = EVODiff()
    if isinstance(pipe.scheduler, CalibratedScheduler):
        entry = by_hand(nfe).entries[nfe]
        solver = TabulatedSolver(entry.weights, entry.kappa)
    core = in_core(pipe, name, GUIDANCE, made, solver).x
    return float((core - made.last[:2]).abs().max() / made.last.abs().max())


def table() -> list[dict[str, Any]]:
    rows = []
    for name in (*PIPELINES, *EDITORS):
        for who, make in schedulers_for(name).items():
            rows += [row_of(name, who, make, nfe) for nfe in NFE]
        print(f"{name}: {sum(row['ok'] for row in rows if row['pipeline'] == name)} runs", flush=True)
    return rows


# Overhead


def timed() -> dict[str, Any]:
    """The schedulers whose steps are timed, by family."""
    flow = {**FLOW, "flow_shift": 3.0}
    return {
        "eps": {
            "EVODiffScheduler": EVODiffScheduler(**SD),
            "CalibratedScheduler": CalibratedScheduler(**SD, calibration=by_hand(STEPS).to_json()),
            "DPMSolverMultistepScheduler": diffusers.DPMSolverMultistepScheduler(**SD),
            "UniPCMultistepScheduler": diffusers.UniPCMultistepScheduler(**SD),
            "DDIMScheduler": diffusers.DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing"),
        },
        "flow": {
            "EVODiffScheduler": EVODiffScheduler(**flow),
            "CalibratedScheduler": CalibratedScheduler(**flow, calibration=by_hand(STEPS).to_json()),
            "DPMSolverMultistepScheduler": diffusers.DPMSolverMultistepScheduler(**flow),
            "UniPCMultistepScheduler": diffusers.UniPCMultistepScheduler(**flow),
            "FlowMatchEulerDiscreteScheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        },
    }


def microseconds(scheduler: Any, x: Tensor, out: Tensor) -> float:
    """Processor time of one step, `set_timesteps` left out."""
    scheduler.set_timesteps(STEPS)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # as pipelines do, so that no step looks for itself
    start = time.thread_time()
    for t in scheduler.timesteps:
        x = scheduler.step(out, t, x, return_dict=False)[0]
    return (time.thread_time() - start) / STEPS * 1e6


def overhead(case: str, rounds: int) -> list[dict[str, Any]]:
    shape, dtype = CASES[case]
    generator = torch.Generator().manual_seed(0)
    x, out = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    rows = []
    for kind, schedulers in timed().items():
        taken: dict[str, list[float]] = {who: [] for who in schedulers}
        gc.disable()
        with torch.no_grad():
            for k in range(rounds + 3):
                for who, scheduler in schedulers.items():
                    spent = microseconds(scheduler, x, out)
                    if k >= 3:  # the first rounds warm up
                        taken[who].append(spent)
        gc.enable()
        for who, values in taken.items():
            against = {
                other: statistics.median(a / b for a, b in zip(values, taken[other], strict=True))
                for other in schedulers
                if who in OURS and other not in OURS
            }
            quartiles = [round(value, 1) for value in statistics.quantiles(values, n=4)]
            ratios = {other: round(ratio, 3) for other, ratio in against.items()}
            rows.append({"case": case, "kind": kind, "scheduler": who, "microseconds": quartiles, "ratios": ratios})
    return rows


# Page


def page(content: dict[str, Any]) -> str:
    rows, lines = content["runs"], [*_HEAD]
    short = {who: who.removesuffix("Scheduler").removesuffix("Discrete") for who in {row["scheduler"] for row in rows}}
    lines += [
        "| pipeline | scheduler | " + " | ".join(f"{nfe}" for nfe in NFE) + " | largest gap |",
        "|---|---|---|---|---|---|",
    ]
    for name in (*PIPELINES, *EDITORS):
        for who in schedulers_for(name):
            own = [row for row in rows if (row["pipeline"], row["scheduler"]) == (name, who)]
            gaps = [row["gap"] for row in own if "gap" in row]
            cells = [_cell(row) for row in own]
            lines.append(f"| {name} | {short[who]} | {' | '.join(cells)} | {f'{max(gaps):.0e}' if gaps else ''} |")
    lines += ["", "## Overhead of a step", "", *_OVERHEAD]
    lines += ["| latents | model | scheduler | microseconds | ratio to stock |", "|---|---|---|---|---|"]
    for row in content["overhead"]:
        ratios = ", ".join(f"{short[other]} {ratio:.2f}" for other, ratio in row["ratios"].items())
        cells = (row["case"], row["kind"], short[row["scheduler"]], f"{row['microseconds'][1]:.0f}", ratios)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(row: dict[str, Any]) -> str:
    if not row["ok"]:
        return row["error"].split(":")[0]
    return f"{row['calls']} / {row['evals']:g}" + ("" if row["finite"] else ", not finite")


_HEAD = [
    "# Pipelines of diffusers in our schedulers",
    "",
    "Made by `python -m benchmarks.pipelines`. The weights are random: this proves mechanics, not pictures.",
    f"Guidance {GUIDANCE:g}, two images; image-to-image at strength 1. Cells: calls of the network / samples through",
    "it per image, for 1, 4 and 8 steps, or what was raised (pipelines.json has the messages). Gap: largest difference",
    "of the last samples to `fewstep.sample` on the same network, start and levels, over the largest number; it is the",
    "rounding of guidance, and 0 without.",
    "",
]
_OVERHEAD = [
    f"Processor time of `scheduler.step` in runs of {STEPS} steps, one thread of a shared machine: medians over",
    "rounds; ratios are medians of ratios within a round.",
    "",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
    for library in ("diffusers", "transformers", "fewstep"):
        logging.getLogger(library).setLevel(logging.ERROR)
    runs = table()
    times = [row for case in CASES for row in overhead(case, options.rounds)]
    content = {
        "machine": {**machine("cpu"), "diffusers": diffusers.__version__},
        "guidance": GUIDANCE,
        "runs": runs,
        "clock": "time.thread_time",
        "steps": STEPS,
        "rounds": options.rounds,
        "overhead": times,
    }
    folder = output_dir(options.out)
    write_json(folder / "pipelines.json", content)
    write_atomic(folder / "pipelines.md", page(content).encode())


if __name__ == "__main__":
    main()
