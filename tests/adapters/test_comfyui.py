"""Nodes of ComfyUI, in stand-ins that follow its call sequence; the networks are exact."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contracts.inventory import f64, gap
from contracts.problems import TwoBumps, batch
from contracts.refusals import refuses
from reference.comfy_stand_in import CONST, EPS, KSAMPLER, V_PREDICTION, Guider, inside_comfyui, patcher_of
from torch import Tensor

from fewstep.adapters.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, schedule_of, sigmas_for
from fewstep.adapters.kdiffusion import SAMPLERS
from fewstep.calibration import Entry, Origin, Table
from fewstep.errors import (
    CheckpointError,
    ConfigError,
    GridError,
    LevelError,
    NonFiniteError,
    UnknownName,
)
from fewstep.noise import AYS, EDM, Grid, LinearFlow, NoiseLevel, ShiftedFlow, Tabulated, Trailing, UniformLam
from fewstep.sampling import SeededNoise, sample
from fewstep.solvers import DDIM, SOLVERS, EVODiff, UniPC

SHAPE = (2, 4, 6, 6)
NOISE, LATENT = batch(SHAPE), 0.3 * batch(SHAPE, seed=1)
EMPTY = torch.zeros_like(LATENT)
KINDS = {"eps": EPS, "v": V_PREDICTION, "flow": CONST}
kinds = pytest.mark.parametrize("kind", KINDS)
spacings = pytest.mark.parametrize("spacing", ["trailing", "uniform_lam", "karras"])


def oracle(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """TwoBumps, in the coordinates of a network."""
    return TwoBumps()(x, NoiseLevel(alpha.flatten(), sigma.flatten()))


@pytest.fixture(autouse=True)
def comfy() -> Iterator[None]:
    with inside_comfyui():
        yield


def node(name: str, **inputs: Any) -> Any:
    """Run a node as ComfyUI does: by its class's declarations, with the inputs it asked for."""
    kind = NODE_CLASS_MAPPINGS[f"Fewstep{name}"]
    asked = kind.INPUT_TYPES()
    assert set(inputs) == {name for group in asked.values() for name in group}
    made = getattr(kind(), kind.FUNCTION)(**inputs)
    assert isinstance(made, tuple)
    assert len(made) == len(kind.RETURN_TYPES)
    return made[0]


def grid_of(kind: str, sigmas: Tensor) -> Grid:
    """The levels that sigmas mean, written by hand."""
    s = sigmas.double()
    return Grid(NoiseLevel(1 - s if kind == "flow" else torch.ones_like(s), s), s)


def start_of(kind: str, sigmas: Tensor, noise: Tensor, latent: Tensor, whole: bool) -> Tensor:
    """Noise as model_sampling scales it; ComfyUI gives an empty latent a little more where the run is whole."""
    s = sigmas[0]
    if kind == "flow":
        return s * noise + (1 - s) * latent
    return latent + noise * ((1 + s**2).sqrt() if whole else s)


# One run


@kinds
@pytest.mark.parametrize("solver", ["evodiff", "unipc", "heun", "euler_ancestral", "renoise"])
def test_the_core_by_way_of_comfyui(kind: str, solver: str) -> None:
    patcher = patcher_of(KINDS[kind], oracle)
    sigmas = node("Sigmas", model=patcher, steps=6, denoise=1.0, spacing="trailing")
    sampler, told = node("Sampler", solver=solver, options=""), []
    guider = Guider(patcher)
    out = guider.sample(NOISE, EMPTY, sampler, sigmas, callback=lambda *step: told.append(step), seed=11)
    grid = grid_of(kind, sigmas)
    x = start_of(kind, sigmas, NOISE, EMPTY, True)
    want = sample(TwoBumps(), SOLVERS[solver](), grid, x, noise=SeededNoise((11, 12)))
    assert gap(guider.exact, want.x) <= 1e-11, f"max|a-b| = {gap(guider.exact, want.x):.1e}"
    assert out.dtype == torch.float32
    assert gap(out, want.x) <= 1e-6
    assert len(patcher.model.calls) == want.nfe
    assert [(i, total) for i, _, _, total in told] == [(i, 6) for i in range(6)]
    for i, denoised, at, _ in told:
        assert gap(denoised, TwoBumps()(at, grid.at(i))) <= 1e-11


