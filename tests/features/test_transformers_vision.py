"""CLIP and DINOv2: what transformers computes, on tensors and with gradients, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.errors import CheckpointError, ConfigError, DtypeError, MissingWeights, ShapeError
from fewstep.features import Features
from fewstep.features.preparation import Preparation

transformers = pytest.importorskip("transformers", reason="CLIP and DINOv2 need the extra 'vision'")

from tests.reference import tiny_checkpoints as tiny  # noqa: E402

from fewstep.features.transformers_vision import load_clip, load_dinov2  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name in ("clip", "dinov2"):
        made[name] = getattr(tiny, name)(tmp_path_factory.mktemp(name))
    return made


@pytest.fixture(scope="module")
def loaded(folders):
    return {"clip": load_clip(folders["clip"]), "dinov2": load_dinov2(folders["dinov2"])}


@pytest.fixture
def broken_clip(folders, tmp_path):
    return shutil.copytree(folders["clip"], tmp_path / "clip")


def images(b=4, h=40, w=52, seed=3):
    """Values on the 8-bit grid, hard edges and saturated areas among them."""
    values = torch.randint(-150, 400, (b, 3, h // 4, w // 4), generator=torch.Generator().manual_seed(seed))
    return values.clamp(0, 255).repeat_interleave(4, -1).repeat_interleave(4, -2) / 127.5 - 1


def their_pixels(folder, x):
    """What transformers' own image processor makes of the same pictures, normalised."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pictures = [np.uint8(one) for one in ((x + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()]
    return CLIPImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]


both = pytest.mark.parametrize("kind", ["clip", "dinov2"])


@both
def test_protocol(kind, loaded):
    features, x = loaded[kind], images()
    assert isinstance(features, Features)
    assert features.name.startswith(f"{kind}-w")
    assert len(features.name.partition("@")[2]) == 12
    assert features(x).shape == (4, features.dim)
    assert features(x).dtype == torch.float32
    alone = torch.cat([features(one) for one in x.split(1)])
    torch.testing.assert_close(alone, features(x), atol=1e-5, rtol=0)


@both
@pytest.mark.parametrize("shape", [(40, 52), (52, 40), (16, 16), (33, 47)])
def test_pixels_are_those_of_the_image_processor(kind, folders, loaded, shape):
    features = load_dinov2(folders[kind], crop=True) if kind == "dinov2" else loaded[kind]
    h, w = shape
    x = images(h=60, w=60)[..., :h, :w]
    ours, theirs = features.prepared(x), their_pixels(folders[kind], x)
    assert ours.shape == theirs.shape
    scale = torch.tensor(tiny.STD)[:, None, None]
    assert (
        float(((ours - theirs) * scale).abs().max()) <= 1.2 / 255
    )  # half a step after each axis, the first filtered by weights of sum 1.4


def test_clip_is_what_transformers_computes(folders, loaded):
    model = transformers.CLIPModel.from_pretrained(folders["clip"]).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folders["clip"])
    x, texts = images(), ["a red cat", "b"]
    ours = loaded["clip"]
    with torch.no_grad():
        whole = model(
            pixel_values=ours.prepared(x), **tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        )
    torch.testing.assert_close(torch.nn.functional.normalize(ours(x)), whole.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        torch.nn.functional.normalize(ours.embed_text(texts)), whole.text_embeds, atol=1e-6, rtol=0
    )


def test_dinov2_is_the_normed_class_token(folders, loaded):
    model, x = transformers.Dinov2Model.from_pretrained(folders["dinov2"]).eval(), 0.6 * images()
    pixels = torch.nn.functional.interpolate(x, (28, 28), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(value)[:, None, None] for value in (tiny.MEAN, tiny.STD))
    with torch.no_grad():
        theirs = model(pixel_values=((pixels + 1) / 2 - mean) / std)
    torch.testing.assert_close(loaded["dinov2"](x), theirs.pooler_output, atol=1e-5, rtol=0)
    assert loaded["dinov2"].resize == "bicubic antialiased to 28x28, aspect not kept"


@both
def test_frozen_and_differentiable(kind, loaded):
    features = loaded[kind]
    features.train()
    assert not any(module.training for module in features.modules())
    x = images(2).requires_grad_()
    features(x).square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.abs().sum()) > 0
    assert not any(weight.requires_grad for weight in features.parameters())


