"""Captions: words as numbers, and networks that read them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.errors import ConfigError, DtypeError, ShapeError, UnknownName
from fewstep.networks import NETWORKS, CaptionEncoder, UNet, Vocabulary
from fewstep.networks.embeddings import Conditioning

WORDS = Vocabulary(("red", "green", "circle", "square"), 3)
SMALL: dict[str, dict[str, object]] = {
    "unet": {"width": 8, "multipliers": [1, 2], "blocks": 1, "heads": 2, "embedding": 16},
    "space_to_depth": {"patch": 4, "width": 16, "blocks": 2, "heads": 2, "detail": 4, "embedding": 16},
    "dit": {"patch": 4, "width": 16, "blocks": 2, "heads": 2, "mlp_ratio": 2, "embedding": 16},
}


def random(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return network.double()


def build(name: str) -> nn.Module:
    return random(NETWORKS[name](**SMALL[name], n_tokens=WORDS.n_tokens, caption_length=WORDS.length))


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, torch.linspace(0.1, 0.9, batch, dtype=torch.float64)


def test_words_become_numbers_and_come_back() -> None:
    captions = ["red circle", "GREEN  green square", "circle"]
    tokens = WORDS.encode(captions)
    assert tokens.tolist() == [[1, 3, 0], [2, 2, 4], [3, 0, 0]]
    assert tokens.dtype == torch.int64
    assert WORDS.decode(tokens) == ["red circle", "green green square", "circle"]
    assert (WORDS.n_tokens, WORDS.null.tolist(), WORDS.decode(WORDS.null)) == (5, [[0, 0, 0]], [""])
    assert WORDS.encode([]).shape == (0, 3)


def test_captions_that_cannot_be_encoded() -> None:
    with pytest.raises(UnknownName, match=r"No word 'gren'.*Did you mean 'green'"):
        WORDS.encode(["red circle", "gren circle"])
    for caption in ("", " ", "red red red red", 3):
        with pytest.raises(ConfigError, match="a text of 1 to 3 words"):
            WORDS.encode([caption])
    with pytest.raises(ConfigError, match="A list of captions"):
        WORDS.encode("red circle")


@pytest.mark.parametrize("words", [(), ("a", "a"), ("a", "B"), ("a", ""), ("a", "two words"), ("a", 3)])
def test_vocabularies_that_cannot_be(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="each once, in lower case"):
        Vocabulary(words, 3)
    with pytest.raises(ConfigError, match="length=0"):
        Vocabulary(("a",), 0)


@pytest.mark.parametrize("name", SMALL)
def test_networks_read_captions(name: str) -> None:
    """Word order counts, samples do not see each other, and no caption is the caption of nothing but padding."""
    network = build(name)
    x, label = inputs(3)
    tokens = WORDS.encode(["red green", "green red", "red green square"])
    out = network(x, label, {"tokens": tokens})
    alone = torch.cat([network(x[i : i + 1], label[i : i + 1], {"tokens": tokens[i : i + 1]}) for i in range(3)])
    torch.testing.assert_close(out, alone, rtol=0, atol=1e-10)
    same = [network(x[:1], label[:1], {"tokens": row[None]}) for row in (*tokens, WORDS.null[0])]
    for i in range(4):
        for j in range(i):
            assert float((same[i] - same[j]).detach().abs().max()) > 1e-4
    assert torch.equal(network(x, label), network(x, label, {"tokens": WORDS.null.expand(3, -1)}))
    assert torch.equal(network(x, label, {}), network(x, label))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    network = build(name)
    x, label = inputs(3)
    tokens = torch.tensor([[1, 2, 3], [4, 0, 0], [2, 0, 0]])
    network(x, label, {"tokens": tokens}).square().sum().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_labels_and_captions_add_up() -> None:
    both = random(Conditioning(16, 2, WORDS.n_tokens, WORDS.length))
    label, tokens, noise = torch.tensor([1]), WORDS.encode(["red"]), torch.tensor([0.3]).double()
    expected = nn.functional.silu(both.noise(noise) + both.classes(label, 1) + both.captions(tokens, 1))
    assert torch.equal(both(noise, {"label": label, "tokens": tokens}, 1), expected)


@pytest.mark.parametrize("name", SMALL)
def test_without_captions_nothing_changes(name: str) -> None:
    """The encoder is made last, so the same seed gives a network without captions its weights of old."""
    torch.manual_seed(0)
    plain = NETWORKS[name](**SMALL[name], n_classes=3).conditioning.state_dict()
    torch.manual_seed(0)
    told = NETWORKS[name](**SMALL[name], n_classes=3, n_tokens=5, caption_length=3).conditioning.state_dict()
    assert not [key for key in plain if "captions" in key]
    assert all(torch.equal(tensor, told[key]) for key, tensor in plain.items())


def test_bfloat16_weights() -> None:
    encoder = random(CaptionEncoder(5, 3, 16))
    tokens = WORDS.encode(["red circle", "green"])
    exact = encoder(tokens, 2)
    rounded = encoder.bfloat16()(tokens, 2)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exact, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", SMALL)
def test_refusals(name: str) -> None:
    network, told = build(name), random(NETWORKS[name](**SMALL[name], n_classes=3))
    x, label = inputs(2)
    tokens = WORDS.encode(["red", "green"])
    with pytest.raises(ConfigError, match=r"'label'.*takes a caption"):
        network(x, label, {"label": torch.tensor([0, 1])})
    with pytest.raises(ConfigError, match=r"'tokens'.*takes a class label"):
        told(x, label, {"tokens": tokens})
    for wrong in (tokens[:1], tokens[:, :2], tokens[0]):
        with pytest.raises(ShapeError, match="one row of 3 word numbers per sample"):
            network(x, label, {"tokens": wrong})
    with pytest.raises(DtypeError, match="float32"):
        network(x, label, {"tokens": tokens.float()})
    for wrong in (tokens + 4, tokens - 1):
        with pytest.raises(ConfigError, match=r"Numbers are 0\.\.4; 0 is the padding"):
            network(x, label, {"tokens": wrong})


def test_numbers_that_cannot_be() -> None:
    for arguments, message in (
        ({"n_tokens": 5}, "n_tokens=5 with caption_length=0"),
        ({"caption_length": 5}, "n_tokens=0 with caption_length=5"),
        ({"n_tokens": -1, "caption_length": 5}, "n_tokens=-1"),
        ({"n_tokens": 5, "caption_length": 5, "embedding": 18}, "embedding=18 for a network that reads captions"),
    ):
        with pytest.raises(ConfigError, match=message):
            UNet(**arguments)
    with pytest.raises(ConfigError, match="layers=0"):
        CaptionEncoder(5, 3, 16, layers=0)