@kinds
def test_guidance_and_the_options_of_a_solver(kind: str) -> None:
    """Guidance is ComfyUI's; options are written as on the command line, with spaces or commas."""
    patcher = patcher_of(KINDS[kind], oracle)
    sigmas = node("Sigmas", model=patcher, steps=5, denoise=1.0, spacing="uniform_lam")
    guider = Guider(patcher, cfg=3.0)
    guided = lambda x, level, cond=None: 2.0 * TwoBumps()(x, level)  # noqa: E731  (0.5 + 3 (1 - 0.5)) times
    want = sample(
        guided, UniPC(order=3, variant="bh1"), grid_of(kind, sigmas), start_of(kind, sigmas, NOISE, EMPTY, True)
    )
    for options in ("order=3 variant=bh1", "order=3, variant=bh1", " order=3,variant=bh1 "):
        guider.sample(NOISE, EMPTY, node("Sampler", solver="unipc", options=options), sigmas)
        assert gap(guider.exact, want.x) <= 1e-11, f"max|a-b| = {gap(guider.exact, want.x):.1e}"
    assert len(patcher.model.calls) == 3 * 2 * want.nfe


@kinds
def test_img2img(kind: str) -> None:
    """The last steps of a longer run, from the noised image; ComfyUI's rule for denoise."""
    patcher = patcher_of(KINDS[kind], oracle)
    whole = node("Sigmas", model=patcher, steps=10, denoise=1.0, spacing="trailing")
    sigmas = node("Sigmas", model=patcher, steps=4, denoise=0.4, spacing="trailing")
    assert torch.equal(sigmas, whole[-5:])
    guider = Guider(patcher)
    guider.sample(NOISE, LATENT, node("Sampler", solver="evodiff", options=""), sigmas)
    x = start_of(kind, sigmas, NOISE, LATENT, False)
    want = sample(TwoBumps(), EVODiff(), grid_of(kind, sigmas), x)
    assert gap(guider.exact, want.x) <= 1e-11, f"max|a-b| = {gap(guider.exact, want.x):.1e}"
    odd = node("Sigmas", model=patcher, steps=7, denoise=0.8, spacing="trailing")  # int(8.75), which is not 9
    assert torch.equal(odd, node("Sigmas", model=patcher, steps=8, denoise=1.0, spacing="trailing")[-8:])
    none = node("Sigmas", model=patcher, steps=4, denoise=0.0, spacing="trailing")
    assert guider.sample(NOISE, LATENT, node("Sampler", solver="evodiff", options=""), none) is LATENT


@kinds
@pytest.mark.parametrize("solver", ["ddim", "evodiff", "unipc", "dpmpp_2m"])
def test_inpainting(kind: str, solver: str) -> None:
    """Outside of the mask is the image; inside, what the core paints round the same image."""
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    mask[..., 2:5, 1:4] = 1
    patcher = patcher_of(KINDS[kind], oracle)
    sigmas = node("Sigmas", model=patcher, steps=8, denoise=0.8, spacing="trailing")
    guider = Guider(patcher)
    sampler = node("Sampler", solver=solver, options="")
    guider.sample(NOISE, LATENT, sampler, sigmas, denoise_mask=mask.expand(SHAPE))
    kept = (1 - mask).bool().expand(SHAPE)
    assert gap(guider.exact[kept], LATENT[kept]) <= 1e-12
    grid, x = grid_of(kind, sigmas), start_of(kind, sigmas, NOISE, LATENT, False)
    want = sample(TwoBumps(), SOLVERS[solver](), grid, x).x  # elementwise: the mask does not reach inside
    assert gap(guider.exact[~kept], want[~kept]) <= 1e-11


def test_two_samplers_one_after_the_other() -> None:
    """A run cut in two, as advanced samplers cut it: ComfyUI takes the scale out between them and puts it back."""
    for kind in KINDS:
        patcher = patcher_of(KINDS[kind], oracle)
        sigmas = node("Sigmas", model=patcher, steps=6, denoise=1.0, spacing="trailing")
        guider, sampler = Guider(patcher), node("Sampler", solver="ddim", options="")
        guider.sample(NOISE, EMPTY, sampler, sigmas)
        whole = guider.exact
        guider.sample(NOISE, EMPTY, sampler, sigmas[:4])
        guider.sample(torch.zeros_like(NOISE), guider.exact, sampler, sigmas[3:])
        assert gap(guider.exact, whole) <= 1e-11, kind


