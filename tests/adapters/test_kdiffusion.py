"""Functions of k-diffusion's contract: against the real file, and against the core on the same grid."""

from __future__ import annotations

import inspect
import json
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contracts.inventory import f64, gap
from contracts.problems import TwoBumps, batch
from contracts.refusals import refuses
from reference.k_diffusion import k_diffusion_sampling
from torch import Tensor

from fewstep.adapters import kdiffusion
from fewstep.adapters.kdiffusion import (
    SAMPLERS,
    sample_calibrated,
    sample_ddim,
    sample_dpmpp_2m,
    sample_euler,
    sample_euler_ancestral,
    sample_evodiff,
    sample_heun,
    sample_renoise,
    tabulated_way,
)
from fewstep.adapters.sigma_loop import sampler_of
from fewstep.adapters.sigmas import sigma_of
from fewstep.calibration import Entry, Origin, Table
from fewstep.denoisers import Gaussian
from fewstep.errors import CheckpointError, ConfigError, GridError, NonFiniteError, ShapeError
from fewstep.noise import EDM, Explicit, Karras, LinearFlow, NoiseLevel, ShiftedFlow, Trailing, UniformFlow
from fewstep.sampling import SeededNoise, sample
from fewstep.solvers import DDIM, SOLVERS, Churn, DPMpp3M, Heun, UniPC

k = k_diffusion_sampling()
real = pytest.mark.skipif(k is None, reason="needs k-diffusion's file: pip install --no-deps k-diffusion")

SHAPE = (3, 2, 4, 4)
KAPPA = Karras(end="zero", kappa_max=14.6, kappa_min=0.03)(EDM(), 7).levels.sigma
FLOW = Trailing()(ShiftedFlow(3.0), 6)
X = batch(SHAPE)
samplers = pytest.mark.parametrize("name", SAMPLERS)


class Model:
    """TwoBumps as k-diffusion asks it, with its calls."""

    def __init__(self, flow: bool = False) -> None:
        self.flow, self.calls = flow, []

    def __call__(self, x: Tensor, sigma: Tensor, **more: Any) -> Tensor:
        self.calls.append((x.clone(), sigma.clone(), more))
        return TwoBumps()(x, NoiseLevel(1 - sigma if self.flow else torch.ones_like(sigma), sigma))


# Against k-diffusion


@real
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (sample_ddim, "sample_euler"),
        (sample_euler, "sample_euler"),
        (sample_dpmpp_2m, "sample_dpmpp_2m"),
        (sample_heun, "sample_heun"),
    ],
)
def test_same_results_calls_and_callbacks_as_k_diffusion(ours: Any, theirs: str) -> None:
    runs = []
    for function in (ours, getattr(k, theirs)):
        model, told = Model(), []
        out = function(model, KAPPA[0] * X, KAPPA, extra_args={"y": 1}, callback=told.append, disable=True)
        runs.append((out, model.calls, told))
    (out, calls, told), (want, want_calls, want_told) = runs
    assert gap(out, want) <= 1e-12, f"max|a-b| = {gap(out, want):.1e}"
    assert len(calls) == len(want_calls)
    for (x, sigma, more), (want_x, want_sigma, want_more) in zip(calls, want_calls, strict=True):
        assert torch.equal(sigma, want_sigma), "one sigma per sample, in the dtype of theirs"
        assert gap(x, want_x) <= 1e-12
        assert more == want_more == {"y": 1}
    assert len(told) == len(want_told) == len(KAPPA) - 1
    for got, expected in zip(told, want_told, strict=True):
        assert got.keys() == expected.keys()
        assert got["i"] == expected["i"]
        for key in ("x", "sigma", "sigma_hat", "denoised"):
            assert gap(got[key], expected[key]) <= 1e-12, f"{key} of step {got['i']}"


