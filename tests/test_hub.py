"""Sharing models: folders, cards and the hub. No test reaches the network: the hub is a stand-in or a cache folder."""

from __future__ import annotations

import dataclasses
import pickle
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_models import CONFIG, network

from fewstep import _files
from fewstep._card import _MORE_CALLS, _NFE, _SOLVER, model_card
from fewstep._hub import FILES, is_id
from fewstep.adapters.checkpoints import config_like, import_weights
from fewstep.errors import CheckpointError, ConfigError, MissingExtra, MissingWeights, OutputError, UnknownName
from fewstep.models import Chain, Model, ModelConfig, Part, bundled, load_model, save_model
from fewstep.networks import EDMUNet, Vocabulary
from fewstep.noise import EDM, UniformLam
from fewstep.solvers import DEFAULT_NFE, DEFAULT_SOLVER, SOLVERS

hub = pytest.importorskip("huggingface_hub", reason="sharing models needs the extra 'hub'")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return save_model(tmp_path / "toy", network(), CONFIG)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no connection to it."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def cached(cache: Path, source: Path, *, repo: str = "ada/toy", names: tuple[str, ...] = FILES) -> Path:
    """Put files into the cache in the layout that huggingface_hub gives it."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    (root / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    for name in names:
        if (source / name).exists():
            shutil.copy(source / name, root / "blobs" / name)
            (snapshot / name).symlink_to(Path("..", "..", "blobs", name))
    return snapshot


class Recorder:
    """Stands in for HfApi: remembers what it was asked, and what lay in the folder then."""

    def __init__(self, *, private: bool = False, error: Exception | None = None) -> None:
        self.private, self.error, self.calls, self.files = private, error, [], {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        if self.error:
            raise self.error
        self.calls.append(("create_repo", repo_id, private, exist_ok))
        return f"https://huggingface.co/{repo_id}"

    def model_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id: str, folder_path: str, **options: object) -> None:
        self.calls.append(("upload_folder", repo_id, options))
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(hub, "HfApi", lambda: recorder)
    return recorder


def test_the_stand_in_is_asked_as_the_library_is() -> None:
    """Its methods exist, and take these arguments."""
    import inspect

    for name, needed in {
        "create_repo": {"private", "exist_ok"},
        "model_info": {"repo_id"},
        "upload_folder": {"repo_id", "folder_path", "commit_message", "allow_patterns", "delete_patterns"},
    }.items():
        assert needed <= set(inspect.signature(getattr(hub.HfApi, name)).parameters)
    assert {"revision", "allow_patterns"} <= set(inspect.signature(hub.snapshot_download).parameters)


def test_a_saved_model_is_the_model(toy: Path, tmp_path: Path) -> None:
    model = Model.from_pretrained(toy)
    again = Model.from_pretrained(model.save_pretrained(tmp_path / "again"))
    assert (again.config, again.fingerprint, again.calibration) == (CONFIG, model.fingerprint, None)
    assert _files.read_tensors(tmp_path / "again" / "model.safetensors").keys() == network().state_dict().keys()
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_half_weights_stay_half_and_keep_their_table(tmp_path: Path) -> None:
    """In float32 they would have another fingerprint, and the table would be refused."""
    save_model(tmp_path / "half", network(), CONFIG, half=True)
    table = {"entries": {"6": {}}, "origin": {"guidance": [1.0, 3.0]}}
    _files.write_json(tmp_path / "half" / "calibration.json", table)
    model = load_model(tmp_path / "half")
    saved = load_model(model.save_pretrained(tmp_path / "again"))
    assert (saved.fingerprint, saved.calibration) == (model.fingerprint, table)
    assert _files.read_tensors(tmp_path / "again" / "model.safetensors")["conv_in.weight"].dtype == torch.float16


def test_changed_weights_leave_the_table_behind(toy: Path, tmp_path: Path) -> None:
    _files.write_json(toy / "calibration.json", {"entries": {"6": {}}})
    model = load_model(toy)
    with torch.no_grad():
        model.denoiser.network.conv_in.weight.add_(0.1)
    saved = load_model(model.save_pretrained(tmp_path / "changed"))
    assert saved.fingerprint != model.fingerprint
    assert saved.calibration is None
    assert "calibrated" not in saved.card


def test_a_denoiser_without_weights_cannot_be_saved(toy: Path, tmp_path: Path) -> None:
    model = load_model(toy)
    bare = dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, network=lambda x, label, cond: x))
    with pytest.raises(ConfigError, match="The network of 'toy', a function"):
        bare.save_pretrained(tmp_path / "bare")
    assert not (tmp_path / "bare").exists()


def test_bundled_models_and_names(tmp_path: Path) -> None:
    assert Model.from_pretrained("mnist").fingerprint == load_model("mnist").fingerprint
    for place in ("mnist", tmp_path):
        with pytest.raises(ConfigError, match=r"revision='v1'.*Only a model on the hub"):
            Model.from_pretrained(place, revision="v1")
    assert [is_id(name) for name in ("ada/toy", "a.b/c-d_e", "mnist", "./toy", "/a/b", "a/b/c", "../toy", "~/toy")] == [
        *(True, True),
        *[False] * 6,
    ]
    with pytest.raises(UnknownName, match=r"No model './toy'.*or a hub id, user/name"):
        load_model("./toy")


# The hub.


def test_a_model_comes_from_the_cache_without_a_connection(cache: Path, toy: Path) -> None:
    _files.write_json(toy / "calibration.json", {"entries": {}})
    cached(cache, toy)
    expected = load_model(toy)
    for model in (load_model("ada/toy"), Model.from_pretrained("ada/toy", revision=COMMIT)):
        assert (model.config, model.fingerprint) == (expected.config, expected.fingerprint)
        assert model.calibration == {"entries": {}}


def test_a_folder_goes_before_the_hub(cache: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = save_model(tmp_path / "ada" / "toy", network(), dataclasses.replace(CONFIG, name="here"))
    cached(cache, toy)
    assert load_model("ada/toy").config.name == "here"
    shutil.rmtree(other)
    assert load_model("ada/toy").config.name == "toy"


def test_what_is_asked_of_the_hub(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot_download(repo_id: str, **options: object) -> str:
        asked.update(repo_id=repo_id, **options)
        return str(toy)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert Model.from_pretrained("ada/toy", revision="v2").config == CONFIG
    assert asked == {"repo_id": "ada/toy", "revision": "v2", "allow_patterns": list(FILES)}


def test_a_model_that_cannot_be_had(cache: Path, toy: Path) -> None:
    with pytest.raises(MissingWeights, match=r"'ada/toy' is no folder here.*cannot be had.*work offline"):
        load_model("ada/toy")
    cached(cache, toy)
    with pytest.raises(MissingWeights, match="cannot be had"):
        Model.from_pretrained("ada/toy", revision="v9")


@pytest.mark.parametrize("lacks", ["config.json", "model.safetensors"])
def test_a_repository_of_something_else(toy: Path, tmp_path: Path, lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (toy / lacks).unlink()
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(toy))
    with pytest.raises(MissingWeights, match=f"has no {re.escape(lacks)}.*fewstep.wrap"):
        load_model("ada/toy")


def test_a_damaged_download_is_refused(cache: Path, toy: Path) -> None:
    snapshot = cached(cache, toy)
    weights = (snapshot / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model("ada/toy")


def test_without_the_library(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"'runs/toi' is no folder here.*pip install 'fewstep\[hub\]'"):
        load_model("runs/toi")
    with pytest.raises(MissingExtra, match=r"fewstep\[hub\]"):
        load_model(toy).push_to_hub("ada/toy")


def test_push(api: Recorder, toy: Path) -> None:
    """One commit with our files alone, which also deletes those of ours that are no longer there."""
    (toy / "notes.txt").write_text("private")
    model = load_model(toy)
    assert model.push_to_hub("ada/toy", message="first") == "https://huggingface.co/ada/toy"
    options = {"commit_message": "first", "allow_patterns": list(FILES), "delete_patterns": list(FILES)}
    assert api.calls == [("create_repo", "ada/toy", False, True), ("upload_folder", "ada/toy", options)]
    assert sorted(api.files) == ["README.md", "config.json", "model.safetensors"]
    assert b'from_pretrained("ada/toy")' in api.files["README.md"]
    assert api.files["model.safetensors"] == (toy / "model.safetensors").read_bytes()


def test_what_was_pushed_comes_back(api: Recorder, cache: Path, tmp_path: Path) -> None:
    load_model("mnist").push_to_hub("ada/toy")
    (tmp_path / "remote").mkdir()
    for name, content in api.files.items():
        (tmp_path / "remote" / name).write_bytes(content)
    cached(cache, tmp_path / "remote")
    there, here = load_model("ada/toy"), load_model("mnist")
    assert (there.config, there.fingerprint, there.calibration) == (here.config, here.fingerprint, here.calibration)
    assert set(api.files) == set(FILES)


def test_a_private_model_is_never_brought_to_a_public_repository(api: Recorder, toy: Path) -> None:
    with pytest.raises(ConfigError, match=r"private=True for 'ada/toy', which is public.*nothing was uploaded"):
        load_model(toy).push_to_hub("ada/toy", private=True)
    assert [call[0] for call in api.calls] == ["create_repo"]
    api.private = True
    load_model(toy).push_to_hub("ada/toy", private=True)
    assert [call[0] for call in api.calls] == ["create_repo", "create_repo", "upload_folder"]


@pytest.mark.parametrize("error", [OSError("401 Client Error"), ValueError("Repo id must use"), ConnectionError("off")])
def test_a_hub_that_does_not_take_it(api: Recorder, toy: Path, error: Exception) -> None:
    api.error = error
    with pytest.raises(OutputError, match=rf"{error}.*hf auth login"):
        load_model(toy).push_to_hub("ada/toy")
    assert api.files == {}


def test_push_without_a_connection(cache: Path, toy: Path) -> None:
    """The library itself, told to stay offline."""
    with pytest.raises(OutputError, match="cannot be written"):
        load_model(toy).push_to_hub("ada/toy")


# The card.

TOLD = {
    "classes": CONFIG,
    "chain": dataclasses.replace(CONFIG, chain=Chain(Part("ddim"), steps=(1, 2))),
    "nothing": dataclasses.replace(
        CONFIG, classes=(), network=Part("unet", {**CONFIG.network.arguments, "n_classes": 0})
    ),
    "captions": dataclasses.replace(
        CONFIG,
        classes=(),
        captions=Vocabulary(("red", "circle"), 2),
        network=Part("unet", {**CONFIG.network.arguments, "n_classes": 0, "n_tokens": 3, "caption_length": 2}),
    ),
    "edm": dataclasses.replace(CONFIG, schedule=Part("edm", {"sigma_max": 50.0}), label="edm"),
}


def example(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1]


def run(card: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert len(example(card).splitlines()) <= 11
    exec(compile(example(card), "README.md", "exec"), {})


@pytest.mark.parametrize("name", TOLD)
def test_the_lines_of_the_card_sample_the_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TOLD[name]
    save_model(tmp_path / "old", network(config), config)
    folder = load_model(tmp_path / "old").save_pretrained(tmp_path / "new")
    run((folder / "README.md").read_text(), folder, monkeypatch)
    assert capsys.readouterr().out == f"torch.Size([8, 1, 4, 4]) {2 if config.chain else 10}\n"


@pytest.mark.parametrize("name", bundled())
def test_the_card_of_every_bundled_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it says is what its configuration and its table say; the card that it had is below."""
    model = load_model(name)
    folder = model.save_pretrained(tmp_path)
    card = (folder / "README.md").read_text()
    run(card, folder, monkeypatch)
    shape, calls = re.fullmatch(r"torch\.Size\(\[8, (.*)\]\) (\d+)\n", capsys.readouterr().out).groups()
    assert shape == ", ".join(map(str, model.shape))
    assert f"| weights | {model.fingerprint}, " in card
    assert f"| prediction | {model.config.prediction} |" in card
    assert f"| schedule | {model.config.schedule}, read as {model.config.label} |" in card
    if model.config.chain:
        assert int(calls) == model.config.chain.longest
        assert "| steps | 1, 2 or 4, and no other number |" in card
        assert "- few-step\n" in card
    else:
        assert int(calls) == 10
        assert "| calibrated | calls (NFE) 4, 5, 6, 8, 10, 15 or 20; guidance 1 |" in card
        assert "- calibrated\n" in card
    assert card.endswith(model.card.strip() + "\n")


