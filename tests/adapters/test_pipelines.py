"""Whole pipelines of diffusers in our schedulers: each runs, costs what it says, and is the core's run.

The weights are random, so this is about mechanics: levels, calls, dtypes, files. Where a pipeline is not guided, its
samples are those of `fewstep.sample` bit for bit. Guided ones differ by rounding: diffusers guides outputs of the
network, fewstep estimates of the data, and one is an affine function of the other.
"""

from __future__ import annotations

import json
import math
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from reference.pipelines_in_core import by_hand, in_core
from reference.tiny_pipelines import (
    BETAS,
    EDITORS,
    NEGATIVE,
    PIPELINES,
    PROMPTED,
    arguments,
    family,
    pipeline,
    run,
)
from torch import Tensor

from fewstep.adapters.encoding import encode
from fewstep.adapters.wrap import wrap
from fewstep.calibration import Origin, Refinement, Settings, fit, problem_of
from fewstep.denoisers import ClassifierFree
from fewstep.schedulers import CalibratedScheduler, EVODiffScheduler
from fewstep.solvers import EVODiff, Solver, TabulatedSolver

# Stock schedulers make numpy arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

FLOWS = ("sd3", "flux", "sana")
GUIDANCE = {"off": 1.0, "on": 4.0}
GUIDED = 1e-5  # of the largest number: rounding of float32, where guidance is done on other quantities
PICTURES = [
    Image.frombytes(
        "RGB", (16, 16), torch.randint(256, (768,), generator=torch.Generator().manual_seed(k)).byte().numpy()
    )
    for k in range(2)
]
MASK = Image.frombytes("L", (16, 16), bytes([0] * 8 + [255] * 8) * 16)  # the left half is kept


def evodiff(name: str, dtype: torch.dtype | None = None) -> Any:
    """A pipeline with the one line changed."""
    pipe = pipeline(name, dtype)
    pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config)
    return pipe


def agrees(pipe: Any, name: str, guidance: float, made: Any, solver: Solver, within: float | None = None) -> None:
    """The pipeline's run is the core's from the same start, over the same levels, in float32 or better."""
    ours = in_core(pipe, name, guidance, made, solver)
    guided = guidance != 1 and family(name) != "ddpm"
    steps = len(made.timesteps)
    assert (ours.nfe, ours.network_evals) == (steps, steps * (1 + guided))
    gap = (ours.x - made.last[:2]).abs().max()
    assert gap <= ((GUIDED if guided else 0) if within is None else within) * made.last.abs().max()


@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_runs_and_is_the_cores_run(name: str, steps: int, guidance: float) -> None:
    pipe = evodiff(name)
    made = run(pipe, steps, **arguments(name, guidance))
    guided = guidance != 1 and name != "ddpm"
    # Guidance is a batch of two, but in Flux's pipeline, which calls twice. DiT's has two of each sample to begin with.
    assert made.calls == steps * (2 if guided and name == "flux" else 1)
    assert made.evals * len(made.first) == 2 * steps * (1 + guided)
    assert made.timesteps == pipe.scheduler.timesteps.tolist()
    assert made.timesteps[0] == (1000 if name in FLOWS else 999)
    assert made.last.isfinite().all()
    assert float(pipe.scheduler.sigmas[-1]) == 0
    agrees(pipe, name, guidance, made, EVODiff())


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_second_call_forgets_the_first(name: str) -> None:
    pipe = evodiff(name)
    wanted = run(pipe, 4, **arguments(name))
    run(pipe, 7, **arguments(name))
    assert torch.equal(run(pipe, 4, **arguments(name)).last, wanted.last)


def test_guidance_changes_the_samples() -> None:
    made = {g: run(evodiff("sd"), 4, **arguments("sd", g)).last for g in GUIDANCE.values()}
    assert (made[4.0] - made[1.0]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["sd", "sd2-v", "sdxl", "pixart"])
def test_timesteps_of_a_call_are_what_the_network_is_told(name: str) -> None:
    pipe = evodiff(name)
    made = run(pipe, 3, **arguments(name), timesteps=[999, 600, 100])
    assert made.timesteps == [999, 600, 100]
    agrees(pipe, name, 1.0, made, EVODiff())


def test_sigmas_of_a_call_are_shifted_once() -> None:
    pipe = evodiff("sd3")
    made = run(pipe, 3, **arguments("sd3"), sigmas=[1.0, 0.7, 0.2])
    assert made.timesteps == pytest.approx([1000 * 3 * s / (1 + 2 * s) for s in (1.0, 0.7, 0.2)])
    agrees(pipe, "sd3", 1.0, made, EVODiff())


def test_flux_shifts_by_the_number_of_its_tokens() -> None:
    shift = math.exp(0.5 + (1.15 - 0.5) * (16 - 256) / (4096 - 256))  # mu on a line, and the image has 4 x 4 tokens
    made = run(evodiff("flux"), 4, **arguments("flux"))
    assert made.timesteps == pytest.approx([1000 * shift * s / (1 + (shift - 1) * s) for s in (1.0, 0.75, 0.5, 0.25)])