@real
def test_the_parameters_of_k_diffusion_come_first() -> None:
    for name, own in SAMPLERS.items():
        parameters = inspect.signature(own).parameters
        theirs = list(inspect.signature(k.sample_dpmpp_2m).parameters)
        assert list(parameters)[: len(theirs)] == theirs, name
        rest = list(parameters.values())[len(theirs) :]
        assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in rest), name
        assert own.__name__ == f"sample_{name}"
        assert getattr(kdiffusion, f"sample_{name}") is own


@real
@pytest.mark.parametrize(("name", "more"), [("euler_ancestral", {}), ("dpmpp_2m_sde", {"solver_type": "midpoint"})])
def test_a_noise_sampler_is_asked_as_k_diffusion_asks_it(name: str, more: Any) -> None:
    asked: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}

    def noise(who: str) -> Any:
        def draw(sigma: Tensor, following: Tensor) -> Tensor:
            asked[who].append((sigma.item(), following.item()))
            return batch(SHAPE, seed=len(asked[who]))

        return draw

    got = SAMPLERS[name](Model(), KAPPA[0] * X, KAPPA, disable=True, eta=0.6, noise_sampler=noise("ours"))
    theirs = getattr(k, f"sample_{name}")
    want = theirs(Model(), KAPPA[0] * X, KAPPA, disable=True, eta=0.6, noise_sampler=noise("theirs"), **more)
    assert asked["ours"] == asked["theirs"]
    assert gap(got, want) <= 1e-11, f"max|a-b| = {gap(got, want):.1e}"


