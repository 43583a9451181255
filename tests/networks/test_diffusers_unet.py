"""A U-Net of diffusers as a network of ours: the same call, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fewstep.errors import ConfigError, FewstepError, ShapeError
from fewstep.networks import DiffusersUNet

diffusers = pytest.importorskip("diffusers", reason="networks of diffusers need the extra 'diffusers'")
TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}


def network(n_classes: int = 0, **changes: object) -> DiffusersUNet:
    torch.manual_seed(0)
    return DiffusersUNet({**TINY, **changes}, n_classes).double().eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([3.0, 700.0])


def test_it_is_the_network_of_diffusers() -> None:
    ours, (x, timesteps) = network(), inputs()
    theirs = diffusers.UNet2DModel(**TINY).double().eval()
    theirs.load_state_dict({name.removeprefix("unet."): tensor for name, tensor in ours.state_dict().items()})
    assert torch.equal(ours(x, timesteps), theirs(x, timesteps).sample)
    assert (ours.channels, ours.n_classes, ours.has_null) == (3, 0, False)


def test_the_network_of_ddpm() -> None:
    """That for CIFAR-10, as google/ddpm-cifar10-32 describes it; 35.7 million parameters (arXiv:2006.11239, App. B)."""
    config = {
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "sample_size": 32,
    }
    with torch.device("meta"):
        parameters = sum(p.numel() for p in DiffusersUNet(config).parameters())
    assert round(parameters / 1e6, 1) == 35.7


def test_classes() -> None:
    """k embeddings are k classes, or k - 1 and the null class, which is the last and is meant where none is told."""
    (x, timesteps), labels = inputs(), torch.tensor([0, 2])
    bare, nulled = network(4, num_class_embeds=4), network(3, num_class_embeds=4)
    assert (bare.has_null, nulled.has_null) == (False, True)
    expected = bare.unet(x, timesteps, class_labels=labels).sample
    for ours in (bare, nulled):
        assert torch.equal(ours(x, timesteps, {"label": labels}), expected)
    last = bare(x, timesteps, {"label": torch.tensor([3, 3])})
    assert torch.equal(nulled(x, timesteps), last)
    assert torch.equal(nulled(x, timesteps, {"label": torch.tensor([3, 3])}), last)
    for cond in (None, {"label": torch.tensor([0, 4])}):
        with pytest.raises(ConfigError, match=r"trained without a null class.*Classes are 0\.\.3.*guidance"):
            bare(x, timesteps, cond)


def test_a_learned_variance_is_left_out() -> None:
    ours, (x, timesteps) = network(out_channels=6), inputs()
    assert torch.equal(ours(x, timesteps), ours.unet(x, timesteps).sample[:, :3])


@pytest.mark.parametrize(
    ("n_classes", "changes", "message"),
    [
        (0, {"num_class_embeds": 4}, "num_class_embeds=4.*0, or one more"),
        (2, {"num_class_embeds": 4}, "num_class_embeds=4"),
        (1, {}, "num_class_embeds=None"),
        (0, {"num_class_embeds": 1}, "num_class_embeds=1"),
        (0, {"class_embed_type": "timestep"}, r"class_embed_type='timestep'.*fewstep\.wrap"),
        (0, {"out_channels": 4}, "out_channels=4.*3 or 6"),
    ],
)
def test_networks_that_are_refused(n_classes: int, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network(n_classes, **changes)


def test_inputs_that_are_refused() -> None:
    ours, (x, timesteps) = network(), inputs()
    for error, arguments in (
        (ShapeError, (x[:, :2], timesteps)),
        (ShapeError, (x[..., :7], timesteps)),
        (ShapeError, (x, timesteps[:1])),
        (ConfigError, (x, timesteps, {"label": torch.tensor([0, 1])})),
    ):
        with pytest.raises(FewstepError) as hit:
            ours(*arguments)
        assert type(hit.value) is error
