"""One picture, three ways: our loop, the scheduler in a pipeline, and the function of k-diffusion's contract."""

from __future__ import annotations

import pytest
import torch
from reference.pipelines_in_core import in_core
from reference.tiny_pipelines import arguments, pipeline, run

from fewstep.adapters.encoding import encode
from fewstep.adapters.kdiffusion import sample_calibrated, sample_evodiff
from fewstep.adapters.wrap import wrap
from fewstep.calibration import Entry, Origin, Table
from fewstep.denoisers import ClassifierFree
from fewstep.noise import NoiseLevel
from fewstep.schedulers import CalibratedScheduler, EVODiffScheduler
from fewstep.solvers import EVODiff, TabulatedSolver

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
NAMES = {"eps": "sd", "v": "sd2-v", "flow": "sd3"}


def k_diffusion(pipe, name, made, guidance, sampler, **options):
    """The run in k-diffusion's coordinates: x over alpha, and sigma / alpha; of a flow as it is."""
    flow = name == "sd3"
    told = arguments(name, guidance)
    cond, nothing = encode(pipe, told["prompt"], told.get("negative_prompt", [None])[0])
    denoiser = ClassifierFree(wrap(pipe), guidance, nothing) if guidance != 1 else wrap(pipe)

    def model(x, sigma):
        s = sigma[0].double().cpu()
        return denoiser(x, NoiseLevel(1 - s if flow else torch.ones_like(s), s), cond)

    sigmas = pipe.scheduler.sigmas
    first = made.first if flow else made.first * (1 + sigmas[0].double() ** 2).sqrt()
    return sampler(model, first[:2], sigmas, flow=flow, disable=True, **options)


def far(left, right):
    return float((left - right).abs().max() / right.abs().max())


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_evodiff(name, guidance):
    pipe = pipeline(name)
    pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config)
    made = run(pipe, 8, **arguments(name, guidance))
    core = in_core(pipe, name, guidance, made, EVODiff()).x
    through = k_diffusion(pipe, name, made, guidance, sample_evodiff)
    assert far(made.last[:2], core) < 1e-5
    assert far(through, core) < 1e-5


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_calibrated(name):
    weights = ((-0.2,), (0.1, -0.3), (0.0, 0.2, -0.25))
    table = Table(Origin(), {4: Entry((14.0, 4.0, 1.5, 0.4, 0.05), weights, False, "ddim", "by hand", 0.1, 0.1, 0.1)})
    pipe = pipeline(name)
    pipe.scheduler = CalibratedScheduler.from_config(pipe.scheduler.config, calibration=table.to_json())
    made = run(pipe, 4, **arguments(name))
    core = in_core(pipe, name, 1.0, made, TabulatedSolver(weights)).x
    through = k_diffusion(pipe, name, made, 1.0, sample_calibrated, table=table)
    # The run ends at kappa = 0.05, where k-diffusion's x is ours over alpha.
    alpha = pipe.scheduler.grid.at(-1).alpha if name != "sd3" else 1.0
    assert far(made.last[:2], core) < 1e-5
    assert far(through * alpha, core) < 1e-5