@real
@pytest.mark.parametrize("ours", [sample_euler, sample_heun])
def test_churn_is_k_diffusions(ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs draws in every step, ours where it churns: both are given the same noise by the step's number."""
    options = {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 10.0, "s_noise": 1.003}
    told: dict[str, list[Any]] = {"ours": [], "theirs": []}
    steps = iter(range(99))
    monkeypatch.setattr(torch, "randn_like", lambda x: batch(SHAPE, seed=100 + next(steps)))
    theirs = getattr(k, ours.__name__)
    want = theirs(Model(), KAPPA[0] * X, KAPPA, disable=True, callback=told["theirs"].append, **options)
    places = KAPPA.tolist()
    got = ours(
        Model(),
        KAPPA[0] * X,
        KAPPA,
        disable=True,
        callback=told["ours"].append,
        noise_sampler=lambda sigma, following: batch(SHAPE, seed=100 + places.index(sigma.item())),
        **options,
    )
    assert gap(got, want) <= 1e-11, f"max|a-b| = {gap(got, want):.1e}"
    hats = [[step["sigma_hat"].item() for step in told[who]] for who in ("ours", "theirs")]
    assert hats[0] == pytest.approx(hats[1], rel=1e-14)
    assert hats[0] != KAPPA[:-1].tolist()


# Against the core


@samplers
@pytest.mark.parametrize("flow", [False, True])
def test_the_core_on_the_grid_of_the_sigmas(name: str, flow: bool) -> None:
    grid = FLOW if flow else Explicit(tuple(KAPPA.tolist()))(EDM(), len(KAPPA) - 1)
    sigmas, seeds = sigma_of(grid.levels, flow), (5, 6, 7)
    x, model, told = grid.at(0).sigma * X, Model(flow), []
    args = {"seed": 5}
    out = SAMPLERS[name](model, x, sigmas, extra_args=args, callback=told.append, disable=True, flow=flow)
    want = sample(TwoBumps(), SOLVERS[name](), grid, x, noise=SeededNoise(seeds))
    assert gap(out, want.x) <= 1e-12, f"max|a-b| = {gap(out, want.x):.1e}"
    assert len(model.calls) == want.nfe
    assert args == {"seed": 5}
    assert [step["i"] for step in told] == list(range(grid.steps))
    for i, step in enumerate(told):
        assert torch.equal(step["sigma"], sigmas[i])
        assert step["sigma_hat"].item() == sigmas[i].item(), "the first call of a step is at its start"
    assert torch.equal(model.calls[0][0], x), "dividing by exactly 1 changes no bit"
    assert torch.equal(told[0]["x"], x)
    assert gap(told[0]["denoised"], TwoBumps()(x, grid.at(0))) <= 1e-14


@samplers
def test_two_runs_at_once_are_two_runs_alone(name: str) -> None:
    """A run inside the callback of another leaves it as it was: nothing is kept outside of local variables."""
    args = {"seed": 3}
    alone = SAMPLERS[name](Model(), KAPPA[0] * X, KAPPA, extra_args=args, disable=True)
    inner = []

    def again(step: dict[str, Any]) -> None:
        inner.append(SAMPLERS[name](Model(), KAPPA[0] * X, KAPPA, extra_args=args, disable=True))

    outer = SAMPLERS[name](Model(), KAPPA[0] * X, KAPPA, extra_args=args, callback=again, disable=True)
    assert torch.equal(outer, alone)
    assert all(torch.equal(run, alone) for run in inner)


@samplers
def test_nothing_to_do(name: str) -> None:
    for sigmas in (f64([]), f64([3.0])):
        assert SAMPLERS[name](None, X, sigmas) is X


def test_a_gaussian_flow_model_from_pure_noise() -> None:
    """From sigma = 1, where alpha = 0, the flow of N(m, s^2) takes z to m + s z; no offset of the first sigma."""
    m, s = 0.4, 0.5
    oracle = Gaussian(torch.full(SHAPE[1:], m, dtype=torch.float64), s**2)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return oracle(x, NoiseLevel(1 - sigma, sigma))

    errors = {}
    for steps in (64, 128):
        sigmas = UniformFlow()(LinearFlow(), steps).levels.sigma
        for name in ("euler", "heun", "evodiff", "dpmpp_2m"):
            out = SAMPLERS[name](model, X, sigmas, disable=True, flow=True)
            errors[name, steps] = gap((out - m) / s, X)
    print({key: f"{error:.1e}" for key, error in errors.items()})
    for name, order in (("euler", 1), ("heun", 2), ("evodiff", 2)):
        slope = math.log2(errors[name, 64] / errors[name, 128])
        assert slope >= order - 0.15, f"{name}: slope {slope:.2f}"
    assert errors["heun", 128] <= 3e-4


def test_levels_between_those_of_the_grid_reach_a_flow_model_as_shares_of_noise() -> None:
    """Churn raises sigma and leaves alpha: the sum is above 1, and both x and level are brought back."""
    churn = Churn(20.0, kappa_min=0.01, kappa_max=50.0)
    model, noise = Model(flow=True), SeededNoise((0, 1, 2))
    out = sampler_of(Heun(churn))(model, X, FLOW.levels.sigma, extra_args={"seed": 0}, disable=True, flow=True)
    want = sample(TwoBumps(), Heun(churn), FLOW, X, noise=noise)  # TwoBumps takes any alpha and sigma
    assert gap(out, want.x) <= 1e-12, f"max|a-b| = {gap(out, want.x):.1e}"
    asked = {sigma[0].item() for _, sigma, _ in model.calls}
    grid = set(FLOW.levels.sigma.tolist())
    tau = [
        (1 + min(20 / 6, math.sqrt(2) - 1)) * s / (1 + min(20 / 6, math.sqrt(2) - 1) * s) for s in grid if 0 < s < 0.98
    ]
    assert len(asked - grid) == len(tau)
    assert sorted(asked - grid) == pytest.approx(sorted(tau), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_samples_keep_their_dtype_and_levels_their_digits(dtype: torch.dtype) -> None:
    sigmas, model = KAPPA.float(), Model()
    out = sample_evodiff(model, (KAPPA[0] * X).to(dtype), sigmas, disable=True)
    assert out.dtype == dtype
    for i, (x, sigma, _) in enumerate(model.calls):
        assert x.dtype == dtype
        assert sigma.dtype == torch.float32
        assert torch.equal(sigma, sigmas[i].expand(3))
    exact = sample_evodiff(Model(), (KAPPA[0] * X).to(dtype).double(), sigmas.double(), disable=True)
    assert gap(out, exact) <= 60 * torch.finfo(dtype).eps


def test_noise_belongs_to_a_sample() -> None:
    """Sample k of a batch with seed s is the only one of a batch with seed s + k."""
    whole = sample_renoise(Model(), KAPPA[0] * X, KAPPA, extra_args={"seed": 8}, disable=True)
    for row in range(3):
        one = sample_renoise(Model(), KAPPA[0] * X[row : row + 1], KAPPA, extra_args={"seed": 8 + row}, disable=True)
        assert torch.equal(whole[row : row + 1], one)


def test_without_a_seed_the_global_generator_is_drawn_from() -> None:
    def run() -> Tensor:
        return sample_euler_ancestral(Model(), KAPPA[0] * X, KAPPA, disable=True)

    torch.manual_seed(4)
    first, second = run(), run()
    torch.manual_seed(4)
    assert torch.equal(run(), first)
    assert not torch.equal(first, second)


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        sample_ddim(Model(), KAPPA[0] * X, KAPPA, disable=False)
    assert "7/7" in capsys.readouterr().err
    for disable in (True, None):  # None is silent where nobody looks
        sample_ddim(Model(), KAPPA[0] * X, KAPPA, disable=disable)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    sample_ddim(Model(), KAPPA[0] * X, KAPPA, disable=False)
    assert capsys.readouterr() == ("", "")


def test_an_interruption_of_the_callback_goes_through() -> None:
    class Stop(BaseException):
        pass

    def stop(step: dict[str, Any]) -> None:
        if step["i"] == 2:
            raise Stop

    model = Model()
    with pytest.raises(Stop):
        sample_evodiff(model, KAPPA[0] * X, KAPPA, callback=stop, disable=True)
    assert len(model.calls) == 3


# Which convention


def nested(path: str, leaf: Any) -> Any:
    """A model with an attribute at the end of a path."""
    for name in reversed(path.split(".")):
        leaf = SimpleNamespace(**{name: leaf})
    return leaf


class CONST:
    """A class of the name that ComfyUI's has."""


SHIFTED, PLAIN = type("ModelSampling", (CONST,), {})(), SimpleNamespace(sigma_min=0.03, sigma_max=14.6)
COMFY = SimpleNamespace(get_model_object={"model_sampling": SHIFTED}.get)


@pytest.mark.parametrize(
    ("model", "flow"),
    [
        (nested("inner_model.model_patcher", COMFY), True),
        (nested("inner_model.inner_model.model_sampling", SHIFTED), True),
        (nested("inner_model.inner_model.model_sampling", PLAIN), False),
        (nested("inner_model.predictor", SimpleNamespace(prediction_type="const")), True),
        (nested("inner_model.predictor", SimpleNamespace(prediction_type="v_prediction")), False),
        (nested("inner_model.forge_objects.unet.model.predictor", SimpleNamespace(prediction_type="const")), True),
        (
            nested("inner_model.inner_model.model.model_sampling", type("ModelSamplingDiscreteFlow", (), {})()),
            True,
        ),
        (nested("inner_model.inner_model", torch.nn.Linear(1, 1)), False),
        (lambda x, sigma: x, False),
    ],
)
def test_the_model_is_asked_what_it_is(model: Any, flow: bool) -> None:
    """Beyond 1 there are no sigmas of a flow model."""
    from fewstep.adapters.sigma_loop import flows

    assert flows(model, None) is flow
    assert flows(model, not flow) is not flow, "what is said counts"


def refused(sigmas: Any, shows: str, **more: Any) -> str:
    model = more.pop("model", lambda x, sigma: x)
    return str(refuses(GridError, shows, lambda: sample_evodiff(model, X, sigmas, disable=True, **more)))


def test_sigmas_in_another_convention() -> None:
    assert "flip" in refused(KAPPA.flip(0), "0.0, 0.109")
    assert "from 1 to 0" in refused(KAPPA, "14.6", flow=True)
    refused(f64([3.0, 1.0, -0.1]), "-0.1")
    refused(f64([3.0, float("nan"), 0.0]), "nan")
    refused(f64([float("inf"), 1.0, 0.0]), "inf")
    refused(f64([3.0, 1.0, 1.0, 0.0]), "1.0, 1.0")
    refused(torch.tensor([3, 2, 1]), "int64")
    refused(KAPPA[None].expand(3, -1), "(3, 8)")
    refused([3.0, 1.0], "[3.0, 1.0]")


def test_shares_of_noise_for_a_model_that_is_no_flow_model() -> None:
    model = nested("inner_model.inner_model.model_sampling", PLAIN)
    assert "14.6" in refused(FLOW.levels.sigma, "begin at 1", model=model)

    def call(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    called = type("Called", (), {"inner_model": model.inner_model, "__call__": lambda self, x, s: call(x, s)})()
    low = 0.999 * FLOW.levels.sigma
    assert sample_evodiff(called, X, low, disable=True).isfinite().all(), "img2img begins low"
    assert sample_evodiff(called, X, FLOW.levels.sigma, disable=True, flow=False).isfinite().all()


def test_a_flow_model_forgives_the_last_bit_above_one() -> None:
    sigmas = FLOW.levels.sigma.clone()
    sigmas[0] = 1 + 1e-7
    out = sample_evodiff(Model(True), X, sigmas, disable=True, flow=True)
    want = sample_evodiff(Model(True), X, FLOW.levels.sigma, disable=True, flow=True)
    assert torch.equal(out, want)


def test_a_model_that_makes_nan_is_named() -> None:
    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.full_like(x, float("nan"))

    refuses(NonFiniteError, "step 0", lambda: sample_evodiff(broken, X, KAPPA, disable=True))


def test_every_solver_has_a_function() -> None:
    """All but the one that needs what sigmas do not have; it can still be run by hand, on sigmas that end above 0."""
    assert set(SOLVERS) - set(SAMPLERS) == {"evodiff_paper"}
    sampler = sampler_of(UniPC(order=3, variant="bh1"))
    assert sampler.__name__ == "sample_unipc"
    out, rule = sampler(Model(), KAPPA[0] * X, KAPPA, disable=True), UniPC(order=3, variant="bh1")
    grid = Explicit(tuple(KAPPA.tolist()))(EDM(), len(KAPPA) - 1)
    assert gap(out, sample(TwoBumps(), rule, grid, KAPPA[0] * X).x) <= 1e-12


# Calibrated tables


def entry(kappa: tuple[float, ...], first: bool = False, share: float = 0.3) -> Entry:
    rows = tuple((0.0,) * i + (-share,) for i in range(len(kappa) - 2))
    return Entry(kappa, rows, first, "ddim", "made", 0.0, 0.0, 0.0)


MEAN = torch.full(SHAPE[1:], 0.1)
TABLE = Table(
    Origin("made"),
    {
        3: entry((14.0, 3.0, 0.8, 0.05)),
        4: entry((14.0, 6.0, 2.0, 0.5, 0.05)),
        5: entry((40.0, 14.0, 6.0, 2.0, 0.5, 0.1, 0.05), first=True),
    },
    MEAN,
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("nfe", [3, 4, 5])
def test_a_table_is_the_core_on_its_levels(nfe: int, flow: bool, dtype: torch.dtype) -> None:
    way = tabulated_way(TABLE, nfe, flow)
    kappa = f64(TABLE.entries[nfe].kappa)
    assert gap(sigma_of(way.grid.levels, flow), kappa / (1 + kappa) if flow else kappa) <= 1e-13
    sigmas = sigma_of(way.grid.levels, flow).to(dtype)  # at kappa = 40, float32 is 1e-6 off in alpha
    x, model, told = (way.grid.at(0).sigma * X), Model(flow), []
    out = sample_calibrated(model, x, sigmas, callback=told.append, disable=True, table=TABLE, flow=flow)
    want = sample(TwoBumps(), way.solver, way.grid, x)
    assert gap(out, want.x) <= 1e-12, f"max|a-b| = {gap(out, want.x):.1e}"
    assert len(model.calls) == want.nfe == nfe
    assert [step["i"] for step in told] == list(range(way.grid.steps)), "also for the step without a call"
    if TABLE.entries[nfe].first:
        assert torch.equal(told[0]["denoised"], MEAN.double().expand(SHAPE))
        assert torch.equal(told[0]["x"], x)
    assert gap(told[-1]["x"], want.trajectory[-2]) <= 1e-12


def test_a_table_is_a_file_its_json_or_an_object(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    TABLE.save(path)
    sigmas = f64(TABLE.entries[4].kappa)
    want = sample_calibrated(Model(), 14 * X, sigmas, disable=True, table=TABLE)
    for table in (path, str(path), json.loads(path.read_text())):
        assert torch.equal(sample_calibrated(Model(), 14 * X, sigmas, disable=True, table=table), want)
    ddim = sample(TwoBumps(), DDIM(), Explicit(TABLE.entries[4].kappa)(EDM(), 4), 14 * X).x
    assert gap(want, ddim) > 1e-3, "its weights were used"


def test_a_table_refuses() -> None:
    def run(sigmas: Tensor, table: Any = TABLE, x: Tensor = X, flow: bool = False) -> Any:
        return lambda: sample_calibrated(Model(), x, sigmas, disable=True, table=table, flow=flow)

    own = f64(TABLE.entries[4].kappa)
    assert "fewstep table sigmas" in str(refuses(GridError, "3, 4, 5 calls", run(KAPPA)))
    refuses(GridError, "5 sigmas", run(1.001 * own))
    refuses(GridError, "6 sigmas", run(torch.cat([own, f64([0.0])])))
    refuses(GridError, "0.05", run(own, flow=True))
    refuses(CheckpointError, "nowhere.json", run(own, table="nowhere.json"))
    refuses(CheckpointError, "table", run(own, table={"fewstep_table": 1}))
    refuses(ShapeError, "(3, 1, 4, 4)", run(f64(TABLE.entries[5].kappa), x=X[:, :1]))
    refuses(ConfigError, "7 calls", lambda: tabulated_way(TABLE, 7, False))
    assert sample_calibrated(None, X, own[:1], table=TABLE) is X


def test_the_third_order_rule_is_the_third_order_rule() -> None:
    """A name leads to its own rule and no other."""
    made = SAMPLERS["dpmpp_3m"](Model(), KAPPA[0] * X, KAPPA, disable=True)
    assert torch.equal(made, sampler_of(DPMpp3M())(Model(), KAPPA[0] * X, KAPPA, disable=True))
    others = [SAMPLERS[name](Model(), KAPPA[0] * X, KAPPA, disable=True) for name in ("ddim", "dpmpp_2m", "unipc_3")]
    assert all(gap(made, other) > 1e-6 for other in others)


def test_the_block_of_the_page_runs() -> None:
    """Data N(0.4, 0.5^2), in five calls."""
    page = (Path(__file__).parents[2] / "docs" / "comfyui.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(import torch.*?)```", page, flags=re.DOTALL)[1]
    torch.manual_seed(0)
    exec(compile(block, "docs/comfyui.md", "exec"), made := {})
    assert made["images"].shape == (2, 3, 8, 8)
    assert abs(made["images"].mean().item() - 0.4) < 0.1
    assert abs(made["images"].std().item() - 0.5) < 0.1


def test_torch_is_all_that_is_needed() -> None:
    """Every adapter of this kind is imported, and one runs, where no other library can be."""
    barred = ["numpy", "tqdm", "safetensors", "diffusers", "transformers", "scipy", "typer", "rich", "PIL"]
    code = f"""
import sys, warnings
sys.modules.update({{name: None for name in {barred!r}}})
warnings.simplefilter("ignore")
import torch
import fewstep.adapters.comfyui, fewstep.adapters.forge
from fewstep.adapters.kdiffusion import SAMPLERS
for sampler in SAMPLERS.values():
    out = sampler(lambda x, sigma: 0.5 * x, torch.ones(2, 3), torch.tensor([5.0, 1.0, 0.0]), disable=False)
print(tuple(out.shape))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(2, 3)", done.stderr
