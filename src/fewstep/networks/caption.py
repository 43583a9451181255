"""Captions as vectors: a fixed list of words, and a small transformer over them.

A caption is a row of word numbers, filled up with the padding number 0. Padding is a word like any other: it has its
own vector and is attended to, so no mask is needed, and the caption of nothing but padding is the *null caption*, what
a network is told when it is told nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.errors import ConfigError, DtypeError, ShapeError, choose
from fewstep.networks.layers import check_counts, zeroed

__all__ = ["PADDING", "CaptionEncoder", "Vocabulary"]

PADDING = 0
_HEADS = 4


@dataclass(frozen=True)
class Vocabulary:
    """The words of captions, and how many of them a caption may have.

    Args:
        words: all words, in lower case, each once; word i has the number i + 1.
        length: most words of a caption, and the length of its row of numbers.

    Raises:
        ConfigError: if there is no word, one is there twice or is none, or the length is below 1.
    """

    words: tuple[str, ...]
    length: int

    def __post_init__(self) -> None:
        check_counts({"length": self.length})
        good = all(isinstance(word, str) and word == word.lower() and word.split() == [word] for word in self.words)
        if not self.words or not good or len(set(self.words)) < len(self.words):
            raise ConfigError(
                f"A vocabulary of the words {self.words!r}",
                "At least one word, each once, in lower case and without spaces",
                "Correct the words",
            )

    @property
    def n_tokens(self) -> int:
        """How many numbers there are: the words, and the padding."""
        return len(self.words) + 1

    @property
    def null(self) -> Tensor:
        """The null caption, one row of padding, shape (1, length)."""
        return torch.full((1, self.length), PADDING)

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Turn captions into numbers; capitals count as small letters.

        Args:
            captions: words with spaces between them, n captions.

        Returns:
            int64, shape (n, length).

        Raises:
            UnknownName: if a word is not in the list; the message names the nearest one.
            ConfigError: if a caption is empty, too long or no text, or there is one text instead of a list of them.
        """
        if isinstance(captions, str):
            raise ConfigError(f"The text {captions!r}", "A list of captions", "Write a list: [caption]")
        numbers = {word: i + 1 for i, word in enumerate(self.words)}
        rows = [[choose(word, numbers, "word") for word in self._split(caption)] for caption in captions]
        padded = [row + [PADDING] * (self.length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), self.length)

    def decode(self, tokens: Tensor) -> list[str]:
        """Turn rows of numbers, shape (n, length), back into captions; the null caption is the empty text."""
        return [" ".join(self.words[i - 1] for i in row if i != PADDING) for row in tokens.tolist()]

    def _split(self, caption: str) -> list[str]:
        if not isinstance(caption, str) or not 0 < len(caption.split()) <= self.length:
            raise ConfigError(
                f"The caption {caption!r}",
                f"A caption is a text of 1 to {self.length} words",
                "Shorten it; an unconditional image is asked for by leaving the captions out"
                if caption
                else "Write a caption, or leave the captions out",
            )
        return caption.lower().split()


class _Layer(nn.Module):
    """Attention over the words, then a perceptron on each, both on residual branches that start at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = zeroed(nn.Linear(width, width))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), zeroed(nn.Linear(2 * width, width)))

    def forward(self, words: Tensor) -> Tensor:
        """Map (b, length, width) to the same shape."""
        batch, length, width = words.shape
        qkv = self.qkv(self.norm_in(words)).reshape(batch, length, 3, _HEADS, width // _HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        words = words + self.project(mixed.transpose(1, 2).reshape(words.shape))
        out: Tensor = words + self.mlp(self.norm_out(words))
        return out


class CaptionEncoder(nn.Module):
    """Words and their places, some transformer layers, and the mean over the words.

    Args:
        n_tokens: how many word numbers there are, padding included.
        length: words of a caption, padding included.
        width: length of the vectors, a multiple of 4.
        layers: transformer layers.

    Raises:
        ConfigError: if a number cannot be.
    """

    def __init__(self, n_tokens: int, length: int, width: int, layers: int = 2) -> None:
        super().__init__()
        check_counts({"n_tokens": n_tokens, "caption_length": length, "width": width, "layers": layers})
        if width % _HEADS:
            raise ConfigError(
                f"embedding={width} for a network that reads captions",
                f"The length of the vector is a multiple of {_HEADS}",
                "Use embedding=128",
            )
        self.n_tokens, self.length = n_tokens, length
        self.words, self.places = nn.Embedding(n_tokens, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(layers))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, tokens: Tensor | None, batch: int) -> Tensor:
        """Embed captions; no captions at all means the null caption for every sample.

        Args:
            tokens: int64 word numbers of shape (b, length), or None.
            batch: b.

        Returns:
            Shape (b, width).

        Raises:
            ShapeError: if there is not one row of the right length per sample.
            DtypeError: if the numbers are no int64 integers.
            ConfigError: if a number (on the CPU) is outside 0..n_tokens - 1.
        """
        if tokens is None:
            tokens = torch.full((batch, self.length), PADDING, device=self.words.weight.device)
        self._check(tokens, batch)
        words = self.words(tokens) + self.places.weight
        for layer in self.layers:
            words = layer(words)
        out: Tensor = self.out(self.norm(words).mean(dim=1))
        return out

    def _check(self, tokens: Tensor, batch: int) -> None:
        if tokens.shape != (batch, self.length):
            raise ShapeError(
                f"Captions of shape {tuple(tokens.shape)} for {batch} samples",
                f"There is one row of {self.length} word numbers per sample, shape (b, {self.length})",
                "Encode the captions with the vocabulary of this model",
            )
        if tokens.dtype != torch.int64:
            raise DtypeError(
                f"Captions of dtype {tokens.dtype}", "Word numbers are int64", "Encode the captions with a Vocabulary"
            )
        # As with class labels: reading values from a GPU would stall it.
        if tokens.device.type == "cpu" and batch and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.n_tokens:
            raise ConfigError(
                f"Word numbers from {int(tokens.min())} to {int(tokens.max())}",
                f"Numbers are 0..{self.n_tokens - 1}; 0 is the padding",
                "Encode the captions with the vocabulary of this model",
            )
