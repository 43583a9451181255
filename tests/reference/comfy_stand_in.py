"""ComfyUI without ComfyUI: its call sequence, written from its interface, with an exact denoiser for a network.

``Guider.sample`` -> ``KSAMPLER.sample`` -> the sampler function, which is handed ``KSamplerX0Inpaint`` around the
guider, noise scaled by ``model_sampling``, and ``extra_args`` with model_options, seed and denoise_mask. Three kinds of
``model_sampling``: EPS and V on Stable Diffusion's table of 1000 levels, CONST on a shifted clock. Samples stay in
float64 until the guider casts its result to float32, as ComfyUI does.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

__all__ = ["CONST", "EPS", "KSAMPLER", "V_PREDICTION", "Guider", "Patcher", "inside_comfyui", "patcher_of"]

Oracle = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, alpha, sigma) -> denoised


def _column(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.reshape(sigma.shape[:1] + (1,) * (like.ndim - 1)) if sigma.ndim else sigma


def _table() -> Tensor:
    """Sigmas of Stable Diffusion: betas whose square roots lie on a line."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bar = (1 - betas).cumprod(0)
    return ((1 - bar) / bar).sqrt().float()


class _Levels:
    """What every model_sampling has."""

    def __init__(self, sigmas: Tensor) -> None:
        self.sigmas = sigmas

    @property
    def sigma_min(self) -> Tensor:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> Tensor:
        return self.sigmas[-1]


