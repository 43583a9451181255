r"""Our models as pipelines of diffusers: what ``fewstep export`` writes.

This path is frozen: ``model_index.json`` and ``config.json`` of an exported folder name it. It needs the extra
``diffusers``.

A diffusers network is told a timestep, one of ours a noise level. The export takes the coordinates that lose nothing: a
model whose schedule reaches pure noise becomes a flow, :math:`\alpha = 1 - \sigma` with timestep
:math:`1000\,\sigma`, which predicts ``(x - denoised) / sigma``; any other (EDM, VP) a table of betas over its own range
of noise, with EDM's spacing, that predicts the data.
"""

# Annotations are objects here, not text: diffusers reads those of a pipeline's constructor, older versions as they are.
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Generator, Tensor

from fewstep._model_config import ModelConfig
from fewstep._tensor import expand
from fewstep.adapters.diffusers_config import TIMESTEPS, described, need_diffusers, scheduler_config
from fewstep.denoisers import Cond
from fewstep.errors import ConfigError, ShapeError, choose

need_diffusers()

from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: E402
from diffusers.models.modeling_utils import ModelMixin  # noqa: E402
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput  # noqa: E402
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: E402
from diffusers.utils.outputs import BaseOutput  # noqa: E402
from diffusers.utils.torch_utils import randn_tensor  # noqa: E402

# A pipeline finds how to load a component by the base classes that stand beside it in its module.
__all__ = ["DEFAULT_STEPS", "TIMESTEPS", "FewstepModel", "FewstepPipeline", "ModelMixin", "scheduler_config"]

DEFAULT_STEPS = 10
_EULER = "FlowMatchEulerDiscreteScheduler"


@dataclass
class ModelOutput(BaseOutput):
    """What the network returned.

    Attributes:
        sample: the prediction, shape of the samples.
    """

    sample: Tensor


class FewstepModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """One of our denoisers under the interface of a U-Net of diffusers.

    Args:
        model: the model's configuration, as its folder has it.
        trained_betas: of a table; None for a flow.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, model: Mapping[str, Any], trained_betas: Sequence[float] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        config = ModelConfig.from_json(model)
        self.network = config.body()
        self.denoiser = config.denoiser(self.network)
        self.null = config.null
        self.shape = config.shape
        self.known = described(scheduler_config(trained_betas))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        tokens: Tensor | None = None,
        return_dict: bool = True,
    ) -> ModelOutput | tuple[Tensor]:
        """Predict for samples at a timestep.

        Args:
            sample: noisy samples, shape (b, c, h, w).
            timestep: () or (b,), of the scheduler that was exported with it.
            class_labels: int64, shape (b,); the class that says nothing if omitted.
            tokens: of the captions, int64, shape (b, length); those that say nothing if omitted.
            return_dict: return an object with the attribute `sample` instead of a tuple.

        Returns:
            The velocity ``eps - x0`` of a flow, or the data of a table; shape and dtype of the samples.
        """
        t = torch.as_tensor(timestep).detach().double().cpu()
        level = self.known.schedule.level(t / TIMESTEPS if self.known.flow else t + 1)
        denoised = self.denoiser(sample, level, self._cond(len(sample), class_labels, tokens))
        if self.known.flow:
            denoised = (sample - denoised) / expand(level.sigma, sample)
        return ModelOutput(sample=denoised) if return_dict else (denoised,)

    def _cond(self, count: int, labels: Tensor | None, tokens: Tensor | None) -> Cond:
        told = {"label": labels, "tokens": tokens}
        rows = {name: told[name] for name in self.null}
        silent = {name: null.expand(count, *null.shape[1:]) for name, null in self.null.items()}
        return {name: (silent[name] if row is None else row).to(self.device) for name, row in rows.items()}


class FewstepPipeline(DiffusionPipeline):
    """Images of a model that was trained with fewstep.

    Args:
        unet: the network.
        scheduler: how it is sampled.
        classes: names of the classes.
        steps: how many are made if nobody says.
        chain: sigmas for each number of steps that the model was trained for end to end; of another number nothing is
            known. Empty for models of ordinary training.
    """

    def __init__(
        self,
        unet: FewstepModel,
        scheduler: SchedulerMixin,
        # The one spelling of a union that all versions know.
        classes: Optional[list[str]] = None,  # noqa: UP045
        steps: int = DEFAULT_STEPS,
        chain: Optional[dict[str, list[float]]] = None,  # noqa: UP045
    ) -> None:
        super().__init__()
        modules: Any = self.register_modules
        modules(unet=unet, scheduler=scheduler)
        register: Any = self.register_to_config
        register(classes=list(classes or ()), steps=steps, chain=dict(chain or {}))

    @property
    def _said(self) -> Any:
        """The configuration; its keys are also its attributes."""
        return self.config

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Sample images.

        Args:
            batch_size: how many; with `class_labels`, one for each of them.
            class_labels: indices of classes; without any, 0, 1, 2... in turn for a model that has them.
            num_inference_steps: calls of the network; of a chain one of those it was trained for.
            guidance_scale: w in ``uncond + w * (cond - uncond)``; 1 is none.
            generator: source of the noise, or one for each image.
            latents: the noise itself, shape (b, c, h, w), standard normal.
            output_type: "pil", "np" or "pt"; "latent" for numbers in [-1, 1] as they come out.
            return_dict: return an object with the attribute `images` instead of a tuple.

        Returns:
            The images.

        Raises:
            ConfigError: if the chain was not trained for these steps, or guidance is asked of a model without classes.
            ShapeError: if the noise has another shape.
        """
        labels = self._labels(batch_size, class_labels, guidance_scale)
        x = self._noise(len(labels) if labels is not None else batch_size, generator, latents)
        self._set_steps(num_inference_steps)
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)  # flow-matching schedulers have none: they begin at 1
        for t in self.progress_bar(self.scheduler.timesteps):
            out = self._predicted(self._scaled(x, t), t, labels, guidance_scale)
            x = self.scheduler.step(out, t, x, return_dict=False)[0]
        images = self._finished(x, output_type)
        super().maybe_free_model_hooks()  # type: ignore[no-untyped-call]
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, count: int, given: Sequence[int] | None, guidance: float) -> Tensor | None:
        classes = len(self._said.classes)
        if not classes and (given is not None or guidance != 1):
            raise ConfigError(
                f"class_labels={given} and guidance {guidance:g} for a model without classes",
                "There is nothing to guide it to",
                "Leave both out",
            )
        labels = list(given) if given is not None else [i % max(classes, 1) for i in range(count)]
        if classes and not all(0 <= label < classes for label in labels):
            raise ConfigError(f"class_labels={labels}", f"Indices of classes: 0 to {classes - 1}", "Choose among them")
        return torch.tensor(labels, device=self._execution_device) if classes else None

    def _noise(self, count: int, generator: Any, latents: Tensor | None) -> Tensor:
        shape = (count, *self.unet.shape)
        if latents is None:
            drawn: Tensor = randn_tensor(shape, generator, device=self._execution_device, dtype=self.unet.dtype)
            return drawn
        if latents.shape != shape:
            raise ShapeError(f"latents of shape {tuple(latents.shape)}", f"Noise of shape {shape}", "Draw it so")
        return latents.to(self._execution_device)

    def _set_steps(self, steps: int | None) -> None:
        steps, chain, scheduler = self._said.steps if steps is None else steps, self._said.chain, self.scheduler
        euler = type(scheduler).__name__ == _EULER
        if chain and not euler:
            raise ConfigError(
                f"A {type(scheduler).__name__} for a model that was trained through a chain",
                f"Its steps are Euler's, of {', '.join(chain)} steps; any other rule makes noise of them",
                f"Set pipe.scheduler = diffusers.{_EULER}()",
            )
        if chain:
            sigmas = list(choose(str(steps), chain, "number of steps of this chain"))
            scheduler.set_timesteps(sigmas=sigmas, device=self._execution_device)
            self._refuse_other_steps([*sigmas, 0.0])
        elif steps < 1:
            raise ConfigError(f"num_inference_steps={steps}", "One step or more", "Ask for instance for 8")
        elif euler:  # by itself it ends with a step of 1 / 1000 that a call is spent on
            even = [1 - i / steps for i in range(steps)]
            scheduler.set_timesteps(sigmas=even, device=self._execution_device)
        else:
            scheduler.set_timesteps(steps, device=self._execution_device)

    def _refuse_other_steps(self, sigmas: list[float]) -> None:
        """A shift, a ramp or fresh noise in the scheduler's configuration makes other steps of the chain's sigmas."""
        near = torch.allclose(self.scheduler.sigmas.cpu(), torch.tensor(sigmas), atol=1e-5)
        if not near or self.scheduler.config.get("stochastic_sampling"):
            raise ConfigError(
                f"A {_EULER} that makes other steps of this chain's sigmas {sigmas}",
                "One without shift, ramp or fresh noise",
                f"Set pipe.scheduler = diffusers.{_EULER}()",
            )

    def _scaled(self, x: Tensor, t: Tensor) -> Tensor:
        """Samples as the network takes them; schedulers of flows have nothing to scale, and no method for it."""
        scaled: Tensor = getattr(self.scheduler, "scale_model_input", lambda x, _: x)(x, t)
        return scaled

    def _predicted(self, x: Tensor, t: Tensor, labels: Tensor | None, guidance: float) -> Tensor:
        told: Tensor = self.unet(x, t, labels, return_dict=False)[0]
        if guidance == 1:
            return told
        free = self.unet(x, t, return_dict=False)[0]
        guided: Tensor = free + guidance * (told - free)
        return guided

    def _finished(self, x: Tensor, kind: str) -> Any:
        if kind == "latent":
            return x
        x = (x / 2 + 0.5).clamp(0, 1).float().cpu()
        if kind == "pt":
            return x
        arrays = x.permute(0, 2, 3, 1).numpy()
        return arrays if kind == "np" else self.numpy_to_pil(arrays)  # type: ignore[no-untyped-call]
