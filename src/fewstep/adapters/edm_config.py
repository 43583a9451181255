"""EDM's arguments of a network as ours: a JSON file of ``net.init_kwargs`` with the name of its class.

EDM's own names and defaults are those of ``EDMPrecond`` and ``SongUNet`` in NVlabs/edm, ``training/networks.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fewstep._model_config import ModelConfig
from fewstep._part import Part
from fewstep.errors import CheckpointError, choose
from fewstep.noise import EDM

__all__ = ["edm_config", "is_edm"]

_KINDS = ("embedding_type", "encoder_type", "decoder_type", "channel_mult_noise", "resample_filter")
_VARIANTS: dict[str, tuple[Any, ...]] = {
    "ddpmpp": ("positional", "standard", "standard", 1, [1, 1]),
    "ncsnpp": ("fourier", "residual", "standard", 2, [1, 3, 3, 1]),
}
_DEFAULTS: dict[str, Any] = {
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": [16],
    "model_type": "DhariwalUNet",
    "sigma_min": 0.0,
    "sigma_max": math.inf,
    "sigma_data": 0.5,
    **dict(zip(_KINDS, _VARIANTS["ddpmpp"], strict=True)),
}
_MOST_LEVELS = 16
_MOST = {
    "img_resolution": 4096,
    "img_channels": 1024,
    "model_channels": 4096,
    "num_blocks": 64,
    "channel_mult": 64,
    "attn_resolutions": 4096,
    "augment_dim": 4096,
}
_MOST_CLASSES = 100_000  # each has a name in the configuration
_OF_TRAINING = ("use_fp16", "dropout", "label_dropout")  # change nothing in how a trained network is sampled


def is_edm(content: Mapping[str, Any]) -> bool:
    """Whether JSON is meant as EDM's arguments."""
    return "img_resolution" in content


def edm_config(content: Mapping[str, Any], name: str = "edm") -> ModelConfig:
    """Describe a network of EDM.

    Args:
        content: ``{"class_name": "EDMPrecond", **net.init_kwargs}``; what is missing takes EDM's defaults.
        name: what to call the model.

    Returns:
        A model on the schedule EDM, whose classes are numbers.

    Raises:
        CheckpointError: if the preconditioning is not EDM's, the network is not its SongUNet in one of the two
            variants that were trained, or a key is missing.
        UnknownName: if a key is none of EDM's.
    """
    known = {"class_name": "", "img_resolution": 0, "img_channels": 0, **_DEFAULTS, **dict.fromkeys(_OF_TRAINING)}
    for key in content:
        choose(key, known, "argument of EDM's network")
    for key in ("class_name", "img_resolution", "img_channels"):
        _require(key in content, f"EDM's arguments without {key!r}", "class_name, img_resolution and img_channels are")
    said = {**_DEFAULTS, **content}
    _require(said["class_name"] == "EDMPrecond", f"class_name={said['class_name']!r}", "Only EDMPrecond is")
    _require(said["model_type"] == "SongUNet", f"model_type={said['model_type']!r}", "Only SongUNet is")
    _require(said["channel_mult_emb"] == 4, f"channel_mult_emb={said['channel_mult_emb']!r}", "Only 4 is")
    for key in ("sigma_min", "sigma_max", "sigma_data"):
        number = type(said[key]) in (int, float) and not math.isnan(said[key])
        _require(
            number and (key != "sigma_data" or math.isfinite(said[key])), f"{key}={said[key]!r}", "Only numbers are"
        )
    few = type(said["label_dim"]) is int and 0 <= said["label_dim"] <= _MOST_CLASSES
    _require(few, f"label_dim={said['label_dim']!r}", f"Only numbers of classes up to {_MOST_CLASSES:,} are")
    for key, most in _MOST.items():  # the file may be anybody's, and a network is built before it is compared
        sizes = said[key] if type(said[key]) is list else [said[key]]
        sane = all(type(size) is int and 0 <= size <= most for size in sizes) and len(sizes) <= _MOST_LEVELS
        _require(sane, f"{key}={said[key]!r}", f"Only whole numbers up to {most:,}, and {_MOST_LEVELS} of them, are")
    classes = tuple(map(str, range(said["label_dim"])))
    noisiest = min(EDM.sigma_max, said["sigma_max"])  # EDM samples from 80 whatever the network knows beyond
    return ModelConfig(
        name=name,
        network=_network(said),
        prediction=Part("edm", {"sigma_data": said["sigma_data"]}),
        schedule=Part("edm", {"sigma_min": max(EDM.sigma_min, said["sigma_min"]), "sigma_max": noisiest}),
        shape=(said["img_channels"], said["img_resolution"], said["img_resolution"]),
        label="edm",
        classes=classes,
    )


def _network(said: Mapping[str, Any]) -> Part:
    kinds = tuple(said[key] for key in _KINDS)
    found = [variant for variant, theirs in _VARIANTS.items() if theirs == kinds]
    _require(bool(found), ", ".join(f"{k}={said[k]!r}" for k in _KINDS), "Those of DDPM++ and NCSN++ are, and no mix")
    arguments = {
        "channels": said["img_channels"],
        "resolution": said["img_resolution"],
        "width": said["model_channels"],
        "multipliers": said["channel_mult"],
        "blocks": said["num_blocks"],
        "attention": said["attn_resolutions"],
        "variant": found[0],
        "n_classes": said["label_dim"],
        "augment": said["augment_dim"],
    }
    return Part("edm_unet", arguments)


def _require(holds: bool, given: str, known: str) -> None:
    if not holds:
        todo = "Write the JSON as docs/hub.md shows; other networks of EDM cannot be imported"
        raise CheckpointError(f"A network of EDM with {given}", f"{known} known", todo)
