r"""Noise labels, class labels and captions as vectors: what conditions every block of a network.

A noise label :math:`l` becomes :math:`(\cos f_k l, \sin f_k l)_k` with frequencies spread geometrically over [1, 100]
radians per unit, so that labels 0.01 apart are told apart and the network stays smooth in between. A class label
picks a row of a table with one row more than there are classes: the last row is the null class, "no label given".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewstep.errors import ConfigError, DtypeError, ShapeError
from fewstep.networks.caption import CaptionEncoder
from fewstep.networks.layers import check_counts

__all__ = [
    "ClassEmbedding",
    "Conditioning",
    "NoiseEmbedding",
    "check_conditions",
    "check_labels",
    "check_noise_label",
]

_FASTEST = 100.0  # radians per unit of the noise label


def check_noise_label(noise_label: Tensor, batch: int) -> None:
    """Refuse noise labels that are not one per sample; raises ShapeError."""
    if noise_label.shape != (batch,):
        raise ShapeError(
            f"Noise labels of shape {tuple(noise_label.shape)} for {batch} samples",
            "A network takes one noise label per sample, shape (b,)",
            "Repeat the label for every sample of the batch",
        )


def check_conditions(cond: Mapping[str, Tensor] | None, known: Mapping[str, str]) -> Mapping[str, Tensor]:
    """Refuse conditions that a network was not built for.

    Args:
        cond: what it is given.
        known: name of each condition that it takes -> what it is, in words.

    Returns:
        What it is given; nothing for None.

    Raises:
        ConfigError: if there is another one.
    """
    unknown = sorted(set(cond or {}) - set(known))
    if unknown:
        raise ConfigError(
            f"A condition {unknown[0]!r} for a network that does not know it",
            f"This network takes {' and '.join(known.values()) or 'no condition'}",
            "Leave the condition out, or load a model that was trained with it",
        )
    return cond or {}


def check_labels(label: Tensor | None, batch: int, n_classes: int, device: torch.device) -> Tensor:
    """Refuse class labels that cannot be; no labels at all mean the null class for every sample.

    Args:
        label: int64 class indices of shape (b,) in 0..n_classes, or None.
        batch: b.
        n_classes: number of classes, and index of the null class.
        device: of the labels that are made.

    Returns:
        Labels of shape (b,).

    Raises:
        ShapeError: if there is not one label per sample.
        DtypeError: if the labels are no int64 integers.
        ConfigError: if a label (on the CPU) is outside 0..n_classes.
    """
    if label is None:
        return torch.full((batch,), n_classes, device=device)
    if label.shape != (batch,):
        raise ShapeError(
            f"Class labels of shape {tuple(label.shape)} for {batch} samples",
            "There is one label per sample, shape (b,)",
            "Repeat the label for every sample of the batch",
        )
    if label.dtype != torch.int64:
        raise DtypeError(
            f"Class labels of dtype {label.dtype}", "Labels are int64 class indices", "Convert them with .long()"
        )
    # Reading values from a GPU would stall it, and there torch's own assertion catches a wrong index.
    if label.device.type == "cpu" and batch and not 0 <= int(label.min()) <= int(label.max()) <= n_classes:
        raise ConfigError(
            f"Class labels from {int(label.min())} to {int(label.max())}",
            f"Classes are 0..{n_classes - 1}; {n_classes} is the null class",
            "Pass labels of this model's own classes",
        )
    return label


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise label, then a small perceptron.

    Args:
        width: length of the vector, even.

    Raises:
        ConfigError: if the width is not even, or below 2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if type(width) is not int or width < 2 or width % 2:
            raise ConfigError(
                f"embedding={width!r}", "The length of the conditioning vector is even, at least 2", "Use embedding=128"
            )
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, noise_label: Tensor) -> Tensor:
        """Embed noise labels of shape (b,) as vectors of shape (b, width), in the dtype of the weights."""
        dtype = next(self.mlp.parameters()).dtype
        # Angles in float32 at least, and frequencies no buffer: .bfloat16() would round 100 radians by a half.
        label = noise_label.to(torch.promote_types(noise_label.dtype, torch.float32))
        exponents = torch.linspace(0, math.log(_FASTEST), self.width // 2, dtype=label.dtype, device=label.device)
        angles = label[:, None] * exponents.exp()
        out: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype))
        return out


class ClassEmbedding(nn.Module):
    """One learned vector for each class and one for the null class.

    Args:
        n_classes: number of classes; the null class has the index `n_classes`.
        width: length of the vectors.
    """

    def __init__(self, n_classes: int, width: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.table = nn.Embedding(n_classes + 1, width)

    def forward(self, label: Tensor | None, batch: int) -> Tensor:
        """Look class labels up; no labels at all means the null class for every sample.

        Args:
            label: int64 class indices of shape (b,) in 0..n_classes, or None.
            batch: b.

        Returns:
            Shape (b, width).

        Raises:
            ShapeError: if there is not one label per sample.
            DtypeError: if the labels are no int64 integers.
            ConfigError: if a label (on the CPU) is outside 0..n_classes.
        """
        out: Tensor = self.table(check_labels(label, batch, self.n_classes, self.table.weight.device))
        return out


class Conditioning(nn.Module):
    """The sum of noise, class and caption embeddings, passed through SiLU: one vector per sample for all blocks.

    Args:
        width: length of the vector, even.
        n_classes: number of classes; 0 builds a network that is told no class.
        n_tokens: word numbers of captions, padding included; 0 builds a network that is told no caption.
        caption_length: words of a caption; 0 without captions.

    Raises:
        ConfigError: if a number cannot be, or one of the last two is 0 and the other is not.
    """

    def __init__(self, width: int, n_classes: int = 0, n_tokens: int = 0, caption_length: int = 0) -> None:
        super().__init__()
        check_counts({"n_classes": n_classes, "n_tokens": n_tokens, "caption_length": caption_length}, least=0)
        if bool(n_tokens) != bool(caption_length):
            raise ConfigError(
                f"n_tokens={n_tokens} with caption_length={caption_length}",
                "Both are above 0 for a network that reads captions, and 0 for any other",
                "Give both or neither",
            )
        self.noise = NoiseEmbedding(width)
        self.classes = ClassEmbedding(n_classes, width) if n_classes else None
        self.captions = CaptionEncoder(n_tokens, caption_length, width) if n_tokens else None

    def forward(self, noise_label: Tensor, cond: Mapping[str, Tensor] | None, batch: int) -> Tensor:
        """Embed what a network is told beside the image.

        Args:
            noise_label: shape (b,).
            cond: None or {"label": int64 of shape (b,)} or {"tokens": int64 of shape (b, caption_length)}.
            batch: b.

        Returns:
            Shape (b, width).

        Raises:
            ShapeError: if there is not one noise label, or not one class label or caption, per sample.
            ConfigError: if `cond` has anything that this network was not built for.
        """
        check_noise_label(noise_label, batch)
        given = check_conditions(cond, self._known())
        vector: Tensor = self.noise(noise_label)
        if self.classes is not None:
            vector = vector + self.classes(given.get("label"), batch)
        if self.captions is not None:
            vector = vector + self.captions(given.get("tokens"), batch)
        return nn.functional.silu(vector)

    def _known(self) -> dict[str, str]:
        """Name the conditions that this network takes, and what they are."""
        parts = {"label": ("a class label", self.classes), "tokens": ("a caption", self.captions)}
        return {name: what for name, (what, part) in parts.items() if part is not None}
