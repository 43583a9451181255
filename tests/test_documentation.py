"""What the documentation says can be run, runs; what it links to, exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "docs/sampling.md"])
def test_the_first_python_block_runs_and_counts_its_calls(name, capsys):
    exec(compile(blocks(ROOT / name)[0], name, "exec"), {})
    shape, nfe, evals = re.fullmatch(r"torch\.Size\((\[.*\])\) (\d+) (\d+)\n", capsys.readouterr().out).groups()
    guided = "guided(" in blocks(ROOT / name)[0]
    assert shape.endswith("1, 28, 28]")
    assert (int(nfe), int(evals)) == (10, 20 if guided else 10)


def test_readme_example_has_at_most_ten_lines():
    lines = [line for line in blocks(ROOT / "README.md")[0].splitlines() if line.strip()]
    assert len(lines) <= 10, f"{len(lines)} lines"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {missing}"


def test_the_pages_name_every_solver():
    from fewstep.solvers import SOLVERS

    text = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")
    assert [name for name in SOLVERS if f"`{name}`" not in text] == []
