"""Networks of diffusers as models of ours: a ``UNet2DModel`` and its scheduler become what a model folder holds.

The weights are read by diffusers, which knows its own older names, shards and file names; a .bin is read by torch's
restricted reader alone (``weights_only=True``). No code of a folder is run: the class is known by its name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from fewstep._files import read_json, require
from fewstep._hub import Kind, is_id, loading
from fewstep.adapters.checkpoints import Imported, require_finite
from fewstep.adapters.diffusers_config import need_diffusers
from fewstep.adapters.wrap import wrap
from fewstep.denoisers import PREDICTIONS, NetworkDenoiser
from fewstep.errors import CheckpointError, ConfigError
from fewstep.models import ModelConfig, Part
from fewstep.noise import SCHEDULES, Schedule, Tabulated

__all__ = ["import_diffusers"]

_CLASS = "UNet2DModel"
_KIND = Kind(f"model of diffusers ({_CLASS} and scheduler)", "", "google/ddpm-cifar10-32", "diffusers", ("diffusers",))
_WORDS = ("model_index.json", "config.json", "scheduler_config.json", "unet/config.json", "scheduler/*.json")
_WEIGHTS = tuple(
    f"{place}diffusion_pytorch_model{part}safetensors*" for place in ("", "unet/") for part in (".", "-*.")
)
_PARTS = {"unet", "scheduler"}
_ROUNDING = 1e-12  # of alphas_cumprod in float64; the tables of two programs differ by 1e-15


def import_diffusers(place: str | Path, scheduler: str | Path = "", *, null: bool = False) -> Imported:
    """Bring a model of diffusers into a network of ours.

    Args:
        place: folder of a pipeline, or of its unet alone; or a hub id.
        scheduler: folder of the scheduler, for a unet alone; empty for the one that lies beside it.
        null: whether the last class of the network says nothing, so that it can be guided.

    Returns:
        The network in evaluation mode, with the configuration of a model.

    Raises:
        MissingExtra: if diffusers is not installed.
        MissingWeights: if a file is not there, or the hub does not have it or cannot be reached.
        CheckpointError: if there is more in the pipeline than a unet of this class and a scheduler, or the weights are
            damaged, not whole or not finite.
        ConfigError: if the scheduler is of a kind that is not supported, or the network is: its images have no size,
            its classes no embeddings, or there is no last class.
    """
    need_diffusers()
    folder = _folder(str(place), _WORDS)
    unet_folder, config = _checked_unet(folder), _scheduler(folder, scheduler)
    _folder(str(place), _WEIGHTS)
    unet = _loaded(unet_folder)
    described = _described(unet, wrap(unet, config), config, null, Path(place).name)
    network: Any = described.body()
    network.unet.load_state_dict(unet.state_dict())
    network.eval().requires_grad_(False)
    return Imported(network, described, "unet", "", (), half=False)


def _folder(place: str, files: tuple[str, ...]) -> Path:
    """The folder itself, or that of the hub's cache with some files in it."""
    folder = Path(place).expanduser()
    if folder.is_file():
        raise CheckpointError(
            f"{place} is a file of weights, without --like",
            "A folder of diffusers says itself what its weights are of; a file of weights does not",
            "Pass --like a model of the same kind, or its config.json",
        )
    if folder.is_dir():
        return folder
    if not is_id(place):
        _KIND.missing(f"{place} is no file, no folder and no hub id")
    try:
        return Path(require("huggingface_hub", "hub").snapshot_download(place, allow_patterns=list(files)))
    except Exception as error:  # OSError, ValueError and errors of the http library, by version and kind of failure
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _KIND.missing(f"{place} is no folder here, and cannot be had from the hub ({said})", error)


