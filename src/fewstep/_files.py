"""Files that are whole or absent: atomic writing, JSON and safetensors, and nothing that can run code.

A file is written beside its final name, flushed to the disk and renamed onto it, so that a reader, a crash or a full
disk never meets half of it. Tensors are kept as safetensors and everything else as JSON; pickles (``.pt``, ``.ckpt``)
are refused, because loading one runs whatever code its author put inside. Optional libraries come in through
:func:`require` alone, from inside functions.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from fewstep.errors import CheckpointError, ConfigError, MissingExtra, OutputError

__all__ = [
    "fingerprint",
    "output_dir",
    "read_json",
    "read_tensors",
    "require",
    "sweep",
    "write_atomic",
    "write_folder_atomic",
    "write_json",
    "write_tensors",
]

# A pickle begins with 0x80 and its protocol; 0x80 alone may also be the first byte of a safetensors header's length.
_PICKLES = {b"PK\x03\x04": "a PyTorch archive"} | {bytes([0x80, protocol]): "a pickle" for protocol in range(2, 6)}


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library, or say how to install it.

    Args:
        module: dotted module name, for instance "safetensors.torch".
        extra: the extra of fewstep that brings it: "cli", "train", "metrics", "diffusers".

    Returns:
        The imported module.

    Raises:
        MissingExtra: if the module, or something it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"This needs the library {module.partition('.')[0]!r}, which cannot be imported ({error})",
            f"It belongs to the extra {extra!r} of fewstep",
            f"Run: pip install 'fewstep[{extra}]'; in a clone of it, pip install '.[{extra}]'",
        ) from error


def _unwritable(path: Path, error: OSError) -> NoReturn:
    raise OutputError(
        f"{path} cannot be written ({error.strerror or error})",
        "The place must be a writable folder on a disk with free space",
        "Free some space or remove what is in the way, or choose another output folder",
    ) from error


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_atomic(path: str | Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that it is there with all of its bytes, or as it was before.

    Args:
        path: the file; its folder must exist.
        data: the whole content.
        durable: wait for the disk; without it a crash of the machine, not of the program, may leave the file empty.

    Raises:
        OutputError: if the folder is read only, missing or full; no partial file stays behind.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            _fsync(path.parent)
    except OSError as error:
        _unwritable(path, error)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def write_folder_atomic(path: str | Path) -> Iterator[Path]:
    """Build a folder under a temporary name beside `path`; on success it takes the place of `path`.

    An older folder of that name is moved aside first and deleted last, so its files are lost only after the new ones
    are safely on the disk. What a killed writer left under that name is recovered or swept.

    Args:
        path: the final folder; its parent must exist.

    Yields:
        The temporary folder to fill.

    Raises:
        OutputError: if something cannot be written; the temporary folder is removed and `path` stays as it was.
    """
    path = Path(path)
    temporary, aside = _beside(path), path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        _recover(path)
        temporary.mkdir()
        yield temporary
        for part in (*(file for file in temporary.rglob("*") if file.is_file()), temporary):
            _fsync(part)
        _exchange(temporary, path, aside)
        _fsync(path.parent)
        sweep(path.parent, glob.escape(path.name))
    except OSError as error:
        _unwritable(path, error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(new: Path, path: Path, aside: Path) -> None:
    """Rename `new` onto `path`; a folder cannot replace one that has files, so the old one steps aside first."""
    try:
        if path.exists():
            os.replace(path, aside)
        os.replace(new, path)
    except BaseException:  # an interrupt between the two renames, too, must not leave the name without a folder
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        raise


def _recover(path: Path) -> None:
    """Put back a folder whose writer was killed between the two renames, and sweep what else was left."""
    aside = sorted(path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.old"))
    if aside and not path.exists():
        os.replace(aside[-1], path)
    sweep(path.parent, glob.escape(path.name))


def sweep(folder: Path, pattern: str) -> None:
    """Delete what killed writers left beside the names of a glob; nobody but the caller may be writing those now."""
    for suffix in ("tmp", "old"):
        for left in folder.glob(f".{pattern}.[0-9]*.{suffix}"):
            shutil.rmtree(left, ignore_errors=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write dicts, lists, strings, finite numbers, booleans and None as indented JSON, atomically.

    Args:
        path: the file; its folder must exist.
        content: what to write.

    Raises:
        OutputError: if the file cannot be written.
        ConfigError: if JSON cannot hold the content.
    """
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        allowed = "JSON holds words, finite numbers, true, false, null, lists and groups of keys"
        given, todo = f"The content of {path} cannot be written as JSON ({error})", "Look for NaN or infinity in it"
        raise ConfigError(given, allowed, todo) from error
    write_atomic(path, (text + "\n").encode())


def _read(path: Path, kind: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error})",
            f"It must be {kind} that fewstep wrote",
            "Check the path, or make the file again",
        ) from error


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Args:
        path: the file.

    Returns:
        The object as a dict.

    Raises:
        CheckpointError: if the file is missing, is not JSON, or holds something else than one object.
    """
    data = _read(Path(path), "a JSON file")
    allowed, todo = "The file holds one JSON object in UTF-8", "Restore it from a copy, or check the path"
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error})", allowed, todo) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}", allowed, todo)
    return content


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as one safetensors file, atomically.

    Args:
        path: the file; its folder must exist.
        tensors: name -> tensor of any shape, on any device.
        metadata: strings to keep in the file's header.

    Raises:
        OutputError: if the file cannot be written.
    """
    save = require("safetensors.torch", "train").save
    # A copy each: safetensors refuses tensors that share memory, as tied weights do.
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(plain, metadata=dict(metadata) if metadata else None))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Args:
        path: the file.

    Returns:
        Name -> tensor.

    Raises:
        CheckpointError: if the file is missing, damaged, or of another kind; a pickle is never opened.
    """
    data = _read(Path(path), "a safetensors file")
    load = require("safetensors.torch", "train").load
    try:
        content: dict[str, Tensor] = load(data)
    except Exception as error:  # safetensors raises its own SafetensorError, ValueError or KeyError by kind of damage
        kind = next((kind for magic, kind in _PICKLES.items() if data.startswith(magic)), None)
        given = f"{path} is {kind}" if kind else f"{path} is damaged or no safetensors file ({error})"
        raise CheckpointError(
            given,
            "Only safetensors are loaded, because opening a pickle runs the code inside it",
            "Convert it with the library that wrote it, or restore the file from a copy",
        ) from error
    return content


def output_dir(path: str | Path) -> Path:
    """Create a folder for output, with its parents, and prove that it can be written; OutputError if it cannot."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _unwritable(path, error)
    probe = path / ".fewstep-probe"
    write_atomic(probe, b"probe")
    probe.unlink(missing_ok=True)
    return path


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Name tensors by their names, dtypes, shapes and bytes, in any order: 12 hexadecimal digits of a SHA-256."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
