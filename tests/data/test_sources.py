"""Where images come from, and what is said about those that cannot be had."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fewstep.data import digits, hub, image_folder, load_data, parquet
from fewstep.errors import ConfigError, DataError, UnknownName

SHARED = Path(__file__).parents[3] / "shared" / "data"


def picture(seed: int, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(image: Image.Image) -> torch.Tensor:
    array = np.array(image)
    return torch.from_numpy(array)[None] if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1)


def write_parquet(path: Path, columns: dict[str, list[object]], names: list[str] | None = None) -> Path:
    table = pa.table(columns)
    if names is not None:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path)
    return path


def test_digits_are_scikit_learns() -> None:
    data = digits()
    assert (len(data), data.shape, data.n_classes) == (1797, (1, 8, 8), 10)
    assert (int(data.images.min()), int(data.images.max()), len(data.images.unique())) == (0, 255, 17)
    assert data.labels is not None
    assert data.labels[:12].tolist() == [*range(10), 0, 1]


def test_folder_of_pictures(tmp_path: Path) -> None:
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    data = image_folder(tmp_path)
    assert torch.equal(data.images, torch.stack([pixels(picture(i)) for i in range(3)]))
    assert data.labels is None
    grey = image_folder(tmp_path, channels=1)
    assert torch.equal(grey.images[1], pixels(picture(1).convert("L")))


def test_class_folders(tmp_path: Path) -> None:
    for i, name in enumerate(("dog", "cat", "cat")):
        (tmp_path / name / "deep").mkdir(parents=True, exist_ok=True)
        picture(i).save(tmp_path / name / "deep" / f"{i}.png")
    data = image_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1]
    assert torch.equal(data.images[2], pixels(picture(0)))


def test_size_crops_the_central_square(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    picture(1, (40, 50)).save(tmp_path / "tall.png")
    data = image_folder(tmp_path, size=5)
    assert data.shape == (3, 5, 5)
    assert bool((data.images[1] == 200).all())


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        image_folder(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no picture"):
        image_folder(tmp_path)
    picture(0).save(tmp_path / "a.png")
    picture(1, (5, 5)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png has 5x5 pixels, the first one 6x4.*Pass size="):
        image_folder(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"b\.png cannot be read as a picture"):
        image_folder(tmp_path)
    (tmp_path / "b.png").unlink()
    (tmp_path / "cat").mkdir()
    picture(2).save(tmp_path / "cat" / "c.png")
    with pytest.raises(DataError, match=r"pictures \(a\.png\) beside class folders \(cat\)"):
        image_folder(tmp_path)


@pytest.mark.parametrize("size", [0, -3, True, 2.5])
def test_forms_that_cannot_be(tmp_path: Path, size: int) -> None:
    picture(0).save(tmp_path / "a.png")
    table = write_parquet(tmp_path / "x.parquet", {"image": [encoded(picture(1))]})
    for source in ("digits", f"folder:{tmp_path}", f"parquet:{table}", "hf:me/toy"):
        with pytest.raises(ConfigError, match=r"size=.*whole number of pixels"):
            load_data(source, size=size)
    with pytest.raises(ConfigError, match=r"channels=2.*1 channel \(grey\) or 3"):
        image_folder(tmp_path, channels=2)


def test_digits_take_a_size() -> None:
    data = load_data("digits", size=16)
    assert data.shape == (1, 16, 16)
    expected = Image.fromarray(digits().images[5, 0].numpy()).resize((16, 16), Image.Resampling.LANCZOS)
    assert torch.equal(data.images[5], pixels(expected))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_become_eight(tmp_path: Path, suffix: str) -> None:
    grey = np.array([[0, 257, 128 * 257], [255 * 257, 100, 400]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / f"deep.{suffix}")
    expected = torch.tensor([[0, 1, 128], [255, 0, 2]], dtype=torch.uint8)
    for channels in (1, 3):
        assert torch.equal(image_folder(tmp_path, channels=channels).images[0], expected.expand(channels, 2, 3))
    table = write_parquet(tmp_path / "x.parquet", {"image": [(tmp_path / f"deep.{suffix}").read_bytes()]})
    assert torch.equal(parquet(table).images[0], expected[None])


@pytest.mark.parametrize(("dtype", "word"), [(np.int32, "32-bit"), (np.float32, "float")])
def test_values_of_unknown_range_are_refused(tmp_path: Path, dtype: type, word: str) -> None:
    Image.fromarray(np.full((2, 3), 1000, dtype=dtype)).save(tmp_path / "odd.tif")
    with pytest.raises(DataError, match=rf"odd\.tif has {word} values.*8 or 16 bits"):
        image_folder(tmp_path)


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png"):
        picture(0).save(tmp_path / name)
    (tmp_path / ".thumbnails").mkdir()
    picture(1).save(tmp_path / ".thumbnails" / "b.png")
    data = image_folder(tmp_path)
    assert (len(data), data.classes) == (1, ())


def test_cameras_note_which_way_is_up(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture(0).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(image_folder(tmp_path).images[0], pixels(picture(0)).rot90(-1, (1, 2)))


@pytest.mark.parametrize(
    "notes",
    [
        *(b"{", b"[1]", b'{"info": null}', b"[" * 100_000, b"\xff"),
        b'{"info": {"features": {"label": {"names": "abc"}}}}',
        b'{"info": {"features": {"label": {"names": [1, 2, 3]}}}}',
    ],
    ids=range(7),
)
def test_class_names_that_cannot_be_read_are_numbers(tmp_path: Path, notes: bytes) -> None:
    table = pa.table({"image": [encoded(picture(0))], "label": [1]}).replace_schema_metadata({"huggingface": notes})
    pq.write_table(table, tmp_path / "x.parquet")
    assert parquet(tmp_path / "x.parquet").classes == ("0", "1")


def test_parquet_layouts(tmp_path: Path) -> None:
    grey = [picture(i, mode="L") for i in range(3)]
    cells: list[object] = [{"bytes": encoded(image), "path": None} for image in grey]
    one = write_parquet(tmp_path / "one.parquet", {"image": cells, "label": [1, 0, 1]}, ["no", "yes", "perhaps"])
    data = parquet(one)
    assert torch.equal(data.images, torch.stack([pixels(image) for image in grey]))
    assert (data.classes, data.name) == (("no", "yes", "perhaps"), "one")
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0, 1]
    picture(7).save(tmp_path / "seven.png")
    plain: dict[str, list[object]] = {"img": [{"bytes": None, "path": str(tmp_path / "seven.png")}]}
    colour = parquet(write_parquet(tmp_path / "two.parquet", plain))
    assert torch.equal(colour.images[0], pixels(picture(7)))
    assert (colour.labels, colour.classes) == (None, ())
    raw = parquet(write_parquet(tmp_path / "three.parquet", {"image": [encoded(picture(8))], "label": [4]}))
    assert raw.classes == ("0", "1", "2", "3", "4")


def test_parquet_folders_choose_the_split(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    for i, name in enumerate(("train-0", "train-1", "test-0")):
        write_parquet(folder / f"{name}.parquet", {"image": [encoded(picture(i))]})
    assert len(parquet(folder)) == 2
    assert parquet(folder).name == "toy"
    assert torch.equal(parquet(folder, split="test").images[0], pixels(picture(2)))
    assert len(parquet(str(folder / "*.parquet"), split="test")) == 1
    assert len(parquet(folder / "test-0.parquet")) == 1
    with pytest.raises(DataError, match="No parquet file of the split 'validation'"):
        parquet(folder, split="validation")


def test_parquet_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No parquet file"):
        parquet(tmp_path)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        parquet(tmp_path / "bad.parquet")
    other = write_parquet(tmp_path / "other.parquet", {"text": ["a"], "label": [0]})
    with pytest.raises(DataError, match=r"has the columns text, label.*named image or img"):
        parquet(other)
    broken = write_parquet(tmp_path / "broken.parquet", {"image": [encoded(picture(0)), b"no picture"]})
    with pytest.raises(DataError, match="row 1 of broken cannot be read"):
        parquet(broken)
    empty = write_parquet(tmp_path / "empty.parquet", {"image": [], "label": []})
    with pytest.raises(DataError, match="no rows"):
        parquet(empty)
    negative = write_parquet(tmp_path / "negative.parquet", {"image": [encoded(picture(0))], "label": [-1]})
    with pytest.raises(DataError, match="from 0 to the number of classes"):
        parquet(negative)
    words = write_parquet(tmp_path / "words.parquet", {"image": [encoded(picture(0))], "label": ["cat"]})
    with pytest.raises(DataError, match="integer class indices"):
        parquet(words)
    huge = write_parquet(tmp_path / "huge.parquet", {"image": [encoded(picture(0))], "label": [10**12]})
    with pytest.raises(DataError, match="class indices below 1,000,000"):
        parquet(huge)


def test_hub_reads_what_datasets_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"image": [picture(i) for i in range(2)], "label": [1, 0]}
    made = datasets.Dataset.from_dict(rows, features=features)

    def load_dataset(name: str, split: str) -> object:
        if name != "me/toy":
            raise FileNotFoundError("couldn't find it on the hub")
        return made

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = hub("me/toy")
    assert torch.equal(data.images, torch.stack([pixels(picture(i)) for i in range(2)]))
    assert (data.classes, data.name) == (("no", "yes"), "toy")
    with pytest.raises(DataError, match=r"'me/other'.*couldn't find it"):
        load_data("hf:me/other")


def test_sources_by_word(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    write_parquet(tmp_path / "x.parquet", {"image": [encoded(picture(1))]})
    assert len(load_data("digits")) == 1797
    assert len(load_data(f"folder:{tmp_path}")) == 1
    assert load_data(f"parquet:{tmp_path / 'x.parquet'}", size=4).shape == (3, 4, 4)
    with pytest.raises(UnknownName, match=r"No data source 'parket'.*Did you mean 'parquet'"):
        load_data("parket:x")
    for source in ("folder", "digits:x", "hf:"):
        with pytest.raises(ConfigError, match="Write the place of the images after a colon"):
            load_data(source)


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="no ../shared/data beside the repository")
@pytest.mark.parametrize(
    ("name", "n", "shape"),
    [("mnist", 10_000, (1, 28, 28)), pytest.param("cifar10", 10_000, (3, 32, 32), marks=pytest.mark.slow)],
)
def test_published_files(name: str, n: int, shape: tuple[int, int, int]) -> None:
    data = parquet(SHARED / name, split="test")
    assert (len(data), data.shape, data.n_classes, data.name) == (n, shape, 10, name)
    mean = data.images.double().mean(dim=(0, 2, 3)) / 255
    known = {"mnist": [0.1325], "cifar10": [0.4942, 0.4851, 0.4504]}[name]
    assert mean.tolist() == pytest.approx(known, abs=1e-3)