class EPS:
    """x = x0 + sigma eps; the network reads x / sqrt(1 + sigma^2) and gives eps."""

    def network_level(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()

    def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x / (1 + _column(sigma, x) ** 2).sqrt()

    def ideal_output(self, x: Tensor, alpha: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        return (x - alpha * denoised) / sigma

    def calculate_denoised(self, sigma: Tensor, out: Tensor, x: Tensor) -> Tensor:
        return x - out * _column(sigma, x)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool = False) -> Tensor:
        sigma = _column(sigma, noise)
        return latent + noise * ((1 + sigma**2).sqrt() if max_denoise else sigma)

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent


class V_PREDICTION(EPS):
    """The network gives v = alpha eps - sigma x0."""

    def ideal_output(self, x: Tensor, alpha: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        return alpha * (x - alpha * denoised) / sigma - sigma * denoised

    def calculate_denoised(self, sigma: Tensor, out: Tensor, x: Tensor) -> Tensor:
        sigma = _column(sigma, x)
        return x / (sigma**2 + 1) - out * sigma / (sigma**2 + 1).sqrt()


class CONST:
    """x = (1 - sigma) x0 + sigma eps; the network gives eps - x0."""

    def network_level(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - sigma, sigma

    def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x

    def ideal_output(self, x: Tensor, alpha: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        return (x - denoised) / sigma

    def calculate_denoised(self, sigma: Tensor, out: Tensor, x: Tensor) -> Tensor:
        return x - out * _column(sigma, x)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool = False) -> Tensor:
        sigma = _column(sigma, noise)
        return sigma * noise + (1 - sigma) * latent

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent / (1 - sigma)


def _model_sampling(kind: type, shift: float) -> Any:
    """An object of two classes, as ComfyUI makes them: what a network gives, and its levels."""
    t = torch.arange(1, 1001, dtype=torch.float32) / 1000
    sigmas = shift * t / (1 + (shift - 1) * t) if issubclass(kind, CONST) else _table()
    return type("ModelSampling", (_Levels, kind), {})(sigmas)


class BaseModel:
    """A network that is exact: ``oracle`` answers in the coordinates that the network works in."""

    def __init__(self, model_sampling: Any, oracle: Oracle) -> None:
        self.model_sampling, self.oracle, self.calls = model_sampling, oracle, []

    def apply_model(self, x: Tensor, sigma: Tensor, scale: float) -> Tensor:
        """Denoised, by way of the network's output; scale stands for a condition."""
        sampling = self.model_sampling
        self.calls.append(sigma)
        xc, (alpha, s) = sampling.calculate_input(sigma, x), sampling.network_level(sigma)
        alpha, s = _column(alpha, x), _column(s, x)
        out = sampling.ideal_output(xc, alpha, s, scale * self.oracle(xc, alpha, s))
        return sampling.calculate_denoised(sigma, out, x)


class Patcher:
    """What the type MODEL of the nodes is."""

    def __init__(self, model: BaseModel) -> None:
        self.model, self.model_options, self.object_patches = model, {"transformer_options": {}}, {}

    def get_model_object(self, name: str) -> Any:
        return self.object_patches.get(name, getattr(self.model, name))


def patcher_of(kind: type, oracle: Oracle, shift: float = 3.0) -> Patcher:
    """A loaded model."""
    return Patcher(BaseModel(_model_sampling(kind, shift), oracle))


class KSamplerX0Inpaint:
    """What a sampler function is handed as its model."""

    def __init__(self, model: Any, sigmas: Tensor) -> None:
        self.inner_model, self.sigmas = model, sigmas

    def __call__(
        self, x: Tensor, sigma: Tensor, denoise_mask: Tensor | None, model_options: Any = None, seed: Any = None
    ) -> Tensor:
        if denoise_mask is not None:
            sampling = self.inner_model.inner_model.model_sampling
            kept = sampling.noise_scaling(_column(sigma, x), self.noise, self.latent_image)
            x = x * denoise_mask + kept * (1 - denoise_mask)
        out = self.inner_model(x, sigma, model_options=model_options, seed=seed)
        return out if denoise_mask is None else out * denoise_mask + self.latent_image * (1 - denoise_mask)


class KSAMPLER:
    """What the type SAMPLER of the nodes is."""

    def __init__(self, sampler_function: Any, extra_options: Any = None, inpaint_options: Any = None) -> None:
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(
        self,
        model_wrap: Guider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        extra_args["denoise_mask"] = denoise_mask
        model_k = KSamplerX0Inpaint(model_wrap, sigmas)
        model_k.latent_image, model_k.noise = latent_image, noise
        sampling = model_wrap.inner_model.model_sampling
        most = float(sampling.sigma_max)
        whole = math.isclose(most, float(sigmas[0]), rel_tol=1e-5) or float(sigmas[0]) > most
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, whole)
        told = None if callback is None else lambda d: callback(d["i"], d["denoised"], d["x"], len(sigmas) - 1)
        out = self.sampler_function(
            model_k, x, sigmas, extra_args=extra_args, callback=told, disable=disable_pbar, **self.extra_options
        )
        return sampling.inverse_noise_scaling(sigmas[-1], out)


class Guider:
    """ComfyUI's CFGGuider: two conditions, one of them scaled."""

    def __init__(self, patcher: Patcher, cfg: float = 1.0, unconditional: float = 0.5) -> None:
        self.model_patcher, self.cfg, self.unconditional = patcher, cfg, unconditional

    def __call__(self, x: Tensor, sigma: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:
        positive = self.inner_model.apply_model(x, sigma, 1.0)
        if self.cfg == 1:
            return positive
        negative = self.inner_model.apply_model(x, sigma, self.unconditional)
        return negative + (positive - negative) * self.cfg

    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: KSAMPLER,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Any = None,
        disable_pbar: bool = True,
        seed: int | None = None,
    ) -> Tensor:
        """ComfyUI's sample, outer_sample and inner_sample in one."""
        if sigmas.shape[-1] == 0:
            return latent_image
        self.inner_model = self.model_patcher.model
        options = {"transformer_options": {"sample_sigmas": sigmas}}
        extra_args = {"model_options": options, "seed": seed}
        try:
            with torch.inference_mode():
                self.exact = sampler.sample(
                    self, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
                )
        finally:
            del self.inner_model
        return self.exact.to(torch.float32)


@contextmanager
def inside_comfyui() -> Iterator[None]:
    """``comfy.samplers`` can be imported inside the block."""
    comfy, samplers = ModuleType("comfy"), ModuleType("comfy.samplers")
    comfy.samplers, samplers.KSAMPLER = samplers, KSAMPLER  # type: ignore[attr-defined]
    sys.modules.update({"comfy": comfy, "comfy.samplers": samplers})
    try:
        yield
    finally:
        for name in ("comfy", "comfy.samplers"):
            sys.modules.pop(name)
