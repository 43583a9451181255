"""From diffusers into fewstep: any network of diffusers as a denoiser.

A network of diffusers reads timesteps, names its conditions in its own way and knows nothing of its noise levels, which
stand in the configuration of its scheduler. :func:`wrap` puts the two together; all that is fewstep then works on it:
every solver on every grid, guidance, calibration and training through the chain.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fewstep._files import read_json
from fewstep.adapters.diffusers_config import described
from fewstep.denoisers import Cond, NetworkDenoiser
from fewstep.errors import CheckpointError, ConfigError, ShapeError

__all__ = ["kind_of", "network_of", "wrap"]

_TRAINED = 1000


class _Kind(NamedTuple):
    """How a class of networks is called.

    Attributes:
        input: name of its samples.
        needs: conditions without which it cannot be called.
        takes: conditions that it may be told.
        added: those that are passed as entries of ``added_cond_kwargs``.
        shared: those of which one row serves the whole batch.
        divisor: what the timestep is divided by.
    """

    input: str = "hidden_states"
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    divisor: float = 1.0


_TEXT, _MASKS, _IDS = "encoder_hidden_states", ("attention_mask", "encoder_attention_mask"), ("txt_ids", "img_ids")
# Only what is known is called: some networks of the same signature read 1 - t, or return the flow's negative.
_KINDS = {
    "UNet2DModel": _Kind("sample", takes=("class_labels",)),
    "UNet2DConditionModel": _Kind(
        "sample",
        needs=(_TEXT,),
        takes=("class_labels", "timestep_cond", *_MASKS),
        added=("text_embeds", "time_ids", "image_embeds"),
    ),
    "DiTTransformer2DModel": _Kind(needs=("class_labels",)),
    "PixArtTransformer2DModel": _Kind(needs=(_TEXT,), takes=_MASKS, added=("resolution", "aspect_ratio")),
    "SanaTransformer2DModel": _Kind(needs=(_TEXT,), takes=(*_MASKS, "guidance")),
    "SD3Transformer2DModel": _Kind(needs=(_TEXT, "pooled_projections")),
    "FluxTransformer2DModel": _Kind(
        needs=(_TEXT, "pooled_projections", *_IDS), takes=("guidance",), shared=_IDS, divisor=1000.0
    ),
}


def wrap(model: Any, scheduler: Any = None) -> NetworkDenoiser:
    """Make a denoiser of a pipeline of diffusers, or of its unet or transformer.

    The denoiser shares the network, in its dtype and on its device: what is loaded into it or trained is seen by both.
    Conditions are tensors, batch first, under the names that the network has for them (``encoder_hidden_states``,
    ``text_embeds``, ``class_labels``, ...); :func:`fewstep.adapters.encoding.encode` makes them of prompts.

    Args:
        model: a pipeline, a network of diffusers, or a module ``(x, noise_label, cond) -> output`` that calls one.
        scheduler: says what the network was trained on: a scheduler, its configuration, or the folder of either. A
            pipeline brings its own.

    Returns:
        The denoiser; ``denoiser.schedule`` are the noise levels of its training, for grids.

    Raises:
        ConfigError: if there is no network, its class is unknown, a bare network comes without a scheduler, or the
            scheduler is of an unknown kind.
        UnknownName: if the scheduler names an unknown prediction type.
        CheckpointError: if the folder holds no scheduler.
    """
    network = network_of(model)
    config = _config(getattr(model, "scheduler", None) if scheduler is None else scheduler, network)
    schedule, prediction, flow = described(config)
    if flow and (trained := config.get("num_train_timesteps", _TRAINED)) != _TRAINED:
        raise ConfigError(
            f"A flow with num_train_timesteps={trained}", f"Its networks read {_TRAINED} * sigma", "Set it to 1000"
        )
    body = network if _is_body(network) else _Body(network, kind_of(network))
    return NetworkDenoiser(body, prediction, schedule, label="timestep")


def network_of(model: Any) -> nn.Module:
    """Find the network: the model itself, or the unet or transformer of a pipeline; ConfigError if there is none."""
    for part in (model, getattr(model, "unet", None), getattr(model, "transformer", None)):
        if isinstance(part, nn.Module):
            return part
    raise ConfigError(
        f"A {type(model).__name__} without a unet or transformer",
        "wrap takes a pipeline of diffusers with one of them, or the network itself",
        "Pass pipeline.unet or pipeline.transformer, or load the whole pipeline",
    )


def kind_of(network: nn.Module) -> _Kind:
    """Know a network by the name of its class, or of one it is derived from; ConfigError otherwise."""
    names = [cls.__name__ for cls in type(_plain(network)).__mro__]
    for name in names:
        if name in _KINDS:
            return _KINDS[name]
    raise ConfigError(
        f"A network of the class {names[0]}",
        f"Known are {', '.join(sorted(_KINDS))}, and modules with forward(x, noise_label, cond)",
        "Write such a module around the network; it gets the timestep as noise_label and returns one tensor like x",
    )


def _plain(network: nn.Module) -> nn.Module:
    """The network inside of what torch.compile made of it."""
    inside = getattr(network, "_orig_mod", network)
    return inside if isinstance(inside, nn.Module) else network


def _is_body(network: nn.Module) -> bool:
    return "noise_label" in inspect.signature(network.forward).parameters


def _config(scheduler: Any, network: nn.Module) -> Mapping[str, Any]:
    """The configuration of a scheduler, wherever it is."""
    if isinstance(scheduler, str | Path):
        return _read(Path(scheduler))
    config = getattr(scheduler, "config", scheduler)
    if isinstance(config, Mapping):
        return config
    raise ConfigError(
        f"A {type(network).__name__} with {'no scheduler' if scheduler is None else f'scheduler={scheduler!r}'}",
        "A bare network does not say what it was trained on: which noise levels, and what its output means. Its "
        "scheduler does: an object of diffusers, its configuration, or its folder",
        "Pass scheduler=pipeline.scheduler, or the folder of the checkpoint it came from",
    )


def _read(folder: Path) -> Mapping[str, Any]:
    places = [place / "scheduler_config.json" for place in (folder, folder / "scheduler")]
    for place in places:
        if place.is_file():
            return read_json(place)
    raise CheckpointError(
        f"No scheduler_config.json in {folder}",
        "The folder of a scheduler, or that of a pipeline with the folder scheduler in it",
        "Check the path, or pass the scheduler itself",
    )


class _Body(nn.Module):
    """A network of diffusers, called as fewstep calls a network.

    Args:
        network: of a known class.
        kind: how that class is called.
    """

    def __init__(self, network: nn.Module, kind: _Kind) -> None:
        super().__init__()
        self.network, self.kind = network, kind
        config: Any = _plain(network).config
        self.needs = (*kind.needs, *(("guidance",) if getattr(config, "guidance_embeds", False) else ()))
        self.scale = getattr(config, "timestep_scale", 1.0)
        self.channels = getattr(config, "in_channels", None)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Cond = None) -> Tensor:
        """Call the network.

        Args:
            x: noisy samples, shape (b, c, h, w), or (b, tokens, c) where the network takes packed latents.
            noise_label: timesteps, shape (b,).
            cond: conditions by the network's own names, batch first.

        Returns:
            Its output like x, without the variance that some networks predict beside it.

        Raises:
            ConfigError: if a condition is missing or unknown.
            ShapeError: if x has another number of channels than the network.
        """
        inputs = {self.kind.input: x, **self._conditions({} if cond is None else cond, x)}
        if x.ndim == 4 and self.channels not in (None, x.shape[1]):
            raise ShapeError(
                f"Samples of shape {tuple(x.shape)} for a network of {self.channels} channels",
                "Samples have the channels of the network, which are the second axis",
                "Check the shape; networks that take a mask or an image beside the sample are not supported",
            )
        timestep = noise_label / self.kind.divisor * self.scale
        out: Tensor = self.network(**inputs, timestep=timestep, return_dict=False)[0]
        return out.chunk(2, dim=1)[0] if out.shape[1] == 2 * x.shape[1] else out

    def _conditions(self, cond: Mapping[str, Tensor], x: Tensor) -> dict[str, Any]:
        """Conditions as arguments: floats in the dtype of x, shared ones once, added ones in their own group."""
        self._refuse(cond)
        rows = {name: value[0] if name in self.kind.shared else value for name, value in cond.items()}
        rows = {name: value.to(x.dtype) if value.is_floating_point() else value for name, value in rows.items()}
        added = {name: rows.pop(name) for name in self.kind.added if name in rows}
        return {**rows, "added_cond_kwargs": added} if added else rows

    def _refuse(self, cond: Mapping[str, Tensor]) -> None:
        known = (*self.kind.needs, *self.kind.takes, *self.kind.added)
        missing = [name for name in self.needs if name not in cond]
        unknown = [name for name in cond if name not in known]
        if missing or unknown:
            kind = type(_plain(self.network)).__name__
            raise ConfigError(
                f"{f'No condition {missing[0]!r}' if missing else f'A condition {unknown[0]!r}'} for a {kind}",
                f"It needs {', '.join(self.needs) or 'none'} and knows {', '.join(known)}",
                "Pass cond= to sample; fewstep.adapters.encoding.encode makes it of prompts",
            )
