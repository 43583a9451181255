"""Files of results that go on where they were stopped, fitted tables that are kept, and which code either is from."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import fewstep.calibration
from benchmarks.calibrated_subjects import Subject
from benchmarks.targets import RULES, _revision, _with_imports
from fewstep._files import output_dir, read_json, write_json
from fewstep.calibration import NFE, Origin, Refinement, Settings, Table, calibrate, load_table, said_schedule
from fewstep.experiments.demo import machine
from fewstep.solvers import DEIS, IPNDM, TabulatedSolver

BUDGETS = NFE
OWN = "own"  # the grid of a calibrated solver

KINDS: dict[str, Settings] = {
    "calibrated": Settings(),
    "closed_form": Settings(refinement=Refinement(iterations=0)),
    "closed_form_matched": Settings(refinement=Refinement(iterations=0), match_variance=True),
}
_PARTS = (TabulatedSolver, IPNDM, DEIS)  # that a table is made of and sampled with


@cache
def code_of(name: str) -> dict[str, str]:
    """Which code a number of a rule or of a kind of calibration comes from.

    The hash is of the lines without docstrings and whole-line comments, so that every version of Python agrees.
    """
    if name in KINDS:
        files = set(Path(fewstep.calibration.__file__).parent.glob("*.py"))
        for part in _PARTS:
            files |= {*_with_imports(Path(inspect.getfile(part))).values()}
    else:
        make = RULES[name]
        files = {*_with_imports(Path(inspect.getfile(make.func if isinstance(make, partial) else make))).values()}
    text = "".join(_lines(file) for file in sorted(files))
    return {"revision": _revision(), "hash": hashlib.sha256(text.encode()).hexdigest()[:12]}


def _lines(file: Path) -> str:
    text = file.read_text()
    said: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            said |= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    kept = [line.rstrip() for number, line in enumerate(text.splitlines(), 1) if number not in said]
    return "\n".join(line for line in kept if line and not line.lstrip().startswith("#"))


class PartFile:
    """A file of rows, written after every one.

    Args:
        path: the JSON file; what it holds under another head is dropped, and the run says so.
        head: what was measured and how.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path, self.content = path, {**head, "rows": {}}
        for name in (*RULES, *KINDS):  # before anybody can edit the files of the code that runs
            code_of(name)
        if path.exists():
            earlier = read_json(path)
            if all(earlier.get(key) == value for key, value in head.items()):
                self.content["rows"] = earlier["rows"]
            else:
                print(f"{path} holds other settings; it is begun anew", flush=True)

    def due(self, key: str, code: str) -> bool:
        """Whether a row is missing, or was made by other code than there is now."""
        row = self.content["rows"].get(key)
        return row is None or row["code"]["hash"] != code_of(code)["hash"]

    def put(self, key: str, code: str, row: Mapping[str, Any]) -> None:
        self.content["rows"][key] = {"code": code_of(code), **row}
        write_json(self.path, self.content)


def table_of(
    subject: Subject,
    kind: str,
    k: int,
    work: Path,
    *,
    nfe: Sequence[int] = BUDGETS,
    trajectories: int = 160,
    guidances: Sequence[float] = (1.0,),
) -> Table:
    """The table of one seed set; fitted if there is none from the code of now, and kept."""
    said = {
        "fingerprint": subject.fingerprint,
        "nfe": list(nfe),
        "trajectories": trajectories,
        "guidances": list(guidances),
        "code": code_of(kind)["hash"],
    }
    key = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]
    path = output_dir(work / "tables") / f"{subject.name}-{kind}-{k}-{key}.json"
    if path.exists():
        return load_table(path)
    settings = replace(KINDS[kind], nfe=tuple(nfe))
    low, high = min(guidances), max(guidances)
    origin = Origin(subject.name, subject.fingerprint, said_schedule(subject.schedule), (low, high))
    table = None
    for progress in calibrate(subject.problem(k, trajectories, guidances), settings, origin):
        if progress.table is not None and progress.table is not table:
            table = progress.table
            print(f"  {subject.name}, {kind}, set {k}: {progress.words}, {table.facts['seconds']:.0f} s", flush=True)
    if table is None:
        raise RuntimeError("nothing was fitted")
    table = replace(table, facts={**table.facts, "machine": machine(subject.device)})
    table.save(path)
    return load_table(path)
