"""`fewstep evaluate`: from words to numbers with protocols, and back to earlier numbers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from cli.running import Cli, files, refuses
from fewstep._files import read_json, write_json
from fewstep.data import digits
from fewstep.experiments.pictures import save_pixels


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def evaluated(cli: Cli, *words: object) -> tuple[dict[str, object], str]:
    ran = cli("evaluate", *words)
    assert ran.code == 0, ran.err
    out = Path(str(words[list(words).index("--out") + 1]))
    return json.loads((out / "results.json").read_text()), ran.out


def test_a_model_against_its_own_judge(cli: Cli, judged: Path, tmp_path: Path) -> None:
    words = (judged, "--n", 40, "--nfe", 2, "--chunk", 25, "--out", tmp_path / "out", "--metrics", "fd")
    report, said = evaluated(cli, *words)
    (result,) = report["results"]
    assert result["protocol"]["measuring"]["features"].startswith("random@")
    assert result["protocol"]["measuring"]["reference"]["name"] == "digits"
    assert result["protocol"]["making"]["condition"] == "classes in turn"
    assert (result["protocol"]["making"]["solver"], result["protocol"]["making"]["nfe"]) == ("evodiff", 2)
    assert f"protocol {result['protocol']['key']}" in said
    assert "independent draws of the real distribution" in said
    assert len([name for name in files(tmp_path / "out") if name.startswith("images/")]) == 40
    assert len([name for name in files(tmp_path / "out") if name.startswith("parts/")]) == 2
    before = (tmp_path / "out" / "images" / "000007.png").stat().st_mtime_ns
    again, _ = evaluated(cli, *words)
    assert again["results"] == report["results"]
    assert (tmp_path / "out" / "images" / "000007.png").stat().st_mtime_ns == before
    ran = cli("evaluate", *words, "--solver", "ddim")
    refuses(ran, "ProtocolError", "generator.solver: 'evodiff' and 'ddim'", "another --out")


def test_a_judge_without_vectors_has_no_rows(cli: Cli, judged: Path, tmp_path: Path) -> None:
    ran = cli("evaluate", judged, "--n", 40, "--out", tmp_path / "out")
    refuses(ran, "ProtocolError", "The metric 'kid' needs feature vectors of the reference's images", "fd")
    assert not (tmp_path / "out").exists()


def test_against_an_earlier_result(cli: Cli, model: Path, tmp_path: Path) -> None:
    common = ("--reference", "digits", "--features", "random-conv", "--nfe", 2, "--n", 80)
    first = tmp_path / "first"
    evaluated(cli, model, *common, "--out", first)
    words = (model, *common, "--seed", 80, "--solver", "ddim", "--out", tmp_path / "second", "--against", first)
    _, said = evaluated(cli, *words)
    assert "This minus" in said
    rows = said.partition("This minus the earlier one")[2].splitlines()[2:8]
    assert [row.split()[0] for row in rows] == ["fd", "kid", "precision", "recall", "density", "coverage"]
    assert all(row.split()[-1] in ("overlap", "apart") for row in rows)
    fewer = (model, "--n", 70, *common[:-2], "--out", tmp_path / "third", "--against", first / "results.json")
    _, said = evaluated(cli, *fewer)
    assert "Not compared: fd and fd of unlike protocols: n: 80 and 70" in said
    (tmp_path / "broken.json").write_text("{}")
    ran = cli("evaluate", model, *common, "--out", tmp_path / "x", "--against", tmp_path / "broken.json")
    refuses(ran, "DataError", "A file with the keys none", "fewstep evaluate")
    assert not (tmp_path / "x").exists(), "an unreadable file is found before sampling"


def test_two_seed_sets(cli: Cli, model: Path, tmp_path: Path) -> None:
    words = ("--reference", "digits", "--features", "random-conv", "--nfe", 1, "--n", 70, "--metrics", "fd")
    report, said = evaluated(cli, model, *words, "--seeds", 2, "--out", tmp_path / "out")
    assert report["results"][0]["protocol"]["making"]["seeds"] == "0..69; 1000000..1000069"
    assert "t over 2 seeds" in said


# Prompts

CAPTIONS = 80


def prompts(path: Path, count: int = CAPTIONS) -> Path:
    rows = [f"{k:012d},a picture of {'many ' * (k % 3)}things,{k}" for k in range(count)]
    path.write_text("\n".join(["image_id,caption,evaluation_seed", *rows]))
    return path


def test_the_protocol_of_30k_prompts_on_images_already_made(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    for k, image in enumerate(digits().images[:CAPTIONS]):
        save_pixels(tmp_path / "made" / f"{k:012d}.png", image, durable=False)
    words = (tmp_path / "made", "--protocol", "coco30k", "--prompts", prompts(tmp_path / "coco.csv"))
    rest = ("--reference", "digits", "--features", "pixels", "--out", tmp_path / "out")
    report, said = evaluated(cli, *words, *rest, "--metrics", "fd", "--allow-singular")
    condition = report["results"][0]["protocol"]["measuring"]["parameters"]["condition"]
    assert re.fullmatch(r"prompts coco \(80, [0-9a-f]{12}\)", condition)
    assert "30,000 prompts" in said
    refuses(
        cli("evaluate", *words, *rest), "ProtocolError", "'clip' needs captions of the images, and features that read"
    )
    (tmp_path / "made" / f"{3:012d}.png").unlink()
    refuses(cli("evaluate", *words, *rest), "DataError", "1 captions of coco have no image")
    ran = cli("evaluate", tmp_path / "made", "--protocol", "coco30k", *rest)
    refuses(ran, "ConfigError", "coco30k without prompts", "--prompts")
    refuses(cli("evaluate", *words, "--protocol", "coco31k", *rest), "UnknownName", "No protocol 'coco31k'", "coco30k")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy 2 and newer PIL in diffusers, not ours
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_pipeline_of_diffusers_from_prompts_to_fd_and_clip_score(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from tests.reference import tiny_checkpoints as tiny

    pipeline, clip = tiny.stable_diffusion(tmp_path / "pipeline"), tiny.clip(tmp_path / "clip")
    (tmp_path / "real").mkdir()
    for k, image in enumerate(digits(16).images[:20]):
        save_pixels(tmp_path / "real" / f"{k}.png", image.expand(3, -1, -1), durable=False)
    words = (f"pipeline:{pipeline}", "--protocol", "coco30k", "--prompts", prompts(tmp_path / "tiny.csv", 12))
    rest = ("--reference", tmp_path / "real", "--features", f"clip:{clip}", "--nfe", 1, "--allow-singular")
    report, _ = evaluated(cli, *words, *rest, "--out", tmp_path / "out")
    assert [result["name"] for result in report["results"]] == ["fd", "clip"]
    assert report["results"][0]["protocol"]["making"]["nfe"] == 1
    assert [file for file in files(tmp_path / "out") if file.startswith("images/")] == [
        f"images/{k:012d}.png" for k in range(12)
    ]


# Bad input

REFUSED = {
    "unknown metric": (("--metrics", "fidd"), "UnknownName", "No metric 'fidd'", "Did you mean 'fd'"),
    "unknown features": (("--features", "pixel"), "UnknownName", "No features 'pixel'", "pixels"),
    "missing weights": (("--features", "inception:/nowhere.pth"), "MissingWeights", "/nowhere.pth", ""),
    "weights without place": (("--features", "squeezenet"), "MissingWeights", "without the place", "squeezenet:FILE"),
    "unknown reference": (("--reference", "nowhere"), "UnknownName", "No reference 'nowhere'", "mnist-judge"),
    "too few images": (("--n", "20"), "DataError", "20 images for fd", "--allow-singular"),
    "one image": (("--n", "1"), "ConfigError", "1 images", "--n 2"),
    "no chunk": (("--chunk", "0"), "ConfigError", "Chunks of 0", "--chunk"),
    "no sets": (("--seeds", "0"), "ConfigError", "0 seed sets", "--seeds"),
    "too few calls": (("--nfe", "0"), "BudgetError", "0", ""),
    "no training images": (("--metrics", "memorisation"), "ConfigError", "No training images", "--train"),
    "features of a judge": (("--reference", "mnist-judge"), "ShapeError", "", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_before_anything_is_made(cli: Cli, model: Path, tmp_path: Path, name: str) -> None:
    words, kind, given, hint = REFUSED[name]
    common = ("--reference", "digits", "--features", "random-conv", "--n", 80, "--nfe", 2)
    if name == "features of a judge":
        common = common[4:]
    ran = cli("evaluate", model, *common, *words, "--out", tmp_path / "out")
    refuses(ran, kind, given, hint)
    assert not (tmp_path / "out").exists()


def test_other_features_than_the_judges(cli: Cli, judged: Path, tmp_path: Path) -> None:
    ran = cli("evaluate", judged, "--features", "pixels", "--n", 80, "--metrics", "fd", "--out", tmp_path / "out")
    refuses(ran, "ProtocolError", "in the features pixels", "Leave --features out")


def test_no_reference(cli: Cli, model: Path, tmp_path: Path) -> None:
    ran = cli("evaluate", model, "--features", "pixels", "--n", 80, "--out", tmp_path / "out")
    refuses(ran, "ConfigError", "No reference for", "--reference")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    made.mkdir()
    for k, image in enumerate(digits().images[:70]):
        save_pixels(made / f"{k:02d}.png", image, durable=False)
    return made


def test_a_folder_with_a_truncated_file(cli: Cli, folder: Path, tmp_path: Path) -> None:
    (folder / "33.png").write_bytes((folder / "33.png").read_bytes()[:-40])
    words = (folder, "--reference", "digits", "--features", "random-conv", "--metrics", "fd")
    refuses(cli("evaluate", *words, "--out", tmp_path / "a"), "DataError", "33.png cannot be read")
    report, said = evaluated(cli, *words, "--skip-bad", "--out", tmp_path / "b")
    assert report["skipped"] == ["33.png"]
    assert "1 files could not be read and were skipped: 33.png" in said
    Image.new("RGB", (8, 8)).save(folder / "33.png")
    ran = cli("evaluate", *words, "--out", tmp_path / "c")
    refuses(ran, "DataError", "33.png has 8x8 pixels, colour", "--size")


def test_a_cache_of_another_protocol(cli: Cli, folder: Path, tmp_path: Path) -> None:
    words = (folder, "--reference", "digits", "--features", "random-conv", "--metrics", "fd")
    evaluated(cli, *words, "--out", tmp_path / "a")
    (cached,) = (tmp_path / "cache").glob("*.json")
    content = read_json(cached)
    content["protocol"]["keep"] = 7
    write_json(cached, content)
    shutil.rmtree(tmp_path / "a")
    refuses(cli("evaluate", *words, "--out", tmp_path / "a"), "ProtocolError", "keep: 7 and 10000", "Remove that file")
