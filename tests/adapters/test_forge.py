"""The hook of Forge and A1111, in stand-ins that follow their call sequence; the model is exact."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from contracts.inventory import gap
from contracts.problems import TwoBumps, batch
from torch import Tensor

from fewstep.adapters.forge import register
from fewstep.adapters.kdiffusion import SAMPLERS
from fewstep.noise import EDM, Explicit, Karras, LinearFlow, NoiseLevel, Trailing
from fewstep.sampling import sample
from fewstep.solvers import DDIM, SOLVERS, EulerAncestral

SHAPE = (2, 4, 6, 6)
X = batch(SHAPE)
KAPPA = Karras(end="zero", kappa_max=14.6, kappa_min=0.03)(EDM(), 6).levels.sigma
FLOW = Trailing()(LinearFlow(), 6).levels.sigma


class InterruptedException(BaseException):
    """What the model raises when the user presses the button."""


class CFGDenoiser(torch.nn.Module):
    """The model that a sampler function is handed; `predictor` is where Forge says what it is."""

    def __init__(self, predictor: Any) -> None:
        super().__init__()
        self.inner_model = SimpleNamespace(predictor=predictor)
        self.step, self.calls, self.stop_at = 0, [], None

    def forward(
        self, x: Tensor, sigma: Tensor, uncond: Any, cond: Any, cond_scale: float, s_min_uncond: float, image_cond: Any
    ) -> Tensor:
        if self.step == self.stop_at:
            raise InterruptedException
        self.step += 1
        self.calls.append(sigma)
        flow = self.inner_model.predictor.prediction_type == "const"
        return TwoBumps()(x, NoiseLevel(1 - sigma if flow else torch.ones_like(sigma), sigma))


class TorchHijack:
    """What stands for torch in k-diffusion during a run: noise of the image's own generator."""

    def __init__(self) -> None:
        self.drawn = 0

    def randn_like(self, x: Tensor) -> Tensor:
        self.drawn += 1
        return batch(tuple(x.shape), seed=50 + self.drawn)


class KDiffusionSampler:
    """The interface's sampler: reads the signature of the function, fills in what it finds, and launches it."""

    def __init__(self, funcname: Any, sd_model: Any) -> None:
        self.extra_params = {"sample_euler": ["s_churn"]}.get(funcname, [])  # so it must be hashable
        self.func = funcname if callable(funcname) else getattr(sys.modules["k_diffusion.sampling"], funcname)
        self.model_wrap_cfg, self.last_latent, self.config, self.steps = CFGDenoiser(sd_model), None, None, []

    def callback_state(self, d: dict[str, Any]) -> None:
        self.steps.append(d["i"])

    def initialize(self, eta: float) -> dict[str, Any]:
        sys.modules["k_diffusion.sampling"].torch = TorchHijack()  # type: ignore[attr-defined]
        return {"eta": eta} if "eta" in inspect.signature(self.func).parameters else {}

    def launch_sampling(self, steps: int, func: Any) -> Tensor:
        self.total_steps = steps * (2 if self.config.options.get("second_order", False) else 1)
        try:
            return func()
        except InterruptedException:
            return self.last_latent

    def sample(self, x: Tensor, sigmas: Tensor, eta: float = 1.0) -> Tensor:
        flow = self.model_wrap_cfg.inner_model.predictor.prediction_type == "const"
        assert not flow or sigmas[0] == 1
        x = x * sigmas[0]
        more, parameters = self.initialize(eta), inspect.signature(self.func).parameters
        if "n" in parameters:
            more["n"] = len(sigmas) - 1
        if "sigma_min" in parameters:
            more |= {"sigma_min": 0.03, "sigma_max": 14.6}
        if "sigmas" in parameters:
            more["sigmas"] = sigmas
        if self.config.options.get("brownian_noise", False):
            more["noise_sampler"] = None
        self.last_latent = x
        args = {"cond": 1, "image_cond": 2, "uncond": 3, "cond_scale": 7.0, "s_min_uncond": 0.0}

        def launched() -> Tensor:
            return self.func(
                self.model_wrap_cfg, x, extra_args=args, disable=True, callback=self.callback_state, **more
            )

        return self.launch_sampling(len(sigmas) - 1, launched)


class SamplerData(namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])):
    """A line of the list of samplers."""


