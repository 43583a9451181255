"""`fewstep demo`, shortened: both acts, and one page that needs nothing but itself."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from cli.conftest import tiny
from cli.running import Cli, files, pixels
from fewstep import models
from fewstep.cli import commands
from fewstep.data import digits, to_uint8, to_unit
from fewstep.experiments import digits as second_act
from fewstep.experiments.compare import Plan
from fewstep.experiments.digits import DigitsAct
from fewstep.experiments.runs import draw, seeds_of
from fewstep.experiments.ways import way_of
from fewstep.features import Pixels
from fewstep.metrics import frechet_distance, image_moments
from fewstep.training import override, train_model

SHORT = {"solvers": ("ddim", "heun", "evodiff"), "nfe": (3, 6), "n": 10, "reference_steps": 8}


class Page(HTMLParser):
    """Every tag, every address that a browser would follow, and the text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        wanted = ("src", "href", "srcset", "data", "poster", "action", "background")
        self.addresses += [value or "" for name, value in attrs if name in wanted]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def shown(judged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a shortened demo leaves, where an earlier run and a file of the user's were before."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(judged, folder / "weights" / "mnist")
    train_model(tiny("train.steps=2", "train.lr=0.1"), folder / "out" / "digits")
    (folder / "out" / "digits" / "mine.txt").write_text("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_BUNDLED", folder / "weights")
        patch.setitem(second_act.PRESETS, "digits", tiny("train.steps=6"))
        chains = override(
            second_act.PRESETS["digits-e2e"], ["train.steps=3", "train.batch=8", "e2e.terms.energy.features=pixels"]
        )
        patch.setitem(second_act.PRESETS, "digits-e2e", chains)
        patch.setattr(commands, "Plan", lambda **_: Plan(**SHORT))
        commands.run_demo(folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def report(shown: Path) -> dict[str, dict]:
    return json.loads((shown / "report.json").read_text())


def test_what_is_written(shown: Path) -> None:
    written = [name for name in files(shown) if not name.startswith(("digits/", "digits-e2e/"))]
    assert written == ["digits.png", "quality.png", "report.html", "report.json", "sheet.png"]
    for name in ("digits", "quality", "sheet"):
        assert pixels(shown / f"{name}.png").std() > 10, f"{name}.png is flat"
    assert (shown / "digits" / "mine.txt").read_text() == "kept", "a folder of the user's is not emptied"


def test_both_acts_are_measured(report: dict[str, dict], shown: Path) -> None:
    cells = report["solvers"]["cells"]
    counts = [(cell["solver"], cell["nfe"], cell["network_evals"]) for cell in cells]
    expected = [(solver, nfe, nfe) for solver in SHORT["solvers"] for nfe in (3, 6)]
    expected[2] = ("heun", 2, 2)
    assert counts == expected
    rows = report["digits"]["rows"]
    counts = [(row["training"], row["steps"]) for row in rows]
    assert counts == [*(("ordinary", n) for n in (1, 2, 4, 10)), *(("end to end", n) for n in (1, 2, 4))]
    runs = [report["digits"][name]["train"]["steps"] for name in ("run", "chains")]
    assert runs == [6, 3]
    assert report["digits"]["images"] == 1797
    seconds = report["seconds"]
    assert seconds["digits"] > seconds["training"] + seconds["chains"]
    assert min(seconds.values()) > 0
    model = models.load_model(shown / "digits")
    assert (model.config.facts["steps"], model.config.facts["train"]["lr"]) == (6, 4e-3), "it was trained anew"


def test_chains_go_on_from_the_ordinary_model(shown: Path) -> None:
    before, after = (models.load_model(shown / name) for name in ("digits", "digits-e2e"))
    assert before.config.chain is None
    assert after.config.chain is not None
    assert after.config.chain.steps == (1, 2, 4)
    assert after.config.facts["steps"] == 3
    assert after.config.facts["init"]["fingerprint"] == before.fingerprint != after.fingerprint


def test_variety_is_that_within_classes(report: dict[str, dict], shown: Path) -> None:
    """Measured again, by hand, on samples of the model after training."""
    model, seeds = models.load_model(shown / "digits-e2e"), seeds_of(0, 1797)
    labels, way = torch.arange(1797) % 10, way_of(model, steps=2)
    images = to_uint8(draw(model, way.rule, way.grid, seeds, labels=labels, batch_size=600).images).double()
    data = digits()

    def variety(images: torch.Tensor, labels: torch.Tensor) -> float:
        parts = [images[labels == c].flatten(1) for c in range(10)]
        return sum(len(part) * float(part.var(dim=0).sum()) for part in parts) / len(images)

    assert data.labels is not None
    expected = variety(images, labels) / variety(data.images.double(), data.labels)
    [row] = [row for row in report["digits"]["rows"] if (row["training"], row["steps"]) == ("end to end", 2)]
    assert row["rho"] == pytest.approx(expected, rel=1e-5)


def test_distances_of_digits_have_their_ends(report: dict[str, dict]) -> None:
    """Two halves of the real digits are the floor; a flat grey picture is the worst that counts."""
    unit = to_unit(digits().images)
    features = Pixels((1, 8, 8))
    grey = frechet_distance(image_moments(features, 0 * unit), image_moments(features, unit))
    assert 0.05 < report["digits"]["floor"] < 0.1 * grey
    assert all(row["distance"] > report["digits"]["floor"] for row in report["digits"]["rows"])


def test_real_digits_are_shown_in_their_order(shown: Path) -> None:
    act = DigitsAct(shown / "elsewhere")
    data = digits()
    for label, image in enumerate(act.real):
        same = (to_unit(data.images) == image).flatten(1).all(1)
        assert label in data.labels[same].tolist()


def test_the_page_is_one_file(shown: Path) -> None:
    content = (shown / "report.html").read_text(encoding="utf-8")
    page = Page(content)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.findall(r"https?://|@import|url\(", content)
    start = "data:image/png;base64,"
    assert len(page.addresses) == 3
    assert all(address.startswith(start) for address in page.addresses)
    embedded = {base64.b64decode(address.removeprefix(start)) for address in page.addresses}
    assert embedded == {(shown / f"{name}.png").read_bytes() for name in ("sheet", "quality", "digits")}
    assert not re.findall(r"\{\{|\{%|Undefined", content), "a placeholder was left"


def test_the_page_states_what_was_measured(shown: Path, report: dict[str, dict]) -> None:
    text = html.unescape(Page((shown / "report.html").read_text(encoding="utf-8")).text)
    for cell in report["solvers"]["cells"]:
        for value in (f"{cell['rmse']:.4f}", f"{cell['distance']:.2f}", f"{cell['contrast_gain']:.3f}"):
            assert value in text, f"{value} of {cell['solver']} at {cell['nfe']} calls is not on the page"
    for row in report["digits"]["rows"]:
        assert f"{row['distance']:.2f} ({row['rho']:.2f})" in text
    assert f"{report['digits']['floor']:.2f}" in text
    assert report["solvers"]["model_fingerprint"] in text
    assert report["solvers"]["measure"] in text
    assert "Floor, halves: 0.25." in text
    assert "(2)" in text, "Heun's real number of calls stands beside its cell"


def test_without_a_bundled_model_nothing_is_left(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_BUNDLED", tmp_path)
    ran = cli("demo", "--out", tmp_path / "out")
    assert ran.code == 2
    assert "'mnist'" in ran.parts[1]
    assert list(tmp_path.iterdir()) == []
