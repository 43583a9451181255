"""`fewstep ablate`: a table that goes on with the cell it was stopped in."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from cli.running import Cli, refuses
from fewstep.experiments.ablate import GROUPS, AblatePlan, Ablation, Doing

QUICK = ("--steps", 1, "--n", 20)


def test_every_cell_changes_what_its_name_says(tmp_path: Path) -> None:
    work = Ablation(AblatePlan(), tmp_path)
    active = {
        name: {term for term, own in work.config("terms", name, "m").e2e.terms.items() if own["weight"]}
        for name in GROUPS["terms"]
    }
    assert active == {
        "rec": {"l2"},
        "rec+perc": {"l2", "perceptual"},
        "rec+perc+adv": {"l2", "perceptual", "adversarial"},
        "adv": {"adversarial"},
        "energy+adv": {"energy", "adversarial"},
    }
    assert [work.config("steps", name, "m").e2e.steps for name in GROUPS["steps"]] == [(1,), (2,), (3,), (4,)]
    for group in ("gradient", "coupling"):
        assert [getattr(work.config(group, name, "m").e2e, group).name for name in GROUPS[group]] == [*GROUPS[group]]
    assert work.config("start", "leaky", "m").e2e.coupling.name == "leaky"
    assert len(work) == sum(map(len, GROUPS.values()))


def test_a_table_goes_on_with_the_missing_cell(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("ablate", "--model", model, "--groups", "start", *QUICK, "--out", out)
    ran = cli(*words)
    assert ran.code == 0, ran.err
    assert "start: leaky (reads data): its training starts from data, which sampling does not have" in ran.out
    assert "Floor: 20 others of the same images are at" in ran.out
    first = json.loads((out / "ablation.json").read_text())
    assert [(cell["name"], cell["leaky"]) for cell in first["cells"]] == [("pure", False), ("leaky", True)]
    assert [[row["steps"] for row in cell["rows"]] for cell in first["cells"]] == [[1, 2, 4]] * 2
    assert {row["name"] for cell in first["cells"] for row in cell["rows"]} == {
        "start: pure",
        "start: leaky (reads data)",
    }
    assert [row["steps"] for row in first["before"]] == [1, 2, 3, 4]
    assert (out / "ablation.png").exists()

    kept = (out / "start-pure" / "model.safetensors").stat().st_mtime_ns
    (out / "start-leaky" / "cell.json").unlink()
    assert cli(*words).code == 0
    second = json.loads((out / "ablation.json").read_text())
    assert (out / "start-pure" / "model.safetensors").stat().st_mtime_ns == kept
    assert second["cells"][0] == first["cells"][0]
    assert [row["distance"] for row in second["cells"][1]["rows"]] == [
        row["distance"] for row in first["cells"][1]["rows"]
    ]
    refuses(cli(*words, "--seed", 1), "ConfigError", "holds an ablation", "another folder")


def test_a_collapsing_cell_runs_and_keeps_the_warning(model: Path, tmp_path: Path) -> None:
    work = Ablation(AblatePlan(str(model), groups=("terms",), steps=1, n=20), tmp_path)
    doing = work.run()
    assert [next(doing), next(doing)] == [Doing("terms: rec, step 1 of 1"), Doing("terms: rec", advance=1)]
    (rec,) = work.cells
    assert (rec.group, rec.name) == ("terms", "rec")
    assert "l2 with noise that is independent" in rec.warning


def test_mistakes(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    refuses(cli("ablate", "--groups", "trems", *out), "UnknownName", "No group of an ablation 'trems'", "terms")
    refuses(cli("ablate", "--steps", 0, *out), "ConfigError", "0 steps", "--steps 150")
    refuses(cli("ablate", "--data", "scenes", *out), "ConfigError", "scenes without a model", "--model")
    words = ("--model", model, "--data", f"folder:{tmp_path}")
    Image.new("RGB", (9, 7)).save(tmp_path / "picture.png")
    refuses(cli("ablate", *words, *out), "ConfigError", "images of shape (3, 8, 8)", "data it was trained on")
    assert not (tmp_path / "out").exists()