def test_a_model_that_was_given_another_shift() -> None:
    """A node that patches model_sampling replaces the object that the patcher hands out."""
    patcher = patcher_of(CONST, oracle, shift=3.0)
    patcher.object_patches["model_sampling"] = patcher_of(CONST, oracle, shift=6.0).model.model_sampling
    sigmas = node("Sigmas", model=patcher, steps=4, denoise=1.0, spacing="trailing")
    t = f64([1.0, 0.75, 0.5, 0.25, 0.0])
    assert gap(sigmas, 6 * t / (1 + 5 * t)) <= 1e-6


# Errors reach the user


def test_a_mistake_stops_the_run_with_our_words() -> None:
    flow, plain = patcher_of(CONST, oracle), patcher_of(EPS, oracle)
    sampler = node("Sampler", solver="evodiff", options="")
    of = {patcher: node("Sigmas", model=patcher, steps=5, denoise=1.0, spacing="trailing") for patcher in (flow, plain)}
    assert "from 1 to 0" in str(
        refuses(GridError, "14.6", lambda: Guider(flow).sample(NOISE, EMPTY, sampler, of[plain]))
    )
    refuses(GridError, "14.6", lambda: Guider(plain).sample(NOISE, EMPTY, sampler, of[flow]))
    broken = patcher_of(EPS, lambda x, alpha, sigma: torch.full_like(x, float("nan")))
    refuses(NonFiniteError, "step 0", lambda: Guider(broken).sample(NOISE, EMPTY, sampler, of[plain]))


def test_nodes_refuse() -> None:
    plain = patcher_of(EPS, oracle)
    refuses(UnknownName, "dpmp", lambda: node("Sampler", solver="dpmp", options=""))
    refuses(UnknownName, "evodiff_paper", lambda: node("Sampler", solver="evodiff_paper", options=""))
    refuses(UnknownName, "etta", lambda: node("Sampler", solver="ddim", options="etta=0.3"))
    refuses(ConfigError, "eta", lambda: node("Sampler", solver="ddim", options="eta=7"))
    refuses(ConfigError, "loud", lambda: node("Sampler", solver="ddim", options="loud"))
    refuses(UnknownName, "leading", lambda: sigmas_for(plain.model.model_sampling, "leading", 5))
    flow = patcher_of(CONST, oracle).model.model_sampling
    refuses(ConfigError, "sdxl", lambda: sigmas_for(flow, "ays_sdxl", 5))
    refuses(LevelError, "700", lambda: sigmas_for(plain.model.model_sampling, "ays_svd", 5))
    bent = type("Bent", (CONST,), {})()
    bent.sigmas = torch.linspace(1e-3, 1, 1000) ** 2
    refuses(ConfigError, "scheduler of ComfyUI", lambda: schedule_of(bent))
    falls = SimpleNamespace(sigmas=plain.model.model_sampling.sigmas.flip(0))
    assert "levels of this model" in str(refuses(ConfigError, "alphas_cumprod", lambda: schedule_of(falls)))