@pytest.fixture
def webui(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The modules of the interface, with one sampler of its own; gives modules.sd_samplers."""
    names = ("", ".sd_samplers", ".sd_samplers_common", ".sd_samplers_kdiffusion")
    made = {f"modules{name}": ModuleType(f"modules{name}") for name in names}
    made |= {name: ModuleType(name) for name in ("k_diffusion", "k_diffusion.sampling")}
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    made["modules.sd_samplers_common"].SamplerData = SamplerData  # type: ignore[attr-defined]
    made["modules.sd_samplers_kdiffusion"].KDiffusionSampler = KDiffusionSampler  # type: ignore[attr-defined]
    samplers: Any = made["modules.sd_samplers"]
    samplers.all_samplers = [SamplerData("Euler", None, ["k_euler"], {})]
    samplers.all_samplers_map = {data.name: data for data in samplers.all_samplers}
    samplers.samplers, samplers.samplers_map = [], {}

    def set_samplers() -> None:
        samplers.samplers = samplers.all_samplers
        samplers.samplers_map.clear()
        for data in samplers.all_samplers:
            samplers.samplers_map |= {alias.lower(): data.name for alias in (data.name, *data.aliases)}

    samplers.set_samplers = set_samplers
    return samplers


def created(webui: Any, name: str, kind: str = "epsilon") -> KDiffusionSampler:
    """A sampler by its name in the interface."""
    config = webui.all_samplers_map[name]
    sampler = config.constructor(SimpleNamespace(prediction_type=kind, sigma_min=0.03, sigma_max=14.6))
    sampler.config = config
    return sampler


def test_registration(webui: Any) -> None:
    added = register()
    assert added == tuple(f"fewstep {name}" for name in SAMPLERS)
    assert [data.name for data in webui.samplers] == ["Euler", *added]
    assert webui.samplers_map["fewstep_evodiff"] == "fewstep evodiff"
    assert register() == (), "reloading the interface runs the script again"
    assert len(webui.samplers) == 1 + len(added)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("flow", [False, True])
def test_the_core_by_way_of_the_interface(webui: Any, name: str, flow: bool) -> None:
    """Whatever the interface reads in the signature and fills in: eta 1, as it does unless the user changes it."""
    register()
    sampler, sigmas = created(webui, f"fewstep {name}", "const" if flow else "epsilon"), FLOW if flow else KAPPA
    out = sampler.sample(X, sigmas)
    grid = Explicit(tuple(sigmas.tolist()))(LinearFlow() if flow else EDM(), 6)
    hijack, made = TorchHijack(), SOLVERS[name]()
    want = sample(TwoBumps(), made, grid, sigmas[0] * X, noise=lambda i, like: hijack.randn_like(like))
    assert gap(out, want.x) <= 1e-12, f"max|a-b| = {gap(out, want.x):.1e}"
    assert len(sampler.model_wrap_cfg.calls) == want.nfe
    assert sampler.steps == list(range(6))
    assert sampler.total_steps == (12 if name == "heun" else 6)


@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_eta_of_the_interface(webui: Any, eta: float) -> None:
    """It reaches the ancestral rules, and leaves DDIM deterministic."""
    register()
    grid = Explicit(tuple(KAPPA.tolist()))(EDM(), 6)
    for name, rule in (("euler_ancestral", EulerAncestral(eta)), ("ddim", DDIM())):
        hijack = TorchHijack()
        out = created(webui, f"fewstep {name}").sample(X, KAPPA, eta=eta)
        want = sample(TwoBumps(), rule, grid, KAPPA[0] * X, noise=lambda i, like: hijack.randn_like(like)).x  # noqa: B023
        assert gap(out, want) <= 1e-12, f"{name}: max|a-b| = {gap(out, want):.1e}"


def test_an_interrupted_run_returns_the_last_latent(webui: Any) -> None:
    register()
    sampler = created(webui, "fewstep evodiff")
    sampler.model_wrap_cfg.stop_at = 3
    assert torch.equal(sampler.sample(X, KAPPA), KAPPA[0] * X)
    assert sampler.steps == [0, 1, 2]


def test_img2img_of_the_interface(webui: Any) -> None:
    """The last sigmas of a run, from noised latents."""
    register()
    sampler = created(webui, "fewstep evodiff")
    latent = 0.3 * batch(SHAPE, seed=2)
    out = sampler.sample((latent + KAPPA[2] * X) / KAPPA[2], KAPPA[2:])
    grid = Explicit(tuple(KAPPA[2:].tolist()))(EDM(), 4)
    assert gap(out, sample(TwoBumps(), SOLVERS["evodiff"](), grid, latent + KAPPA[2] * X).x) <= 1e-12


def test_outside_of_the_interface() -> None:
    code = (
        "from fewstep.adapters.forge import register\nfrom fewstep.errors import MissingExtra\n"
        "try:\n    register()\nexcept MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "extensions/fewstep/scripts/fewstep_forge.py" in done.stdout


def test_the_script_of_the_page_registers(webui: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "comfyui.md").read_text(encoding="utf-8")
    assert "extensions/fewstep/scripts/fewstep_forge.py" in page
    script = re.search(r"```python\n(from fewstep\.adapters\.forge.*?)```", page, flags=re.DOTALL)[1]
    assert len([line for line in script.splitlines() if line]) == 2
    exec(compile(script, "fewstep_forge.py", "exec"), {})
    assert "fewstep evodiff" in webui.all_samplers_map
