"""The page on guidance and editing: its blocks run one after the other, and print the costs that its tables name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fewstep import denoisers, sampling

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guidance-and-editing.md"


def test_the_blocks_run_and_cost_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    printed = []
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
        printed.append(capsys.readouterr().out.split())
    guided, strong, changed, completed, inverted = printed
    kappa = names["grid"].levels.kappa[:-1]
    inside = int(((kappa > 0.2) & (kappa <= 5)).sum())
    assert guided == ["NetworkDenoiser", "10", "10", "ClassifierFree", "10", "20", "Interval", "10", str(10 + inside)]
    assert strong == ["10", "20"]
    assert changed == ["6", "6"]
    assert completed == ["True", "20"]
    plain, solved = inverted[:3], inverted[3:]
    assert (plain[:2], solved[:2]) == (["0", "10"], ["3", "40"])
    assert float(solved[2]) < 0.2 * float(plain[2])


def test_the_page_names_every_function_and_class_and_its_files() -> None:
    text = PAGE.read_text(encoding="utf-8")
    public = ("AutoGuidance", "ClassifierFree", "DynamicThresholding", "Interval", "Rescaled")
    assert [name for name in public if f"`{name}(" not in text or not hasattr(denoisers, name)] == []
    assert [name for name in ("inpaint", "invert", "start_from") if f"`{name}(" not in text] == []
    assert all(hasattr(sampling, name) for name in ("inpaint", "invert", "start_from"))
    assert all((PAGE.parent / target).exists() for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text))
