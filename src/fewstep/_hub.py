"""The Hugging Face hub: checkpoints of other libraries, and models of fewstep itself.

Weights come as safetensors only and no code of a checkpoint is ever run. A checkpoint that is not there is a
:class:`MissingWeights`, one that is there but is not what was asked for a :class:`CheckpointError`.

A model of ours is the four files of ``FILES`` in a repository, and nothing else of it is downloaded or uploaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from fewstep._files import require
from fewstep.errors import CheckpointError, ConfigError, FewstepError, MissingWeights, OutputError, about

__all__ = ["FILES", "Kind", "download", "is_id", "loading", "place_of", "upload"]

FILES = (
    "config.json",
    "model.safetensors",
    "README.md",
    "calibration.json",
)  # of a model of ours; the first two always
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


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


def is_id(text: str) -> bool:
    """Whether a text has the form of a hub id, user/name."""
    return _ID.fullmatch(text) is not None


def download(repo_id: str, revision: str | None = None) -> Path:
    """Bring the files of a model of ours from the hub, or from the hub's cache on this machine.

    Args:
        repo_id: user/name.
        revision: branch, tag or commit; None is the newest.

    Returns:
        The folder in the cache.

    Raises:
        MissingExtra: if huggingface_hub is not installed.
        MissingWeights: if there is no such repository, it is no model of ours, or it cannot be reached and is not in
            the cache.
    """
    what = f"{repo_id!r} is no folder here, so it was looked for on the Hugging Face hub"
    with about(what):
        hub = require("huggingface_hub", "hub")
    try:
        folder = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # OSError, ValueError and errors of the http library, by version and kind of failure
        raise MissingWeights(
            f"{what}, where it cannot be had ({type(error).__name__}: {_first_line(error)})",
            "The path of a model folder, or a hub id that exists and can be read from here, or is in the hub's cache",
            "Check the spelling; log in with `hf auth login` if it is private; to work offline, download it before",
        ) from error
    missing = [name for name in FILES[:2] if not (folder / name).is_file()]
    if missing:
        raise MissingWeights(
            f"{repo_id!r} on the Hugging Face hub, or what is in the cache of it, has no {' and no '.join(missing)}",
            f"A model of fewstep has {' and '.join(FILES[:2])}",
            "Check the id, or use a model of diffusers through fewstep.wrap",
        )
    return folder


def upload(folder: Path, repo_id: str, *, private: bool, message: str) -> str:
    """Bring the files of a model of ours to the hub, in one commit.

    Args:
        folder: with the files; others in it stay here.
        repo_id: user/name; made if missing.
        private: whether only its owner sees it; a repository that is there and public is refused.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        MissingExtra: if huggingface_hub is not installed.
        ConfigError: if the repository should be private and is public.
        OutputError: if the hub does not take it.
    """
    api = require("huggingface_hub", "hub").HfApi()
    try:
        url = str(api.create_repo(repo_id, private=private, exist_ok=True))
        public = private and not api.model_info(repo_id).private
        if not public:
            # A table of older weights is deleted with the same commit that brings the new ones.
            files = {"allow_patterns": list(FILES), "delete_patterns": list(FILES)}
            api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message=message, **files)
    except Exception as error:  # as above
        raise OutputError(
            f"{repo_id!r} on the Hugging Face hub cannot be written ({type(error).__name__}: {_first_line(error)})",
            "An id user/name of your own or of an organisation of yours, a login that may write, and a connection",
            "Run `hf auth login`, or set HF_TOKEN, and check the id",
        ) from error
    if public:
        raise ConfigError(
            f"private=True for {repo_id!r}, which is public",
            "A repository keeps the visibility that it was made with",
            "Make it private on the hub, choose another id, or leave private out; nothing was uploaded",
        )
    return url