# Editing


def edited(pipe: Any, name: str, steps: int, strength: float, guidance: float = 1.0) -> tuple[Any, list[Any]]:
    """Run an editing pipeline, and write down every noising: (data, noise, result)."""
    noised: list[Any] = []
    method = "scale_noise" if family(name) in FLOWS else "add_noise"
    own = getattr(pipe.scheduler, method)

    def watched(data: Tensor, first: Any, second: Any) -> Tensor:
        made: Tensor = own(data, first, second)
        noised.append((data, second if method == "scale_noise" else first, made))
        return made

    setattr(pipe.scheduler, method, watched)
    masked = {"mask_image": MASK} if "inpaint" in name else {}
    made = run(pipe, steps, image=PICTURES, strength=strength, **masked, **arguments(name, guidance))
    return made, noised


def kappa_of(timestep: float, pipe: Any, name: str) -> float:
    """Noise per unit of data at a timestep, from diffusers' own table or the straight path."""
    if family(name) in FLOWS:
        return timestep / (1000 - timestep)
    bar = float(diffusers.DDIMScheduler.from_config(pipe.scheduler.config).alphas_cumprod[int(timestep)])
    return ((1 - bar) / bar) ** 0.5


def is_noised(data: Tensor, noise: Tensor, made: Tensor, kappa: float, flow: bool) -> None:
    alpha = 1 / (1 + kappa) if flow else (1 + kappa**2) ** -0.5
    torch.testing.assert_close(made, alpha * data + kappa * alpha * noise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.25), (4, 0.5), (10, 0.75)])
@pytest.mark.parametrize("name", [name for name in EDITORS if "img2img" in name])
def test_an_image_is_noised_to_the_first_level_and_taken_on_from_there(name: str, steps: int, strength: float) -> None:
    pipe = evodiff(name)
    left = (math.ceil if family(name) in FLOWS else math.floor)(steps * strength)  # pipelines round it so
    made, ((data, noise, first),) = edited(pipe, name, steps, strength)
    assert made.timesteps == pipe.scheduler.timesteps[-left:].tolist()
    assert made.calls == left
    kappa = kappa_of(made.timesteps[0], pipe, name)
    sigma = float(pipe.scheduler.sigmas[-left - 1])
    assert (sigma / (1 - sigma) if family(name) in FLOWS else sigma) == pytest.approx(kappa, rel=1e-4)
    is_noised(data, noise, first, kappa, family(name) in FLOWS)
    start = pipe._pack_latents(first, 2, 4, 8, 8) if name == "flux-img2img" and first.ndim == 4 else first
    assert torch.equal(start, made.first)
    assert made.last.isfinite().all()
    agrees(pipe, name, 1.0, made, EVODiff())


@pytest.mark.parametrize("name", [name for name in EDITORS if "img2img" in name])
def test_a_guided_edit_is_the_cores(name: str) -> None:
    pipe = evodiff(name)
    made, _ = edited(pipe, name, 4, 0.5, guidance=4.0)
    agrees(pipe, name, 4.0, made, EVODiff())


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("name", [name for name in EDITORS if "inpaint" in name])
def test_inpainting_keeps_the_known_half_at_the_level_of_every_step(name: str, strength: float) -> None:
    pipe = evodiff(name)
    made, noised = edited(pipe, name, 4, strength)
    left = int(4 * strength)
    assert made.timesteps == pipe.scheduler.timesteps[-left:].tolist()
    levels = made.timesteps[1:] if strength == 1 else made.timesteps  # strength 1 begins at noise alone
    assert len(noised) == len(levels)
    for (data, noise, result), timestep in zip(noised, levels, strict=True):
        is_noised(data, noise, result, kappa_of(timestep, pipe, name), flow=False)
    known, painted = made.images[..., :4], made.images[..., 4:]
    assert torch.equal(known, noised[-1][0][..., :4])
    assert torch.equal(painted, made.last[..., 4:])
    assert made.images.isfinite().all()


def test_two_experts_share_one_run() -> None:
    """SDXL's base leaves where its refiner goes on: together they make every step once."""
    whole = run(evodiff("sdxl"), 8, **arguments("sdxl")).timesteps
    first = run(evodiff("sdxl"), 8, denoising_end=0.5, **arguments("sdxl"))
    pipe = evodiff("sdxl-img2img")
    second = run(pipe, 8, denoising_start=0.5, image=first.images, **arguments("sdxl-img2img"))
    assert first.timesteps + second.timesteps == whole
    assert torch.equal(second.first, first.last)


# Calibrated


