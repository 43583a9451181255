"""Weights that other programs wrote, brought into one of our networks, or refused with the reason.

A safetensors file holds names and numbers. A ``.pt``, ``.pth`` or ``.ckpt`` is a pickle, which may hold code; it is
read by torch's restricted reader alone (``weights_only=True``), which knows tensors, numbers, words and groups of them
and runs nothing. What it does not know is not loaded.

Programs put weights under names such as ``state_dict`` or ``ema`` and names in front of names, ``module.``, ``model.``.
So every group of tensors in the file is looked at, and in it every prefix under which the network's names are found. A
set of weights is taken whole: the same names, the same shapes, finite numbers. Averaged weights (EMA) go before others.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from fewstep._files import read_json, read_tensors
from fewstep._model_config import ModelConfig, built
from fewstep.adapters.edm_config import edm_config, is_edm
from fewstep.errors import CheckpointError
from fewstep.models import load_model

__all__ = ["Imported", "config_like", "import_weights", "require_finite", "tensor_groups"]

_PICKLED = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))  # torch's archive, and a pickle
_DEPTH = 8  # of groups in groups; what is deeper holds no weights of a network
_COMPILED = "_orig_mod."  # torch.compile puts it anywhere in a name
_EMA = re.compile(r"(?<![a-z])ema(?![a-z])")
_AGAIN = "Restore it from a copy, or save model.state_dict() again"
_SHOWN = 5  # names in a message


class Imported(NamedTuple):
    """Weights in their network.

    Attributes:
        network: with the weights, on the CPU.
        config: how it was built.
        place: group of the file that they were in, such as "ema.state_dict"; empty for the outermost.
        prefix: what stood in front of their names.
        left: names of the tensors that were not taken, as in the file.
        half: whether all of them were float16, so that storing them as such loses nothing.
    """

    network: nn.Module
    config: ModelConfig
    place: str
    prefix: str
    left: tuple[str, ...]
    half: bool

    @property
    def averaged(self) -> bool:
        """Whether they are called EMA in the file."""
        return _is_ema(self.place, self.prefix)

    @property
    def said(self) -> str:
        """What was taken, and what was renamed, in words."""
        where = f" of the group {self.place!r}" if self.place else ""
        kind = "EMA weights" if self.averaged else "weights"
        renamed = f", {self.prefix!r} taken off their names" if self.prefix else ", names as they are"
        left = f"; {len(self.left)} other tensors left, {_some(self.left)}" if self.left else ""
        unread = not self.averaged and any(_is_ema(name, "") for name in self.left)
        why = "; EMA weights are there, but without the network's names and shapes" if unread else ""
        return f"{len(self.network.state_dict())} tensors{where} ({kind}){renamed}{left}{why}"


class _Set(NamedTuple):
    """The tensors of a group under a prefix: our name -> name in the file, and how they differ from the network."""

    place: str
    prefix: str
    names: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def gaps(self) -> int:
        """How far it is from the network."""
        return len(self.missing) + len(self.unexpected) + len(self.wrong)


def config_like(like: str | Path) -> ModelConfig:
    """Say what the network of foreign weights is.

    Args:
        like: a model of the same kind: a folder, a bundled name or a hub id; or a JSON file, the configuration of one
            (config.json), or EDM's arguments as docs/hub.md writes them.

    Returns:
        The configuration, without facts: those are of other weights.

    Raises:
        CheckpointError: if the file describes no model.
        UnknownName: if it is neither a file nor a model.
        MissingWeights: if the hub does not have it.
    """
    path = Path(like)
    if not path.is_file():
        return replace(load_model(like).config, facts={})
    content = read_json(path)
    if is_edm(content):
        return edm_config(content, path.stem)
    content.pop("fingerprint", None)
    return ModelConfig.from_json({**content, "facts": {}})


def import_weights(path: str | Path, config: ModelConfig) -> Imported:
    """Bring a file of weights into the network of a configuration.

    Args:
        path: a safetensors file, or a .pt, .pth or .ckpt of tensors.
        config: how the network is built; see :func:`config_like`.

    Returns:
        The network in evaluation mode, with what was taken and what was left.

    Raises:
        CheckpointError: if the file is missing, damaged or holds code; if no set of weights in it is the network's,
            with the names that are missing, unexpected or of another shape; or if numbers are not finite.
    """
    path = Path(path)
    groups = tensor_groups(path)
    _, network = built(config, f"The configuration of {config.name!r}")
    wanted = network.state_dict()
    chosen = _chosen(list(_sets(groups, wanted)), path, config)
    tensors = {name: groups[chosen.place][chosen.names[name]] for name in wanted}
    require_finite(tensors, path)
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False)
    taken = {(chosen.place, chosen.names[name]) for name in wanted}
    every = ((place, name) for place, group in groups.items() for name in group)
    left = tuple(".".join(filter(None, pair)) for pair in every if pair not in taken)
    half = all(tensor.dtype == torch.float16 for tensor in tensors.values() if tensor.is_floating_point())
    return Imported(network, config, chosen.place, chosen.prefix, left, half)


def tensor_groups(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Read every group of named tensors in a file, and run nothing.

    Args:
        path: a safetensors file, or a .pt, .pth or .ckpt of tensors.

    Returns:
        Place in the file, such as "ema.state_dict" -> name -> tensor on the CPU; the outermost group is "".

    Raises:
        CheckpointError: if the file is missing, damaged, a folder, or holds code.
    """
    path = Path(path)
    if path.is_dir():
        _refuse_folder(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        _refuse_file(f"{path} cannot be read ({error.strerror or error})", "Check the path", error)
    # The first bytes of a safetensors file are the length of its header, which may look like a pickle's, and then "{".
    if start[8:] == b"{":
        return {"": read_tensors(path)}
    if start.startswith(_PICKLED):
        return dict(_groups(_unpickled(path), "", _DEPTH))
    _refuse_file(f"{path} is {'neither safetensors nor what torch.save writes' if start else 'empty'}", _AGAIN)


def _unpickled(path: Path) -> Any:
    """What torch's restricted reader makes of a pickle; of an archive, it maps the tensors and reads those in use."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # it is tried all the same, and that decides
            # An open file hides the name: torch takes whatever is called .safetensors for such a file.
            if not zipfile.is_zipfile(path) or path.suffix == ".safetensors":
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # UnpicklingError; RuntimeError, EOFError, ValueError, OSError... by kind of damage
        _refuse_pickle(path, error)


def _refuse_pickle(path: Path, error: Exception) -> NoReturn:
    said = str(error).strip() or type(error).__name__
    if isinstance(error, pickle.UnpicklingError) or "TorchScript" in said:
        named = re.search(r"GLOBAL ([\w.]+)", said)
        raise CheckpointError(
            f"{path} holds more than tensors{f', {named[1]}' if named else ''}: that may be code, so it was not loaded",
            "Only tensors, numbers, words and groups of them: opening anything else runs what its author put there",
            "Let its owner convert it in the program that wrote it: safetensors.torch.save_file(model.state_dict(), "
            "'weights.safetensors'); docs/hub.md shows it for EDM's .pkl",
        ) from error
    first = re.split(r"\n|\. ", said)[0]  # torch goes on to advise against its own restriction
    given = f"{path} is damaged, or no file of tensors ({type(error).__name__}: {first})"
    _refuse_file(given, _AGAIN, error)


def _refuse_file(given: str, todo: str, error: Exception | None = None) -> NoReturn:
    raise CheckpointError(given, "A safetensors file, or what torch.save wrote of a state_dict", todo) from error


def _groups(content: Any, place: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if isinstance(content, list | tuple):  # numbers for names: no network's, so they are left, and said
        content = {str(i): value for i, value in enumerate(content)}
    if not isinstance(content, Mapping) or depth == 0:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for key, value in content.items():
        yield from _groups(value, f"{place}.{key}" if place else str(key), depth - 1)


def _sets(groups: Mapping[str, Mapping[str, Tensor]], wanted: Mapping[str, Tensor]) -> Iterator[_Set]:
    """Look at every group under every prefix that leads to a name of the network."""
    for place, group in groups.items():
        plain = {name.replace(_COMPILED, ""): name for name in group}
        for prefix in sorted({prefix for name in plain for prefix in _prefixes(name, wanted)}, key=len):
            names = {name[len(prefix) :]: old for name, old in plain.items() if name.startswith(prefix)}
            missing = tuple(name for name in wanted if name not in names)
            wrong = tuple(
                f"{name} {tuple(group[names[name]].shape)} {group[names[name]].dtype} for {tuple(tensor.shape)}"
                for name, tensor in wanted.items()
                if name in names and not _alike(group[names[name]], tensor)
            )
            yield _Set(place, prefix, names, missing, tuple(name for name in names if name not in wanted), wrong)


def _prefixes(name: str, wanted: Mapping[str, Tensor]) -> Iterator[str]:
    """Whatever stands in front of a name of the network, up to a dot."""
    starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
    return (name[:start] for start in starts if name[start:] in wanted)


def _alike(found: Tensor, wanted: Tensor) -> bool:
    plain = found.layout == torch.strided and not (found.is_quantized or "float4" in str(found.dtype))
    return plain and found.shape == wanted.shape and found.is_floating_point() == wanted.is_floating_point()


def _chosen(sets: Sequence[_Set], path: Path, config: ModelConfig) -> _Set:
    """The set that is the network's, an average before others; what is under another such set's prefix is no excess."""
    complete = [one for one in sets if not one.missing and not one.wrong]
    whole = [one for one in complete if not _excess(one, complete)]
    if whole:
        # A prefix says more than the group around it, which may hold averaged and other weights.
        return min(whole, key=lambda one: (not _is_ema("", one.prefix), not _is_ema(one.place, "")))
    network = f"the network {config.network.name!r} of {config.name!r}"
    allowed = f"The names, shapes and kinds of number of {network}, whatever stands in front of the names"
    todo = "Pass --like a model of the same kind as these weights, or rename them as its model.safetensors has them"
    if not sets:
        raise CheckpointError(f"{path} holds no tensor with a name of {network}", allowed, todo)
    nearest = min(sets, key=lambda one: one.gaps)
    lists = {"missing": nearest.missing, "unexpected": nearest.unexpected, "of another shape or kind": nearest.wrong}
    said = "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in lists.items() if names)
    where = "".join(f", {word} {value!r}" for word, value in zip(("group", "prefix"), nearest, strict=False) if value)
    raise CheckpointError(f"{path}{where} does not fit {network}: {said}", allowed, todo)


def _is_ema(place: str, prefix: str) -> bool:
    return _EMA.search(f"{place}.{prefix}".lower()) is not None


def _excess(one: _Set, complete: Sequence[_Set]) -> list[str]:
    """Names under a prefix that no complete set of the group claims."""
    others = [other.prefix[len(one.prefix) :] for other in complete if other.place == one.place and other != one]
    longer = tuple(prefix for prefix in others if prefix)
    return [name for name in one.unexpected if not (longer and name.startswith(longer))]


def require_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights with NaN or infinity in them; raises CheckpointError."""
    # float8 knows NaN and cannot be asked for it.
    bad = [name for name, tensor in tensors.items() if not bool(tensor.float().isfinite().all())]
    if bad:
        given = f"{path} has NaN or infinity in {len(bad)} tensors ({_some(bad)})"
        raise CheckpointError(given, "Finite numbers", "Take an earlier checkpoint: this training had failed")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _refuse_folder(path: Path) -> NoReturn:
    content = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if (path / "model_index.json").is_file() or "_class_name" in content:
        given, todo = f"{path} is a model of diffusers", "Leave --like out, or use it as it is: fewstep.wrap(model)"
    elif "prediction" in content:
        given, todo = f"{path} is a model folder of fewstep", f"Use it as it is: --model {path}"
    else:
        given, todo = f"{path} is a folder", "Name the file of weights in it"
    raise CheckpointError(given, "A file of weights is imported", todo)
