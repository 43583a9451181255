"""Prompt files: what to ask a text-to-image model for, under which name and with which noise.

A prompt set is known by the hash of its content, whatever the format of its file, so two results say whether they
answer the same prompts. Nothing is repaired or left out: a file with an empty prompt or a doubled name is refused.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from fewstep.data.sources import folder_files
from fewstep.errors import DataError, choose

__all__ = ["Prompt", "PromptSet", "load_captions", "load_prompts"]

_TEXT = ("prompt", "caption", "text")
_ID = ("id", "image_id", "file_name")
_SEED = ("evaluation_seed", "seed")
_MOST_SEED = 2**63  # what a generator of torch takes

Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """One request for one image.

    Args:
        id: its name, unique in its set; of an image in sets like COCO's.
        text: what is asked for, as it stands in the file.
        seed: of its image, where the file fixes it.
    """

    id: str
    text: str
    seed: int | None = None


@dataclass(frozen=True)
class PromptSet:
    """Prompts in a fixed order.

    Args:
        name: what the set is called in reports.
        prompts: at least one, with unlike ids and texts that are not blank.

    Raises:
        DataError: if there are none, or an id is used twice, or a text is blank.
    """

    name: str
    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise DataError(f"The prompt set {self.name!r} is empty", "At least one prompt", "Check the file")
        blank = [prompt.id for prompt in self.prompts if not prompt.text.strip()]
        _refuse(blank, f"prompts of {self.name!r} are empty", "Every prompt says something", "Write or remove them")
        _refuse(
            _doubled(prompt.id for prompt in self.prompts),
            f"ids of {self.name!r} are used more than once",
            "Every prompt has its own id, because its image is named after it",
            "Rename them, or remove the column of ids to number the prompts",
        )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def hash(self) -> str:
        """Name of the content, ids, texts and seeds in their order: 12 hexadecimal digits of a SHA-256."""
        rows = [[prompt.id, prompt.text, prompt.seed] for prompt in self.prompts]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]

    @property
    def texts(self) -> list[str]:
        """What is asked for, in order."""
        return [prompt.text for prompt in self.prompts]

    def seeds(self, seed: int = 0) -> list[int]:
        """Seed of every prompt's image: the file's, else ``seed + k`` for the k-th prompt, as everywhere in fewstep."""
        return [seed + k if prompt.seed is None else prompt.seed for k, prompt in enumerate(self.prompts)]


def load_prompts(path: str | Path) -> PromptSet:
    """Read a prompt file.

    ``.csv`` and ``.tsv`` have a header line, ``.jsonl`` one object a line, ``.txt`` one prompt a line. Columns (or
    keys), of which the first found counts, in small or capital letters: prompt, caption, text; id, image_id, file_name;
    evaluation_seed, seed. Without ids the prompts are numbered. A ``.tsv`` knows no quotation marks: a field is what
    stands between two tabs.

    Args:
        path: the file, UTF-8.

    Returns:
        Its prompts in its order, under the name of the file.

    Raises:
        UnknownName: if the file is of another kind.
        DataError: if it cannot be read, is broken, has no column of prompts, empty prompts, doubled ids, or seeds that
            are no whole numbers from 0 on.
    """
    path = Path(path)
    rows = list(choose(path.suffix.lower(), _READERS, "kind of prompt file")(path))
    texts = _column(rows, _TEXT, path)
    if texts is None:
        columns = ", ".join(rows[0]) if rows else "none: there are no rows"
        _broken(path, f"has no prompts; its columns are {columns}", f"Prompts stand in a column {_or(_TEXT)}")
    ids = _column(rows, _ID, path) or [f"{k:05d}" for k in range(len(rows))]
    seeds = _column(rows, _SEED, path) or [None] * len(rows)
    prompts = (
        Prompt(str(name), _text(text, path, k), None if seed is None else _seed(seed, path, k))
        for k, (name, text, seed) in enumerate(zip(ids, texts, seeds, strict=True))
    )
    return PromptSet(path.stem, tuple(prompts))


def load_captions(folder: str | Path) -> dict[str, str]:
    """Read the captions of a folder of pictures, from a ``metadata.jsonl`` like those of HF image folders.

    Args:
        folder: pictures, or class folders of them, and one ``{"file_name": ..., "text": ...}`` a line in
            metadata.jsonl.

    Returns:
        Path of each picture in the folder -> caption, in the order of the file.

    Raises:
        DataError: if there are no pictures, the file is missing or broken, a caption is empty or doubled, or pictures
            and captions do not match one to one; the message counts and names them.
    """
    folder = Path(folder)
    path = folder / "metadata.jsonl"
    rows = list(_json_lines(path))
    names, texts = _column(rows, ("file_name",), path), _column(rows, _TEXT, path)
    if names is None or texts is None:
        _broken(path, "lacks file names or captions", f"Every line has the keys file_name and {_or(_TEXT)}")
    prompts = (Prompt(str(name), _text(text, path, k)) for k, (name, text) in enumerate(zip(names, texts, strict=True)))
    captions = {prompt.id: prompt.text for prompt in PromptSet(path.parent.name, tuple(prompts)).prompts}
    pictures = {file.relative_to(folder).as_posix() for file in folder_files(folder)[0]}
    allowed, todo = "Every picture has one caption, and every caption its picture", "Complete the folder or the file"
    _refuse([name for name in captions if name not in pictures], f"captions of {path} have no picture", allowed, todo)
    _refuse(sorted(pictures - captions.keys()), f"pictures of {folder} have no caption in {path.name}", allowed, todo)
    return captions


def _lines(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from file
    except OSError as error:
        _broken(path, f"cannot be read ({error.strerror or error})", "A text file of prompts")
    except UnicodeDecodeError as error:
        _broken(path, f"is not UTF-8 ({error})", "Prompts are UTF-8 text")


def _table(path: Path, **form: Any) -> Iterator[Row]:
    reader = csv.reader(_lines(path), strict=True, **form)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        for cells in reader:
            if len(cells) != len(header):
                given = f"has {len(cells)} fields in line {reader.line_num} and {len(header)} columns"
                _broken(path, given, "Every row has one field per column")
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        _broken(path, f"is broken in line {reader.line_num} ({error})", "Fields with commas or line breaks are quoted")


def _json_lines(path: Path) -> Iterator[Row]:
    for k, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            _broken(path, f"is broken in line {k} ({error})", "Every line is one JSON object")
        if not isinstance(row, dict):
            _broken(path, f"has a {type(row).__name__} in line {k}", "Every line is one JSON object")
        yield {name.lower(): value for name, value in row.items()}


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _table,
    ".tsv": lambda path: _table(path, delimiter="\t", quoting=csv.QUOTE_NONE),
    ".jsonl": _json_lines,
    ".txt": lambda path: ({"prompt": line.rstrip("\r\n")} for line in _lines(path)),
}


def _column(rows: Sequence[Row], names: Collection[str], path: Path) -> list[Any] | None:
    """Values of the first column that is there; None if there is none."""
    name = next((name for name in names if any(name in row for row in rows)), None)
    if name is None:
        return None
    without = [f"row {k}" for k, row in enumerate(rows, 1) if row.get(name) in (None, "") and name not in _TEXT]
    _refuse(without, f"rows of {path} have no {name}", "A column is filled in every row", "Fill or remove the column")
    return [row.get(name, "") for row in rows]


def _text(value: Any, path: Path, k: int) -> str:
    if not isinstance(value, str):
        _broken(path, f"has a {type(value).__name__} for a prompt in row {k + 1}", "Prompts are text")
    return value


def _seed(value: Any, path: Path, k: int) -> int:
    digits = str(value)
    if isinstance(value, bool) or not (digits.isascii() and digits.isdigit() and int(digits) < _MOST_SEED):
        _broken(path, f"has the seed {value!r} in row {k + 1}", "Seeds are whole numbers from 0 to 2^63 - 1")
    return int(digits)


def _doubled(names: Iterator[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


def _refuse(names: Sequence[str], what: str, allowed: str, todo: str) -> None:
    """Raise if there are any, with their number and the first few names."""
    if names:
        some = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
        raise DataError(f"{len(names):,} {what}: {some}", allowed, todo)


def _broken(path: Path, what: str, allowed: str) -> NoReturn:
    raise DataError(f"{path} {what}", allowed, "Check the path, or correct the file")


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