def test_front_matter_is_what_the_hub_reads() -> None:
    yaml = pytest.importorskip("yaml")
    facts = {"license": "cc-by-4.0"}
    for config, tag, tags in (
        (dataclasses.replace(CONFIG, facts=facts), "unconditional-image-generation", ["diffusion", "fewstep"]),
        (TOLD["captions"], "text-to-image", ["diffusion", "fewstep"]),
        (TOLD["chain"], "unconditional-image-generation", ["diffusion", "few-step", "fewstep"]),
    ):
        front = yaml.safe_load(model_card(config, "abc", 1).split("---\n")[1])
        licence = {"license": "cc-by-4.0"} if config.facts == facts else {}
        assert front == {"library_name": "fewstep", "pipeline_tag": tag, "tags": tags, **licence}
    hub.ModelCard(model_card(CONFIG, "abc", 1)).data.to_dict()


def test_what_an_author_writes_stays() -> None:
    """And writing a card again changes nothing; a new table or chain does."""
    first = model_card(CONFIG, "abc", 12)
    assert model_card(CONFIG, "abc", 12, own=first) == first
    mine = first.replace("library_name: fewstep", "library_name: fewstep\nlicense: mit") + "\n## Mine\n\ntext ---\n"
    again = model_card(TOLD["chain"], "def", 12, own=mine)
    assert "license: mit\n" in again
    assert again.endswith("\n## Mine\n\ntext ---\n")
    assert again.count("# toy\n") == 1
    assert "trained chain" in again
    assert "abc" not in again
    assert model_card(TOLD["chain"], "def", 12, own=again) == again
    assert model_card(CONFIG, "abc", 12, own="# plain\n\n---\nrule\n").endswith("\n# plain\n\n---\nrule\n")


