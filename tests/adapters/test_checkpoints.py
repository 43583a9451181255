"""Foreign weights: every way they are wrapped, what is refused, and that no code of a file ever runs."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fewstep
from fewstep._files import read_json, read_tensors, write_json
from fewstep.adapters.checkpoints import config_like, import_weights, tensor_groups
from fewstep.adapters.edm_config import edm_config
from fewstep.denoisers import EDMPrecond
from fewstep.errors import CheckpointError, FewstepError, UnknownName
from fewstep.models import Chain, ModelConfig, Part, load_model, save_model
from fewstep.networks import EDMUNet
from fewstep.noise import EDM, Karras
from fewstep.solvers import EVODiff

CONFIG = ModelConfig(
    name="toy",
    network=Part("unet", {"width": 8, "multipliers": [1, 2], "blocks": 1, "embedding": 16}),
    prediction=Part("v"),
    schedule=Part("vp_cosine"),
    shape=(1, 4, 4),
)
EDM_ARGUMENTS = {
    "class_name": "EDMPrecond",
    "img_resolution": 8,
    "img_channels": 2,
    "label_dim": 3,
    "augment_dim": 5,
    "model_type": "SongUNet",
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.13,
    "use_fp16": True,
}
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "decoder_type": "standard",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
State = dict[str, torch.Tensor]


def state(seed: int = 0, config: ModelConfig = CONFIG) -> State:
    generator = torch.Generator().manual_seed(seed)
    blank = config.body().state_dict()
    return {name: torch.randn(tensor.shape, generator=generator) * 0.3 for name, tensor in blank.items()}


def prefixed(weights: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def holds(network: nn.Module, weights: State) -> bool:
    found = network.state_dict()
    return found.keys() == weights.keys() and all(torch.equal(found[n], w.float()) for n, w in weights.items())


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "net.", "unet.", "ema_model.", "diffusion.model.net."],
)
def test_prefixes(tmp_path: Path, prefix: str) -> None:
    save_file(prefixed(state(), prefix), tmp_path / "w.safetensors")
    found = import_weights(tmp_path / "w.safetensors", CONFIG)
    assert holds(found.network, state())
    assert (found.prefix, found.left) == (prefix.replace("_orig_mod.", ""), ())
    assert (f"{found.prefix!r} taken off" if found.prefix else "names as they are") in found.said
    assert not found.network.training
    assert not any(parameter.requires_grad for parameter in found.network.parameters())


def test_compiled_parts_have_the_word_inside_their_names(tmp_path: Path) -> None:
    weights = {name.replace("encoder.0.", "encoder.0._orig_mod."): tensor for name, tensor in state().items()}
    assert weights.keys() != state().keys()
    save_file(weights, tmp_path / "w.safetensors")
    assert holds(import_weights(tmp_path / "w.safetensors", CONFIG).network, state())


WRAPPED = {
    "bare": (lambda own, ema: own, 0, "", ""),
    "ordered": (lambda own, ema: OrderedDict(own), 0, "", ""),
    "state_dict": (lambda own, ema: {"epoch": 3, "state_dict": own}, 0, "state_dict", ""),
    "lightning": (lambda own, ema: {"state_dict": prefixed(own, "net."), "lr": 0.1}, 0, "state_dict", "net."),
    "model and ema": (lambda own, ema: {"model": own, "ema": ema}, 1, "ema", ""),
    "ema first": (lambda own, ema: {"model_ema": ema, "model": own}, 1, "model_ema", ""),
    "basicsr": (lambda own, ema: {"params": own, "params_ema": ema}, 1, "params_ema", ""),
    "nested": (lambda own, ema: {"ema": {"decay": 0.9, "state_dict": ema}, "model": own}, 1, "ema.state_dict", ""),
    "two prefixes": (lambda own, ema: prefixed(own, "model.") | prefixed(ema, "model_ema."), 1, "", "model_ema."),
    "bare beside ema": (lambda own, ema: own | prefixed(ema, "ema."), 1, "", "ema."),
    "bare beside old": (lambda own, ema: own | prefixed(ema, "old."), 0, "", ""),
    "no ema, but schemas": (lambda own, ema: {"model": own, "schema": ema}, 0, "model", ""),
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("archive", [True, False])
def test_what_training_programs_write(tmp_path: Path, kind: str, archive: bool) -> None:
    """Averaged weights go before others, wherever they lie; "ema" inside another word is none. Both formats."""
    wrap, seed, place, prefix = WRAPPED[kind]
    torch.save(wrap(state(0), state(1)), tmp_path / "w.pt", _use_new_zipfile_serialization=archive)
    found = import_weights(tmp_path / "w.pt", CONFIG)
    assert holds(found.network, state(seed))
    assert (found.place, found.prefix) == (place, prefix)
    assert found.averaged == ("EMA weights" in found.said) == (seed == 1)


def test_a_trainer_that_keeps_two_sets_inside_its_average(tmp_path: Path) -> None:
    """{"ema": {"raw.…", "ema_model.…"}}: the nearer name decides."""
    ema = {"step": torch.tensor(3)} | prefixed(state(0), "raw.") | prefixed(state(1), "ema_model.")
    torch.save({"model": state(2), "ema": ema}, tmp_path / "w.pt")
    found = import_weights(tmp_path / "w.pt", CONFIG)
    assert holds(found.network, state(1))
    assert (found.place, found.prefix) == ("ema", "ema_model.")


def test_what_was_left_is_named(tmp_path: Path) -> None:
    content = {"model": state(), "ema": state(1), "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    torch.save(content, tmp_path / "w.ckpt")
    found = import_weights(tmp_path / "w.ckpt", CONFIG)
    assert set(found.left) == {*(f"model.{name}" for name in state()), "optimizer.state.0.exp_avg"}
    assert f"{len(state())} tensors of the group 'ema' (EMA weights), names as they are" in found.said
    assert f"{len(found.left)} other tensors left" in found.said


def test_an_average_that_does_not_fit_is_not_taken(tmp_path: Path) -> None:
    incomplete = dict(list(state(1).items())[1:])
    torch.save({"ema": incomplete, "model": state()}, tmp_path / "w.pt")
    found = import_weights(tmp_path / "w.pt", CONFIG)
    assert holds(found.network, state())
    assert "group 'model' (weights)" in found.said


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in state().items()}
    save_file(weights, tmp_path / "w.safetensors")
    found = import_weights(tmp_path / "w.safetensors", CONFIG)
    assert holds(found.network, weights)
    assert all(parameter.dtype == torch.float32 for parameter in found.network.parameters())
    assert found.half == (dtype == torch.float16)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in state().items()}
    save_file(weights, tmp_path / "w.safetensors")
    found = import_weights(tmp_path / "w.safetensors", CONFIG)
    assert holds(found.network, weights)
    assert not found.half
    weights["conv_in.bias"] = torch.full((8,), float("nan")).to(dtype)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in 1 tensors \(conv_in\.bias\)"):
        import_weights(tmp_path / "w.safetensors", CONFIG)


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no float4")
def test_numbers_in_pairs_are_refused(tmp_path: Path) -> None:
    weights: State = {**state(), "conv_in.bias": torch.zeros(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"1 of another shape or kind \(conv_in\.bias .*float4"):
        import_weights(tmp_path / "w.pt", CONFIG)


def test_an_average_without_names_is_said(tmp_path: Path) -> None:
    """As EMAModel of diffusers keeps it: a list in the order of the parameters."""
    torch.save({"ema": {"decay": 0.9, "shadow_params": list(state(1).values())}, "model": state()}, tmp_path / "w.pt")
    found = import_weights(tmp_path / "w.pt", CONFIG)
    assert holds(found.network, state())
    assert f"{len(state())} other tensors left, ema.shadow_params.0, " in found.said
    assert found.said.endswith("EMA weights are there, but without the network's names and shapes")


def test_tensors_that_share_memory_or_are_turned(tmp_path: Path) -> None:
    weights = state()
    weights["conv_in.weight"] = weights["conv_in.weight"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    bias = next(name for name, tensor in weights.items() if tensor.shape == weights["conv_in.bias"].shape)
    weights["conv_in.bias"] = weights[bias]
    whole = torch.arange(100.0)
    weights["norm.weight"] = whole[3 : 3 + len(weights["norm.weight"])]
    assert not weights["conv_in.weight"].is_contiguous()
    torch.save({"state_dict": weights}, tmp_path / "w.pt")
    found = import_weights(tmp_path / "w.pt", CONFIG)
    assert holds(found.network, weights)
    saved = save_model(tmp_path / "out", found.network, CONFIG)
    assert torch.equal(load_model(saved).denoiser.network.norm.weight, whole[3 : 3 + len(weights["norm.weight"])])


# What is refused.


def changed(**changes: object) -> State:
    weights = {**state(), **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: tensor for name, tensor in weights.items() if tensor is not None}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (changed(conv_in__weight=None), r"1 missing \(conv_in\.weight\)"),
        (changed(head__weight=torch.ones(2)), r"1 unexpected \(head\.weight\)"),
        (changed(conv_in__bias=torch.ones(9)), r"1 of another shape or kind \(conv_in\.bias \(9,\) .* for \(8,\)\)"),
        (changed(conv_in__bias=torch.ones(8, dtype=torch.int8)), r"1 of another shape or kind \(conv_in\.bias .*int8"),
        (changed(conv_in__bias=None, head__weight=torch.ones(2)), "1 missing .*; 1 unexpected"),
        (changed(conv_in__bias=torch.full((8,), float("nan"))), r"NaN or infinity in 1 tensors \(conv_in\.bias\)"),
        (prefixed(changed(conv_in__weight=None), "net."), r"prefix 'net\.' does not fit.*1 missing"),
        ({name: tensor for i, (name, tensor) in enumerate(state().items()) if i > 6}, "7 missing .* and 2 more"),
        ({"weight": torch.ones(2)}, "no tensor with a name of the network 'unet' of 'toy'"),
        ({}, "no tensor with a name of"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_another_network(tmp_path: Path, weights: State, message: str, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    (torch.save if suffix == ".pt" else save_file)(weights, path)
    with pytest.raises(CheckpointError, match=message) as hit:
        import_weights(path, CONFIG)
    assert hit.value.todo


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["w.pt", "w.ckpt", "w.pkl", "w.safetensors", "w"])
@pytest.mark.parametrize("way", ["torch", "torch_legacy", "pickle_2", "pickle_4", "pickle_5"])
def test_code_never_runs(tmp_path: Path, name: str, way: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / name
    content = {"ema": Trap(mark), "state_dict": state()}
    if way.startswith("torch"):
        torch.save(content, path, _use_new_zipfile_serialization=way == "torch")
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(way[-1])))
    with pytest.raises(CheckpointError, match=r"may be code, so it was not loaded.*convert it.*save_file") as hit:
        import_weights(path, CONFIG)
    assert not mark.exists()
    if way.startswith("torch"):
        assert f"{os.mkdir.__module__}.mkdir" in hit.value.given
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists(), "the trap is none"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_whole_module_is_code_too(tmp_path: Path) -> None:
    torch.save(CONFIG.body(), tmp_path / "w.pt")
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "script.pt")
    for name, shown in (("w.pt", r", fewstep\.networks\.unet\.UNet"), ("script.pt", "")):
        with pytest.raises(CheckpointError, match=f"holds more than tensors{shown}: that may be code") as hit:
            import_weights(tmp_path / name, CONFIG)
        assert "weights_only" not in str(hit.value)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": state()}, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    for name, content in {
        "protocol_0": pickle.dumps({"a": 1}, protocol=0),
        "cut": whole[: len(whole) // 2],
        "start": whole[:4],
        "text": b"hello",
        "empty": b"",
        "eighty": b"\x80",
        "pickle": b"\x80\x04",
        "zip": b"PK\x03\x04" + bytes(40),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"damaged|neither safetensors nor|empty|may be code") as hit:
            import_weights(tmp_path / name, CONFIG)
        assert "Only safetensors" not in str(hit.value), "a .pt of tensors is loaded"
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no tensor with a name of the network"):
        import_weights(tmp_path / "list.pt", CONFIG)
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_weights(tmp_path / "none.pt", CONFIG)


@pytest.mark.parametrize("second", [2, 5])
def test_a_safetensors_file_that_begins_like_a_pickle(tmp_path: Path, second: int) -> None:
    """Its header is 640 or 1408 bytes long, which is 0x80 0x02 or 0x80 0x05 in the file."""
    weights = {name: torch.ones(2) for name in ("a", "b")}
    bare = tmp_path / "bare.safetensors"
    save_file(weights, bare, metadata={"x": ""})
    room = 0x80 + 256 * second - int.from_bytes(bare.read_bytes()[:8], "little")
    save_file(weights, tmp_path / "w.safetensors", metadata={"x": "y" * room})
    assert (tmp_path / "w.safetensors").read_bytes()[:2] == bytes([0x80, second])
    assert tensor_groups(tmp_path / "w.safetensors")[""].keys() == weights.keys()


def test_a_group_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, object] = {"state_dict": state()}
    content["self"] = content
    torch.save(content, tmp_path / "w.pt")
    assert holds(import_weights(tmp_path / "w.pt", CONFIG).network, state())


def test_folders_are_sent_where_they_belong(tmp_path: Path) -> None:
    for content, message in (
        ({"_class_name": "UNet2DModel"}, r"a model of diffusers.*fewstep\.wrap"),
        ({"prediction": {}}, "a model folder of fewstep.*--model"),
        ({}, "is a folder.*Name the file"),
    ):
        write_json(tmp_path / "config.json", content)
        with pytest.raises(CheckpointError, match=message):
            import_weights(tmp_path, CONFIG)


# What the network is.


def test_like_a_model_or_its_configuration(tmp_path: Path) -> None:
    config = replace(CONFIG, facts={"data": "toys"}, chain=Chain(steps=(1, 2)))
    folder = save_model(tmp_path / "toy", CONFIG.body(), config)
    for like in (folder, folder / "config.json"):
        assert config_like(like) == replace(config, facts={}), "facts are of other weights, the chain is not"
    assert config_like("mnist").network == load_model("mnist").config.network
    with pytest.raises(UnknownName, match="no folder of that name"):
        config_like("toy")
    write_json(tmp_path / "other.json", {"width": 3})
    with pytest.raises(CheckpointError, match="does not describe a fewstep model"):
        config_like(tmp_path / "other.json")
    save_file(state(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="The configuration of 'toy' describes a model that cannot be built"):
        import_weights(tmp_path / "w.safetensors", replace(CONFIG, shape=(3, 4, 4)))


# EDM.


def edm_files(folder: Path, arguments: dict[str, object], seed: int = 3) -> tuple[Path, Path, State]:
    """The two files that the page has an owner write: the state of EDMPrecond, and its arguments."""
    weights = state(seed, edm_config(arguments))
    save_file(prefixed(weights, "model."), folder / "edm.safetensors")
    (folder / "edm.json").write_text(json.dumps(arguments))
    return folder / "edm.safetensors", folder / "edm.json", weights


@pytest.mark.parametrize(("variant", "more"), [("ddpmpp", {}), ("ncsnpp", NCSNPP)])
def test_edm(tmp_path: Path, variant: str, more: dict[str, object]) -> None:
    path, arguments, weights = edm_files(tmp_path, {**EDM_ARGUMENTS, **more})
    config = config_like(arguments)
    found = import_weights(path, config)
    assert (found.prefix, found.left) == ("model.", ())
    own = EDMUNet(2, 8, 8, (1, 2), 1, (4,), variant, 3, 5)
    own.load_state_dict(weights)
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    level = EDM().level(torch.tensor([0.01, 1.0, 70.0]))
    cond = {"label": torch.tensor([0, 2, 3])}
    ours = config.denoiser(found.network)
    assert (ours.schedule, ours.prediction, ours.label) == (EDM(), EDMPrecond(0.5), "edm")
    assert (config.name, config.shape, config.classes) == ("edm", (2, 8, 8), ("0", "1", "2"))
    inputs = EDMPrecond(0.5).to_input(x, level)
    expected = EDMPrecond(0.5).to_denoised(own(inputs, level.sigma.log() / 4, cond), x, level)
    torch.testing.assert_close(ours(x, level, cond), expected, rtol=0, atol=1e-6)


def test_published_arguments() -> None:
    """Those of EDM's CIFAR-10 and FFHQ models, out of its train.py."""
    training = {"dropout": 0.13, "use_fp16": False, "augment_dim": 9}
    cifar = {"class_name": "EDMPrecond", "img_resolution": 32, "img_channels": 3, "label_dim": 10, **training}
    config = edm_config({**cifar, "model_type": "SongUNet", "channel_mult": [2, 2, 2], **NCSNPP})
    with torch.device("meta"):
        assert sum(p.numel() for p in config.body().parameters()) == 56_400_643
        ffhq = edm_config({**cifar, "img_resolution": 64, "label_dim": 0, "model_type": "SongUNet"})
        assert sum(p.numel() for p in ffhq.body().parameters()) == 61_805_571
    assert (config.n_classes, ffhq.n_classes) == (10, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_name": "VPPrecond"}, "class_name='VPPrecond'.*Only EDMPrecond"),
        ({"class_name": None}, "without 'class_name'"),
        ({"img_channels": None}, "without 'img_channels'"),
        ({"model_type": None}, "model_type='DhariwalUNet'"),
        ({"model_type": "DhariwalUNet"}, "model_type='DhariwalUNet'"),
        ({"encoder_type": "skip"}, "encoder_type='skip'.*no mix"),
        ({"resample_filter": [1, 3, 3, 1]}, "no mix"),
        ({"channel_mult_emb": 2}, "channel_mult_emb=2"),
        ({"sigma_data": "half"}, "sigma_data='half'"),
        ({"sigma_data": float("inf")}, "sigma_data=inf"),
        ({"sigma_max": float("nan")}, "sigma_max=nan"),
        *(({"label_dim": n}, f"label_dim={n!r}.*up to 100,000") for n in ("ten", -1, 2.0, 10**12)),
        ({"num_blocks": 10**7}, "num_blocks=10000000.*up to 64"),
        ({"attn_resolutions": "16"}, "attn_resolutions='16'.*whole numbers"),
        ({"channel_mult": [1] * 17}, "channel_mult=.*16 of them"),
        ({"img_resolution": 8.5}, "img_resolution=8.5.*whole numbers up to 4,096"),
        ({"model_chanels": 8}, "Did you mean 'model_channels'"),
    ],
)
def test_networks_of_edm_that_are_unknown(changes: dict[str, object], message: str) -> None:
    arguments = {key: value for key, value in {**EDM_ARGUMENTS, **changes}.items() if value is not None}
    with pytest.raises(FewstepError, match=message):
        edm_config(arguments)


