"""What a solver costs beside the network: processor time per step, ours, diffusers' and k-diffusion's.

    python -m benchmarks.overhead --out benchmarks/results

The denoiser costs nothing: it returns one fixed tensor. One thread, runs of ten steps, all sides in turn in every
round, so that a busy machine is busy for all of them; the clock counts the time of this thread alone. Reported are
medians and quartiles over rounds, and ratios are taken within a round.

    step       the steps of a run, everything that is made before them excluded
    rule       ours: `init` and the steps; diffusers: `set_timesteps` and the steps; k-diffusion: its function
    grid       ours only: the grid, `init` and the steps, which is what `set_timesteps` and the steps amount to
    sample     ours only: `fewstep.sample` with all its checks
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from tests.reference.k_diffusion import k_diffusion_sampling
from torch import Tensor

from fewstep._files import output_dir, write_json
from fewstep.experiments.demo import machine
from fewstep.noise import EDM, Karras, VPLinear
from fewstep.sampling import sample
from fewstep.solvers import SOLVERS, Solver

STEPS = 10
SCHEDULE = VPLinear()
FINITE = ("evodiff_paper",)  # needs a last level above 0
CASES: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "1x1x28x28": ((1, 1, 28, 28), torch.float32),
    "16x3x32x32": ((16, 3, 32, 32), torch.float32),
    "1x4x64x64": ((1, 4, 64, 64), torch.float32),
    "16x3x32x32 bfloat16": ((16, 3, 32, 32), torch.bfloat16),
}
_DPMPP = {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}
DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "diffusers ddim": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "diffusers euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "diffusers heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": True, "prediction_type": "epsilon"}),
    "diffusers dpmpp_2m": ("DPMSolverMultistepScheduler", {**_DPMPP, "solver_order": 2}),
    "diffusers dpmpp_3m": ("DPMSolverMultistepScheduler", {**_DPMPP, "solver_order": 3}),
    "diffusers unipc": ("UniPCMultistepScheduler", {"use_karras_sigmas": True, "solver_order": 2}),
    "diffusers unipc_3": ("UniPCMultistepScheduler", {"use_karras_sigmas": True, "solver_order": 3}),
    "diffusers deis": ("DEISMultistepScheduler", {"use_karras_sigmas": True, "solver_order": 3}),
}
K_DIFFUSION = {
    "k-diffusion euler": "sample_euler",
    "k-diffusion heun": "sample_heun",
    "k-diffusion dpmpp_2m": "sample_dpmpp_2m",
}
# Each rule of ours beside the same rule of theirs, and two that the goals are about.
PAIRS = [
    *((name.split()[1], name) for name in (*DIFFUSERS, *K_DIFFUSION)),
    ("evodiff", "diffusers dpmpp_2m"),
    ("evodiff", "diffusers unipc"),
]
GOALS = {("dpmpp_2m", "diffusers dpmpp_2m"): 1 / 5, ("evodiff", "diffusers dpmpp_2m"): 1 / 2}


class Side(NamedTuple):
    """Something to be timed.

    Attributes:
        who: the rule.
        what: which part of its work.
        prepare: what is done before the clock starts; its result goes to `work`.
        work: a run of STEPS steps.
    """

    who: str
    what: str
    prepare: Callable[[], Any]
    work: Callable[[Any], Any]


def ours(name: str, x: Tensor, m: Tensor) -> list[Side]:
    rule, spacing = SOLVERS[name](), Karras(end="limit" if name in FINITE else "zero")
    grid, z = spacing(SCHEDULE, STEPS), torch.randn_like(x)
    noise = (lambda i, like: z) if rule.stochastic else None

    def denoise(x: Tensor, level: Any, cond: Any = None) -> Tensor:
        return m

    def steps(rule: Solver, grid: Any, state: Any) -> Tensor:
        now = x
        for i in range(STEPS):
            now, state = rule.step(denoise, now, grid, i, state, noise)
        return now

    def with_grid(_: None) -> Tensor:
        new = spacing(SCHEDULE, STEPS)
        return steps(rule, new, rule.init(x, new))

    return [
        Side(name, "step", lambda: rule.init(x, grid), lambda state: steps(rule, grid, state)),
        Side(name, "rule", _nothing, lambda _: steps(rule, grid, rule.init(x, grid))),
        Side(name, "grid", _nothing, with_grid),
        Side(name, "sample", _nothing, lambda _: sample(denoise, rule, grid, x, noise=noise)),
    ]


def theirs(name: str, x: Tensor, m: Tensor) -> list[Side]:
    kind, options = DIFFUSERS[name]
    scheduler = getattr(diffusers, kind)(**{"prediction_type": "sample", **options})
    scheduler.is_scale_input_called = True  # or Euler says in every step that it was not

    def prepare(_: None = None) -> None:
        scheduler.set_timesteps(STEPS)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # as pipelines do, so that no step looks for itself

    def steps(_: None) -> Tensor:
        now = x
        for t in scheduler.timesteps:  # twice as many for Heun
            now = scheduler.step(m, t, now, return_dict=False)[0]
        return now

    return [Side(name, "step", prepare, steps), Side(name, "rule", _nothing, lambda _: (prepare(), steps(None)))]


def k_diffusion(name: str, x: Tensor, m: Tensor) -> list[Side]:
    module = k_diffusion_sampling()
    if module is None:
        return []
    function, sigmas = getattr(module, K_DIFFUSION[name]), Karras(end="zero")(EDM(), STEPS).levels.sigma.to(x.dtype)
    return [Side(name, "rule", _nothing, lambda _: function(lambda x, sigma: m, x, sigmas, disable=True))]


def _nothing() -> None:
    return None


def microseconds(side: Side, runs: int) -> float:
    """Processor time of one step of one run."""
    total = 0.0
    for _ in range(runs):
        prepared = side.prepare()
        start = time.thread_time()
        side.work(prepared)
        total += time.thread_time() - start
    return total / runs / STEPS * 1e6


def measure(case: str, rounds: int, runs: int) -> dict[str, Any]:
    """All sides in turn, round by round."""
    shape, dtype = CASES[case]
    generator = torch.Generator().manual_seed(0)
    x, m = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    sides = [side for name in SOLVERS for side in ours(name, x, m)]
    sides += [side for name in DIFFUSERS for side in theirs(name, x, m)]
    sides += [side for name in K_DIFFUSION for side in k_diffusion(name, x, m)]
    for side in sides:
        microseconds(side, 2)
    taken: dict[tuple[str, str], list[float]] = {(side.who, side.what): [] for side in sides}
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad():
            for _ in range(rounds):
                for side in sides:
                    taken[side.who, side.what].append(microseconds(side, runs))
    finally:
        gc.enable()
    rows = [{"who": who, "what": what, **spread(values)} for (who, what), values in taken.items()]
    return {"case": case, "microseconds_per_step": rows, "ratios": ratios(taken)}


def ratios(taken: dict[tuple[str, str], list[float]]) -> list[dict[str, Any]]:
    """Ours over theirs, for every part that both have; ours with what is made before the steps, theirs without."""
    rows = []
    for mine, other in PAIRS:
        for what, against in (
            ("step", "step"),
            ("rule", "step"),
            ("grid", "rule"),
            ("rule", "rule"),
            ("sample", "rule"),
        ):
            if (other, against) in taken:
                pairs = zip(taken[mine, what], taken[other, against], strict=True)
                row = {"ours": mine, "what": what, "theirs": other, "against": against}
                rows.append({**row, **spread([a / b for a, b in pairs])})
    return rows


def spread(values: list[float]) -> dict[str, float]:
    first, middle, third = (float(f"{value:.4g}") for value in statistics.quantiles(values, n=4))
    return {"median": middle, "quartile_1": first, "quartile_3": third}


def report(result: dict[str, Any]) -> None:
    """A table in Markdown, theirs in the line of the same rule; what of the goals is met; where ours is dearer."""
    medians = {(row["who"], row["what"]): row["median"] for row in result["microseconds_per_step"]}
    print(f"\n**{result['case']}**\n")
    print("| rule | ours: step | rule | grid | sample | diffusers: step | rule | k-diffusion |")
    print("|---|---|---|---|---|---|---|---|")
    for name in SOLVERS:
        cells = [medians.get((name, what)) for what in ("step", "rule", "grid", "sample")]
        cells += [medians.get((f"diffusers {name}", what)) for what in ("step", "rule")]
        cells += [medians.get((f"k-diffusion {name}", "rule"))]
        print(f"| {name} | {' | '.join('' if cell is None else f'{cell:.1f}' for cell in cells)} |")
    print()
    for row in result["ratios"]:
        if (row["ours"], row["theirs"]) in GOALS and (row["what"], row["against"]) == ("rule", "step"):
            goal = GOALS[row["ours"], row["theirs"]]
            said = f"{row['median']:.3f} ({row['quartile_1']:.3f} to {row['quartile_3']:.3f})"
            met = "met" if row["median"] <= goal else "missed"
            print(f"{row['ours']} with its set-up / {row['theirs']} without: {said}, goal {goal:g} {met}")
    for row in result["ratios"]:
        if row["median"] > 1:
            print(f"dearer: {row['ours']} ({row['what']}) / {row['theirs']} ({row['against']}): {row['median']:.3f}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--runs", type=int, default=5, help="of each side in a round")
    parser.add_argument("--case", choices=CASES, action="append", help="one or more; all if omitted")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for case in options.case or CASES:
        results.append(measure(case, options.rounds, options.runs))
        report(results[-1])
    content = {
        "machine": {**machine("cpu"), "diffusers": diffusers.__version__},
        "clock": "time.thread_time",
        "steps": STEPS,
        "rounds": options.rounds,
        "runs_per_round": options.runs,
        "cases": results,
    }
    write_json(output_dir(options.out) / "overhead.json", content)


if __name__ == "__main__":
    main()
