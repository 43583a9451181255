"""Models: a denoiser that can be written down, in a folder of two files.

A model folder holds ``config.json`` (how to build the network, what its output means, which noise levels it knows) and
``model.safetensors`` (its weights), often a ``README.md`` (its card) and a ``calibration.json`` (solvers fitted to it).
Folders under ``fewstep/weights`` ship with the package and are known by name; any other folder is known by its path.
The configuration is written last and names the fingerprint of the weights, so a folder is either whole or refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep._chain import Chain
from fewstep._files import fingerprint, output_dir, read_json, read_tensors, write_atomic, write_json, write_tensors
from fewstep._model_config import ModelConfig, require
from fewstep._part import Part
from fewstep.denoisers import ClassifierFree, Denoiser, NetworkDenoiser
from fewstep.errors import CheckpointError, ConfigError, FewstepError, UnknownName, choose

__all__ = ["Chain", "Model", "ModelConfig", "Part", "bundled", "load_model", "save_model"]

_BUNDLED = Path(__file__).parent / "weights"
_TABLE = "calibration.json"  # written and understood by fewstep.calibration, two floors up


@dataclass(frozen=True)
class Model:
    """A denoiser and its description.

    Args:
        denoiser: network, prediction and schedule.
        config: how it was built.
        fingerprint: names the weights: 12 hexadecimal digits.
        calibration: the table of calibrated solvers that lies beside the weights, as JSON, not checked; or why its file
            cannot be read, for whoever wants to use it; None if there is none.
    """

    denoiser: NetworkDenoiser
    config: ModelConfig
    fingerprint: str
    calibration: Mapping[str, Any] | CheckpointError | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the model's images."""
        return self.config.shape

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        network = self.denoiser.network
        return next(network.parameters()).device if isinstance(network, nn.Module) else torch.device("cpu")

    def guided(self, scale: float) -> Denoiser:
        """Guide the model towards its condition.

        Args:
            scale: w in ``uncond + w * (cond - uncond)``; 1 is no guidance and costs one network evaluation, not two.

        Returns:
            A denoiser to call with ``cond={"label": ...}`` or ``cond={"tokens": ...}``.

        Raises:
            ConfigError: if the model has neither classes nor captions and scale is not 1.
        """
        if scale == 1:
            return self.denoiser
        if not self.config.null:
            raise ConfigError(
                f"Guidance {scale:g} for the model {self.config.name!r}",
                "Only a class-conditional model can be guided, or one that reads captions; 1 means no guidance",
                "Leave the guidance out, or load a class-conditional model",
            )
        return ClassifierFree(self.denoiser, scale, uncond=self.config.null)

    def cond_of_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Turn captions into the condition of this model.

        Args:
            captions: n of them.

        Returns:
            {"tokens": int64 of shape (n, length)}, on the model's device.

        Raises:
            ConfigError: if the model reads no captions, or a caption is empty or too long.
            UnknownName: if it does not know a word.
        """
        if self.config.captions is None:
            raise ConfigError(
                f"Captions for the model {self.config.name!r}",
                f"It is told {'a class' if self.config.classes else 'nothing'}",
                "Leave the captions out, or load a caption-conditional model",
            )
        return {"tokens": self.config.captions.encode(captions).to(self.device)}


def save_model(
    folder: str | Path, network: nn.Module, config: ModelConfig, *, card: str | None = None, half: bool = False
) -> Path:
    """Write a model folder.

    Args:
        folder: where to; created if missing.
        network: the network of `config`, with its weights.
        config: how it was built.
        card: text of README.md; None leaves the card as it is.
        half: store the weights as float16; they are computed with in float32 all the same.

    Returns:
        The folder.

    Raises:
        OutputError: if it cannot be written.
        ConfigError: if `config` holds what JSON cannot.
    """
    path = output_dir(folder)
    weights = {name: _stored(tensor, half) for name, tensor in network.state_dict().items()}
    write_tensors(path / "model.safetensors", weights)
    if card is not None:
        write_atomic(path / "README.md", card.encode())
    write_json(path / "config.json", {**dataclasses.asdict(config), "fingerprint": fingerprint(weights)})
    return path


def _stored(tensor: Tensor, half: bool) -> Tensor:
    return tensor.to(torch.float16) if half and tensor.is_floating_point() else tensor


def bundled() -> list[str]:
    """Name the models that ship with the package."""
    # Judges lie in the same place; only a model's configuration says what its output means.
    return sorted(path.parent.name for path in _BUNDLED.glob("*/config.json") if "prediction" in read_json(path))


def load_model(name_or_dir: str | Path, device: str | torch.device = "cpu") -> Model:
    """Load a bundled model by name, or any model folder by path.

    Args:
        name_or_dir: a name out of :func:`bundled`, or a folder with config.json and model.safetensors.
        device: where to put the network.

    Returns:
        The model in float32, in evaluation mode.

    Raises:
        UnknownName: if it is neither a bundled name nor a folder.
        CheckpointError: if the folder is incomplete, damaged or foreign, or weights and configuration do not fit.
    """
    folder = _folder_of(name_or_dir)
    content = read_json(folder / "config.json")
    expected = content.pop("fingerprint", None)
    config = ModelConfig.from_json(content)
    weights = read_tensors(folder / "model.safetensors")
    found = fingerprint(weights)
    if found != expected:
        raise CheckpointError(
            f"The weights in {folder} have the fingerprint {found}, its config.json names {expected}",
            "Both files of a model folder were written together",
            "Restore the folder from a copy, or save the model again",
        )
    denoiser, network = _built(config, folder)
    _fill(network, weights, folder)
    network.to(device).eval().requires_grad_(False)
    return Model(denoiser, config, found, _calibration(folder / _TABLE))


def _calibration(path: Path) -> Mapping[str, Any] | CheckpointError | None:
    """A damaged table is no reason to refuse the model: it can be sampled without, and fitted again."""
    try:
        return read_json(path) if path.exists() else None
    except CheckpointError as error:
        return error


def _folder_of(name_or_dir: str | Path) -> Path:
    names = {name: _BUNDLED / name for name in bundled()}
    if str(name_or_dir) in names:
        return names[str(name_or_dir)]
    folder = Path(name_or_dir)
    if folder.is_dir():
        return folder
    try:
        return choose(str(name_or_dir), names, "model")
    except UnknownName as error:
        raise UnknownName(
            f"{error.given}, and no folder of that name",
            error.allowed,
            f"{error.todo} Or give the path of a model folder",
        ) from None


def _built(config: ModelConfig, folder: Path) -> tuple[NetworkDenoiser, nn.Module]:
    """Build what a configuration describes, and check that its network is made for its images and conditions."""
    try:
        network = config.body()
        denoiser = config.denoiser(network)
        unread = {"n_tokens": 0, "caption_length": 0}
        for name, needed in {**unread, "channels": config.shape[0], **config.conditions}.items():
            require(getattr(network, name, needed) == needed, config, "network", f"made with {name}={needed}")
    except FewstepError as error:
        raise CheckpointError(
            f"{folder / 'config.json'} describes a model that cannot be built ({error})",
            "Its parts are those of this version of fewstep, and fit together",
            "Restore the folder from a copy, or save the model again",
        ) from error
    return denoiser, network


def _fill(network: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Copy weights into a network of the same names and shapes."""
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in {folder} do not fit the network of its config.json ({error})",
            "Both have the same parameters, of the same shapes",
            "Restore the folder from a copy, or save the model again",
        ) from error