def test_gradient_of_the_preparation():
    prepare = Preparation((5, 5), (0.4,), (0.3,), edge=6)
    x = torch.rand(2, 1, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.6
    assert torch.autograd.gradcheck(prepare, x.requires_grad_())


def test_an_image_outside_the_range_keeps_it():
    prepare = Preparation((4, 4), (0.5,), (0.5,))
    assert float(prepare(torch.full((1, 1, 9, 9), 3.0)).max()) == pytest.approx(3.0)
    edge = torch.ones(1, 1, 3, 3)
    edge[..., :1] = -1
    assert float(Preparation((30, 30), (0.5,), (0.5,))(edge).abs().max()) == 1.0  # bicubic alone overshoots this


def test_the_name_tells_weights_and_preparation(folders, loaded, tmp_path):
    folder = shutil.copytree(folders["dinov2"], tmp_path / "another name")
    assert load_dinov2(folder).name == loaded["dinov2"].name
    assert load_dinov2(folder, crop=True).name != loaded["dinov2"].name
    weights = load_file(folder / "model.safetensors")
    weights["layernorm.bias"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_dinov2(folder).name != loaded["dinov2"].name


def test_old_configuration_files(folders, loaded, broken_clip):
    tiny.preprocessor(broken_clip, 0, 0, size=24, crop_size=24)
    assert load_clip(broken_clip).name == loaded["clip"].name


def test_half_precision_weights_compute_in_float32(folders, tmp_path):
    folder = shutil.copytree(folders["dinov2"], tmp_path / "half")
    weights = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_dinov2(folder)(images(1)).dtype == torch.float32


def test_texts(loaded):
    features = loaded["clip"]
    long = "a very long text, longer than the context"
    assert features.embed_text(["cat", "dog", "cat"]).shape == (3, features.dim)
    assert torch.equal(*features.embed_text(["cat", "cat"]))
    # Padding to the longest text of a batch changes nothing.
    torch.testing.assert_close(features.embed_text(["cat", long])[:1], features.embed_text(["cat"]), atol=1e-6, rtol=0)
    assert features.too_long(["cat", long]) == [1]
    # One longer and longer text: the one that just fills the context is not too long.
    growing = ["x" * letters for letters in range(1, features.context + 1)]
    tokens = [len(features.tokenizer(text, verbose=False).input_ids) for text in growing]
    assert features.context in tokens
    assert features.too_long(growing) == list(range(tokens.index(features.context) + 1, len(growing)))
    with pytest.raises(ConfigError, match="No texts"):
        features.embed_text([])


@both
def test_images_that_are_refused(kind, loaded):
    with pytest.raises(DtypeError, match="8-bit"):
        loaded[kind](torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="3"):
        loaded[kind](torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("place", ["./nowhere", "/nowhere/at/all", "a/b/c", ""])
def test_a_path_that_is_no_model(place):
    with pytest.raises(MissingWeights, match="hf download openai"):
        load_clip(place)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(MissingWeights, match=r"holds no config\.json"):
        load_dinov2(tmp_path)


def test_the_hub_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeights, match="some/model cannot be had"):
        load_clip("some/model")


def test_another_model(folders):
    with pytest.raises(CheckpointError, match="'dinov2'"):
        load_clip(folders["dinov2"])
    with pytest.raises(CheckpointError, match="'clip'"):
        load_dinov2(folders["clip"])


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "preprocessor_config.json", "config.json"])
def test_a_missing_file(broken_clip, name):
    (broken_clip / name).unlink()
    with pytest.raises(MissingWeights, match="tokenizer" if name.startswith("tok") else name):
        load_clip(broken_clip)


def test_pickled_weights_are_not_opened(broken_clip):
    torch.save(load_file(broken_clip / "model.safetensors"), broken_clip / "pytorch_model.bin")
    (broken_clip / "model.safetensors").unlink()
    with pytest.raises(MissingWeights, match=r"model\.safetensors"):
        load_clip(broken_clip)


def test_damaged_weights(broken_clip):
    file = broken_clip / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be loaded as a CLIP model"):
        load_clip(broken_clip)


def test_weights_with_gaps(broken_clip):
    weights = load_file(broken_clip / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, broken_clip / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack 1 .*visual_projection"):
        load_clip(broken_clip)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": 1}, "cannot be followed"),
        ({"do_normalize": False}, "cannot be followed"),
        ({"size": {"height": 32, "width": 32}}, "cannot be followed"),
        ({"size": {"shortest_edge": 20}}, "cannot be followed"),
        ({"crop_size": {"height": 16, "width": 16}}, "network reads 24"),
        ({"image_mean": None}, "cannot be loaded"),
    ],
)
def test_preparations_that_are_refused(broken_clip, changes, message):
    tiny.preprocessor(broken_clip, 24, 24, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_clip(broken_clip)


def test_logging_is_left_as_it_was(folders):
    log = transformers.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    load_dinov2(folders["dinov2"])
    with pytest.raises(CheckpointError):
        load_clip(folders["dinov2"])
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before
    assert json.loads((folders["dinov2"] / "config.json").read_text())["model_type"] == "dinov2"
