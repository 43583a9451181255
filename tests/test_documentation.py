"""What the documentation says can be run, runs; what it links to, exists."""

import ast
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


@pytest.mark.parametrize("name", ["calibration.md", "solvers.md"])
def test_every_python_block_of_the_page_runs(name):
    found = blocks(ROOT / "docs" / name)
    assert found
    for block in found:
        exec(compile(block, f"docs/{name}", "exec"), {})


def test_readme_example_has_at_most_ten_lines():
    lines = [line for line in blocks(ROOT / "README.md")[0].splitlines() if line.strip()]
    assert len(lines) <= 10, f"{len(lines)} lines"


def test_the_objective_of_the_page_runs_and_reports_its_terms(capsys):
    block = blocks(ROOT / "docs" / "end-to-end.md")[0]
    exec(compile(block, "docs/end-to-end.md", "exec"), {})
    parts = ast.literal_eval(capsys.readouterr().out)
    assert {"loss", "loss_energy", "loss_ink", "contrast"} <= set(parts)
    assert parts["steps"] == 2
    assert parts["loss"] == pytest.approx(parts["loss_energy"], abs=2e-3), "the reward begins with no weight"


def test_the_page_of_whole_chains_names_every_part_of_them():
    from fewstep.experiments.ablate import GROUPS
    from fewstep.losses import VIEWS
    from fewstep.training.e2e_couplings import COUPLINGS, GRADIENTS
    from fewstep.training.e2e_materials import MAPS
    from fewstep.training.e2e_terms import TERMS

    text = (ROOT / "docs" / "end-to-end.md").read_text(encoding="utf-8")
    tables = {"terms": TERMS, "couplings": COUPLINGS, "gradients": GRADIENTS, "views": VIEWS, "groups": GROUPS}
    missing = {
        kind: [name for name in table if f"`{name}" not in text] for kind, table in {**tables, "maps": MAPS}.items()
    }
    assert not any(missing.values()), missing


def test_the_faithful_mode_of_the_page_is_what_the_abstract_names():
    from fewstep.experiments.presets import configured

    text = (ROOT / "docs" / "end-to-end.md").read_text(encoding="utf-8")
    command = re.search(r"fewstep train --preset mnist-e2e [^`]*--out faithful([^`]*)```", text)[1]
    terms = configured("mnist-e2e", overrides=re.findall(r"e2e\.\S+", command)).e2e.terms
    assert {name for name, own in terms.items() if own["weight"] > 0} == {"l2", "perceptual", "adversarial"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {missing}"


def test_the_pages_name_every_solver():
    from fewstep.solvers import SOLVERS

    text = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")
    assert [name for name in SOLVERS if f"`{name}`" not in text] == []
