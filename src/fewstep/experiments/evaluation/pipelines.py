"""Text-to-image pipelines of diffusers as generators, counted on their denoiser."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep._files import fingerprint, require
from fewstep._hub import Kind, loading, place_of
from fewstep.errors import CheckpointError, ConfigError, NonFiniteError
from fewstep.experiments.evaluation.generators import Asked, check_asked
from fewstep.experiments.runs import Drawn, check_batch

__all__ = ["PipelineGenerator", "load_pipeline", "pipeline_name"]

_KIND = Kind(
    "text-to-image pipeline",
    "model_index.json",
    "stabilityai/stable-diffusion-xl-base-1.0",
    "diffusers",
    ("diffusers", "transformers"),
)


class PipelineGenerator:
    """A text-to-image pipeline of diffusers, in its own scheduler, with one random generator per image.

    The generators are on the host, so an image is the same on every kind of device up to rounding. A safety checker is
    taken out: it would paint over images, which then would be measured.

    Args:
        path_or_id: a folder that diffusers wrote, with safetensors weights, or a hub id.
        steps: of its scheduler; the calls of the denoiser are counted and may be more.
        guidance: its ``guidance_scale``; for most pipelines 1 is none.
        size: height and width in pixels; None takes the pipeline's own.
        device: where to run.
        dtype: of the weights and of the computation.
        batch_size: images per call.

    Raises:
        MissingExtra: if diffusers is not installed.
        MissingWeights: if there is no such folder, a file is missing from it, or the hub cannot be reached.
        CheckpointError: if it is damaged, or no text-to-image pipeline with a unet or transformer.
        ConfigError: if an option is outside its range, or the pipeline has no such option.
    """

    def __init__(
        self,
        path_or_id: str | Path,
        steps: int,
        guidance: float = 1.0,
        size: int | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 8,
    ) -> None:
        check_batch(batch_size)
        if steps < 1 or (size is not None and size < 1):
            raise ConfigError(f"steps={steps}, size={size}", "Both are at least 1", "Choose for instance steps=10")
        self.pipeline: Any = load_pipeline(path_or_id, dtype).to(device)
        _check_prompted(self.pipeline, path_or_id)
        self.name = pipeline_name(path_or_id)
        self.steps, self.guidance, self.size, self.batch_size = steps, guidance, size, batch_size
        self.denoiser = _denoiser(self.pipeline, self.name)
        self.fingerprint = fingerprint(self.denoiser.state_dict())
        self._options = self._chosen()

    def _chosen(self) -> dict[str, Any]:
        """Options of the pipeline's call; one it does not have is refused unless it would change nothing."""
        known = inspect.signature(type(self.pipeline).__call__).parameters
        wished = {"guidance_scale": self.guidance, "height": self.size, "width": self.size}
        idle = {"guidance_scale": 1.0, "height": None, "width": None}
        missing = [name for name, value in wished.items() if name not in known and value != idle[name]]
        if missing:
            raise ConfigError(
                f"{missing[0]}={wished[missing[0]]} for {type(self.pipeline).__name__}",
                "This pipeline has no such option",
                "Leave it out, or choose another pipeline",
            )
        return {name: value for name, value in wished.items() if name in known and value is not None}

    def __call__(self, seeds: Sequence[int], asked: Asked = None) -> Drawn:
        """Make one image per seed and prompt.

        Args:
            seeds: n of them.
            asked: n prompts; they are needed.

        Returns:
            Images, float32, shape (n, c, h, w), in [-1, 1]; nfe are the calls of the unet or transformer per batch,
            network_evals the samples that went through it per image: guidance makes two per call.

        Raises:
            ConfigError: if the prompts are missing.
            ShapeError: if there is not one per seed.
            NonFiniteError: if an image has NaN in it.
        """
        if asked is None or isinstance(asked, Tensor):
            raise ConfigError(f"No prompts for {self.name}", "A prompt per image", "Pass prompts, not classes")
        check_asked(seeds, asked)
        start, parts, count = time.perf_counter(), [], _Count()
        with self.denoiser.register_forward_pre_hook(count, with_kwargs=True):
            for first in range(0, len(seeds), self.batch_size):
                chosen = slice(first, first + self.batch_size)
                count.calls = 0
                parts.append(self._batch(seeds[chosen], asked[chosen]))
        return Drawn(torch.cat(parts), count.calls, round(count.samples / len(seeds)), time.perf_counter() - start)

    def _batch(self, seeds: Sequence[int], prompts: Sequence[str]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        made = self.pipeline(
            prompt=list(prompts),
            generator=generators,
            num_inference_steps=self.steps,
            output_type="pt",
            **self._options,
        )
        images: Tensor = made.images.float().cpu() * 2 - 1
        broken = [seed for seed, image in zip(seeds, images, strict=True) if not image.isfinite().all()]
        if broken:
            raise NonFiniteError(
                f"{self.name} made {len(broken)} images with NaN, of the seeds {broken}",
                "Images are finite",
                "Use dtype=torch.float32 or bfloat16; some decoders overflow in float16",
            )
        return images

    def describe(self) -> dict[str, Any]:
        """Say what makes the images, for a protocol; see :class:`Generator`."""
        scheduler = self.pipeline.scheduler
        config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:12]
        return {
            "kind": f"diffusers {type(self.pipeline).__name__}",
            "model": self.name,
            "model_hash": self.fingerprint,
            "solver": type(scheduler).__name__,
            "grid": f"{config.get('timestep_spacing', 'its own')}, {self.steps} steps, scheduler config {digest}",
            "nfe": self.steps,
            "guidance": self.guidance,
            "size": self.size,
            "dtype": str(self.pipeline.dtype).removeprefix("torch."),
        }


