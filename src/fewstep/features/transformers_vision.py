"""CLIP and DINOv2 through transformers, from a folder or a hub id, as frozen features.

Both prepare images as their checkpoint says (preparation.py), on tensors, so that gradients go through.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep._files import fingerprint, require
from fewstep._hub import Kind, loading, place_of
from fewstep.errors import CheckpointError, ConfigError
from fewstep.features.base import check_images
from fewstep.features.preparation import Preparation, read_preparation

__all__ = ["Clip", "Dinov2", "load_clip", "load_dinov2"]

_CLIP = Kind("CLIP model", "config.json", "openai/clip-vit-large-patch14", "vision", ("transformers",))
_DINOV2 = Kind("DINOv2 model", "config.json", "facebook/dinov2-large", "vision", ("transformers",))
_FEWEST_TOKENS = 512  # CLIP's tokenizer has every byte twice, within a word and at its end
_LETTERS = {384: "s", 768: "b", 1024: "l", 1280: "h", 1536: "g"}  # sizes of a vision transformer, by its width


class _Transformer(nn.Module):
    """A network of transformers with its preparation: frozen, in evaluation mode, in float32."""

    def __init__(self, kind: str, network: Any, vision: Any, preparation: Preparation) -> None:
        super().__init__()
        self.network: Any = network.float().eval().requires_grad_(False)
        self.preparation, self.resize = preparation, str(preparation)
        # The preparation is part of what is named: the same weights on other pixels are other features.
        told = torch.tensor(list(repr(preparation).encode()), dtype=torch.uint8)
        self.fingerprint = fingerprint({**self.network.state_dict(), "preparation": told})
        letter = _LETTERS.get(vision.hidden_size, f"w{vision.hidden_size}p")
        self.name = f"{kind}-{letter}{vision.patch_size}@{self.fingerprint}"
        self.channels = vision.num_channels

    def train(self, mode: bool = True) -> _Transformer:
        """Stay in evaluation mode, whatever the mode of a module around this one."""
        return super().train(False)

    def prepared(self, images: Tensor) -> Tensor:
        check_images(images, self.name, self.channels)
        return self.preparation(images.to(next(self.network.parameters()).dtype))


class Clip(_Transformer):
    """CLIP's projected image embeddings, and its embeddings of texts in the same space; neither is normalised.

    The cosine of the two, times 100 and not below 0, is the CLIP score. Named "clip-l14@fingerprint": the size and
    patch of its vision transformer, and a fingerprint of all weights and of the preparation.

    Source: Radford et al., arXiv:2103.00020. Departs from it in: nothing but 8-bit rounding after the resize.

    Args:
        network: transformers' CLIPModel.
        tokenizer: transformers' CLIPTokenizer.
        preparation: what happens to images first.
    """

    def __init__(self, network: Any, tokenizer: Any, preparation: Preparation) -> None:
        config = network.config
        super().__init__("clip", network, config.vision_config, preparation)
        self.tokenizer, self.context = tokenizer, int(config.text_config.max_position_embeddings)
        self.dim = int(config.projection_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: floating point, shape (b, 3, h, w), in [-1, 1].

        Returns:
            Embeddings, shape (b, dim), float32, of any length.

        Raises:
            DtypeError: if the images are not floating point.
            ShapeError: if they have not three channels or are too small.
        """
        embeddings: Tensor = self.network.visual_projection(
            self.network.vision_model(pixel_values=self.prepared(images)).pooler_output
        )
        return embeddings

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts; what is longer than the context (77 tokens) is cut off, see :meth:`too_long`.

        Args:
            texts: n of them; a few hundred at a time.

        Returns:
            Embeddings, shape (n, dim), float32, of any length.

        Raises:
            ConfigError: if there are none.
        """
        if not texts:
            raise ConfigError("No texts to embed", "At least one text", "Pass a list of texts")
        options = {"padding": True, "truncation": True, "max_length": self.context, "return_tensors": "pt"}
        tokens = self.tokenizer(list(texts), **options).to(next(self.network.parameters()).device)
        read = self.network.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        embeddings: Tensor = self.network.text_projection(read.pooler_output)
        return embeddings

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Say which texts have more tokens than CLIP reads, by index, so that a report can count them."""
        tokens = self.tokenizer(list(texts), verbose=False).input_ids
        return [k for k, ids in enumerate(tokens) if len(ids) > self.context]


