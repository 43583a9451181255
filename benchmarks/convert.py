"""A denoiser turned into a few-step model in five minutes without images: what comes out, over seeds.

    python -m benchmarks.convert --model mnist --steps 2 --minutes 5 --seeds 0,1,2 --out benchmarks/results

Every seed is planned, trained and measured as `fewstep convert` does it, and timed from the start to the model; nothing
else should be running. Beside it stands the denoiser's own DDIM at some numbers of calls. Seeds that are done are kept.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fewstep._files import output_dir, read_json, write_json
from fewstep.experiments.convert import Conversion
from fewstep.experiments.convert_plan import ConvertPlan
from fewstep.experiments.demo import machine
from fewstep.experiments.few_steps import sampled
from fewstep.experiments.runs import seeds_of
from fewstep.experiments.ways import way_of
from fewstep.sampling import Chained

_MEASURED = 50_000_000  # between the first seeds of the images that the denoiser itself is measured on


def converted(plan: ConvertPlan, folder: Path, n: int, budgets: list[int]) -> dict[str, Any]:
    """Convert, and measure with n images."""
    began = time.perf_counter()
    work = Conversion(plan, folder)
    for _ in work.make_pairs():
        pass
    for _ in work.train():
        pass
    seconds, yardstick = time.perf_counter() - began, work.yardstick(n)
    rows = list(work.measure(yardstick, n))
    seeds = seeds_of(_MEASURED * (1 + plan.seed), n)  # every seed brings another set of these, too
    for nfe in budgets:
        way = way_of(work.model, solver="ddim", nfe=nfe)
        own = Chained(way.rule, way.grid)
        rows.append(sampled(work.model, own, seeds, f"DDIM, {nfe} calls", yardstick)[0])
    return {"seconds": seconds, "size": asdict(work.size), "rows": [asdict(row) for row in rows]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--budgets", type=int, nargs="+", default=[2, 4, 10], help="calls of the denoiser's own DDIM")
    parser.add_argument("--work", type=Path, default=Path("runs/convert"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    path = output_dir(options.out) / f"convert_{options.model}.json"
    asked = {name: getattr(options, name) for name in ("model", "steps", "minutes", "n", "budgets")}
    earlier = read_json(path) if path.exists() else {}
    seeds: dict[str, Any] = earlier.get("seeds", {}) if earlier.get("asked") == asked else {}
    for seed in options.seeds.split(","):
        if seed in seeds:
            continue
        plan = ConvertPlan(options.model, (options.steps,), options.minutes, seed=int(seed))
        seeds[seed] = converted(plan, options.work / f"seed-{seed}", options.n, options.budgets)
        write_json(path, {"machine": machine(), "asked": asked, "seeds": seeds})
        rows = {f"{row['name']}, {row['steps']}": round(row["distance"], 3) for row in seeds[seed]["rows"]}
        print(f"seed {seed}: {seeds[seed]['seconds']:.0f} s, {seeds[seed]['size']}, {rows}", flush=True)


if __name__ == "__main__":
    main()