@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
@pytest.mark.parametrize("name", PIPELINES)
def test_a_calibrated_pipeline_is_the_cores_run(name: str, guidance: float) -> None:
    pipe, table = pipeline(name), by_hand(4)
    pipe.scheduler = CalibratedScheduler.from_config(pipe.scheduler.config, calibration=table.to_json())
    made = run(pipe, 4, **arguments(name, guidance))
    assert len(made.timesteps) == 4
    assert pipe.scheduler.grid.levels.kappa.tolist() == pytest.approx(table.entries[4].kappa)
    entry = table.entries[4]
    agrees(pipe, name, guidance, made, TabulatedSolver(entry.weights, entry.kappa))


@pytest.mark.parametrize("name", ["sd-img2img", "sdxl-img2img", "sd3-img2img"])
def test_a_calibrated_edit_uses_what_is_left_of_the_weights(name: str) -> None:
    pipe, entry = pipeline(name), by_hand(4).entries[4]
    pipe.scheduler = CalibratedScheduler.from_config(pipe.scheduler.config, calibration=by_hand(4).to_json())
    made, ((data, noise, first),) = edited(pipe, name, 4, 0.75)
    assert made.calls == 3
    is_noised(data, noise, first, entry.kappa[1], family(name) in FLOWS)
    # Without step 0 there is no estimate 0: rows lose their first weight, and the first row with it.
    agrees(pipe, name, 1.0, made, TabulatedSolver(tuple(row[1:] for row in entry.weights[1:]), entry.kappa[1:]))


def test_a_table_fitted_to_a_wrapped_pipeline_serves_the_pipeline() -> None:
    pipe = pipeline("sd3")
    cond, uncond = encode(pipe, [str(k) for k in range(16)], NEGATIVE, (16, 16))
    denoiser = ClassifierFree(wrap(pipe), 2.0, uncond)
    problem = problem_of(denoiser, wrap(pipe).schedule, (4, 8, 8), seeds=range(16), cond=cond)
    quick = Settings(
        nfe=(3,), teacher_steps=20, grids=("karras:rho=7",), first="network", refinement=Refinement(0), judged=0.0
    )
    table = fit(problem, quick, Origin(schedule=repr(wrap(pipe).schedule)))
    pipe.scheduler = CalibratedScheduler.from_config(pipe.scheduler.config, calibration=table.to_json())
    made = run(pipe, 3, **arguments("sd3", 2.0))
    entry = table.entries[3]
    agrees(pipe, "sd3", 2.0, made, TabulatedSolver(entry.weights, entry.kappa))


# Files and dtypes


@pytest.mark.parametrize("name", [*PROMPTED, "dit", "ddpm"])
def test_a_saved_pipeline_comes_back_with_the_scheduler(name: str, tmp_path: Any) -> None:
    pipe = evodiff(name)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["fewstep.schedulers", "EVODiffScheduler"]
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is EVODiffScheduler
    wanted, found = (run(each, 3, **arguments(name, 4.0)) for each in (pipe, loaded))
    assert found.timesteps == wanted.timesteps
    assert torch.equal(found.last, wanted.last)


def test_a_saved_calibrated_pipeline_carries_its_table(tmp_path: Any) -> None:
    pipe = pipeline("sd")
    pipe.scheduler = CalibratedScheduler.from_config(pipe.scheduler.config, calibration=by_hand(3).to_json())
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"][0] == "fewstep.schedulers"
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    wanted, found = (run(each, 3, **arguments("sd", 4.0)) for each in (pipe, loaded))
    assert torch.equal(found.last, wanted.last)


@pytest.mark.parametrize("name", [*PIPELINES, *EDITORS])
def test_the_way_back_to_the_stock_scheduler(name: str) -> None:
    """A configuration that has been ours still is one of its family."""
    pipe, stock = evodiff(name), pipeline(name).scheduler
    pipe.scheduler = type(stock).from_config(pipe.scheduler.config)
    for key in {"num_train_timesteps", *BETAS, "trained_betas", "prediction_type", "shift"} & set(stock.config):
        assert pipe.scheduler.config[key] == stock.config[key], key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*PIPELINES, *EDITORS])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    if (name, dtype) == ("ddpm", torch.bfloat16) and diffusers.__version__ < "0.42":
        pytest.skip("the pipeline of diffusers < 0.42 makes numpy arrays of its images, and numpy has no bfloat16")
    pipe, guidance = evodiff(name, dtype), 4.0
    if name in EDITORS:
        made, _ = edited(pipe, name, 4, 0.5, guidance)
    else:
        made = run(pipe, 4, **arguments(name, guidance))
    # Sana's pipeline keeps samples and outputs in float32 between calls.
    assert made.last.dtype == (torch.float32 if name == "sana" else dtype)
    assert made.last.isfinite().all()
    if "inpaint" not in name:  # which round between calls, where the core does not; guidance multiplies it
        agrees(pipe, name, guidance, made, EVODiff(), within=16 * torch.finfo(dtype).eps)
