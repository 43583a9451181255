"""EDM's U-Net once more, as functions of a state: no modules, every operation from its definition.

Written from the description of DDPM++ and NCSN++ in arXiv:2206.00364 (Appendix F.1, Table 7) and arXiv:2011.13456
(Appendix H), for one class of models: the names of the state say which layers there are and what they do.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

State = dict[str, Tensor]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def dense(state: State, name: str, x: Tensor) -> Tensor:
    out = torch.einsum("oi,bi->bo", state[f"{name}.weight"], x)
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def group_norm(state: State, name: str, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    grouped = x.reshape(b, min(32, c // 4), -1)
    mean, variance = grouped.mean(-1, keepdim=True), grouped.var(-1, unbiased=False, keepdim=True)
    normal = ((grouped - mean) / torch.sqrt(variance + 1e-6)).reshape(b, c, h, w)
    return normal * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def convolved(weight: Tensor, x: Tensor, margin: int) -> Tensor:
    """A convolution as a sum over its taps."""
    side = weight.shape[-1]
    b, c, h, w = x.shape
    wide = x.new_zeros(b, c, h + 2 * margin, w + 2 * margin)
    wide[:, :, margin : margin + h, margin : margin + w] = x
    rows, columns = wide.shape[2] - side + 1, wide.shape[3] - side + 1
    taps = [(i, j) for i in range(side) for j in range(side)]
    return sum(
        torch.einsum("oi,bihw->bohw", weight[:, :, i, j], wide[:, :, i : i + rows, j : j + columns]) for i, j in taps
    )


def filtered(taps: Tensor, x: Tensor, margin: int) -> Tensor:
    """The same filter on every channel."""
    b, c, h, w = x.shape
    return convolved(taps, x.reshape(b * c, 1, h, w), margin).reshape(b, c, *_lengths(h, w, taps.shape[-1], margin))


def _lengths(h: int, w: int, side: int, margin: int) -> tuple[int, int]:
    return h + 2 * margin - side + 1, w + 2 * margin - side + 1


def halved(taps: Tensor, x: Tensor) -> Tensor:
    return filtered(taps, x, (taps.shape[-1] - 1) // 2)[:, :, ::2, ::2]


def doubled(taps: Tensor, x: Tensor) -> Tensor:
    """Zeros between the pixels, then the filter, four times as strong: [1,1] repeats pixels."""
    b, c, h, w = x.shape
    sparse = x.new_zeros(b, c, 2 * h, 2 * w)
    sparse[:, :, ::2, ::2] = x
    side = taps.shape[-1]
    out = filtered(4 * taps, sparse, side - 1)  # every place where filter and picture meet
    lead = (side - 1) // 2
    return out[:, :, lead : lead + 2 * h, lead : lead + 2 * w]


def conv(state: State, name: str, x: Tensor, change: str = "") -> Tensor:
    weight, taps = state[f"{name}.weight"], state.get(f"{name}.resample_filter")
    if change == "fused":  # convolve beyond the border, so that the filter needs no margin of its own
        margin = weight.shape[-1] // 2 + (taps.shape[-1] - 1) // 2
        out = filtered(taps, convolved(weight, x, margin), 0)[:, :, ::2, ::2]
    else:
        if change:
            x = {"up": doubled, "down": halved}[change](taps, x)
        out = convolved(weight, x, weight.shape[-1] // 2)
    return out + state[f"{name}.bias"][:, None, None]


def attended(state: State, name: str, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    mixed = conv(state, f"{name}.qkv", group_norm(state, f"{name}.norm2", x)).reshape(b, c, 3, h * w)
    query, key, value = mixed[:, :, 0], mixed[:, :, 1], mixed[:, :, 2]
    shares = torch.softmax(torch.einsum("bcq,bck->bqk", query, key) / math.sqrt(c), dim=-1)
    return conv(state, f"{name}.proj", torch.einsum("bqk,bck->bcq", shares, value).reshape(x.shape))


def block(state: State, name: str, x: Tensor, vector: Tensor) -> Tensor:
    change = name.rpartition("_")[2] if name.endswith(("_up", "_down")) else ""
    inner = conv(state, f"{name}.conv0", silu(group_norm(state, f"{name}.norm0", x)), change)
    inner = inner + dense(state, f"{name}.affine", vector)[:, :, None, None]
    inner = conv(state, f"{name}.conv1", silu(group_norm(state, f"{name}.norm1", inner)))
    outer = conv(state, f"{name}.skip", x, change) if f"{name}.skip.weight" in state else x
    out = (outer + inner) / math.sqrt(2)
    return (out + attended(state, name, out)) / math.sqrt(2) if f"{name}.qkv.weight" in state else out


def embedded(state: State, noise: Tensor, one_hot: Tensor | None, augment: Tensor | None) -> Tensor:
    if "map_noise.freqs" in state:
        frequencies = 2 * math.pi * state["map_noise.freqs"]
    else:
        half = state["map_layer0.weight"].shape[1] // 2
        frequencies = torch.tensor([10000 ** (-k / (half - 1)) for k in range(half)], dtype=noise.dtype)
    angles = torch.outer(noise, frequencies)
    vector = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    if one_hot is not None:
        vector = vector + dense(state, "map_label", one_hot * math.sqrt(one_hot.shape[1]))
    if augment is not None:
        vector = vector + dense(state, "map_augment", augment)
    return silu(dense(state, "map_layer1", silu(dense(state, "map_layer0", vector))))


def output(
    state: State, x: Tensor, noise: Tensor, one_hot: Tensor | None = None, augment: Tensor | None = None
) -> Tensor:
    """The raw output of a network with this state, for c_in * x and c_noise."""
    vector = embedded(state, noise, one_hot, augment)
    layers = list(
        dict.fromkeys(re.match(r"(enc|dec)\.[^.]+", name)[0] for name in state if name[:4] in ("enc.", "dec."))
    )
    hidden = image = x
    memory: list[Tensor] = []
    for name in layers:
        if name.startswith("enc") and name.endswith("_conv"):
            hidden = conv(state, name, hidden)
            memory.append(hidden)
        elif name.endswith("_aux_residual"):
            hidden = image = (hidden + conv(state, name, image, "fused")) / math.sqrt(2)
            memory[-1] = hidden
        elif name.endswith("_aux_norm"):
            hidden = silu(group_norm(state, name, hidden))
        elif name.endswith("_aux_conv"):
            hidden = conv(state, name, hidden)
        else:
            if name.startswith("dec") and "_block" in name:
                hidden = torch.cat([hidden, memory.pop()], dim=1)
            hidden = block(state, name, hidden, vector)
            memory += [hidden] if name.startswith("enc") else []
    return hidden