def test_limits_of_the_noise_are_kept() -> None:
    assert edm_config(EDM_ARGUMENTS).schedule == Part("edm", {"sigma_min": 0.002, "sigma_max": 80.0})
    narrow = edm_config({**EDM_ARGUMENTS, "sigma_min": 0.02, "sigma_max": 50.0, "sigma_data": 1.0})
    assert narrow.schedule == Part("edm", {"sigma_min": 0.02, "sigma_max": 50.0})
    assert narrow.prediction == Part("edm", {"sigma_data": 1.0})


# The command.


def test_import_makes_an_ordinary_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fewstep.cli.weights import run_import

    path, arguments, weights = edm_files(tmp_path, EDM_ARGUMENTS)
    run_import(str(path), str(arguments), tmp_path / "mine", "", "cc-by-nc-sa-4.0")
    said = capsys.readouterr().out
    assert f"{len(weights)} tensors (weights), 'model.' taken off their names" in said
    model = fewstep.load_model(tmp_path / "mine")
    assert (model.config.name, model.config.facts["license"]) == ("mine", "cc-by-nc-sa-4.0")
    assert model.config.facts["imported"]["file"] == "edm.safetensors"
    assert 'license: "cc-by-nc-sa-4.0"\n' in model.card
    assert "fewstep sample --model" in said
    grid = Karras(kappa_max=80, kappa_min=0.002)(model.denoiser.schedule, steps=4)
    x = fewstep.start_noise(grid, model.shape, seeds=range(2))
    out = fewstep.sample(model.guided(2.0), EVODiff(), grid, x, cond={"label": torch.tensor([0, 2])})
    assert out.x.isfinite().all()
    assert (out.nfe, out.network_evals) == (4, 8)


def test_half_weights_are_stored_as_such(tmp_path: Path) -> None:
    from fewstep.cli.weights import run_import

    save_file({name: tensor.half() for name, tensor in state().items()}, tmp_path / "w.safetensors")
    write_json(tmp_path / "like.json", read_json(save_model(tmp_path / "toy", CONFIG.body(), CONFIG) / "config.json"))
    run_import(str(tmp_path / "w.safetensors"), str(tmp_path / "like.json"), tmp_path / "out", "half", "")
    stored = read_tensors(tmp_path / "out" / "model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in stored.values())
    assert load_model(tmp_path / "out").config.name == "half"