def test_a_table_is_read_without_trust() -> None:
    """Its own reader refuses it, where it is used; a card only says what it can."""
    for table in ({}, {"entries": 3}, {"entries": {"x": 1}, "origin": []}, {"entries": {}, "origin": {"guidance": 1}}):
        assert "| solver | evodiff" in model_card(CONFIG, "abc", 1, table)
    for guidance, said in (([1.0, 4.5], "1 to 4.5"), (None, "not stated"), (["a", 2], "not stated"), ([2, 2], "2")):
        card = model_card(CONFIG, "abc", 1, {"entries": {"5": {}, "8": {}}, "origin": {"guidance": guidance}})
        assert f"| calibrated | calls (NFE) 5 or 8; guidance {said} |" in card
        assert "nfe=8)" in card


def test_the_card_knows_what_solvers_cost() -> None:
    """It lies below them, so it is told; this test sees when they change."""
    assert (Part(DEFAULT_SOLVER), DEFAULT_NFE) == (_SOLVER, _NFE)
    grid = UniformLam()(EDM(), 10)
    assert {name for name, made in SOLVERS.items() if made().nfe(grid) != 10} == set(_MORE_CALLS)


def test_a_config_of_every_kind_says_its_guidance() -> None:
    def guidance(config: ModelConfig) -> str:
        return re.search(r"\| guidance \| (.*) \|", model_card(config, "abc", 1))[1]

    assert guidance(TOLD["nothing"]) == "none: it is told nothing"
    assert guidance(TOLD["classes"]) == "1 is none; scales were not measured"
    assert guidance(TOLD["chain"]) == "none: the chain was trained without, or has it inside"


