"""Models: a denoiser that can be written down, in a folder of two files.

A model folder holds ``config.json`` (how to build the network, what its output means, which noise levels it knows) and
``model.safetensors`` (its weights), often a ``README.md`` (its card) and a ``calibration.json`` (solvers fitted to it).
Folders under ``fewstep/weights`` ship with the package and are known by name; any other folder is known by its path,
and one on the Hugging Face hub by its id, user/name.
The configuration is written last and names the fingerprint of the weights, so a folder is either whole or refused.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep._card import model_card
from fewstep._chain import Chain
from fewstep._files import fingerprint, output_dir, read_json, read_tensors, write_atomic, write_json, write_tensors
from fewstep._hub import download, is_id, upload
from fewstep._model_config import ModelConfig, built, fill
from fewstep._part import Part
from fewstep.denoisers import ClassifierFree, Denoiser, NetworkDenoiser
from fewstep.errors import CheckpointError, ConfigError, UnknownName, choose

__all__ = ["Chain", "Model", "ModelConfig", "Part", "bundled", "load_model", "save_model", "stored_weights"]

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
        card: text of the README.md beside the weights; empty if there is none.
    """

    denoiser: NetworkDenoiser
    config: ModelConfig
    fingerprint: str
    calibration: Mapping[str, Any] | CheckpointError | None = None
    card: str = dataclasses.field(default="", repr=False)

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu"
    ) -> Model:
        """Load a model from a folder, or from the Hugging Face hub.

        Args:
            path_or_id: a model folder, a hub id such as "user/name", or the name of a bundled model.
            revision: branch, tag or commit on the hub; None is the newest.
            device: where to put the network.

        Returns:
            The model in float32, in evaluation mode.

        Raises:
            UnknownName: if it is none of the three.
            MissingWeights: if the hub does not have it, or cannot be reached and it is not in the cache.
            CheckpointError: if the folder is incomplete, damaged or foreign.
            ConfigError: if a revision is given of a folder or a bundled model.
        """
        return _loaded(_folder_of(path_or_id, revision), device)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the model with its card, and with its calibrated solvers if they are of these weights.

        Args:
            folder: where to; created if missing. Other files in it are left alone.

        Returns:
            The folder.

        Raises:
            OutputError: if it cannot be written.
            ConfigError: if the network is no module, so that it has no weights to write.
        """
        return self._saved(folder, ".")

    def push_to_hub(self, repo_id: str, *, private: bool = False, message: str = "Upload with fewstep") -> str:
        """Share the model on the Hugging Face hub: the files of :meth:`save_pretrained`, in one commit.

        Args:
            repo_id: user/name; made if missing.
            private: whether only its owner sees it.
            message: of the commit.

        Returns:
            The address of the repository.

        Raises:
            MissingExtra: if huggingface_hub is not installed.
            OutputError: if the hub does not take it.
            ConfigError: if it should be private and is public, or has no weights to write.
        """
        with tempfile.TemporaryDirectory() as folder:
            return upload(self._saved(folder, repo_id), repo_id, private=private, message=message)

    def _saved(self, folder: str | Path, place: str) -> Path:
        network = self.denoiser.network
        if not isinstance(network, nn.Module):
            given = f"The network of {self.config.name!r}, a {type(network).__name__}"
            raise ConfigError(given, "A torch.nn.Module, whose weights can be written", "Use one of NETWORKS")
        # Weights that were stored as float16 go back as such: the table beside them knows them by that fingerprint.
        half = fingerprint(stored_weights(network, True)) == self.fingerprint
        weights = fingerprint(stored_weights(network, half))
        table = self.calibration if isinstance(self.calibration, Mapping) and weights == self.fingerprint else None
        parameters = sum(p.numel() for p in network.parameters())
        card = model_card(self.config, weights, parameters, table, place=place, own=self.card)
        path = save_model(folder, network, self.config, card=card, half=half)
        if table is not None:
            write_json(path / _TABLE, table)
        return path

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
            ConfigError: if scale is not 1 and the model has neither classes nor captions, or no null class.
        """
        if scale == 1:
            return self.denoiser
        if not self.config.null or not getattr(self.denoiser.network, "has_null", True):
            without = ", which was trained without a null class" if self.config.null else ""
            raise ConfigError(
                f"Guidance {scale:g} for the model {self.config.name!r}{without}",
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
    weights = stored_weights(network, half)
    write_tensors(path / "model.safetensors", weights)
    if card is not None:
        write_atomic(path / "README.md", card.encode())
    write_json(path / "config.json", {**dataclasses.asdict(config), "fingerprint": fingerprint(weights)})
    return path


def stored_weights(network: nn.Module, half: bool) -> dict[str, Tensor]:
    """The state of a network as :func:`save_model` writes it: what the fingerprint of the model is of."""
    state: dict[str, Tensor] = network.state_dict()
    return {name: t.to(torch.float16) if half and t.is_floating_point() else t for name, t in state.items()}


def bundled() -> list[str]:
    """Name the models that ship with the package."""
    # Judges lie in the same place; only a model's configuration says what its output means.
    return sorted(path.parent.name for path in _BUNDLED.glob("*/config.json") if "prediction" in read_json(path))


def load_model(name_or_dir: str | Path, device: str | torch.device = "cpu") -> Model:
    """Load a bundled model by name, any model folder by path, or a model on the hub by its id.

    Args:
        name_or_dir: a name out of :func:`bundled`, a folder with config.json and model.safetensors, or user/name on
            the Hugging Face hub.
        device: where to put the network.

    Returns:
        The model in float32, in evaluation mode.

    Raises:
        UnknownName: if it is neither a bundled name, a folder nor a possible hub id.
        MissingWeights: if the hub does not have it, or cannot be reached and it is not in the cache.
        CheckpointError: if the folder is incomplete, damaged or foreign, or weights and configuration do not fit.
    """
    return _loaded(_folder_of(name_or_dir), device)


def _loaded(folder: Path, device: str | torch.device) -> Model:
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
    denoiser, network = built(config, folder / "config.json")
    fill(network, weights, folder)
    network.to(device).eval().requires_grad_(False)
    readme = folder / "README.md"
    card = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return Model(denoiser, config, found, _calibration(folder / _TABLE), card)


def _calibration(path: Path) -> Mapping[str, Any] | CheckpointError | None:
    """A damaged table is no reason to refuse the model: it can be sampled without, and fitted again."""
    try:
        return read_json(path) if path.exists() else None
    except CheckpointError as error:
        return error


def _folder_of(name_or_dir: str | Path, revision: str | None = None) -> Path:
    names = {name: _BUNDLED / name for name in bundled()}
    folder = names.get(str(name_or_dir), Path(name_or_dir))
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(
                f"revision={revision!r} of {str(name_or_dir)!r}, which is on this machine",
                "Only a model on the hub has revisions",
                "Leave it out, or give a hub id",
            )
        return folder
    if is_id(str(name_or_dir)):
        return download(str(name_or_dir), revision)
    try:
        return choose(str(name_or_dir), names, "model")
    except UnknownName as error:
        raise UnknownName(
            f"{error.given}, and no folder of that name",
            error.allowed,
            f"{error.todo} Or give the path of a model folder, or a hub id, user/name",
        ) from None