class _Count:
    """Counts what goes into a module, as its forward pre-hook."""

    def __init__(self) -> None:
        self.calls, self.samples = 0, 0

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # By name where the pipeline passes it so: unets call it sample, transformers hidden_states or x.
        names = ("hidden_states", "sample", "x")
        batch = args[0] if args else next(kwargs[name] for name in names if name in kwargs)
        self.calls += 1
        self.samples += len(batch)


def load_pipeline(path_or_id: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load a pipeline of any kind: quietly, without bars and without its safety checker.

    Args:
        path_or_id: a folder that diffusers wrote, with safetensors weights, or a hub id.
        dtype: of the weights and of the computation.

    Returns:
        The pipeline of diffusers, on the host.

    Raises:
        MissingExtra: if diffusers is not installed.
        MissingWeights: if there is no such folder, a file is missing from it, or the hub cannot be reached.
        CheckpointError: if it is damaged.
    """
    place, diffusers = place_of(path_or_id, _KIND), require("diffusers", _KIND.extra)
    with loading(place, _KIND), warnings.catch_warnings():
        # The older of its two names for the dtype: diffusers 0.35 knows only this one, newer releases warn of it.
        warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
        pipeline = diffusers.DiffusionPipeline.from_pretrained(place, use_safetensors=True, torch_dtype=dtype)
        _check_whole(pipeline, place)
        if getattr(pipeline, "safety_checker", None) is not None:
            pipeline.register_modules(safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pipeline_name(path_or_id: str | Path) -> str:
    """Name a pipeline: the last part of its folder's path, or its hub id."""
    return Path(path_or_id).name if Path(path_or_id).is_dir() else str(path_or_id)


def _check_prompted(pipeline: Any, place: str | Path) -> None:
    """Refuse a pipeline that makes images of something else than prompts and seeds."""
    needed = {"prompt", "generator", "num_inference_steps", "output_type"}
    if not needed <= inspect.signature(type(pipeline).__call__).parameters.keys():
        raise CheckpointError(
            f"{place} is a {type(pipeline).__name__}, which cannot be asked for images by prompts and seeds",
            f"The call of a text-to-image pipeline has {', '.join(sorted(needed))}",
            "Give a text-to-image pipeline",
        )


def _check_whole(pipeline: Any, place: str) -> None:
    """Refuse a part whose weights were not all there; diffusers leaves the others without storage."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    gaps = [f"{part}.{name}" for part in parts for name, value in parts[part].named_parameters() if value.is_meta]
    if gaps:
        raise CheckpointError(
            f"The weights in {place} lack {len(gaps)} of the pipeline's: {', '.join(gaps[:3])}",
            "A checkpoint holds all weights of its networks",
            "Download it again",
        )


def _denoiser(pipeline: Any, name: str) -> torch.nn.Module:
    for part in ("unet", "transformer"):
        module = getattr(pipeline, part, None)
        if isinstance(module, torch.nn.Module):
            return module
    raise CheckpointError(
        f"{name} ({type(pipeline).__name__}) has no unet or transformer",
        "The calls of the denoiser are counted on one of these parts",
        "Give a pipeline of one stage",
    )
