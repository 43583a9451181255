"""Checkpoints of other libraries, from a folder or from the Hugging Face hub: what is common to loading them.

Weights come as safetensors only and no code of a checkpoint is ever run. A checkpoint that is not there is a
:class:`MissingWeights`, one that is there but is not what was asked for a :class:`CheckpointError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from fewstep._files import require
from fewstep.errors import CheckpointError, FewstepError, MissingWeights

__all__ = ["Kind", "loading", "place_of"]


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint.

    Args:
        name: for messages: "CLIP model".
        config: file that every folder of this kind holds.
        example: hub id of one, for messages.
        extra: the extra of fewstep that brings the libraries.
        libraries: those that load it, out of "transformers" and "diffusers".
    """

    name: str
    config: str
    example: str
    extra: str
    libraries: tuple[str, ...]

    def missing(self, given: str, error: Exception | None = None) -> NoReturn:
        """Say that one is not there, and where it can be had."""
        raise MissingWeights(
            given,
            f"A {self.name} is a folder in the layout of {self.libraries[0]}, with safetensors weights, or its hub id",
            f"Check the path, or download one: hf download {self.example} --local-dir FOLDER",
        ) from error


def place_of(path_or_id: str | Path, kind: Kind) -> str:
    """Check a folder before a library sees it, so that a misspelt path is not taken for a name on the hub.

    Args:
        path_or_id: a folder, or a hub id such as "openai/clip-vit-large-patch14".
        kind: what is looked for.

    Returns:
        The folder or the id.

    Raises:
        MissingWeights: if it is a folder without its configuration, or neither a folder nor a possible id.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        if not (folder / kind.config).is_file():
            kind.missing(f"The folder {folder} holds no {kind.config}, so it is no {kind.name}")
        return str(folder)
    possible = isinstance(path_or_id, str) and path_or_id.count("/") <= 1 and path_or_id[:1] not in ("", ".", "/", "~")
    if folder.exists() or not possible:
        kind.missing(f"{path_or_id} is no folder of a {kind.name}")
    return str(path_or_id)


@contextmanager
def loading(place: str, kind: Kind) -> Iterator[None]:
    """Load a checkpoint inside this block: quietly, and with fewstep's errors.

    Args:
        place: folder or hub id, for the message.
        kind: what is loaded; the bars and log lines of its libraries stay off meanwhile.

    Raises:
        MissingWeights: if a file is not there or cannot be read, or the hub cannot be reached.
        CheckpointError: if the checkpoint is damaged, of another kind, or does not fit its configuration.
    """
    logs = [require(f"{library}.utils.logging", kind.extra) for library in kind.libraries]
    before = [_hush(log) for log in logs]
    try:
        yield
    except FewstepError:
        raise
    except OSError as error:  # what both libraries make of missing files, unknown names and a missing network
        kind.missing(f"The {kind.name} {place} cannot be had ({_first_line(error)})", error)
    except Exception as error:  # ValueError, RuntimeError, KeyError, SafetensorError... by kind of damage
        raise CheckpointError(
            f"{place} cannot be loaded as a {kind.name} ({type(error).__name__}: {_first_line(error)})",
            "Its configuration is one that the installed libraries know, and its weights are those it describes",
            "Download it again, or check that it is the right checkpoint",
        ) from error
    finally:
        for log, (level, bars) in zip(logs, before, strict=True):
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()


def _hush(log: ModuleType) -> tuple[int, bool]:
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(CRITICAL)  # what goes wrong is said by an exception, in one place
    log.disable_progress_bar()
    return before


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