class Dinov2(_Transformer):
    """DINOv2's class token after the last layer norm: the features of FD-DINOv2.

    Named "dinov2-l14@fingerprint" like :class:`Clip`.

    Source: Oquab et al., arXiv:2304.07193; as features of a Fréchet distance, Stein et al., arXiv:2306.04675 (their
    default is the large model). Departs from the latter in: no rounding to 8 bits after the resize, as in EDM2; and
    position embeddings are brought to 224 pixels by transformers' interpolation, which is not bitwise torch.hub's.

    Args:
        network: transformers' Dinov2Model.
        preparation: what happens to images first.
    """

    def __init__(self, network: Any, preparation: Preparation) -> None:
        super().__init__("dinov2", network, network.config, preparation)
        self.dim = int(network.config.hidden_size)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features.

        Args:
            images: floating point, shape (b, 3, h, w), in [-1, 1].

        Returns:
            Class tokens, shape (b, dim), float32.

        Raises:
            DtypeError: if the images are not floating point.
            ShapeError: if they have not three channels or are too small.
        """
        tokens: Tensor = self.network(pixel_values=self.prepared(images)).last_hidden_state
        return tokens[:, 0]


def load_clip(path_or_id: str | Path) -> Clip:
    """Load CLIP.

    Args:
        path_or_id: a folder that transformers wrote, or a hub id: "openai/clip-vit-large-patch14".

    Returns:
        The features on the CPU; images are prepared as the checkpoint's preprocessor_config.json says.

    Raises:
        MissingExtra: if transformers is not installed.
        MissingWeights: if there is no such folder, a file is missing from it, or the hub cannot be reached.
        CheckpointError: if it is another model, damaged, or lacks weights.
    """
    place, transformers = place_of(path_or_id, _CLIP), require("transformers", _CLIP.extra)
    with loading(place, _CLIP):
        _check_type(place, "clip")
        preparation = read_preparation(place)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(place)
        if len(tokenizer) < _FEWEST_TOKENS:  # transformers takes missing files for a tokenizer without words
            _CLIP.missing(f"{place} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt)")
        network = _network(transformers.CLIPModel, place)
        _check_size(place, preparation, network.config.vision_config.image_size)
        return Clip(network, tokenizer, preparation)


def load_dinov2(path_or_id: str | Path, *, crop: bool = False) -> Dinov2:
    """Load DINOv2.

    Args:
        path_or_id: a folder that transformers wrote, or a hub id: "facebook/dinov2-large".
        crop: prepare images as the checkpoint's preprocessor_config.json says, which resizes to 256 pixels and cuts
            off a margin; otherwise the whole image is brought to 224 x 224, as FD-DINOv2 in dgm-eval and EDM2 is made.

    Returns:
        The features on the CPU.

    Raises:
        MissingExtra: if transformers is not installed.
        MissingWeights: if there is no such folder, a file is missing from it, or the hub cannot be reached.
        CheckpointError: if it is another model, damaged, or lacks weights.
    """
    place, transformers = place_of(path_or_id, _DINOV2), require("transformers", _DINOV2.extra)
    with loading(place, _DINOV2):
        _check_type(place, "dinov2")
        preparation = read_preparation(place, whole=not crop)
        return Dinov2(_network(transformers.Dinov2Model, place), preparation)


def _check_type(place: str, wanted: str) -> None:
    content, _ = require("transformers", "vision").PretrainedConfig.get_config_dict(place)
    if content.get("model_type") != wanted:
        raise CheckpointError(
            f"{place} is a model of the type {content.get('model_type')!r}",
            f"These features come from a model of the type {wanted!r}",
            "Give the path or hub id of such a model, or ask for the features that this one has",
        )


def _check_size(place: str, preparation: Preparation, size: int) -> None:
    """CLIP has a position embedding per patch, so it reads images of one size."""
    if preparation.crop != (size, size):
        raise CheckpointError(
            f"The preprocessor_config.json of {place} makes images of {preparation.crop}, its network reads {size}",
            "Both files of a checkpoint speak of one size",
            "Download it again",
        )


def _network(kind: Any, place: str) -> Any:
    """Load weights; transformers would fill gaps with random numbers, which no one must measure with."""
    network, told = kind.from_pretrained(place, use_safetensors=True, output_loading_info=True)
    missing = sorted(told["missing_keys"])
    if missing:
        raise CheckpointError(
            f"The weights in {place} lack {len(missing)} of the network's: {', '.join(missing[:3])}",
            "A checkpoint holds all weights of its network",
            "Download it again, or take the full model instead of a part of it",
        )
    return network