def test_outside_of_comfyui() -> None:
    code = (
        "from fewstep.adapters.comfyui import NODE_CLASS_MAPPINGS\n"
        "from fewstep.errors import MissingExtra\n"
        "try:\n    NODE_CLASS_MAPPINGS['FewstepSampler']().make('ddim')\n"
        "except MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "custom_nodes" in done.stdout


# Sigmas


@spacings
def test_sigmas_of_a_discrete_model(spacing: str) -> None:
    """The core's own spacing on Stable Diffusion's table, in kappa."""
    rule = {"trailing": Trailing(), "uniform_lam": UniformLam(end="zero")}
    sampling = patcher_of(EPS, oracle).model.model_sampling
    got = sigmas_for(sampling, spacing, 7)
    assert got.dtype == torch.float32
    assert got.shape == (8,)
    assert got[-1] == 0
    assert got[0].item() == pytest.approx(float(sampling.sigma_max), rel=1e-5), "ComfyUI takes the run for a whole one"
    if spacing == "karras":
        ends = float(sampling.sigmas[-1]) ** (1 / 7), float(sampling.sigmas[0]) ** (1 / 7)
        want = (ends[0] + torch.arange(8, dtype=torch.float64) / 7 * (ends[1] - ends[0])) ** 7
        want[-1] = 0
    else:
        want = rule[spacing](Tabulated.scaled_linear(), 7).levels.kappa
    assert gap(got, want) <= 2e-5


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_ten_steps_of_align_your_steps_are_its_table(name: str) -> None:
    got = sigmas_for(patcher_of(EPS, oracle).model.model_sampling, f"ays_{name}", 10)
    assert gap(got, f64([*AYS[name][:-1], 0.0])) <= 1e-3


@spacings
@pytest.mark.parametrize("shift", [1.0, 3.0, 3.1581929])
def test_sigmas_of_a_flow_model(spacing: str, shift: float) -> None:
    """From 1 exactly to 0 exactly; the clock that the model is shifted to, and no second shift."""
    got = sigmas_for(patcher_of(CONST, oracle, shift).model.model_sampling, spacing, 6)
    assert (got[0].item(), got[-1].item()) == (1.0, 0.0)
    s = got.double()
    kappa = s[1:-1] / (1 - s[1:-1])
    if spacing == "trailing":
        t = f64([5, 4, 3, 2, 1]) / 6
        assert gap(kappa, shift * t / (1 - t)) <= 1e-4
        assert gap(s, Trailing()(ShiftedFlow(shift), 6).levels.sigma) <= 1e-5
    else:  # from 80 to the model's cleanest level, timestep 1 of 1000, in whose place is 0
        ends, share = f64([80.0, shift / 999]), torch.arange(1, 6, dtype=torch.float64) / 6
        if spacing == "uniform_lam":
            want = torch.lerp(*ends.log(), share).exp()
        else:
            want = torch.lerp(*(ends ** (1 / 7)), share) ** 7
        assert gap(kappa / want, torch.ones_like(want)) <= 1e-5


def test_the_clock_of_flux_is_a_shift() -> None:
    """exp(mu) / (exp(mu) + 1 / t - 1), 10000 levels."""
    t = torch.arange(1, 10001, dtype=torch.float32) / 10000
    flux = type("Flux", (CONST,), {})()
    flux.sigmas = 2.718281828**1.15 / (2.718281828**1.15 + 1 / t - 1)
    schedule = schedule_of(flux)
    assert isinstance(schedule, ShiftedFlow)
    assert schedule.shift == pytest.approx(2.718281828**1.15, rel=1e-5)


def test_a_model_with_zero_terminal_snr() -> None:
    """Its largest sigma is thousands; it is reached, and the other levels stay those of the timesteps."""
    table = Tabulated.scaled_linear(rescale_betas_zero_snr=True).alphas_cumprod
    bar = f64([*table[:-1], 4.8973451890853435e-08])
    sampling = SimpleNamespace(sigmas=((1 - bar) / bar).sqrt().float())
    got = sigmas_for(sampling, "trailing", 4)
    assert got[0].item() == pytest.approx(float(sampling.sigmas[-1]), rel=1e-5)
    assert gap(got[1:4], sampling.sigmas[[749, 499, 249]]) <= 1e-4


# Calibrated


def table(kappa: tuple[float, ...] = (14.0, 6.0, 2.0, 0.5, 0.05)) -> Table:
    rows = tuple((0.0,) * i + (-0.3,) for i in range(len(kappa) - 2))
    return Table(Origin("made"), {len(kappa) - 1: Entry(kappa, rows, False, "ddim", "made", 0.0, 0.0, 0.0)})


@kinds
def test_a_calibrated_table_by_way_of_comfyui(kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "calibration.json")
    table().save(path)
    patcher = patcher_of(KINDS[kind], oracle)
    sigmas = node("TableSigmas", model=patcher, table=path, calls=4)
    guider = Guider(patcher)
    guider.sample(NOISE, EMPTY, node("CalibratedSampler", table=path), sigmas)
    way = table().way(LinearFlow() if kind == "flow" else EDM(0.01, 20.0), 4)
    x = start_of(kind, sigmas, NOISE, EMPTY, False).double()
    want = sample(TwoBumps(), way.solver, way.grid, x).x / way.grid.at(-1).alpha  # ComfyUI divides by alpha at the end
    assert gap(guider.exact, want) <= 1e-6, f"max|a-b| = {gap(guider.exact, want):.1e}"
    plain = sample(TwoBumps(), DDIM(), way.grid, x).x / way.grid.at(-1).alpha
    assert gap(want, plain) > 1e-3
    other = node("Sigmas", model=patcher, steps=4, denoise=1.0, spacing="trailing")
    words = str(
        refuses(GridError, "4 calls", lambda: guider.sample(NOISE, EMPTY, node("CalibratedSampler", table=path), other))
    )
    assert NODE_DISPLAY_NAME_MAPPINGS["FewstepTableSigmas"] in words


def test_table_nodes_refuse(tmp_path: Path) -> None:
    path = str(tmp_path / "calibration.json")
    table((80.0, 6.0, 0.05)).save(path)
    plain = patcher_of(EPS, oracle)
    refuses(LevelError, "80", lambda: node("TableSigmas", model=plain, table=path, calls=2))
    assert node("TableSigmas", model=patcher_of(CONST, oracle), table=path, calls=2).shape == (3,)
    refuses(ConfigError, "3 calls", lambda: node("TableSigmas", model=plain, table=path, calls=3))
    for name, more in (("CalibratedSampler", {}), ("TableSigmas", {"model": plain, "calls": 2})):
        refuses(CheckpointError, "nowhere", lambda name=name, more=more: node(name, table="nowhere.json", **more))
        kind = NODE_CLASS_MAPPINGS[f"Fewstep{name}"]
        before = kind.IS_CHANGED(table=path, **more)
        assert before == kind.IS_CHANGED(table=path, **more)
        assert kind.IS_CHANGED(table="nowhere.json", **more) != kind.IS_CHANGED(table="nowhere.json", **more)


# What ComfyUI reads


def test_declarations() -> None:
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    given = {"MODEL", "STRING", "INT", "FLOAT"}
    for name, kind in NODE_CLASS_MAPPINGS.items():
        assert kind.CATEGORY.startswith("sampling/custom_sampling/"), name
        assert kind.RETURN_TYPES[0] in {"SAMPLER", "SIGMAS"}
        assert callable(getattr(kind, kind.FUNCTION))
        for widget, declared in kind.INPUT_TYPES()["required"].items():
            listed = isinstance(declared[0], list)
            assert listed or declared[0] in given, f"{name}.{widget}"
            if listed:
                assert declared[1]["default"] in declared[0]
    assert NODE_CLASS_MAPPINGS["FewstepSampler"].INPUT_TYPES()["required"]["solver"][0] == list(SAMPLERS)


def test_every_choice_of_the_sampler_node_runs() -> None:
    patcher = patcher_of(CONST, oracle)
    sigmas = node("Sigmas", model=patcher, steps=4, denoise=1.0, spacing="trailing")
    for solver in SAMPLERS:
        sampler = node("Sampler", solver=solver, options="")
        assert isinstance(sampler, KSAMPLER)
        assert Guider(patcher).sample(NOISE, EMPTY, sampler, sigmas, seed=0).isfinite().all(), solver


def test_the_file_of_the_page_is_what_comfyui_loads(tmp_path: Path) -> None:
    """ComfyUI executes a .py file of custom_nodes and takes the mappings out of it."""
    page = (Path(__file__).parents[2] / "docs" / "comfyui.md").read_text(encoding="utf-8")
    line = "from fewstep.adapters.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS"
    assert line in page
    path = tmp_path / "fewstep_nodes.py"
    path.write_text(line + "\n")
    spec = importlib.util.spec_from_file_location("fewstep_nodes", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    assert module.NODE_CLASS_MAPPINGS is NODE_CLASS_MAPPINGS
    for name in (*NODE_DISPLAY_NAME_MAPPINGS.values(), *SAMPLERS):
        assert f"`{name}`" in page, f"the page does not name {name}"


def test_stand_ins_are_their_own_models() -> None:
    """The networks of the stand-ins are exact: denoised by way of their outputs is the oracle's."""
    for kind in KINDS.values():
        patcher = patcher_of(kind, oracle)
        sigma = torch.full((2,), 0.7, dtype=torch.float64)
        level = NoiseLevel(1 - sigma if kind is CONST else torch.ones_like(sigma), sigma)
        assert gap(patcher.model.apply_model(NOISE, sigma, 1.0), TwoBumps()(NOISE, level)) <= 1e-14
