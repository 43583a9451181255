"""What importing costs: the core needs torch alone, and the command line answers before torch is loaded."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest

CORE = """
import json, sys
import torch
before = {{name.partition(".")[0] for name in sys.modules}}
import fewstep
{use}
after = {{name.partition(".")[0] for name in sys.modules}}
print(json.dumps(sorted(after - before - set(sys.stdlib_module_names))))
"""


def new_modules(use: str) -> list[str]:
    """Top-level modules outside the standard library that a statement loads on top of torch."""
    code = CORE.format(use=use)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


RUN = """
from fewstep.noise import EDM, UniformLam
from fewstep.solvers import SOLVERS
from fewstep.denoisers import Gaussian
grid = UniformLam()(EDM(), 4)
x = fewstep.start_noise(grid, (3,), range(2))
noise = fewstep.SeededNoise((0, 1))
for make in SOLVERS.values():
    assert fewstep.sample(Gaussian(torch.zeros(3), torch.ones(())), make(), grid, x, noise=noise).x.isfinite().all()
"""


@pytest.mark.parametrize("use", ["fewstep.sample", RUN], ids=["name", "run"])
def test_the_core_loads_nothing_beyond_torch(use: str) -> None:
    assert new_modules(use) == ["fewstep"], f"loaded on top of torch: {new_modules(use)}"


def test_the_core_runs_where_numpy_is_missing() -> None:
    """Not only unloaded: not needed. Everything but torch's own dependencies is made unimportable."""
    barred = [
        "numpy",
        "PIL",
        "safetensors",
        "scipy",
        "sklearn",
        "pyarrow",
        "accelerate",
        "diffusers",
        "matplotlib",
        "rich",
        "typer",
    ]
    # torch itself warns that numpy is missing.
    code = f"""
import sys, warnings
sys.modules.update({{name: None for name in {barred!r}}})
warnings.simplefilter("ignore")
import torch, fewstep
{RUN}
print("ran")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ran", done.stderr


def test_importing_the_package_loads_nothing() -> None:
    """Names are loaded when they are first used: `import fewstep` itself does not even load torch."""
    code = "import fewstep, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_exist() -> None:
    code = (
        "import fewstep\n"
        "missing = [name for name in fewstep.__all__ if not hasattr(fewstep, name)]\n"
        "from fewstep.noise import EDM, VPLinear, VPCosine, LinearFlow, UniformLam, Karras\n"
        "from fewstep.solvers import DDIM, Heun, DPMpp2M, UniPC, IPNDM, EVODiff, SOLVERS\n"
        "from fewstep.denoisers import Gaussian, GaussianMixture, EmpiricalData\n"
        "print(missing)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def cpu_seconds(argv: list[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


def test_help_answers_before_torch() -> None:
    """Half a second of processor time, so that a busy machine does not decide; the best of three runs."""
    command = [sys.executable, "-X", "importtime", "-m", "fewstep.cli", "--help"]
    spent = []
    for _ in range(3):
        seconds, done = cpu_seconds([sys.executable, "-m", "fewstep.cli", "--help"])
        assert done.returncode == 0, done.stderr
        spent.append(seconds)
    for word in ("demo", "sample", "compare", "train", "models", "solvers"):
        assert word in done.stdout, f"--help does not mention {word}"
    _, traced = cpu_seconds(command)
    loaded = {line.rpartition("|")[2].strip() for line in traced.stderr.splitlines()}
    assert not loaded & {"torch", "numpy"}, "--help loads torch or numpy"
    assert min(spent) < 0.5, f"--help took {min(spent):.2f} s of processor time"