# The page.


def page_blocks() -> list[str]:
    text = (Path(__file__).parent.parent / "docs" / "hub.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_what_the_page_shows_runs(
    api: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    api.private = True
    exec(compile("\n".join(page_blocks()[:2]), "hub.md", "exec"), {})
    assert capsys.readouterr().out == "True\n"
    assert set(api.files) == set(FILES)


class EDMPrecond(torch.nn.Module):
    """Stands in for the object in one of EDM's files: a state, and the arguments that it was made with."""

    def __init__(self, **init_kwargs: object) -> None:
        super().__init__()
        self.init_kwargs = init_kwargs
        self.model = EDMUNet(3, 8, 8, (1, 2), 1, (4,), n_classes=4)


def test_the_script_of_the_page_writes_what_import_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = EDMPrecond(
        img_resolution=8,
        img_channels=3,
        label_dim=4,
        model_type="SongUNet",
        model_channels=8,
        channel_mult=[1, 2],
        num_blocks=1,
        attn_resolutions=[4],
        use_fp16=False,
    )
    monkeypatch.chdir(tmp_path)
    Path("network.pkl").write_bytes(pickle.dumps({"ema": network, "loss_fn": None}))
    monkeypatch.setattr(sys, "argv", ["to_safetensors.py", "network.pkl"])
    exec(compile(page_blocks()[2], "to_safetensors.py", "exec"), {})
    found = import_weights("edm.safetensors", config_like("edm.json"))
    expected = network.model.state_dict()
    assert found.network.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.network.state_dict().items())
    with pytest.raises(CheckpointError, match="may be code, so it was not loaded"):
        import_weights("network.pkl", config_like("edm.json"))


def test_a_card_names_a_long_table_instead_of_printing_it():
    from fewstep._card import _short
    from fewstep._part import Part

    table = Part("tabulated", {"alphas_cumprod": [1 - k / 1001 for k in range(1, 1001)]})
    assert _short(table) == "tabulated, see config.json"
    assert _short(Part("linear_flow")) == "linear_flow"
