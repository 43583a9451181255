"""Files are whole or absent, and nothing that can run code is ever opened."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from fewstep import _files
from fewstep.errors import CheckpointError, ConfigError, MissingExtra, OutputError


def _full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    tied = torch.randn(2, 3, dtype=torch.float64)
    tensors = {"a": tied, "b": tied, "half": torch.randn(4).half(), "scalar": torch.tensor(7), "turned": tied.T}
    _files.write_tensors(tmp_path / "x.safetensors", tensors, metadata={"who": "me"})
    read = _files.read_tensors(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in tensors)


def test_json_comes_back_and_nan_is_refused(tmp_path: Path) -> None:
    content = {"text": "ä", "numbers": [1, 2.5, None, True]}
    _files.write_json(tmp_path / "x.json", content)
    assert _files.read_json(tmp_path / "x.json") == content
    circular: list[object] = []
    circular.append(circular)
    for wrong in (float("nan"), float("inf"), object(), circular):
        with pytest.raises(ConfigError, match=r"x\.json cannot be written as JSON"):
            _files.write_json(tmp_path / "x.json", {"loss": wrong})
    assert _files.read_json(tmp_path / "x.json") == content


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "x.bin"
    _files.write_atomic(path, b"old")
    monkeypatch.setattr(os, call, _full_disk)
    with pytest.raises(OutputError, match="No space left"):
        _files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["x.bin"]


def test_a_folder_replaces_its_older_self(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with _files.write_folder_atomic(tmp_path / "run") as folder:
            (folder / name).write_text(name)
    assert _names(tmp_path) == ["run"]
    assert _names(tmp_path / "run") == ["second"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), KeyboardInterrupt(), ValueError("bug")])
def test_a_failed_folder_leaves_the_old_one_alone(tmp_path: Path, error: BaseException) -> None:
    with _files.write_folder_atomic(tmp_path / "run") as folder:
        (folder / "old").write_text("old")
    expected = OutputError if isinstance(error, OSError) else type(error)

    def interrupted() -> None:
        with _files.write_folder_atomic(tmp_path / "run") as folder:
            (folder / "new").write_text("half of")
            raise error

    with pytest.raises(expected):
        interrupted()
    assert _names(tmp_path) == ["run"]
    assert _names(tmp_path / "run") == ["old"]


def test_a_failed_exchange_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _files.write_folder_atomic(tmp_path / "run") as folder:
        (folder / "old").write_text("old")
    replace = os.replace

    def fails_onto_the_name(source: Path, target: Path) -> None:
        if str(source).endswith(".tmp"):
            _full_disk()
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_onto_the_name)
    with pytest.raises(OutputError), _files.write_folder_atomic(tmp_path / "run") as folder:
        (folder / "new").write_text("new")
    assert _names(tmp_path) == ["run"]
    assert _names(tmp_path / "run") == ["old"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("target", ["aside", "name"])
def test_an_interrupted_exchange_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, target: str
) -> None:
    """Interrupts come before or after either rename: what is found under the name is one of the two folders, whole."""
    with _files.write_folder_atomic(tmp_path / "run") as folder:
        (folder / "old").write_text("old")
    replace, interrupted = os.replace, []

    def interrupt(source: Path, onto: Path) -> None:
        now = (target == "aside") == str(onto).endswith(".old") and not interrupted
        interrupted.extend([True] if now else [])
        if not now or when == "after":
            replace(source, onto)
        if now:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt), _files.write_folder_atomic(tmp_path / "run") as folder:
        (folder / "new").write_text("new")
    monkeypatch.undo()
    assert _names(tmp_path / "run") == (["new"] if (when, target) == ("after", "name") else ["old"])
    with _files.write_folder_atomic(tmp_path / "run") as folder:
        (folder / "newer").write_text("newer")
    assert _names(tmp_path) == ["run"]


def test_a_folder_moved_aside_by_a_killed_writer_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".run.17.old").mkdir()
    (tmp_path / ".run.17.old" / "old").write_text("old")
    (tmp_path / f".run.{os.getpid()}.tmp").mkdir()

    def fails() -> None:
        with _files.write_folder_atomic(tmp_path / "run"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert _names(tmp_path) == ["run"]
    assert _names(tmp_path / "run") == ["old"]


def test_leftovers_of_killed_writers_are_swept(tmp_path: Path) -> None:
    for name in (".run.17.tmp", ".run.18.old", ".other.17.tmp", ".running.17.tmp"):
        (tmp_path / name).mkdir()
    with _files.write_folder_atomic(tmp_path / "run") as folder:
        (folder / "new").write_text("new")
    assert _names(tmp_path) == [".other.17.tmp", ".running.17.tmp", "run"]


class _Bomb:
    """Unpickling this would raise SystemExit."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return exit, (1,)


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(_Bomb()))
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"plain\.pkl is a pickle\. Only safetensors"):
        _files.read_tensors(tmp_path / "plain.pkl")
    with pytest.raises(CheckpointError, match=r"model\.pt is a PyTorch archive\. Only safetensors"):
        _files.read_tensors(tmp_path / "model.pt")


def test_damaged_missing_and_foreign_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    _files.write_tensors(whole, {"a": torch.arange(100.0)})
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-7])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("cut.safetensors", "empty.safetensors"):
        with pytest.raises(CheckpointError, match="damaged"):
            _files.read_tensors(tmp_path / name)
    with pytest.raises(CheckpointError, match="cannot be read"):
        _files.read_tensors(tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        _files.read_json(tmp_path / "missing.json")
    for content, message in (
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "holds a JSON list"),
    ):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            _files.read_json(tmp_path / "bad.json")


def test_output_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _files.output_dir(tmp_path / "a" / "b").is_dir()
    assert _names(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        _files.output_dir(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written"):
        _files.output_dir(tmp_path / "file" / "below")
    monkeypatch.setattr(os, "fsync", _full_disk)
    with pytest.raises(OutputError, match=r"No space left.*another output folder"):
        _files.output_dir(tmp_path / "a")


def test_fingerprint_names_the_content() -> None:
    a, b = torch.randn(2, 3), torch.tensor(1.0)
    name = _files.fingerprint({"a": a, "b": b})
    assert len(name) == 12
    assert _files.fingerprint({"b": b.clone(), "a": a.clone()}) == name
    others = [{"a": a, "c": b}, {"a": a.T.contiguous().view(2, 3), "b": b}, {"a": a.double(), "b": b}, {"a": a}]
    others.append({"a": a.reshape(3, 2), "b": b})
    assert name not in {_files.fingerprint(other) for other in others}


def test_require_says_what_to_install() -> None:
    assert _files.require("json", "train").__name__ == "json"
    with pytest.raises(MissingExtra, match=r"no_such_library.*pip install 'fewstep\[train\]'"):
        _files.require("no_such_library.part", "train")


def test_a_cut_off_safetensors_file_is_not_called_a_pickle(tmp_path: Path) -> None:
    """Its first byte is part of a length and may be 0x80, with which a pickle begins as well."""
    (tmp_path / "cut.safetensors").write_bytes(b"\x80\x90\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(CheckpointError) as caught:
        _files.read_tensors(tmp_path / "cut.safetensors")
    assert "damaged" in caught.value.given
    assert "pickle" not in caught.value.given