def _checked_unet(folder: Path) -> Path:
    """Where the network lies: beside the index, as in the oldest folders, or in its own folder."""
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    parts = {name for name, part in index.items() if isinstance(part, list) and any(part)}
    place = folder / "unet" if (folder / "unet").is_dir() else folder
    config = place / "config.json"
    if not parts <= _PARTS:
        _refuse(folder, f"a {index.get('_class_name')} with {', '.join(sorted(parts - _PARTS))}")
    if not config.is_file():
        _KIND.missing(f"{folder} holds no unet/config.json and no config.json")
    if (named := read_json(config).get("_class_name")) != _CLASS:
        _refuse(folder, f"a network of the class {named}" if named else "no network of diffusers")
    return place


def _refuse(folder: Path, what: str) -> NoReturn:
    raise CheckpointError(
        f"{folder} is {what}",
        f"A {_CLASS} and its scheduler, and nothing else: no text, no latents",
        f"Use it as it is: fewstep.wrap(pipeline), or fewstep calibrate --model pipeline:{folder}",
    )


def _scheduler(folder: Path, given: str | Path) -> Mapping[str, Any]:
    place = Path(given).expanduser() if str(given) else folder
    for file in (place / "scheduler" / "scheduler_config.json", place / "scheduler_config.json"):
        if file.is_file():
            return read_json(file)
    raise CheckpointError(
        f"{place} holds no scheduler_config.json",
        "The scheduler says what a network was trained on: which noise levels, and what its output means",
        "Pass --scheduler the folder of the scheduler that the network was trained with",
    )


def _loaded(folder: Path) -> Any:
    """The network, if all of it is there: diffusers makes up what is missing."""
    with loading(str(folder), _KIND):
        unet, found = need_diffusers().UNet2DModel.from_pretrained(str(folder), output_loading_info=True)
    gaps = {kind: found.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    said = "; ".join(f"{len(names)} {kind} ({next(iter(names))}...)" for kind, names in gaps.items() if names)
    if said:
        raise CheckpointError(
            f"The weights in {folder} do not fit its config.json: {said}",
            "Both have the same parameters, of the same shapes",
            "Restore the folder from a copy, or download it again",
        )
    require_finite(unet.state_dict(), folder)
    return unet


def _described(
    unet: Any, denoiser: NetworkDenoiser, scheduler: Mapping[str, Any], null: bool, name: str
) -> ModelConfig:
    config = {key: value for key, value in json.loads(unet.to_json_string()).items() if key[:1] != "_"}
    classes = (config["num_class_embeds"] or 0) - null
    if null and classes < 1:
        given = f"--null for a network with num_class_embeds={config['num_class_embeds']}"
        raise ConfigError(given, "A class that says nothing is the last of two or more", "Leave --null out")
    size = config["sample_size"]
    height, width = size if isinstance(size, list) else (size, size)
    if size is None:
        given = "A network with sample_size=null, which does not say how large its images are"
        raise ConfigError(given, "A model has one size", 'Write it into the config.json of the unet: "sample_size": 32')
    return ModelConfig(
        name=name,
        network=Part("diffusers_unet", {"config": config, "n_classes": classes}),
        prediction=Part(next(name for name, made in PREDICTIONS.items() if type(denoiser.prediction) is made)),
        schedule=_schedule(denoiser.schedule, scheduler),
        shape=(config["in_channels"], height, width),
        label="timestep",
        classes=tuple(map(str, range(classes))),
    )


def _schedule(schedule: Schedule, scheduler: Mapping[str, Any]) -> Part:
    """A flow; a usual table by its few numbers, where they make this one; any other as its list."""
    if not isinstance(schedule, Tabulated):
        return Part("linear_flow")
    table = schedule.alphas_cumprod
    names = ("beta_start", "beta_end", "num_train_timesteps")
    usual = Part(
        f"tabulated_{scheduler.get('beta_schedule')}", {name: scheduler[name] for name in names if name in scheduler}
    )
    made = usual.build(SCHEDULES, "schedule") if usual.name in SCHEDULES else None
    if isinstance(made, Tabulated) and len(made.alphas_cumprod) == len(table):
        pairs = zip(made.alphas_cumprod, table, strict=True)
        if all(math.isclose(ours, theirs, rel_tol=_ROUNDING) for ours, theirs in pairs):
            return usual
    return Part("tabulated", {"alphas_cumprod": list(table)})
